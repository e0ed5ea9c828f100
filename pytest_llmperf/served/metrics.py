"""What a server counts of itself, from its Prometheus metrics: sums over its labels, and differences. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{.*\})?\s+(\S+)")


def parse(text: str, names: Iterable[str]) -> dict[str, float]:
    """Each named sample of the text format, summed over its labels; those that are not there are left out."""
    wanted, found = set(names), dict[str, float]()
    for line in text.splitlines():
        sample = _SAMPLE.match(line)
        if sample is None or sample[1] not in wanted:
            continue
        try:
            found[sample[1]] = found.get(sample[1], 0.0) + float(sample[2])
        except ValueError:
            continue
    return found


def grown(before: Mapping[str, float], after: Mapping[str, float], name: str) -> float | None:
    """How much a counter grew; None where the server does not have it. What is created when first used begins at 0."""
    return after[name] - before.get(name, 0.0) if name in after else None


def mean(before: Mapping[str, float], after: Mapping[str, float], name: str) -> float | None:
    """The mean of what a histogram was given meanwhile; None where that was nothing, or there is none."""
    total, count = (grown(before, after, f"{name}_{suffix}") for suffix in ("sum", "count"))
    return total / count if total is not None and count else None


def seconds(before: Mapping[str, float], after: Mapping[str, float], names: Mapping[str, str]) -> dict[str, str]:
    """The mean of each named histogram of seconds, as an evidence shows it: ``{"queue time": "0.003 ms"}``."""
    means = {shown: mean(before, after, name) for shown, name in names.items()}
    return {shown: f"{value * 1e3:.3f} ms" for shown, value in means.items() if value is not None}
