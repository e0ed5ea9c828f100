"""What the kernel says of the machine while a sample is taken: others' CPU use, stalls, clocks, throttling."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_llmperf.machine.cgroup import Group, contents

#: Resources for which the kernel counts how long tasks wait (PSI).
RESOURCES = ("cpu", "memory", "io")


def usable_cpus() -> set[int]:
    """The CPUs that this process may use, by number."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


@dataclass(frozen=True)
class Snapshot:
    """Cumulative counters, in seconds where nothing else is said. What the system does not count is None.

    Attributes:
        wall: a monotonic clock.
        busy: CPU time that was not idle, over the CPUs that this process may use, steal excepted.
        steal: CPU time that the hypervisor gave to others.
        own: CPU time of this process, of its children that have ended, and of others that it counts as its own.
        cpus: how many CPUs this process may use; not a counter.
        stalled: time in which some or all tasks waited for a resource, by ``some memory``, ``full io`` and so on.
        throttled: how often a usable CPU was slowed down for its temperature.
        stopped: how often the control group's CPU quota has stopped its tasks until the next period.
        megahertz: mean clock of the usable CPUs; not a counter.
    """

    wall: float
    busy: float
    steal: float
    own: float
    cpus: int = 1
    stalled: Mapping[str, float] | None = None
    throttled: int | None = None
    megahertz: float | None = None
    stopped: int | None = None


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


def parse_pressure(resource: str, text: str) -> dict[str, float]:
    """Seconds stalled, by ``some <resource>`` and ``full <resource>``, from a pressure file (in microseconds)."""
    found = {}
    for kind, *fields in filter(None, map(str.split, text.splitlines())):
        total = dict(field.partition("=")[::2] for field in fields).get("total", "")
        if total.isdecimal():
            found[f"{kind} {resource}"] = int(total) / 1e6
    return found


def stalled(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> dict[str, float] | None:
    """Seconds stalled so far; None where the kernel does not account it.

    This process's own control group (version 2) counts, if it has the files. In a container, ``/proc`` has those of the
    whole host, and a neighbour who waits because of his own memory limit disturbs nobody.
    """
    lines = contents(proc / "self/cgroup").splitlines()
    group = next((line.removeprefix("0::").lstrip("/") for line in lines if line.startswith("0::")), "")
    found: dict[str, float] = {}
    for name in RESOURCES:
        own = contents(cgroups / group / f"{name}.pressure")
        found |= parse_pressure(name, own or contents(proc / "pressure" / name))
    return found or None


def megahertz(cpus: Collection[int], root: Path = Path("/sys/devices/system/cpu")) -> float | None:
    """Mean clock of those CPUs now; None where the kernel does not know it, as on most virtual machines."""
    texts = [contents(root / f"cpu{number}/cpufreq/scaling_cur_freq").strip() for number in cpus]
    known = [int(text) / 1e3 for text in texts if text.isdecimal()]
    return sum(known) / len(known) if known else None


def throttled(cpus: Collection[int], root: Path = Path("/sys/devices/system/cpu")) -> int | None:
    """How often one of those CPUs, or its package, was slowed down for its temperature; None where nobody counts."""
    files = [file for number in cpus for file in root.glob(f"cpu{number}/thermal_throttle/*_throttle_count")]
    counts = [int(text) for file in files if (text := contents(file).strip()).isdecimal()]
    return sum(counts) if counts else None


def snapshot(processes: Collection[int] = ()) -> Snapshot:
    """The counters now. The kernel counts in ticks, mostly of 10 ms, so differences are no more exact than that.

    Args:
        processes: other processes whose CPU time counts as this one's own.
    """
    cpus = usable_cpus()
    try:
        text = Path("/proc/stat").read_text()
        busy, steal = parse_stat(text, os.sysconf("SC_CLK_TCK"), cpus)
    except (OSError, ValueError):
        busy = steal = 0.0
    used = os.times()
    own = used.user + used.system + used.children_user + used.children_system
    own += sum(found.ticks for pid in processes if (found := process(pid))) / os.sysconf("SC_CLK_TCK")
    return Snapshot(
        wall=time.perf_counter(),
        busy=busy,
        steal=steal,
        own=own,
        cpus=len(cpus),
        stalled=stalled(),
        throttled=throttled(cpus),
        megahertz=megahertz(cpus),
        stopped=Group().stopped(),
    )


def grown(before: int | None, after: int | None) -> int | None:
    """By how much a counter grew; None where nobody counts."""
    return None if before is None or after is None else after - before


def contention(before: Snapshot, after: Snapshot) -> Contention:
    """What others took between two snapshots; never below 0. All 0 where the system has no ``/proc/stat``."""
    wall = after.wall - before.wall
    if wall <= 0:
        return Contention(0.0, 0.0)
    busy, steal = after.busy - before.busy, after.steal - before.steal
    others = busy - (after.own - before.own)
    idle = after.cpus - (busy + steal) / wall
    return Contention(max(0.0, others / wall), max(0.0, steal / wall), max(0.0, idle))


def stalls(before: Snapshot, after: Snapshot) -> dict[str, float] | None:
    """Share of the time between two snapshots in which tasks were stalled; None where the kernel does not say."""
    wall = after.wall - before.wall
    if before.stalled is None or after.stalled is None or wall <= 0:
        return None
    both = before.stalled.keys() & after.stalled.keys()
    return {name: max(0.0, after.stalled[name] - before.stalled[name]) / wall for name in sorted(both)}


@dataclass(frozen=True)
class Process:
    """A line of ``/proc/<pid>/stat``: whose it is, and the CPU time it has used, in ticks."""

    name: str
    parent: int
    session: int
    ticks: int


def parse_process(text: str) -> Process | None:
    """What ``/proc/<pid>/stat`` says; None if that is not what the text is.

    A name may hold blanks and parentheses, so the fields are counted from the last one that closes (proc(5)).
    """
    head, _, rest = text.rpartition(")")
    fields = rest.split()
    try:
        return Process(head.partition("(")[2], int(fields[1]), int(fields[3]), int(fields[11]) + int(fields[12]))
    except (IndexError, ValueError):
        return None


def process(pid: int, proc: Path = Path("/proc")) -> Process | None:
    """A process, or None if it cannot be seen from here."""
    return parse_process(contents(proc / str(pid) / "stat"))


def busiest(processes: Collection[int], seconds: float = 0.1, proc: Path = Path("/proc")) -> str | None:
    """Who uses the most CPU now, as in ``4711 (python)``, apart from this session and ``processes``; or None.

    Takes ``seconds``, and two looks at every process, so it is asked only after a sample that others disturbed.
    """

    def look() -> dict[int, Process]:
        pids = [int(entry.name) for entry in proc.iterdir() if entry.name.isdecimal()]
        return {
            pid: found
            for pid in pids
            if pid not in processes and (found := process(pid, proc)) and found.session != os.getsid(0)
        }

    try:
        before = look()
        time.sleep(seconds)
        after = look()
    except OSError:
        return None
    used = {pid: after[pid].ticks - before[pid].ticks for pid in before.keys() & after.keys()}
    most = max(used, key=lambda pid: (used[pid], -pid), default=None)
    return f"{most} ({after[most].name})" if most is not None and used[most] > 0 else None
