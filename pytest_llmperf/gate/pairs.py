"""Base beside head as an interval of the slowdown: Student's t of pairs of fresh processes. Pure.

A *pair* is one process of either arm; the two took turns. A *block* is one such turn: the best sample of base and the
best of head, so that whatever is slow for longer than a turn is slow for both. A pair's figure is the median of its
blocks' log-ratios. Pairs are what is replicated, since a process may be slow or fast for all its life.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, stdev

from pytest_llmperf.cases import Metric
from pytest_llmperf.gate.rule import LATENCY, Interval, Outcome, Verdict, decide
from pytest_llmperf.gate.student import student_t

#: Pairs without which nothing is decided, and without which no regression is called. If processes were slow or fast at
#: random, three slow ones of head would meet three fast ones of base once in 64 comparisons of unchanged code.
FEWEST, FEWEST_TO_FAIL = 3, 4
#: Probabilities of the interval's ends. The interval is looked at after every pair: so that 99 % of comparisons of
#: unchanged code stay inside it all the time, it reaches to 99.5 % (two-sided). An exclusion at 95 % takes 98 %.
TWO_SIDED, ONE_SIDED = 0.9975, 0.98
#: Blocks that are compared before a pair may be precise, and the standard error of their mean log-ratio at which it is.
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
    """Whether a pair's blocks agree so well that more of them would hardly tell more."""
    logs = [math.log(block.head / block.base) for block in pair]
    return len(logs) >= FEWEST_PRECISE and stdev(logs) / math.sqrt(len(logs)) <= PRECISE


def interval(pairs: Pairs) -> Interval:
    """How much slower head is than base: Student's interval of the pairs' mean log-ratio, widened to their median.

    A bootstrap of as few pairs as a gate can afford reaches no further than the pairs themselves and is far too narrow
    (Hesterberg, What Teachers Should Know About the Bootstrap, 2015).

    Raises:
        ValueError: there are fewer than 2 pairs, or an empty one.
    """
    if len(pairs) < 2 or not all(pairs):
        raise ValueError("a comparison takes at least 2 pairs, none of them empty")
    logs = [median(math.log(block.head / block.base) for block in pair) for pair in pairs]
    centre, mean, error = median(logs), fmean(logs), stdev(logs) / math.sqrt(len(logs))
    reach = min(student_t(TWO_SIDED, len(logs) - 1) * error, UNKNOWN)
    above = min(student_t(ONE_SIDED, len(logs) - 1) * error, UNKNOWN)
    return Interval(
        ratio=math.exp(centre),
        low=math.exp(min(centre, mean - reach)),
        high=math.exp(max(centre, mean + reach)),
        upper=math.exp(max(centre, mean + above)),
        head=median(median(block.head for block in pair) for pair in pairs),
        baseline=median(median(block.base for block in pair) for pair in pairs),
        count=len(pairs),
        basis="base",
        enough=len(pairs) >= FEWEST_TO_FAIL,
    )


def compare(pairs: Pairs, tolerance: float, metric: Metric = LATENCY) -> tuple[Verdict, bool]:
    """Judge the pairs so far by the rule, and say whether that is final.

    Args:
        pairs: at least two.
        tolerance: the slowdown allowed, as a fraction above 0.
        metric: what the blocks' figures are.

    Returns:
        The verdict, and whether further pairs could not change it. Fewer than `FEWEST` pairs decide nothing.

    Raises:
        ValueError: as `interval` and `rule.decide`.
    """
    found = decide(interval(pairs), tolerance, metric)
    if len(pairs) < FEWEST:
        return replace(found, outcome=Outcome.INCONCLUSIVE, reason=f"{len(pairs)} pairs decide nothing"), False
    return found, found.outcome is not Outcome.INCONCLUSIVE
