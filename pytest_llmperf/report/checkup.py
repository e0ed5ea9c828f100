"""What ``pytest --llm-doctor`` prints: whether this machine is fit to measure on."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pytest_llmperf import folders
from pytest_llmperf.backends.registry import Registry
from pytest_llmperf.machine import facts
from pytest_llmperf.machine.doctor import LEVELS, Finding
from pytest_llmperf.plan import Plan
from pytest_llmperf.report.listing import table
from pytest_llmperf.settings import Settings


def take(settings: Settings, registry: Registry, root: Path) -> list[Finding]:
    """What there is to say of the machine for a run of these settings.

    Raises:
        UnusableError: there can be no such run.
    """
    scope = Plan(settings, registry, folders.cache().folder, root)
    need = scope.need
    return facts.findings(scope.device, lambda: need)


def bad(found: Sequence[Finding]) -> bool:
    return any(one.level == "bad" for one in found)


def lines(found: Sequence[Finding]) -> list[str]:
    """A table, the worst first, and how many there are of each level."""
    ranked = sorted(found, key=lambda one: LEVELS.index(one.level))
    rows = [(one.level, one.subject, one.seen, one.why, one.remedy or "-") for one in ranked]
    counted = Counter(one.level for one in found)
    width = max(100, shutil.get_terminal_size((160, 24)).columns)
    return [
        *table(("", "what", "seen", "why it matters", "what to do"), rows, width),
        "",
        ", ".join(f"{counted[level]} {level}" for level in LEVELS if counted[level]),
    ]
