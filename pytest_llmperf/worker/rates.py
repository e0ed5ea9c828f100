"""The machine's rates, measured: what it can multiply and read in a second, and how fast its host is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
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
#: Kernels between two synchronizations of an accelerator, whose rate is then that of the kernels.
BURST = 20
#: Bytes read at most to measure an accelerator's memory: more than its caches hold, and room beside a model.
LARGEST_READ = 2**30


def measure(device: str, dtype: str, buffer_bytes: int, roofs: bool = True, seconds: float = 0.3) -> dict[str, float]:
    """The machine's rates, by the names in `pytest_llmperf.machine.rates`.

    On a CPU the rates are measured again if its threads met later or sooner afterwards than before.

    Args:
        device: torch's device string.
        dtype: of the model.
        buffer_bytes: size of the model's weights.
        roofs: whether the rates of GEMM and memory are measured; a listed accelerator has a data sheet.
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
    """The best rate seen of GEMM in a type (FLOP/s); None if the machine shows none of that type."""
    found = _peak(device, dtype, seconds)
    _give_back(device)
    return found


def _give_back(device: str) -> None:
    """Give back what torch's allocator keeps of an accelerator's memory: an engine beside may need it."""
    if device != "cpu":
        torch.cuda.empty_cache()


def _peak(device: str, dtype: str, seconds: float) -> float | None:
    """As `peak`.

    The weights are laid out both ways: a CPU without instructions for a type may multiply one of them 17 times as fast
    as the other. A kernel may compute in another type: on a CPU in float32; an accelerator's float32 in TF32, which is
    no faster than float16. A product of integers that is no faster than float32's is one without the CPU's own
    instructions, and no roof. An accelerator's libraries refuse a layout that they have no kernel for.
    """
    side = 1024 if device == "cpu" else _side()
    best = partial(_best, amount=2.0 * side**3, device=device, seconds=seconds)
    if dtype == "int8":
        a, b = (torch.randint(-8, 8, (side, side), dtype=torch.int8, device=device) for _ in range(2))
        found = _best_of(best, partial(torch._int_mm, a, b), partial(torch._int_mm, a, b.T))
        floats = _peak(device, "float32", seconds) if device == "cpu" else 0.0
        return found if found is not None and floats is not None and found > floats else None
    if dtype == "fp8" and device != "cpu":
        one, products = torch.ones((), device=device), []
        for name in ("float8_e4m3fn", "float8_e4m3fnuz"):  # each generation multiplies one of them
            a, b = (torch.randn(side, side, device=device).to(getattr(torch, name)) for _ in range(2))
            multiply = partial(torch._scaled_mm, a, b.T, out_dtype=torch.bfloat16, use_fast_accum=True)
            products.append(partial(multiply, scale_a=one, scale_b=one))
        return _best_of(best, *products)
    if dtype not in WIDTHS:
        return None
    other = "float32" if device == "cpu" else "float16" if dtype == "float32" else dtype
    found = 0.0
    for kind in dict.fromkeys((dtype, other)):
        a, b = (torch.randn(side, side, dtype=getattr(torch, kind), device=device) for _ in range(2))
        found = max(found, best(partial(torch.matmul, a, b)), best(partial(torch.matmul, a, b.T)))
    return found


def _side() -> int:
    """The side of an accelerator's matrices: as large as three in float32 fit into half of its free memory."""
    free, _ = torch.cuda.mem_get_info()
    return next((side for side in (8192, 4096) if 3 * 4 * side**2 <= free / 2), 2048)


def _best_of(best: Callable[[Callable[[], Any]], float], *works: Callable[[], Any]) -> float | None:
    """The best rate of several pieces of work; None if the libraries refuse each of them."""
    found = []
    for work in works:
        with suppress(RuntimeError):
            found.append(best(work))
    return max(found, default=None)


def _best(work: Callable[[], Any], amount: float, device: str, seconds: float) -> float:
    """The best rate of a piece of work of some amount, per second.

    On an accelerator it is done once before it is timed, since the first call loads kernels, and then in bursts.
    """
    if device == "cpu":
        return amount / min(_timed(work, seconds))

    def burst() -> None:
        for _ in range(BURST):
            work()

    work()
    return BURST * amount / min(_timed(burst, seconds, torch.cuda.synchronize))


def _roofs(device: str, dtype: str, buffer_bytes: int, seconds: float) -> dict[str, float]:
    """The best rates seen of GEMM (FLOP/s) and memory reads (bytes/s).

    No kernel passes a roof, so the best of several kernels and repetitions counts.
    """
    flops = peak(device, dtype, seconds)
    assert flops is not None  # there is one of every type that a run may have
    bandwidth = _bandwidth(device, dtype, buffer_bytes, seconds)
    _give_back(device)
    return {"flops": flops, "bandwidth": bandwidth}


def _bandwidth(device: str, dtype: str, buffer_bytes: int, seconds: float) -> float:
    """The best rate seen of memory reads (bytes/s).

    The buffer is as large as the model's weights, which a decode step reads. If they fit a last-level cache, the
    cache's rate is the roof. On an accelerator it is no larger than `LARGEST_READ` or a quarter of the free memory,
    since engines have the rest.
    """
    if device != "cpu":
        buffer_bytes = min(buffer_bytes, LARGEST_READ, torch.cuda.mem_get_info()[0] // 4)
    kind = getattr(torch, dtype)
    best = partial(_best, device=device, seconds=seconds)
    rows = max(1, buffer_bytes // (4 * 4096))
    matrix = torch.randn(rows, 4096, device=device)
    vector = torch.randn(4096, device=device)
    half = matrix.to(kind)
    half_vector = vector.to(kind)
    size = float(matrix.numel() * matrix.element_size())
    return max(
        best(lambda: matrix @ vector, size),
        best(matrix.sum, size),
        best(lambda: half @ half_vector, float(half.numel() * half.element_size())),
    )
