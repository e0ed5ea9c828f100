"""The one decision of the gate: an interval of the slowdown in, a verdict out. Pure.

Two modules make the interval: `stored` from the baseline's sittings, `pairs` from processes that took turns with base.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from pytest_llmperf.cases import METRICS, Metric

#: What head was compared with: the stored baseline, or base in pairs.
Basis = Literal["stored", "base"]

#: The share of the tolerance that the interval's low end must exceed before a regression is called. The whole tolerance
#: would miss most slowdowns near it. Nothing at all would let one slow process decide.
CLEARLY = 1 / 3
LATENCY = METRICS["latency"]
#: An improvement beyond this fraction is questioned. A step that was skipped looks like one.
LARGE = 0.2


class Outcome(str, Enum):
    """What the gate says of a case. Only a regression fails its test, unless ``--llm-strict`` is given."""

    REGRESSION = "regression"
    OK = "ok"
    FASTER = "faster"
    INCONCLUSIVE = "inconclusive"
    NEW = "new"
    NO_BASELINE = "no baseline"

    def __str__(self) -> str:
        return self.value

    @property
    def compared(self) -> bool:
        """Whether head was compared with anything."""
        return self not in (Outcome.NEW, Outcome.NO_BASELINE)


@dataclass(frozen=True)
class Interval:
    """How much slower head is than what it is compared with.

    Attributes:
        ratio: head over baseline, the estimate: 1.07 is 7 % slower.
        low, high: the two-sided 99 % interval of the ratio.
        upper: the one-sided 95 % upper end. Slowdowns beyond it are excluded.
        head, baseline: the two figures, in the metric's unit.
        count: fresh processes of head, or pairs.
        basis: what head was compared with.
        enough: whether there are as many processes or pairs as a regression takes.
    """

    ratio: float
    low: float
    high: float
    upper: float
    head: float
    baseline: float
    count: int
    basis: Basis
    enough: bool = False


@dataclass(frozen=True)
class Verdict:
    """The outcome of a comparison.

    Attributes:
        outcome: what the gate says.
        ratio, low, high, upper, head, baseline, count, basis: of the `Interval`. NaN where nothing was compared.
        tolerance: the slowdown that was allowed, as a fraction.
        reason: one readable clause; empty for a plain ok.
        remedy: what would settle it, as a command or a step; empty where nothing is open.
        other_state: whether the machine was not in the state in which the baseline was recorded.
    """

    outcome: Outcome
    ratio: float = math.nan
    low: float = math.nan
    high: float = math.nan
    upper: float = math.nan
    head: float = math.nan
    baseline: float = math.nan
    count: int = 1
    basis: Basis = "stored"
    tolerance: float = math.nan
    reason: str = ""
    remedy: str = ""
    other_state: bool = False

    @property
    def compared(self) -> bool:
        """Whether head was compared with anything, and anything came of it."""
        return self.outcome.compared and not math.isnan(self.ratio)

    @property
    def not_excluded(self) -> float:
        """The largest slowdown, as a fraction, that the comparison could not exclude; at least 0."""
        return max(0.0, self.upper - 1)

    @property
    def suspicious(self) -> bool:
        """Whether it looks slower: slower by more than a third of the tolerance, and the tolerance is not excluded."""
        return self.outcome is Outcome.INCONCLUSIVE and self.ratio > 1 + self.tolerance * CLEARLY

    @property
    def questionable(self) -> bool:
        """Whether it is an improvement too large to be taken on trust."""
        return self.outcome is Outcome.FASTER and self.ratio < 1 - LARGE


def decide(interval: Interval, tolerance: float, metric: Metric = LATENCY) -> Verdict:
    """The rule.

    - ``regression``: the ratio is above 1 + tolerance, the interval's low end above 1 + tolerance / 3, and the
      difference above the metric's floor; with as many processes or pairs as that takes.
    - ``faster``: the same the other way round, with any number of processes or pairs.
    - ``ok``: a slowdown of the tolerance is excluded, or the difference and the tolerance are within the floor.
    - ``inconclusive``: none of these; the reason says which slowdown could not be excluded.

    Args:
        interval: of the slowdown.
        tolerance: the slowdown allowed, as a fraction above 0.
        metric: what the figures are.

    Raises:
        ValueError: the tolerance is not above 0 and finite.
    """
    if not 0 < tolerance < math.inf:
        raise ValueError(f"the tolerance must be above 0, not {tolerance}")
    allowed, clearly = 1 + tolerance, 1 + tolerance * CLEARLY
    slower = interval.head - interval.baseline

    def verdict(outcome: Outcome, reason: str = "") -> Verdict:
        return Verdict(
            outcome,
            interval.ratio,
            interval.low,
            interval.high,
            interval.upper,
            interval.head,
            interval.baseline,
            interval.count,
            interval.basis,
            tolerance,
            reason,
        )

    if interval.enough and interval.ratio > allowed and interval.low > clearly and slower > metric.floor:
        return verdict(Outcome.REGRESSION, _said(interval, metric))
    if interval.ratio < 1 / allowed and interval.high < 1 / clearly and -slower > metric.floor:
        asked = "; is something not measured any more, or is the baseline old?" if interval.ratio < 1 - LARGE else ""
        return verdict(Outcome.FASTER, _said(interval, metric) + asked)
    within_floor = slower <= metric.floor and interval.baseline * tolerance <= metric.floor
    if interval.upper < allowed or within_floor:
        return verdict(Outcome.OK)
    return verdict(
        Outcome.INCONCLUSIVE,
        f"{_said(interval, metric)}; {metric.growth} of {interval.upper - 1:.1%} cannot be excluded",
    )


def nothing(outcome: Outcome, reason: str, remedy: str = "") -> Verdict:
    """The verdict of a case that was compared with nothing."""
    return Verdict(outcome, reason=reason, remedy=remedy)


def change_of(ratio: float, metric: Metric = LATENCY) -> str:
    """A ratio in words, such as ``4.2% slower``."""
    return f"{abs(ratio - 1):.1%} {metric.more if ratio >= 1 else metric.less}"


def _said(interval: Interval, metric: Metric) -> str:
    if interval.basis == "base":
        return f"{change_of(interval.ratio, metric)} than base in {interval.count} pairs of fresh processes"
    processes = "1 process" if interval.count == 1 else f"{interval.count} fresh processes"
    return f"{change_of(interval.ratio, metric)} than the baseline in {processes}"
