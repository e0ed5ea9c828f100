"""Prefill: from submitting the batch to the first token of a request, mean over the batch."""

from __future__ import annotations

from pytest_llmperf.fixtures import Perf


def test_prefill(llm_perf: Perf) -> None:
    llm_perf.gate("ttft")
