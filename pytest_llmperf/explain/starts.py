"""The parts of a start, and which of them got slower. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median

#: The parts, in their order. They add up to a start.
PARTS = ("import", "load", "compile", "first token")
#: The share of the start before below which a part's change is not worth a line.
WORTH = 0.001

#: Seconds by part.
Parts = Mapping[str, float]


def typical(starts: Iterable[Parts]) -> dict[str, float]:
    """The median of each part over several processes; empty where there is none."""
    made = list(starts)
    return {name: median(one[name] for one in made) for name in PARTS} if made else {}


def lines(before: Parts, after: Parts) -> list[str]:
    """What became of each part, with its share of the start before: the one that lost most comes first."""
    whole = sum(before.values())
    changes = sorted((before[name] - after[name], name) for name in PARTS)
    return [
        f"{-gained / whole:+.1%} {name}: {before[name]:.2f} s -> {after[name]:.2f} s"
        for gained, name in changes
        if abs(gained) >= WORTH * whole
    ]
