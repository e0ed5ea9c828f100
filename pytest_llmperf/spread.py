"""Median, quartiles and range of samples, and quantiles. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Spread:
    """Median, quartiles and range of n samples, in their unit."""

    median: float
    q1: float
    q3: float
    minimum: float
    maximum: float
    n: int


def spread_of(samples: Sequence[float]) -> Spread:
    """The spread of samples.

    Raises:
        ValueError: there are no samples, or one is not positive and finite.
    """
    if not samples or not all(math.isfinite(one) and one > 0 for one in samples):
        raise ValueError(f"samples must be positive and finite, and at least 1, not {list(samples)}")
    q1, q3 = quantile(samples, 1 / 4), quantile(samples, 3 / 4)
    return Spread(median(samples), q1, q3, min(samples), max(samples), len(samples))


def quantile(values: Sequence[float], p: float) -> float:
    """The p-quantile (p from 0 to 1), linear between values: type 7 of Hyndman and Fan, 1996."""
    ordered = sorted(values)
    index, share = divmod(p * (len(ordered) - 1), 1)
    lower, upper = ordered[int(index)], ordered[min(int(index) + 1, len(ordered) - 1)]
    return lower + share * (upper - lower)
