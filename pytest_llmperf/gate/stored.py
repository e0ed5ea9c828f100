"""A stored baseline as an interval of the slowdown. Pure.

A *process* is one fresh process; its figure is the median of its samples. A *sitting* is several processes recorded
together. Processes of one sitting differ by what is random in a process. Sittings differ as well by what the machine
does from one hour to another. So head, measured now, is one more sitting, and both kinds of variance are in the
interval::

    log head - log baseline = mean of head's processes - mean over the sittings of their means
    variance = between * (1 + 1 / sittings) + within * (1 / head's processes - 1 / processes of a sitting)

``between`` is the variance of a sitting's mean, ``within`` that of a process in its sitting. A few sittings say little
of how much sittings differ, so the estimate begins with a prior, as if some sittings had been seen before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from pytest_llmperf.gate.priors import Prior
from pytest_llmperf.gate.rule import Interval
from pytest_llmperf.gate.student import student_t

#: The figures of the processes of each sitting, in one unit; positive and finite. No sitting is empty.
Sittings = Sequence[Sequence[float]]

#: Fresh processes of head without which a stored baseline proves no regression.
FEWEST_TO_FAIL = 3


def interval(sittings: Sittings, head: Sequence[float], prior: Prior) -> Interval:
    """How much slower head is than the baseline.

    Args:
        sittings: of the baseline; at least one.
        head: figures of head's processes; at least one.
        prior: how much sittings differ.

    Raises:
        ValueError: there is no sitting or no process, or a figure is not positive and finite.
    """
    rows = [_logs(row) for row in (*sittings, head)]
    if len(rows) < 2:
        raise ValueError("a stored baseline has at least 1 sitting")
    *stored, now = rows
    means = [fmean(row) for row in stored]
    baseline, count = fmean(means), len(stored)
    size = fmean(map(len, stored))

    within_freedom = sum(len(row) - 1 for row in rows)
    within = sum(map(_squares, rows)) / within_freedom if within_freedom else prior.spread**2
    between_freedom = prior.weight + count - 1
    between = (prior.weight * (prior.spread**2 + within / size) + _squares(means)) / between_freedom

    parts = [
        (between * (1 + 1 / count), between_freedom),
        (within * max(0.0, 1 / len(now) - 1 / size), within_freedom or prior.weight),
    ]
    variance = sum(part for part, _ in parts)
    # Welch and Satterthwaite's degrees of freedom of a sum of variances.
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    difference, error = fmean(now) - baseline, math.sqrt(variance)
    reach, reach_above = student_t(0.995, freedom) * error, student_t(0.95, freedom) * error
    return Interval(
        ratio=math.exp(difference),
        low=math.exp(difference - reach),
        high=math.exp(difference + reach),
        upper=math.exp(difference + reach_above),
        head=math.exp(fmean(now)),
        baseline=math.exp(baseline),
        count=len(now),
        basis="stored",
    )


def centre(processes: Sequence[float]) -> float:
    """The figure of one sitting: the geometric mean of its processes.

    Raises:
        ValueError: there is no process, or a figure is not positive and finite.
    """
    return math.exp(fmean(_logs(processes)))


def over_reference(processes: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Each process's figure over that of the reference in the same sitting: 0.5 is a speedup of 2.

    Raises:
        ValueError: there is no process, or a figure is not positive and finite.
    """
    scale = centre(reference)
    return [figure / scale for figure in processes]


def _logs(figures: Sequence[float]) -> list[float]:
    if not figures or not all(math.isfinite(one) and one > 0 for one in figures):
        raise ValueError(f"figures of processes must be positive and finite, and at least 1, not {list(figures)}")
    return [math.log(one) for one in figures]


def _squares(values: Sequence[float]) -> float:
    mean = fmean(values)
    return sum((value - mean) ** 2 for value in values)
