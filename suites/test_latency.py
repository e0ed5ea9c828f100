"""End to end: TTFT plus TPOT for every further token."""

from __future__ import annotations

from pytest_llmperf.fixtures import Perf


def test_latency(llm_perf: Perf) -> None:
    llm_perf.gate("latency")
