"""The measured roofs: above what the model's own products reach, in every type, or right figures are impossible."""

from __future__ import annotations

import time

import pytest
import torch

from pytest_llmperf.worker.peaks import measure


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_linear_layer_does_not_pass_the_roof(dtype: str) -> None:
    kind = getattr(torch, dtype)
    x, weight = torch.randn(256, 576, dtype=kind), torch.randn(1536, 576, dtype=kind)
    best = 0.0
    for _ in range(20):
        start = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        best = max(best, 2 * 256 * 576 * 1536 / (time.perf_counter() - start))
    # By how much a neighbour can slow one of the two down meanwhile is open; one layout was 17 times too slow.
    assert measure("cpu", dtype, 2**22, seconds=0.2)["flops"] > best / 3


@pytest.mark.skipif(torch.get_num_threads() < 2, reason="one thread meets no other")
def test_a_cpus_rates_say_how_soon_its_threads_met() -> None:
    found = measure("cpu", "bfloat16", 2**20, seconds=0.01)
    assert 1e3 < found[f"meetings {torch.get_num_threads()}"] < 1e7
