"""The profile of a case: what a prefill and a decode step spend their time on. Pure.

A profiler makes a step longer, and the more so the more operators it has. So a profile says shares of a step, from
which the profiler's own time was taken. Times come from generations that were not profiled.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from pytest_llmperf.explain import names

#: The event that an engine leaves when it begins, and at the end of each step.
MARK = "pytest-llmperf step"
#: The steps that are told apart, and the metric of each.
PHASES = {"prefill": "ttft", "decode": "tpot"}
#: Rows that a stored phase has, at most, and the least share of time of one. Waits of the host always have one.
STORED, LEAST = 30, 0.003
#: Hexadecimal digits that tell one of the others from a name that is new; of 30 names it may be wrong in 1 of 100.
MARKED = 3


@dataclass(frozen=True)
class Event:
    """Something that a profiler recorded.

    Attributes:
        name: of an operator, a kernel or a call of the device's library.
        start, end: microseconds.
        thread: on which it ran; operators of one thread are nested.
        device: whether it is a kernel or a copy on the device.
    """

    name: str
    start: float
    end: float
    thread: int = 0
    device: bool = False


@dataclass(frozen=True)
class Row:
    """A kernel, or on a CPU an operator, in one step.

    Attributes:
        calls: how often, on average over the steps.
        share: of the step's time, in it and in nothing that it called.
        total: share of the step's time, in it and in all that it called; 0 where that is not known.
    """

    calls: float
    share: float
    total: float = 0.0


@dataclass(frozen=True)
class Phase:
    """One step: a prefill, or a decode step.

    Attributes:
        host: share of the step's time in no kernel or operator.
        rows: by whole name, where the engine says it, and by short one, where two phases are compared.
        counts: calls per step of what only the host does, where kernels run on a device.
        others: the `marks` of kernels that have no row. A stored phase has rows of the longest alone.
        rest: the share of these.
        kernels: whether the rows are kernels on a device.
        seconds: that the step takes.
    """

    host: float
    rows: Mapping[str, Row]
    counts: Mapping[str, float] = field(default_factory=dict)
    others: frozenset[str] = frozenset()
    rest: float = 0.0
    kernels: bool = False
    seconds: float = 0.0

    def knows(self, name: str) -> bool:
        """Whether a kernel was called, if only as one of those without a row."""
        return name in self.rows or mark(name) in self.others

    def short(self) -> Phase:
        """With short names, under which several kernels may be one row."""
        rows: dict[str, list[Row]] = defaultdict(list)
        for name, row in self.rows.items():
            rows[names.short(name)].append(row)
        counts: dict[str, float] = defaultdict(float)
        for name, calls in self.counts.items():
            counts[names.short(name)] += calls
        return Phase(
            self.host,
            {
                name: Row(*(sum(one) for one in zip(*((r.calls, r.share, r.total) for r in found), strict=True)))
                for name, found in rows.items()
            },
            dict(counts),
            self.others,
            self.rest,
            self.kernels,
            self.seconds,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: the rows with the largest shares first."""
        ranked = sorted(self.rows.items(), key=lambda item: (-item[1].share, item[0]))
        return {
            "seconds": self.seconds,
            "kernels": self.kernels,
            "host": round(self.host, 5),
            "rows": {name: [round(x, 5) for x in (row.calls, row.share, row.total)] for name, row in ranked},
            "counts": dict(sorted(self.counts.items())),
        }

    def stored(self) -> str:
        """The phase in one line of a baseline, with short names: time, shares and calls of a step, the largest first.

        Shares have two digits, so that unchanged code leaves most of the line as it was.
        """
        one = self.short()
        rows = {**one.rows, **{name: Row(calls, 0.0) for name, calls in one.counts.items()}}
        ranked = sorted(rows.items(), key=lambda item: (-_rounded(item[1].share), item[0]))
        kept = [
            (name, row)
            for number, (name, row) in enumerate(ranked)
            if (row.share >= LEAST and number < STORED) or names.of_the_host(name)
        ]
        left = rows.keys() - {name for name, _ in kept}
        marks = sorted({*map(mark, left), *one.others})
        share = sum(rows[name].share for name in left) + one.rest
        return "; ".join(
            [
                f"{one.seconds * 1e3:.3g} ms",
                f"{_percent(one.host)} host",
                *(f"{_percent(row.share)} {row.calls:.4g} {name}" for name, row in kept),
                f"{_percent(share)} {len(marks)} other {'kernels' if one.kernels else 'operators'} {''.join(marks)}",
            ]
        )

    @classmethod
    def from_stored(cls, text: str) -> Phase:
        """The inverse of `stored`, as far as that keeps it. Raises ValueError where it is not one."""
        try:
            first, host, *lines = text.split("; ")
            seconds, share = _number(first, " ms") / 1e3, _number(host, "% host") / 100
            *parsed, (last, rest) = map(_row, lines)
            others, kind, marks = last.split(" ")
            device = {"other operators": False, "other kernels": True}[f"{others} {kind}"]
        except (KeyError, ValueError):
            raise ValueError(f"{text!r} is no profile of a step") from None
        rows = {name: row for name, row in parsed if not (device and names.of_the_host(name))}
        counts = {name: row.calls for name, row in parsed if name not in rows}
        found = (marks[at : at + MARKED] for at in range(0, len(marks), MARKED))
        return cls(share, rows, counts, frozenset(found), rest.share, device, seconds)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Phase:
        """The inverse of `as_dict`. Raises KeyError, TypeError or ValueError where it is not one."""
        rows = {str(name): Row(*map(float, values)) for name, values in data["rows"].items()}
        counts = {str(name): float(calls) for name, calls in data["counts"].items()}
        return cls(float(data["host"]), rows, counts, kernels=bool(data["kernels"]), seconds=float(data["seconds"]))


def mark(name: str) -> str:
    """A few digits that stand for a name."""
    return hashlib.sha256(name.encode()).hexdigest()[:MARKED]


def _percent(share: float) -> str:
    return f"{_rounded(share):g}%"


def _rounded(share: float) -> float:
    """Percent with two digits, and at most two of them behind the point."""
    return float(f"{abs(round(share * 100, 2)):.2g}")


def _number(text: str, suffix: str) -> float:
    if not text.endswith(suffix):
        raise ValueError(f"{text!r} does not end with {suffix!r}")
    return float(text.removesuffix(suffix))


def _row(text: str) -> tuple[str, Row]:
    share, calls, name = text.split(" ", 2)
    return name, Row(float(calls), _number(share, "%") / 100)


Profile = Mapping[str, Phase]


def parse(data: Any) -> Profile:
    """The profile that an engine gave as plain values, by the names of `PHASES`; empty where it gave none.

    An engine of somebody else may give anything: what is no profile counts as none.
    """
    try:
        return {phase: Phase.from_dict(data[phase]) for phase in PHASES if phase in (data or {})}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def plain(profile: Profile) -> dict[str, Any]:
    """The inverse of `parse`."""
    return {phase: one.as_dict() for phase, one in profile.items()}


def of_events(events: Iterable[Event], overhead: float = 0.0) -> dict[str, Phase]:
    """The phases of one profiled generation.

    The first mark is where the prefill begins, and each further one where a step ends.

    Args:
        events: all of them, marks included, in any order.
        overhead: microseconds that the profiler took for each event of the host, outside of the event.
    """
    ordered = sorted(events, key=lambda one: (one.start, -one.end))
    marks = [one.start for one in ordered if one.name == MARK]
    device = any(one.device for one in ordered)
    steps: list[list[Event]] = [[] for _ in marks]
    for event in ordered:
        number = bisect_right(marks, event.start) - 1
        if 0 <= number < len(marks) - 1 and event.name != MARK:
            steps[number].append(event)
    walls = [end - start for start, end in pairwise(marks)]
    every = [(_on_device if device else _on_host)(*step, overhead) for step in zip(steps, walls, strict=False)]
    return {phase: _phase(found, device) for phase, found in zip(PHASES, (every[:1], every[1:]), strict=True) if found}


@dataclass
class _Step:
    """One step: microseconds in no kernel, calls and microseconds by name, and calls of what only the host does."""

    host: float
    calls: Counter[str]
    own: dict[str, float]
    total: dict[str, float]
    counts: Counter[str]


def _on_host(events: Sequence[Event], wall: float, overhead: float) -> _Step:
    """A step of a CPU, of operators in the order of their start."""
    calls, own, total = Counter[str](), defaultdict[str, float](float), defaultdict[str, float](float)
    stacks: dict[int, list[tuple[Event, str]]] = defaultdict(list)
    outermost = 0
    for event in events:
        stack = stacks[event.thread]
        while stack and stack[-1][0].end <= event.start:
            stack.pop()
        name, duration = names.stable(event.name), event.end - event.start
        calls[name] += 1
        own[name] += duration
        if stack:
            own[stack[-1][1]] -= duration + overhead
        else:
            outermost += 1
        if all(one != name for _, one in stack):  # of an operator that calls itself, the outer one
            total[name] += duration
        stack.append((event, name))
    covered = _covered(events)
    positive = _scaled(
        {name: max(0.0, took) for name, took in own.items()}, covered - overhead * (len(events) - outermost)
    )
    return _Step(max(0.0, wall - covered - outermost * overhead), calls, positive, total, Counter())


def _on_device(events: Sequence[Event], wall: float, overhead: float) -> _Step:
    """A step of an accelerator: rows are its kernels and copies, and the host's time is that in which none ran."""
    calls, taken, counts = Counter[str](), defaultdict[str, float](float), Counter[str]()
    for event in events:
        name = names.stable(event.name)
        if event.device:
            calls[name] += 1
            taken[name] += event.end - event.start
        elif names.of_the_host(event.name):
            counts[name] += 1
    busy = _covered([one for one in events if one.device])
    own = _scaled(taken, busy)
    # A host that keeps the device waiting is slower by what the profiler takes.
    host = max(0.0, wall - busy - sum(not one.device for one in events) * overhead)
    return _Step(host, calls, own, own, counts)


def _scaled(own: Mapping[str, float], most: float) -> dict[str, float]:
    """The times, made to add up to at most so much: what runs beside each other shares the time."""
    whole = sum(own.values())
    scale = most / whole if whole > most > 0 else 1.0
    return {name: took * scale for name, took in own.items()}


def _phase(steps: Sequence[_Step], device: bool) -> Phase:
    """The phase of one or several steps: of each time the least, since whatever disturbs a step makes it longer."""
    every = dict.fromkeys(name for step in steps for name in step.calls)
    host = min(step.host for step in steps)
    own = {name: min(step.own[name] for step in steps if step.calls[name]) for name in every}
    total = {name: min(step.total[name] for step in steps if step.calls[name]) for name in every}
    calls = {name: fmean(step.calls[name] for step in steps) for name in every}
    counts = {name: fmean(step.counts[name] for step in steps) for step in steps for name in step.counts}
    whole = host + sum(own.values())
    if whole <= 0:
        return Phase(1.0, {}, counts, kernels=device)
    rows = {name: Row(calls[name], own[name] / whole, total[name] / whole) for name in every}
    return Phase(host / whole, rows, counts, kernels=device, seconds=whole / 1e6)


def _covered(events: Sequence[Event]) -> float:
    """Microseconds in which at least one of the events ran; they are in the order of their start."""
    covered, until = 0.0, -float("inf")
    for event in events:
        if event.end > until:
            covered += event.end - max(event.start, until)
            until = event.end
    return covered


def typical(phases: Iterable[Phase | None]) -> Phase | None:
    """The same phase in several processes, of those that have it: of each figure the median; None of none."""
    found = [one for one in phases if one is not None]
    if len(found) < 2:
        return found[0] if found else None
    every = dict.fromkeys(name for one in found for name in one.rows)
    counted = dict.fromkeys(name for one in found for name in one.counts)
    host, rest = (median(share) for share in zip(*((one.host, one.rest) for one in found), strict=True))
    rows = {name: _median([one.rows.get(name, Row(0, 0)) for one in found]) for name in every}
    whole = host + rest + sum(row.share for row in rows.values()) or 1.0
    return Phase(
        host / whole,
        {name: Row(row.calls, row.share / whole, row.total / whole) for name, row in rows.items() if row.calls},
        {name: median(one.counts.get(name, 0.0) for one in found) for name in counted},
        frozenset().union(*(one.others for one in found)),
        rest / whole,
        all(one.kernels for one in found),
        median(one.seconds for one in found),
    )


def _median(rows: Sequence[Row]) -> Row:
    return Row(*(median(getattr(row, what) for row in rows) for what in ("calls", "share", "total")))


def together(profile: Profile, steps: int) -> Phase | None:
    """A whole generation with so many decode steps as one phase, its calls per step; None if a phase is missing."""
    if not all(phase in profile for phase in PHASES):
        return profile.get("prefill") if not steps else None
    weights = {"prefill": profile["prefill"].seconds, "decode": profile["decode"].seconds * steps}
    whole = sum(weights.values())
    if not whole:
        return None
    rows: dict[str, Row] = {}
    counts: dict[str, float] = defaultdict(float)
    host = rest = 0.0
    others: set[str] = set()
    for phase, beside, number in (("prefill", "decode", 1), ("decode", "prefill", steps)):
        one, other, weight = profile[phase], profile[beside], weights[phase] / whole
        host += one.host * weight
        rest += one.rest * weight
        others |= one.others
        for name, row in one.rows.items():
            if name not in other.rows and other.knows(name):  # its calls in the other phase are not known
                rest += row.share * weight
                others.add(mark(name))
                continue
            old = rows.get(name, Row(0, 0))
            calls = old.calls + row.calls * number / (steps + 1)
            rows[name] = Row(calls, old.share + row.share * weight, old.total + row.total * weight)
        for name, calls in one.counts.items():
            counts[name] += calls * number / (steps + 1)
    seconds = whole / (steps + 1)
    return Phase(host, rows, dict(counts), frozenset(others), rest, profile["decode"].kernels, seconds)


def of_metric(profile: Profile, metric: str, new_tokens: int) -> Phase | None:
    """The phase that a metric is of, with short names; None where the profile has none."""
    if metric == "latency":
        found = together(profile, new_tokens - 1)
    else:
        found = profile.get("prefill" if metric == "ttft" else "decode")
    return found.short() if found is not None else None
