"""Whether the machine was fit to be measured on during a sample: the record, and the decision. Pure.

A sample is contaminated for what is in its record, never for its figure: leaving out slow samples would make a slow
kernel look fast. No figure is rescaled by the record either: a canary is other work than the workload, so it would only
add noise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_llmperf.machine.gpu import Reading, Stranger
from pytest_llmperf.machine.health import Contention

#: A sample is contaminated if other processes and the hypervisor took more than this share of a core, and less than one
#: core was idle. A worker on a CPU uses every core, and a thread that comes late to a barrier makes the others wait.
CONTAMINATED = 0.25
#: A sample is contaminated if tasks stalled for memory, or all of them for a disk, in more than this share of it. That
#: would explain a slowdown of the smallest default tolerance against a baseline (5 %). Waiting for a CPU is recorded
#: and not judged, since a worker's own threads wait for each other.
STALLED = 0.05
#: The pressures that are judged. While a worker computes, not all tasks wait for a disk unless it does too.
JUDGED = ("some memory", "full io")
#: A sample is contaminated if the canaries before and after it were this many times slower than the process's fastest.
#: Measured in a virtual machine of 2 CPUs (AMD EPYC) in which nothing else ran (others 0.01 cores, steal 0.02): 80 % of
#: 490 canaries were slower than this, 1.8 times in the median and 2.2 at most. The core's other hardware thread was
#: taken, it seems. Minutes later (others 0.18) 64 % of 232 were within 1.2 of the fastest and 29 % at 1.5 to 1.9.
#: Between two slow canaries torch's matrix products took 9 to 22 % longer. One slow canary says little of a sample of a
#: second, since the state may change within 50 ms.
CANARY_SLOWER = 1.25
#: If threads take this many times as long to meet as before, their CPUs are further apart, or a neighbour slows one of
#: them. Measured in a virtual machine of 2 CPUs (AMD EPYC) 1,834 times: 2.9 to 3.7 us in one state, 4.3 to 6.5 in
#: the other, for seconds to minutes (`benchmarks.moved`).
APART = 1.25
#: A longer way between CPUs explains at most this many times as long.
FURTHEST = 3.0
#: A sample is contaminated if the clock was below this share of the highest one. 5 % is the slowdown that an
#: accelerator is allowed by default.
CLOCK_FELL = 0.95
#: Reasons for throttling that are normal for a card under a heavy load, so a baseline's samples have them too. They
#: contaminate a sample only if the clock fell as well.
NORMAL_UNDER_LOAD = ("SW power cap", "power limit", "a limit without a name")


@dataclass(frozen=True)
class Barrier:
    """How long threads take to meet, in seconds, and how many they are."""

    seconds: float
    threads: int


@dataclass(frozen=True)
class Fitness:
    """What else went on during one sample. What the system does not tell is None.

    Attributes:
        others, steal, idle: cores that other processes, the hypervisor and nobody used meanwhile.
        busiest: who used the most CPU just after it, as in ``4711 (python)``; asked only if others disturbed it.
        stalled: share of the time in which tasks waited, by ``some memory``, ``full io`` and so on.
        megahertz: mean clock of the usable CPUs just after it.
        throttled: how often a CPU was slowed down for its temperature meanwhile.
        stopped: how often the control group's CPU quota stopped its tasks meanwhile.
        canaries: seconds that the same small piece of work took just before it and just after it.
        fastest: the fewest seconds that it has taken in this process so far, in any workload.
        barriers: how long torch's threads took to meet just before it and just after it, on a CPU.
        gpu: what the accelerator said just after it.
        cost: seconds that all these readings took, outside the timed span.
    """

    others: float = 0.0
    steal: float = 0.0
    idle: float = 0.0
    busiest: str | None = None
    stalled: Mapping[str, float] | None = None
    megahertz: float | None = None
    throttled: int | None = None
    canaries: tuple[float, float] | None = None
    fastest: float | None = None
    barriers: tuple[Barrier, Barrier] | None = None
    gpu: Reading | None = None
    cost: float = 0.0
    stopped: int | None = None

    @property
    def over_quota(self) -> str | None:
        """How often the CPU quota stopped the worker, in a clause; None if it did not."""
        times = f"{self.stopped} time{'s' * (self.stopped != 1)}"
        return f"the CPU quota of its control group stopped it {times}" if self.stopped else None


def parse(record: Mapping[str, Any]) -> Fitness:
    """The record from plain JSON values, as a worker sends it."""
    gpu = record["gpu"]
    if gpu is not None:
        strangers = gpu["strangers"]
        gpu = Reading(
            **gpu
            | {
                "throttles": None if gpu["throttles"] is None else tuple(gpu["throttles"]),
                "strangers": None if strangers is None else tuple(Stranger(**one) for one in strangers),
            }
        )
    canaries = record["canaries"] and tuple(record["canaries"])
    barriers = record.get("barriers") and tuple(Barrier(**one) for one in record["barriers"])
    return Fitness(**{**record, "gpu": gpu, "canaries": canaries, "barriers": barriers})


def crowded(used: Contention) -> bool:
    """Whether others used so much CPU that a worker had to wait for it."""
    return used.others + used.steal > CONTAMINATED and used.idle < 1.0


def moved(now: Barrier | None, usual: Barrier | None) -> bool:
    """Whether the same number of threads meets so much later or sooner than before that the host moved their CPUs.

    A longer way between CPUs explains a factor of up to `FURTHEST`. A larger one, or another number of threads, comes
    from the code.
    """
    if now is None or usual is None or now.threads != usual.threads:
        return False
    return APART < max(now.seconds / usual.seconds, usual.seconds / now.seconds) <= FURTHEST


def culprit(
    record: Fitness, canary: float | None = None, barrier: float | None = None, clock: float | None = None
) -> str | None:
    """Why a sample is contaminated, in a clause that names the culprit; None if it is not.

    Args:
        record: the sample's.
        canary: the process's fastest canary, in seconds.
        barrier: the shortest time in which its threads met in these generations, in seconds.
        clock: the highest clock of the accelerator in these generations, in MHz.
    """
    if record.over_quota:
        return record.over_quota
    if crowded(Contention(record.others, record.steal, record.idle)):
        if record.steal > record.others:
            return f"the hypervisor took {record.steal:.1f} cores"
        return f"others used {record.others:.1f} cores" + (f", {record.busiest} most" if record.busiest else "")
    for name in JUDGED:
        if (share := (record.stalled or {}).get(name, 0.0)) > STALLED:
            return f"{name.split()[1]} pressure: stalled {share:.0%} of the time"
    if record.throttled:
        return f"the CPU was throttled for its temperature {record.throttled} times"
    if record.canaries and canary and (slower := min(record.canaries) / canary) > CANARY_SLOWER:
        return f"the canary was {slower:.1f} times slower"
    if record.barriers and barrier and (later := min(one.seconds for one in record.barriers) / barrier) > APART:
        return f"its threads took {later:.1f} times as long to meet"
    return _of_the_gpu(record.gpu, clock) if record.gpu is not None else None


def _of_the_gpu(gpu: Reading, clock: float | None) -> str | None:
    fell = gpu.clock is not None and clock is not None and gpu.clock < CLOCK_FELL * clock
    throttles = [why for why in gpu.throttles or () if fell or why not in NORMAL_UNDER_LOAD]
    if throttles:
        return f"the GPU was throttled: {', '.join(throttles)}"
    if fell:
        return f"the SM clock fell from {clock:.0f} to {gpu.clock:.0f} MHz"
    for one in gpu.strangers or ():
        memory = "" if one.memory is None else f" with {one.memory / 2**30:.1f} GiB"
        return f"process {one.pid} ({one.name}) is on the GPU{memory}"
    return None


def chief(found: Iterable[str | None]) -> str | None:
    """The culprit of most samples; of equals, the first. None if there is none."""
    counted = Counter(why for why in found if why is not None)
    return counted.most_common(1)[0][0] if counted else None


def culprits(records: Sequence[Fitness]) -> list[str | None]:
    """For each of a process's generations of one workload, why it is contaminated, or None.

    The fastest canary is the process's so far, since a neighbour may be there as long as the whole workload takes. The
    highest clock is that of these generations, since a heavier workload has a lower clock. The soonest meeting of
    threads is theirs too: if the CPUs were apart in all of them, they are compared with a baseline of that state. A
    later generation can show what was wrong with an earlier one.
    """
    sung = _least(seconds for one in records for seconds in (*(one.canaries or ()), one.fastest))
    met = _least(meeting.seconds for one in records for meeting in one.barriers or ())
    highest = max((one.gpu.clock for one in records if one.gpu and one.gpu.clock), default=None)
    return [culprit(record, sung, met, highest) for record in records]


def _least(seconds: Iterable[float | None]) -> float | None:
    return min((one for one in seconds if one is not None), default=None)
