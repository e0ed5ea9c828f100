"""The machine's rates, measured: what it can multiply and read in a second, and how fast its host is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch

from pytest_llmperf.backends.base import WIDTHS
from pytest_llmperf.machine import fitness
from pytest_llmperf.worker.watch import ROUNDS, barrier, loop

#: How often all rates are measured at most. They are measured again if the host moved the CPUs meanwhile.
ATTEMPTS = 3
#: Kernel launches of one burst. They are fewer than a stream holds, so the loop waits for the host alone.
LAUNCHES = 500


def measure(device: str, dtype: str, buffer_bytes: int, roofs: bool = True, seconds: float = 0.3) -> dict[str, float]:
    """The machine's rates, by the names in `pytest_llmperf.machine.rates`.

    On a CPU the rates are measured again if its threads met later or sooner afterwards than before.

    Args:
        device: torch's device string.
        dtype: of the model.
        buffer_bytes: size of the model's weights.
        roofs: whether the rates of GEMM and memory are measured; a known accelerator has a data sheet.
        seconds: how long each kernel is repeated.
    """
    for _ in range(ATTEMPTS):
        met = barrier() if device == "cpu" else None
        found = {**(_roofs(device, dtype, buffer_bytes, seconds) if roofs else {}), **_host(device, seconds)}
        again = barrier() if device == "cpu" else None
        if not fitness.moved(met, again):
            break
    if met and again:
        found[f"meetings {met.threads}"] = 1 / min(met.seconds, again.seconds)
    return found


def _host(device: str, seconds: float) -> dict[str, float]:
    """The interpreter's rate; on an accelerator also kernel launches and tokens to the host, for which decode waits.

    Each rate is the median. The best one would not show a neighbour on a core's other hardware thread, who leaves gaps.
    """
    found = {f"interpreter {sys.implementation.cache_tag}": ROUNDS / median(_timed(loop, seconds))}
    if device != "cpu":
        token = torch.zeros(1, dtype=torch.int64, device=device)

        def launch() -> None:
            for _ in range(LAUNCHES):
                token.add_(1)

        def bring() -> None:
            token.add_(1)
            token.item()

        found["launches"] = LAUNCHES / median(_timed(launch, seconds, torch.cuda.synchronize))
        found["to host"] = 1 / median(_timed(bring, seconds))
    return found


def _timed(work: Callable[[], Any], seconds: float, synchronize: Callable[[], Any] = lambda: None) -> list[float]:
    """Repeat the work for some seconds, at least once. Returns the seconds that each repetition took."""
    took, until = [], time.perf_counter() + seconds
    while True:
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        stop = time.perf_counter()
        took.append(stop - start)
        if stop > until:
            return took


def peak(device: str, dtype: str, seconds: float = 0.3) -> float | None:
    """The best rate seen of GEMM in a type (FLOP/s); None if the machine shows none of that type.

    The weights are laid out both ways: a CPU without instructions for a type may multiply one of them 17 times as fast
    as the other. Float32 is tried too, since a kernel may compute in it. A product of integers that is no faster than
    float32's is one without the CPU's own instructions, and no roof.
    """
    side = 8192 if device != "cpu" else 1024
    best = partial(_best, amount=2.0 * side**3, device=device, seconds=seconds)
    if dtype == "int8":
        a, b = (torch.randint(-8, 8, (side, side), dtype=torch.int8, device=device) for _ in range(2))
        products = [partial(torch._int_mm, a, b), partial(torch._int_mm, a, b.T)]
        found, floats = max(map(best, products)), peak(device, "float32", seconds)
        return found if floats is not None and found > floats else None
    if dtype not in WIDTHS:
        return None
    found = 0.0
    for kind in dict.fromkeys((dtype, "float32")):
        a, b = (torch.randn(side, side, dtype=getattr(torch, kind), device=device) for _ in range(2))
        found = max(found, best(partial(torch.matmul, a, b)), best(partial(torch.matmul, a, b.T)))
    return found


def _best(work: Callable[[], Any], amount: float, device: str, seconds: float) -> float:
    """The best rate of a piece of work of some amount, per second."""
    synchronize: Callable[[], Any] = torch.cuda.synchronize if device != "cpu" else (lambda: None)
    return amount / min(_timed(work, seconds, synchronize))


def _roofs(device: str, dtype: str, buffer_bytes: int, seconds: float) -> dict[str, float]:
    """The best rates seen of GEMM (FLOP/s) and memory reads (bytes/s).

    No kernel passes a roof, so the best of several kernels and repetitions counts. The memory buffer is as large as the
    model's weights, which a decode step reads. If they fit a last-level cache, the cache's rate is the roof.
    """
    kind = getattr(torch, dtype)
    best = partial(_best, device=device, seconds=seconds)
    flops = peak(device, dtype, seconds)
    assert flops is not None  # there is one of every type that a run may have
    rows = max(1, buffer_bytes // (4 * 4096))
    matrix = torch.randn(rows, 4096, device=device)
    vector = torch.randn(4096, device=device)
    half = matrix.to(kind)
    half_vector = vector.to(kind)
    size = float(matrix.numel() * matrix.element_size())
    bandwidth = max(
        best(lambda: matrix @ vector, size),
        best(matrix.sum, size),
        best(lambda: half @ half_vector, float(half.numel() * half.element_size())),
    )
    return {"flops": flops, "bandwidth": bandwidth}
