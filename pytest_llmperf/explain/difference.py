"""What the difference between two profiles says: which kernels changed, and what part of a slowdown each has. Pure.

A part is a share of base's step. The parts of everything add up to the slowdown that was measured without a profiler.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_llmperf.explain import families, names
from pytest_llmperf.explain.names import VIEWS
from pytest_llmperf.explain.profiles import LEAST, Phase, Row

#: Lines that say what got slower, at most.
LINES = 5
#: Names that one line has, at most.
NAMED = 3
#: Of a slowdown, the share from which on a change of the kernels comes first, and the share that is worth a line.
CAUSE, WORTH = 0.1, 0.05
#: The part of a step below which nothing is said.
FLOOR = 0.001
NOTHING = Row(0.0, 0.0)


@dataclass(frozen=True)
class Part:
    """A part of a slowdown.

    Attributes:
        share: of base's step: 0.03 makes the step 3 % longer.
        said: what it is.
        structural: whether kernels are new, gone or called more or less often.
        new: whether some are new or gone.
    """

    share: float
    said: str
    structural: bool = False
    new: bool = False


@dataclass(frozen=True)
class _Change:
    """A kernel in both profiles."""

    name: str
    base: Row
    head: Row
    share: float

    @property
    def more(self) -> float:
        """Calls per step."""
        return self.head.calls - self.base.calls

    @property
    def structural(self) -> bool:
        """Whether the calls changed. Those of unchanged code are equal, and a stored number has four digits."""
        most = max(self.base.calls, self.head.calls)
        return abs(self.more) > max(0.2, 0.001 * most)


def parts(base: Phase, head: Phase, ratio: float) -> list[Part]:
    """The parts of a slowdown, what says most first; they add up to ``ratio - 1``.

    Args:
        base: a phase of what head is compared with, with short names.
        head: the same phase of head, likewise.
        ratio: head's time over base's, of a step, measured without a profiler.
    """
    changes, folded = _changes(base, head, ratio)
    host = head.host * ratio - base.host
    found: list[Part] = []
    for group in _groups([one for one in changes if one.structural]):
        share, said = sum(one.share for one in group), _said(group)
        # More waits are time of the host. So are other launches and regions than before: more of them, or none at all.
        of_the_host = [one for one in group if names.of_the_host(one.name)]
        waits = [one for one in of_the_host if names.synchronises(one.name)]
        if host > 0 and (len(of_the_host) > len(waits) or any(one.more > 0 for one in waits)):
            why = "for which the host waits" if any(one.more > 0 for one in waits) else "with the host time between"
            share, host, said = share + host, 0.0, f"{said}, {why}"
        new = any(not (one.base.calls and one.head.calls) for one in group)
        found.append(Part(share, said, structural=True, new=new))
    for one in changes:
        if not one.structural:
            slower = "slower" if one.share > 0 else "faster"
            found.append(Part(one.share, f"{one.name}: {slower}, {_calls(one.head.calls)}"))
    found.append(Part(host, f"host time between {'kernels' if head.kernels else 'operators'}"))
    found.append(Part(folded, "other kernels" if head.kernels else "other operators"))
    slowdown = ratio - 1

    def rank(part: Part) -> tuple[bool, float]:
        cause = part.structural and part.share >= CAUSE * abs(slowdown)
        # What is new says more than further calls, which may follow from it.
        return not cause, -part.share * (1 + part.new) if cause else -abs(part.share)

    return sorted(found, key=rank)


def lines(base: Phase, head: Phase, ratio: float, most: int = LINES) -> list[str]:
    """A slowdown in at most so many lines, each with its part of the slowdown in percent of the step."""
    slowdown = ratio - 1
    worth = max(FLOOR, WORTH * abs(slowdown))
    every = [part for part in parts(base, head, ratio) if abs(part.share) >= worth]
    listed = every[: most - 1]
    left = slowdown - sum(part.share for part in listed)
    if len(every) == most and abs(left - every[-1].share) < FLOOR:
        listed, left = every, 0.0
    if abs(left) >= FLOOR:
        listed.append(Part(left, "not explained"))
    return [f"{part.share:+.1%} {part.said}" for part in listed]


def kernels_changed(base: Phase, head: Phase) -> str:
    """Which kernels are gone and which are new, as ``a -> b``; empty if the set is the same.

    A kernel that takes next to nothing of the step's time does not count, unless the host waits in it.
    """
    changes, _ = _changes(base, head, 1.0)
    gone = [one for one in changes if not one.head.calls and _counts(one.name, one.base)]
    new = [one for one in changes if not one.base.calls and _counts(one.name, one.head)]
    if not gone and not new:
        return ""
    return _replaced(gone, new)


def _replaced(gone: Sequence[_Change], new: Sequence[_Change]) -> str:
    """The kernels that are gone and those in their place, and first of which implementation they are."""
    implementations = families.changed(*([one.name for one in group] for group in (gone, new)))
    said = f"{_list(_ranked(gone)) or 'none'} -> {_list(_ranked(new)) or 'none'}"
    return f"{implementations} ({said})" if implementations else said


def _counts(name: str, row: Row) -> bool:
    return name != VIEWS and (row.share >= LEAST or names.synchronises(name))


def _changes(base: Phase, head: Phase, ratio: float) -> tuple[list[_Change], float]:
    """Every kernel's change, and the part of those of which one profile has no row of their own."""
    folded = head.rest * ratio - base.rest
    found = []
    for name in dict.fromkeys((*base.rows, *head.rows)):
        before, after = base.rows.get(name, NOTHING), head.rows.get(name, NOTHING)
        share = after.share * ratio - before.share
        if any(name not in phase.rows and phase.knows(name) for phase in (base, head)):
            folded += share
        else:
            found.append(_Change(name, before, after, share))
    for name in dict.fromkeys((*base.counts, *head.counts)):
        before, after = (Row(phase.counts.get(name, 0.0), 0.0) for phase in (base, head))
        found.append(_Change(name, before, after, 0.0))
    return found, folded


def _groups(changes: Sequence[_Change]) -> list[list[_Change]]:
    """Changes that have one cause.

    Kernels that are gone have others in their place, which are new or called more often. Without them, what is called
    more often by the same number belongs together, such as an operator and what it calls.
    """
    gone = [one for one in changes if not one.head.calls and one.name != VIEWS]
    groups: dict[object, list[_Change]] = defaultdict(list)
    for one in changes:
        replaced = gone and 2 * abs(one.more) >= min(-other.more for other in gone)
        groups["replaced" if replaced else round(one.more, 1)].append(one)
    return _with_views(list(groups.values()))


def _with_views(groups: list[list[_Change]]) -> list[list[_Change]]:
    """The groups; views and allocations, which something else calls, are part of the one with the most calls."""
    views = [group for group in groups if [one.name for one in group] == [VIEWS]]
    others = [group for group in groups if group not in views]
    if others and views:
        max(others, key=lambda group: abs(group[0].more)).extend(views[0])
        return others
    return groups


def _said(group: Sequence[_Change]) -> str:
    """What changed, in a few words."""
    gone = [one for one in group if not one.head.calls]
    more = [one for one in group if one.more > 0]
    if gone and more:
        return _replaced(gone, more)
    ranked = _ranked(group)
    first = ranked[0]
    if gone:
        return f"{_list(ranked)}: gone, {_calls(first.base.calls)} before"
    if len({bool(one.base.calls) for one in ranked if one.name != VIEWS}) > 1:
        return f"{_list(ranked)}: {first.more:.4g} more {'call' if first.more == 1 else 'calls'} a step"
    if not first.base.calls:
        return f"{_list(ranked)}: new, {_calls(first.head.calls)}"
    return f"{_list(ranked)}: {first.base.calls:.4g} -> {_calls(first.head.calls)}"


def _ranked(group: Iterable[_Change]) -> list[_Change]:
    """What tells most first: waits, then the longest. What is new or gone counts with all that it called."""

    def rank(one: _Change) -> tuple[bool, bool, float]:
        other = bool(one.base.calls and one.head.calls)
        weight = abs(one.share) if other else max(one.head.total, one.base.total, abs(one.share))
        return one.name == VIEWS, not names.synchronises(one.name), -weight

    return sorted(group, key=rank)


def _list(ranked: Sequence[_Change]) -> str:
    named = [one.name for one in ranked if one.name != VIEWS] or [one.name for one in ranked]
    more = len(named) - NAMED
    return ", ".join(named[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _calls(calls: float) -> str:
    return f"{calls:.4g} {'call' if calls == 1 else 'calls'} a step"
