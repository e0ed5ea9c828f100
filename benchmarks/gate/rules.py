"""The rules of other tools, which compare one process with one. Pure.

- pytest-benchmark: ``--benchmark-compare-fail=median:5%``.
- asv: 5 %, and a Mann-Whitney test with p < 0.002.
- nvbench: a difference of means above the smaller of the two relative standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, median, stdev

RULES = ("pytest-benchmark", "asv", "nvbench")


def mann_whitney(base: Sequence[float], head: Sequence[float]) -> float:
    """The one-sided p-value that head is slower, by the normal approximation (Mann and Whitney, 1947)."""
    wins = sum((one < other) + (one == other) / 2 for one in base for other in head)
    count = len(base) * len(head)
    spread = math.sqrt(count * (len(base) + len(head) + 1) / 12)
    return 1 - NormalDist().cdf((wins - count / 2) / spread)


def failed(base: Sequence[float], head: Sequence[float]) -> dict[str, bool]:
    """Whether each rule fails on the samples of one process of base and one of head.

    Args:
        base: seconds, at least two.
        head: likewise.
    """
    slower = median(head) > 1.05 * median(base)
    noise = min(stdev(arm) / fmean(arm) for arm in (base, head))
    found = (slower, slower and mann_whitney(base, head) < 0.002, fmean(head) / fmean(base) - 1 > noise)
    return dict(zip(RULES, found, strict=True))
