"""Statistics of base against head, measured side by side: pairs of fresh processes in, `Verdict` out. No clock.

A *pair* is one process of either arm, which took turns. A *block* is one such turn: the best sample of base and the
best of head, so that whatever is slow for longer than a turn is slow for both. A pair's *statistic* is the median
of its blocks' log-ratios; pairs are what is replicated, since a process may be slow or fast for all its life.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, stdev

from pytest_llmperf.gate.verdict import CONSISTENT, Outcome, Verdict, change_of, questioned

#: Pairs without which nothing is decided, and without which no regression is called. Were the processes of an innocent
#: change slow or fast at random, three slow ones of head against three fast ones of base would come once in 64 times.
FEWEST, FEWEST_TO_FAIL = 3, 4
#: Student's t for 1, 2, ... degrees of freedom; the last is used beyond. Two-sided 99.5 %, since an interval of 99 %
#: that is looked at after every pair would be left by 1.2 % of innocent changes where processes differ by 7 %.
T_INTERVAL = (
    127.321, 14.089, 7.453, 5.598, 4.773, 4.317, 4.029, 3.833, 3.690, 3.581, 3.497, 3.428, 3.372, 3.326, 3.286,
)  # fmt: skip
#: One-sided 98 %, likewise for an exclusion that is to hold at 95 %.
T_EXCLUDED = (15.895, 4.849, 3.482, 2.999, 2.757, 2.612, 2.517, 2.449, 2.398, 2.359, 2.328, 2.303, 2.282, 2.264, 2.249)
#: Blocks that are compared before a pair may be precise, and the standard error of their mean log-ratio, as estimated
#: from them, at which it is. Chance may make noisy blocks agree; the pair is then one of few blocks, which no verdict
#: relies on, since pairs are what is replicated.
FEWEST_PRECISE, PRECISE = 4, 0.002
#: The widest interval, as a log-ratio either way: a factor of 1,000 says that nothing is known, and fits into JSON.
UNKNOWN = math.log(1000)


@dataclass(frozen=True)
class Block:
    """One turn: the best of each arm's samples in it, in one unit; positive and finite."""

    base: float
    head: float


#: The blocks of each pair of processes, in the order taken; no pair is empty.
Pairs = Sequence[Sequence[Block]]


def precise(pair: Sequence[Block]) -> bool:
    """Whether a pair's blocks agree so well that more of them would hardly tell more; whatever it is that they say."""
    logs = [math.log(block.head / block.base) for block in pair]
    return len(logs) >= FEWEST_PRECISE and stdev(logs) / math.sqrt(len(logs)) <= PRECISE


def compare(pairs: Pairs, tolerance: float, floor: float) -> tuple[Verdict, bool]:
    """Judge head against base, and say whether further pairs could matter.

    - ``regression``: a median ratio above 1 + tolerance in at least 4 pairs, of which the interval's low end is above
      1 + tolerance / 3, and a difference above the floor.
    - ``faster``: the same, the other way round, in at least 3 pairs.
    - ``ok``: a slowdown of the tolerance is excluded at 95 %, one-sided, in at least 3 pairs.
    - ``inconclusive``: neither, so far.

    The interval is Student's of the pairs' mean log-ratio, widened to contain their median, of 99 % however often it is
    looked at: see `T_INTERVAL`. A bootstrap of as few pairs as a gate can afford reaches no further than the pairs
    themselves and is far too narrow (Hesterberg, What Teachers Should Know About the Bootstrap, 2015). How rarely
    unchanged code fails under drift, steps, two states, heavy tails and autocorrelation is tested.

    Args:
        pairs: at least two.
        tolerance: accepted slowdown, as a fraction above 0.
        floor: accepted slowdown in the samples' unit.

    Returns:
        The verdict, and whether it is final. An inconclusive one never is.

    Raises:
        ValueError: there are fewer pairs, an empty one, or a tolerance or floor out of range.
    """
    if len(pairs) < 2 or not all(pairs):
        raise ValueError("a comparison takes at least 2 pairs, none of them empty")
    if not (0 < tolerance < math.inf and 0 <= floor < math.inf):
        raise ValueError(f"the tolerance must be above 0 and the floor at least 0, not {tolerance} and {floor}")
    logs = [median(math.log(block.head / block.base) for block in pair) for pair in pairs]
    centre, mean, error = median(logs), fmean(logs), stdev(logs) / math.sqrt(len(logs))
    reach = min(_quantile(T_INTERVAL, len(logs)) * error, UNKNOWN)
    ratio, low, high = (math.exp(log) for log in (centre, min(centre, mean - reach), max(centre, mean + reach)))
    excluded = mean + _quantile(T_EXCLUDED, len(logs)) * error < math.log1p(tolerance)
    base = median(median(block.base for block in pair) for pair in pairs)
    head = median(median(block.head for block in pair) for pair in pairs)
    threshold, consistent = 1 + tolerance, 1 + tolerance * CONSISTENT
    found = Verdict(
        Outcome.INCONCLUSIVE,
        ratio,
        low,
        high,
        tolerance,
        max(tolerance, threshold * ratio / low - 1, floor / base),
        len(pairs),
        sum(map(len, pairs)),
        "base",
        head=head,
        baseline=base,
    )
    said = f"{change_of(ratio)} than base in {len(pairs)} pairs of fresh processes"
    if len(pairs) >= FEWEST_TO_FAIL and head - base > floor and ratio > threshold and low > consistent:
        return replace(found, outcome=Outcome.REGRESSION, reason=said), True
    if len(pairs) >= FEWEST and base - head > floor and ratio < 1 / threshold and high < 1 / consistent:
        return questioned(replace(found, outcome=Outcome.FASTER, reason=said)), True
    beneath = base * tolerance <= floor and head - base <= floor
    if len(pairs) >= FEWEST and (excluded or beneath):
        return replace(found, outcome=Outcome.OK), True
    width = max(high / ratio, ratio / low) - 1
    return replace(found, reason=f"{said}, give or take {width:.1%}: too little to tell {tolerance:.1%}"), False


def _quantile(table: Sequence[float], pairs: int) -> float:
    return table[min(pairs - 1, len(table)) - 1]
