"""What ``pytest suites/`` leaves out: a start takes a process each. ``pytest suites/test_startup.py`` runs them."""

from __future__ import annotations

collect_ignore = ["test_startup.py"]
