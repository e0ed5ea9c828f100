"""What else used the machine while a sample was taken: other processes, and the hypervisor."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path


def usable_cpus() -> set[int]:
    """The CPUs that this process may use, by number."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


@dataclass(frozen=True)
class Snapshot:
    """Cumulative counters, in seconds.

    Attributes:
        wall: a monotonic clock.
        busy: CPU time that was not idle, over the CPUs that this process may use, steal excepted.
        steal: CPU time that the hypervisor gave to others.
        own: CPU time of this process and of its children that have ended.
        cpus: how many CPUs this process may use; not a counter.
    """

    wall: float
    busy: float
    steal: float
    own: float
    cpus: int = 1


@dataclass(frozen=True)
class Contention:
    """CPU time used meanwhile by others and by the hypervisor, and by nobody, in cores (1.0 = one whole core)."""

    others: float
    steal: float
    idle: float = 0.0


def parse_stat(text: str, ticks: int, cpus: Collection[int]) -> tuple[float, float]:
    """(busy, steal) of those CPUs, in seconds, from ``/proc/stat``; (0, 0) if they are not there.

    Only CPUs that this process may use count: a container sees the whole host's. The fields are user, nice, system,
    idle, iowait, irq, softirq, steal, guest and guest_nice, and the guests' time is in the first two (proc(5)).
    """
    names = {f"cpu{number}" for number in cpus}
    busy = stolen = 0.0
    for fields in map(str.split, text.splitlines()):
        if len(fields) >= 9 and fields[0] in names:
            user, nice, system, _idle, _iowait, irq, softirq, steal = (int(value) / ticks for value in fields[1:9])
            busy += user + nice + system + irq + softirq
            stolen += steal
    return busy, stolen


def snapshot() -> Snapshot:
    """Now. The kernel counts in ticks, of 10 ms mostly, so that differences are good to about that."""
    cpus = usable_cpus()
    try:
        text = Path("/proc/stat").read_text()
        busy, steal = parse_stat(text, os.sysconf("SC_CLK_TCK"), cpus)
    except (OSError, ValueError):
        busy = steal = 0.0
    used = os.times()
    own = used.user + used.system + used.children_user + used.children_system
    return Snapshot(time.perf_counter(), busy, steal, own, len(cpus))


def contention(before: Snapshot, after: Snapshot) -> Contention:
    """What others took between two snapshots; never below 0. All 0 where the system has no ``/proc/stat``."""
    wall = after.wall - before.wall
    if wall <= 0:
        return Contention(0.0, 0.0)
    busy, steal = after.busy - before.busy, after.steal - before.steal
    others = busy - (after.own - before.own)
    idle = after.cpus - (busy + steal) / wall
    return Contention(max(0.0, others / wall), max(0.0, steal / wall), max(0.0, idle))
