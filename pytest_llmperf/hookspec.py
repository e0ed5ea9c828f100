"""The hooks that a suite's ``conftest.py`` may implement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llmperf.backends.base import Backend
    from pytest_llmperf.variants import Variant


@pytest.hookspec
def pytest_llmperf_backends() -> Sequence[Backend]:  # type: ignore[empty-body]
    """Return the backends that this suite adds; each is then known to ``--llm-backends`` by its name."""


@pytest.hookspec
def pytest_llmperf_variants() -> Sequence[Variant]:  # type: ignore[empty-body]
    """Return variants of backends, each with a name, as lines of ``llm_variants`` state them."""
