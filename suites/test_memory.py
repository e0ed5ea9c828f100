"""Memory: the peak of a generation, in bytes, beyond what was in use when the engine was ready."""

from __future__ import annotations

from pytest_llmperf.fixtures import Perf


def test_memory(llm_perf: Perf) -> None:
    llm_perf.gate("memory")
