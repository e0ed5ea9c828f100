"""How fast the machine is: the names of its rates, and whether it is in the state of another time.

A rate is measured at the start of a run (`pytest_llmperf.worker.rates`), and stored with a baseline:

- ``flops``: GEMM FLOP/s, and ``bandwidth``: bytes/s read from memory. Not where the device has a data sheet.
- ``interpreter ...``: rounds/s of a loop in Python, named after the interpreter.
- ``meetings N``: how often per second N threads of torch meet, on a CPU.
- ``launches``: kernel launches/s from Python, and ``to host``: tokens/s brought to the host one by one. On an
  accelerator; decode of a small batch waits for both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_llmperf.machine import fitness
from pytest_llmperf.machine.fingerprint import Fingerprint
from pytest_llmperf.machine.fitness import Barrier

#: A rate that differs by more than this fraction is of another state of the machine.
SAME = 0.15
#: How often the rates are measured before the machine is said to be in another state: one look may be disturbed.
LOOKS = 3
#: How a rate is called, by the first word of its name.
TITLES = {
    "flops": "GEMM rate",
    "bandwidth": "memory bandwidth",
    "interpreter": "interpreter",
    "launches": "rate of kernel launches",
    "to": "rate of bringing tokens to the host",
}
#: How a limit of workers is called, by its name, with its value.
LIMITS: dict[str, Callable[[Any], str]] = {
    "threads": lambda value: f"{value} thread{'s' * (value != 1)}",
    "quota": lambda value: f"{value:.3g} CPUs' worth of time",
}


def difference(now: Mapping[str, float], recorded: Mapping[str, float]) -> str | None:
    """How the machine's rates differ from the recorded ones, in a clause about the first that does; None if none does.

    Args:
        now: the rates of this run, by name.
        recorded: those of a sitting. A rate that only one of them has says nothing.
    """
    for name in sorted(now.keys() & recorded.keys(), key=lambda name: (not name.startswith("meetings"), name)):
        kind = name.split()[0]
        if kind == "meetings":
            if not 1 / fitness.APART <= now[name] / recorded[name] <= fitness.APART:
                return _met(recorded[name] / now[name])
        elif kind in TITLES and not 1 - SAME <= now[name] / recorded[name] <= 1 / (1 - SAME):
            change = now[name] / recorded[name] - 1
            return f"its {TITLES[kind]} is {abs(change):.0%} {'above' if change > 0 else 'below'} the recorded one"
    return None


def moved(now: Barrier | None, recorded: Barrier | None) -> str | None:
    """Whether threads take so much longer or shorter to meet that the CPUs are others; a clause, or None."""
    if now is None or recorded is None or not fitness.moved(now, recorded):
        return None
    return _met(now.seconds / recorded.seconds)


def other_limits(now: Mapping[str, Any], recorded: Mapping[str, Any]) -> str | None:
    """What workers are given that is other than when they were recorded, in a clause about the first; None if nothing.

    Args:
        now: the engine's ``threads``, and what `fingerprint.limits` says. What is missing or None is not known.
        recorded: likewise, of a sitting.
    """
    for name, title in LIMITS.items():
        mine, theirs = now.get(name), recorded.get(name)
        if None not in (mine, theirs) and mine != theirs:
            return f"recorded with {title(theirs)}, and this run has {title(mine)}"
    mine, theirs = now.get("variables"), recorded.get("variables")
    if mine is None or theirs is None:
        return None
    for name in sorted(mine.keys() | theirs.keys()):
        # How many threads there are is known better.
        if mine.get(name) != theirs.get(name) and not name.endswith("_NUM_THREADS"):
            shown = [f"{name}={of[name]}" if name in of else f"no {name}" for of in (theirs, mine)]
            return f"recorded with {shown[0]}, and this run has {shown[1]}"
    return None


def _met(times: float) -> str:
    return f"its threads take {times:.1f} times as long to meet as recorded (the host moved its CPUs, it seems)"


@dataclass
class Machine:
    """A machine: what identifies it, and its rates, measured when they are first asked for.

    Attributes:
        fingerprint: what identifies it.
        measure: measures its rates now.
        limits: what its workers are given, as `fingerprint.limits` says.
        looks: the rates, one for each time that they were measured.
    """

    fingerprint: Fingerprint
    measure: Callable[[], Mapping[str, float]]
    limits: Mapping[str, Any] = field(default_factory=dict)
    looks: list[Mapping[str, float]] = field(default_factory=list)

    @property
    def limited(self) -> list[str]:
        """What workers are given that is not this machine's default, as in ``OMP_NUM_THREADS=1``."""
        quota = self.limits.get("quota", math.inf)
        less = [LIMITS["quota"](quota)] if quota < self.fingerprint.cpus else []
        return less + [f"{name}={value}" for name, value in self.limits.get("variables", {}).items()]

    @property
    def rates(self) -> Mapping[str, float]:
        """The rates as first measured."""
        if not self.looks:
            self.looks.append(self.measure())
        return self.looks[0]

    def differs(self, recorded: Mapping[str, float]) -> str | None:
        """How the machine's state differs from the recorded one in each of up to `LOOKS` looks; None if one agrees."""
        said = None
        for number in range(LOOKS):
            if number == len(self.looks):
                self.looks.append(self.measure())
            said = difference(self.looks[number], recorded)
            if said is None:
                return None
        return said
