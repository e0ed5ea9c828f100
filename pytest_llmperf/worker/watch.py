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
#: Meetings of one burst of `barrier`, and bytes of which torch gives a thread no fewer (at::internal::GRAIN_SIZE).
MEETINGS, GRAIN = 200, 32_768


def loop() -> None:
    """The canary's work."""
    value = 1
    for _ in range(ROUNDS):
        value = (value * 1103515245 + 12345) & 0x7FFFFFFF


def canary() -> float:
    """Seconds that a fixed small piece of work takes now: the best of a few bursts of about 2 ms.

    It shows what no counter does: a core that runs slower, because of its clock, or of somebody on its other hardware
    thread whom the hypervisor hides. That lasts, so the best burst is slow too, while a tick or an interrupt spoils one
    of them only. The loop of an interpreter keeps a core's front end busy, and so feels a neighbour there more than a
    kernel does, where a chain of dependent instructions (SHA-256) hardly feels him. It touches a few KiB, so that the
    caches keep what the sample needs, starts no threads, and is too short to heat anything.
    """
    best = float("inf")
    for _ in range(BURSTS):
        start = time.perf_counter()
        loop()
        best = min(best, time.perf_counter() - start)
    return best


def barrier() -> Barrier | None:
    """How soon torch's threads, given a trifle to do, meet again: the best of a few bursts of about 1 ms.

    Where CPUs share no cache, threads wait longer for one another, though each CPU alone is as fast as ever. A host may
    move a virtual machine's CPUs apart and together again, which changes every latency (`fitness.APART`). A CPU that a
    neighbour slows shows as well, whichever of them it is.

    An OpenMP runtime gives every thread that calls it a team of its own, and libgomp lets the waiting ones spin less
    when there are more of them than CPUs. So this is for the thread in which the engine computes: from another one it
    made continuous batching, in its manager's thread, 1.6 times slower.

    Returns:
        None where the worker has no threads of torch: its model is computed elsewhere, or on one.
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
    """Of torch's current device, whose index need not be that of the vendors' libraries; None if torch uses none."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():  # asking would take memory of a device that is used elsewhere
        return None
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    if not hasattr(found, "pci_domain_id"):
        return None
    return f"{found.pci_domain_id:04x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"


@dataclass(frozen=True)
class Before:
    """What was seen before a generation, and the processes whose CPU time is no other's."""

    processes: tuple[int, ...]
    snapshot: health.Snapshot
    canary: float
    barrier: Barrier | None
    gpu: gpu.Reading | None
    cost: float


class Watch:
    """Sees what else the machine does. The engine, if it uses an accelerator, is loaded.

    A look takes about 0.7 ms without an accelerator, a canary 6 ms and the threads' meetings 2 ms. What a look at an
    accelerator takes is the driver's affair, so that the cost is recorded with each sample.

    Args:
        processes: others whose CPU time is the engine's own: a server's, other ranks'.
        computes: whether what is measured computes in this thread, with torch's on a CPU.
    """

    def __init__(self, processes: Collection[int] = (), computes: bool = False) -> None:
        self._processes = tuple(processes)
        self._fastest = float("inf")
        self._barrier = barrier if computes else lambda: None
        address = pci_address()
        self._probe = gpu.probe(address) if address else None

    def _look(self) -> gpu.Reading | None:
        """The accelerator's state; unknown where a library answers in another shape. No figure is lost for that."""
        try:
            return self._probe.read() if self._probe else None
        except (AttributeError, LookupError, TypeError, ValueError):
            return None

    def begin(self, also: Collection[int] = ()) -> Before:
        """Look just before a generation; the counters last, so that no look is counted as the generation's.

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
        """Look just after it, and say what went on meanwhile; the counters first."""
        start = time.perf_counter()
        after = health.snapshot(before.processes)
        reading = self._look()
        cost = before.cost + time.perf_counter() - start
        used = health.contention(before.snapshot, after)
        canaries, met = (before.canary, canary()), self._barrier()
        self._fastest = min(self._fastest, *canaries)
        barriers = None if before.barrier is None or met is None else (before.barrier, met)
        throttled = None
        if after.throttled is not None and before.snapshot.throttled is not None:
            throttled = after.throttled - before.snapshot.throttled
        return Fitness(
            others=used.others,
            steal=used.steal,
            idle=used.idle,
            busiest=health.busiest(before.processes) if fitness.crowded(used) and used.others > used.steal else None,
            stalled=health.stalls(before.snapshot, after),
            megahertz=after.megahertz,
            throttled=throttled,
            canaries=canaries,
            fastest=self._fastest,
            barriers=barriers,
            gpu=gpu.during(before.gpu, reading) if before.gpu and reading else None,
            cost=cost,
        )
