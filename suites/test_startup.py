"""Starts: from the launch of a process to the first token of an engine that has compiled. Run by its name alone."""

from __future__ import annotations

import pytest

from pytest_llmperf.fixtures import Perf

#: How long a start takes hardly depends on the batch.
pytestmark = pytest.mark.llm(batch_sizes=[1])


def test_cold_start(llm_perf: Perf) -> None:
    """Nothing of an earlier process is in the caches of compiled and tuned kernels."""
    llm_perf.gate("cold-start")


def test_warm_start(llm_perf: Perf) -> None:
    """Another process has filled the caches."""
    llm_perf.gate("warm-start")
