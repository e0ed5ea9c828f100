"""The measured roofs: above what the model's own products reach, in every type, or right figures are impossible."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from pytest_llmperf.worker.rates import measure


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


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_a_cpus_rates_say_how_soon_its_threads_met() -> None:
    with threads(2):
        found = measure("cpu", "bfloat16", 2**20, seconds=0.01)
    assert 1 < found["meetings 2"] < 1e7, "a thread that has no CPU of its own waits for one"


def test_one_thread_meets_no_other() -> None:
    with threads(1):
        found = measure("cpu", "bfloat16", 2**20, seconds=0.01)
    assert found.keys() == {"flops", "bandwidth", f"interpreter {sys.implementation.cache_tag}"}
