"""The profile of a case: what a prefill and a decode step spend their time on. Pure.

A profiler makes a step longer, and the more so the more operators it has. So a profile says shares of a step, from
which the profiler's own time was taken. Times come from generations that were not profiled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from pytest_llmperf.explain import names

#: The event that an engine leaves when it begins, and at the end of each step.
MARK = "pytest-llmperf step"
#: The steps that are told apart, and the metric of each.
PHASES = {"prefill": "ttft", "decode": "tpot"}
#: Rows that a stored phase has, at most, and the least share of time of one. Waits of the host always have one.
STORED, LEAST = 30, 0.005


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
        rest: of kernels that have no row: how many, and their share. A stored phase has rows of the longest alone.
        kernels: whether the rows are kernels on a device.
        seconds: that the step takes.
    """

    host: float
    rows: Mapping[str, Row]
    counts: Mapping[str, float] = field(default_factory=dict)
    rest: tuple[int, float] = (0, 0.0)
    kernels: bool = False
    seconds: float = 0.0

    @property
    def least(self) -> float:
        """The share of time below which a kernel may have no row."""
        return min((row.share for row in self.rows.values()), default=0.0) if self.rest[0] else 0.0

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
        rows = one.rows | {name: Row(calls, 0.0) for name, calls in one.counts.items()}
        ranked = sorted(rows.items(), key=lambda item: (-item[1].share, item[0]))
        kept = [
            (name, row)
            for number, (name, row) in enumerate(ranked)
            if (row.share >= LEAST and number < STORED) or names.of_the_host(name)
        ]
        left = len(rows) - len(kept)
        share = max(0.0, 1 - one.host - sum(row.share for _, row in kept))
        return "; ".join(
            [
                f"{one.seconds * 1e3:.3g} ms",
                f"{_percent(one.host)} host",
                *(f"{_percent(row.share)} {row.calls:.4g} {name}" for name, row in kept),
                f"{_percent(share)} {left} {'others on the device' if one.kernels else 'others'}",
            ]
        )

    @classmethod
    def from_stored(cls, text: str) -> Phase:
        """The inverse of `stored`, as far as that keeps it. Raises ValueError where it is not one."""
        first, host, *rows, rest = text.split("; ")
        seconds, share = (_number(one, suffix) for one, suffix in ((first, " ms"), (host, "% host")))
        parsed = [_row(one) for one in (*rows, rest)]
        others, row = parsed.pop()
        if others not in ("others", "others on the device"):
            raise ValueError(f"{text!r} does not end with the others")
        device = others != "others"
        found = {name: one for name, one in parsed if not (device and names.of_the_host(name))}
        counts = {name: one.calls for name, one in parsed if name not in found}
        return cls(share / 100, found, counts, (int(row.calls), row.share), device, seconds / 1e3)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Phase:
        """The inverse of `as_dict`. Raises KeyError, TypeError or ValueError where it is not one."""
        rows = {str(name): Row(*map(float, values)) for name, values in data["rows"].items()}
        counts = {str(name): float(calls) for name, calls in data["counts"].items()}
        return cls(float(data["host"]), rows, counts, (0, 0.0), bool(data["kernels"]), float(data["seconds"]))


def _percent(share: float) -> str:
    return f"{float(f'{share * 100:.2g}'):g}%"


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
    nested = [one for one in ordered if not one.device and one.name != MARK]
    kernels = [one for one in ordered if one.device]
    found = {}
    for phase, bounds in zip(PHASES, (marks[:2], marks[1:]), strict=True):
        if len(bounds) > 1:
            steps = len(bounds) - 1
            inside = [[one for one in row if bounds[0] <= one.start < bounds[-1]] for row in (nested, kernels)]
            made = _on_device if kernels else _on_host
            found[phase] = made(*inside, bounds[-1] - bounds[0], steps, overhead)
    return found


def _on_host(nested: Sequence[Event], _: Sequence[Event], wall: float, steps: int, overhead: float) -> Phase:
    """A phase of a CPU, of operators in the order of their start."""
    own: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    stacks: dict[int, list[tuple[Event, str]]] = defaultdict(list)
    top = 0
    for event in nested:
        stack = stacks[event.thread]
        while stack and stack[-1][0].end <= event.start:
            stack.pop()
        name, duration = names.stable(event.name), event.end - event.start
        row = own[name]
        row[0] += 1
        row[1] += duration
        if stack:
            own[stack[-1][1]][1] -= duration + overhead
        else:
            top += 1
        if all(one != name for _, one in stack):  # of an operator that calls itself, the outer one
            row[2] += duration
        stack.append((event, name))
    outermost = _covered(nested)
    gap = max(0.0, wall - outermost - top * overhead)
    rows = {name: (calls, max(0.0, seconds), total) for name, (calls, seconds, total) in own.items()}
    return _phase(rows, gap, steps, wall, outermost, {}, kernels=False)


def _on_device(nested: Sequence[Event], kernels: Sequence[Event], wall: float, steps: int, overhead: float) -> Phase:
    """A phase of an accelerator: rows are its kernels and copies, and the host's time is that in which none ran."""
    rows: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for event in kernels:
        row, duration = rows[names.stable(event.name)], event.end - event.start
        row[:] = [row[0] + 1, row[1] + duration, row[2] + duration]
    busy = _covered(kernels)
    # A host that keeps the device waiting is slower by what the profiler takes.
    gap = max(0.0, wall - busy - len(nested) * overhead)
    counts: dict[str, float] = defaultdict(float)
    for event in nested:
        if names.of_the_host(event.name):
            counts[names.stable(event.name)] += 1 / steps
    return _phase({name: tuple(row) for name, row in rows.items()}, gap, steps, wall, busy, counts, kernels=True)


def _phase(
    rows: Mapping[str, Sequence[float]],
    gap: float,
    steps: int,
    wall: float,
    busy: float,
    counts: Mapping[str, float],
    kernels: bool,
) -> Phase:
    """Shares that add up to 1, of calls, own time and total time by name."""
    own = sum(row[1] for row in rows.values())
    scale = min(1.0, busy / own) if own else 1.0  # of what runs beside each other
    whole = gap + own * scale
    if whole <= 0:
        return Phase(1.0, {}, dict(counts), kernels=kernels, seconds=wall / steps / 1e6)
    made = {
        name: Row(calls / steps, seconds * scale / whole, total * scale / whole)
        for name, (calls, seconds, total) in rows.items()
    }
    return Phase(gap / whole, made, dict(counts), kernels=kernels, seconds=wall / steps / 1e6)


def _covered(events: Sequence[Event]) -> float:
    """Microseconds in which at least one of the events ran; they are in the order of their start."""
    covered, until = 0.0, -float("inf")
    for event in events:
        if event.end > until:
            covered += event.end - max(event.start, until)
            until = event.end
    return covered


def mean(phases: Iterable[Phase | None]) -> Phase | None:
    """The mean of the same phase in several processes, of those that have it; None of none."""
    found = [one for one in phases if one is not None]
    if len(found) < 2:
        return found[0] if found else None
    every = dict.fromkeys(name for one in found for name in one.rows)
    counted = dict.fromkeys(name for one in found for name in one.counts)
    nothing = Row(0, 0)

    def averaged(name: str) -> Row:
        rows = [one.rows.get(name, nothing) for one in found]
        return Row(*(fmean(getattr(row, what) for row in rows) for what in ("calls", "share", "total")))

    return Phase(
        fmean(one.host for one in found),
        {name: averaged(name) for name in every},
        {name: fmean(one.counts.get(name, 0.0) for one in found) for name in counted},
        (max(one.rest[0] for one in found), fmean(one.rest[1] for one in found)),
        all(one.kernels for one in found),
        fmean(one.seconds for one in found),
    )


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
    host = 0.0
    for phase, number in (("prefill", 1), ("decode", steps)):
        one, weight = profile[phase], weights[phase] / whole
        host += one.host * weight
        for name, row in one.rows.items():
            old = rows.get(name, Row(0, 0))
            calls = old.calls + row.calls * number / (steps + 1)
            rows[name] = Row(calls, old.share + row.share * weight, old.total + row.total * weight)
        for name, calls in one.counts.items():
            counts[name] += calls * number / (steps + 1)
    seconds = whole / (steps + 1)
    return Phase(host, rows, dict(counts), kernels=profile["decode"].kernels, seconds=seconds)


def of_metric(profile: Profile, metric: str, new_tokens: int) -> Phase | None:
    """The phase that a metric is of, with short names; None where the profile has none."""
    if metric == "latency":
        found = together(profile, new_tokens - 1)
    else:
        found = profile.get("prefill" if metric == "ttft" else "decode")
    return found.short() if found is not None else None
