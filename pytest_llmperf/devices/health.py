"""What else used the machine while a sample was taken: other processes, and the hypervisor."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Snapshot:
    """Cumulative counters, in seconds.

    Attributes:
        wall: a monotonic clock.
        busy: CPU time of the whole machine that was not idle, over all CPUs, steal excepted.
        steal: CPU time that the hypervisor gave to others.
        own: CPU time of this process and of its children that have ended.
    """

    wall: float
    busy: float
    steal: float
    own: float


@dataclass(frozen=True)
class Contention:
    """CPU time used meanwhile by others and by the hypervisor, in cores (1.0 = one whole core all the time)."""

    others: float
    steal: float


def parse_stat(text: str, ticks: int) -> tuple[float, float]:
    """(busy, steal) in seconds from the first line of ``/proc/stat``; (0, 0) if it is not there.

    The fields are user, nice, system, idle, iowait, irq, softirq, steal, guest and guest_nice, and the guests' time is
    in the first two already (proc(5)).
    """
    first = text.partition("\n")[0].split()
    if len(first) < 9 or first[0] != "cpu":
        return 0.0, 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(value) / ticks for value in first[1:9])
    return user + nice + system + irq + softirq, steal


def snapshot() -> Snapshot:
    """Now. The kernel counts in ticks, of 10 ms mostly, so that differences are good to about that."""
    try:
        text = Path("/proc/stat").read_text()
        busy, steal = parse_stat(text, os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError):
        busy = steal = 0.0
    used = os.times()
    return Snapshot(
        time.perf_counter(), busy, steal, used.user + used.system + used.children_user + used.children_system
    )


def contention(before: Snapshot, after: Snapshot) -> Contention:
    """What others took between two snapshots; never below 0. All 0 where the system has no ``/proc/stat``."""
    wall = after.wall - before.wall
    if wall <= 0:
        return Contention(0.0, 0.0)
    others = (after.busy - before.busy) - (after.own - before.own)
    return Contention(max(0.0, others / wall), max(0.0, (after.steal - before.steal) / wall))
