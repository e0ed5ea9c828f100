"""Watches the machine around a generation, in the worker. Nothing here runs inside the timed span."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pytest_llmperf.machine import fitness, gpu, health
from pytest_llmperf.machine.fitness import Barrier, Fitness

#: Rounds of one burst of the canary, and bursts; see `canary`.
ROUNDS, BURSTS = 20_000, 3
#: Meetings of one burst of `barrier`, and the fewest bytes that torch gives a thread (at::internal::GRAIN_SIZE).
MEETINGS, GRAIN = 200, 32_768


def loop() -> None:
    """The canary's work."""
    value = 1
    for _ in range(ROUNDS):
        value = (value * 1103515245 + 12345) & 0x7FFFFFFF


def canary() -> float:
    """Seconds that a fixed small piece of work takes now: the best of a few bursts of about 2 ms.

    It shows a slow core, which no counter does: its clock fell, or a neighbour that the hypervisor hides uses its other
    hardware thread. That lasts, so the best burst is slow too. A tick or an interrupt spoils only one burst.

    A loop of the interpreter keeps a core's front end busy. So a neighbour slows it more than a kernel, while a chain
    of dependent instructions (SHA-256) would hardly be slower. The loop touches a few KiB, so the caches keep what the
    sample needs. It starts no threads, and is too short to heat anything.
    """
    best = float("inf")
    for _ in range(BURSTS):
        start = time.perf_counter()
        loop()
        best = min(best, time.perf_counter() - start)
    return best


def barrier() -> Barrier | None:
    """How long torch's threads take to meet after a tiny piece of work: the best of a few bursts of about 1 ms.

    If CPUs share no cache, threads wait longer for one another, though each CPU alone is as fast as ever. A host may
    move a virtual machine's CPUs apart and together again, which changes every latency (`fitness.APART`). The time also
    shows if a neighbour slows any one of the CPUs.

    Call this in the thread in which the engine computes. An OpenMP runtime gives every thread that calls it a team of
    its own, and libgomp lets waiting threads spin less when there are more of them than CPUs. Called in another thread,
    this made continuous batching 1.6 times slower, which computes in its manager's thread.

    Returns:
        None if torch has no threads here: the model is computed elsewhere, or by one thread.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None or (threads := torch.get_num_threads()) < 2:
        return None
    data = torch.zeros(GRAIN * threads, dtype=torch.uint8, device="cpu")
    best = float("inf")
    for _ in range(BURSTS):
        start = time.perf_counter()
        for _ in range(MEETINGS):
            data.add_(1)
        best = min(best, (time.perf_counter() - start) / MEETINGS)
    return Barrier(best, threads)


def pci_address() -> str | None:
    """The address of torch's current device, since vendors' libraries may count otherwise; None if torch uses none."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():  # asking would take memory of a device that is used elsewhere
        return None
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    if not hasattr(found, "pci_domain_id"):
        return None
    return f"{found.pci_domain_id:04x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"


@dataclass(frozen=True)
class Before:
    """What was seen before a generation, and the processes whose CPU time counts as the engine's."""

    processes: tuple[int, ...]
    snapshot: health.Snapshot
    canary: float
    barrier: Barrier | None
    gpu: gpu.Reading | None
    cost: float


class Watch:
    """Sees what else the machine does. Make it when the engine is loaded, if that uses an accelerator.

    A look takes about 0.7 ms without an accelerator, a canary 6 ms and the threads' meetings 2 ms. A look at an
    accelerator takes as long as its driver needs, so each sample records the cost.

    Args:
        processes: other processes of the engine, whose CPU time counts as its own: a server, other ranks.
        computes: whether the engine computes in this thread, on a CPU with torch's threads.
    """

    def __init__(self, processes: Collection[int] = (), computes: bool = False) -> None:
        self._processes = tuple(processes)
        self._fastest = float("inf")
        self._barrier = barrier if computes else lambda: None
        address = pci_address()
        self._probe = gpu.probe(address) if address else None

    def _look(self) -> gpu.Reading | None:
        """The accelerator's state; None if a library answers in an unknown form: no figure is lost for that."""
        try:
            return self._probe.read() if self._probe else None
        except (AttributeError, LookupError, TypeError, ValueError):
            return None

    def begin(self, also: Collection[int] = ()) -> Before:
        """Look just before a generation. The counters come last, so no look is counted as the generation's.

        Args:
            also: further processes that count as the engine's own, in this generation.
        """
        processes = (*self._processes, *also)
        start = time.perf_counter()
        reading = self._look()
        looked = time.perf_counter() - start
        sung, met = canary(), self._barrier()
        start = time.perf_counter()
        return Before(processes, health.snapshot(processes), sung, met, reading, looked + time.perf_counter() - start)

    def end(self, before: Before) -> Fitness:
        """Look just after it, and say what went on meanwhile. The counters come first."""
        start = time.perf_counter()
        after = health.snapshot(before.processes)
        reading = self._look()
        cost = before.cost + time.perf_counter() - start
        used = health.contention(before.snapshot, after)
        canaries, met = (before.canary, canary()), self._barrier()
        self._fastest = min(self._fastest, *canaries)
        barriers = None if before.barrier is None or met is None else (before.barrier, met)
        return Fitness(
            others=used.others,
            steal=used.steal,
            idle=used.idle,
            busiest=health.busiest(before.processes) if fitness.crowded(used) and used.others > used.steal else None,
            stalled=health.stalls(before.snapshot, after),
            megahertz=after.megahertz,
            throttled=health.grown(before.snapshot.throttled, after.throttled),
            stopped=health.grown(before.snapshot.stopped, after.stopped),
            canaries=canaries,
            fastest=self._fastest,
            barriers=barriers,
            gpu=gpu.during(before.gpu, reading) if before.gpu and reading else None,
            cost=cost,
        )
