"""The machine's roofs, measured: what it can multiply and read in a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from pytest_llmperf.machine import fitness
from pytest_llmperf.worker.watch import ROUNDS, barrier, loop

#: How often all is measured again where the host moved the CPUs meanwhile: rates of two states are those of none.
ATTEMPTS = 3


def measure(device: str, dtype: str, buffer_bytes: int, seconds: float = 0.3) -> dict[str, float]:
    """The best rates seen of GEMM (FLOP/s) and memory reads (bytes/s), and the interpreter's usual one (rounds/s).

    On a CPU also how often its threads can meet (1/s), named after how many they are: on CPUs that the host moved apart
    that is less often, and memory may be read twice as fast.

    A roof is what no kernel passes, so the best of several kernels and repetitions counts. The weights are laid out
    both ways, since a CPU without instructions for a type may multiply one of them 17 times as fast as the other; and
    float32 is tried beside the type asked for, which a kernel may well compute in. The memory buffer is as large as
    the model's weights, since a decode step reads those: where they fit a last-level cache, that is the honest roof.
    The interpreter's rate, of the canary's loop, is no roof: it is there to tell whether the machine is in the state
    that it was in. A neighbour on a core's other hardware thread, whom the hypervisor hides, leaves gaps in which the
    best rates are as ever, so the median counts. It is named after the interpreter, since another one has another rate.

    Args:
        device: torch's device string.
        dtype: of the model.
        buffer_bytes: size of the model's weights.
        seconds: how long each kernel is repeated.
    """
    for _ in range(ATTEMPTS):
        met = barrier() if device == "cpu" else None
        found = _rates(device, dtype, buffer_bytes, seconds)
        again = barrier() if device == "cpu" else None
        if not fitness.moved(met, again):
            break
    if met and again:
        found[f"meetings {met.threads}"] = 1 / min(met.seconds, again.seconds)
    return found


def _rates(device: str, dtype: str, buffer_bytes: int, seconds: float) -> dict[str, float]:
    """What `measure` says, but for how often threads meet."""
    kind = getattr(torch, dtype)
    synchronize: Callable[[], Any] = torch.cuda.synchronize if device != "cpu" else (lambda: None)

    def timed(work: Any) -> list[float]:
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

    def best(work: Any, amount: float) -> float:
        return amount / min(timed(work))

    side = 8192 if device != "cpu" else 1024
    flops = 0.0
    for one in dict.fromkeys((kind, torch.float32)):
        a, b = (torch.randn(side, side, dtype=one, device=device) for _ in range(2))
        flops = max(flops, best(lambda a=a, b=b: a @ b, 2.0 * side**3), best(lambda a=a, b=b: a @ b.T, 2.0 * side**3))
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
    interpreter = f"interpreter {sys.implementation.cache_tag}"
    return {"flops": flops, "bandwidth": bandwidth, interpreter: ROUNDS / median(timed(loop))}
