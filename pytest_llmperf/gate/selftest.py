"""The gate tried on itself: what it says here, now, of unchanged code, and of code that is slower by a known amount.

Pure: pairs of processes in, an `Assessment` out. The decisions are those of `pairs.compare`, on the pairs in many
orders; which of two equal arms is called head is drawn too, so that a few pairs make many comparisons. They are not
independent, so a rate is an estimate of what these pairs allow, not of one in a thousand.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from pytest_llmperf.gate import stored
from pytest_llmperf.gate.pairs import Block, Pairs, compare
from pytest_llmperf.gate.priors import Prior
from pytest_llmperf.gate.rule import Outcome

#: The slowdown that is really there in the slowed arm: it sleeps that share longer at every step.
INJECTED = 0.05
#: Decisions that a rate is made of.
DECISIONS = 100
#: The share of them that must be right.
MOST = 0.9
#: Tolerances and slowdowns that are tried.
GRID = (0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.10, 0.15, 0.20, 0.30, 0.50)


@dataclass(frozen=True)
class Assessment:
    """What the gate can tell of a case on this machine.

    Attributes:
        tolerance: the slowdown allowed, at which the rates below are.
        pairs: pairs of processes measured.
        false_alarms: the share of comparisons of unchanged code that are a regression.
        undecided: the share of them that are inconclusive.
        power: the share of comparisons with the slowed arm that are a regression.
        resolution: the smallest slowdown that is called in nine of ten; None where none tried is.
        recommended: the smallest tolerance at which unchanged code is never a regression and ok in nine of ten; None
            where there is none.
        stored: the slowdown that a baseline of one sitting of such processes could not exclude, though nothing changed.
    """

    tolerance: float
    pairs: int
    false_alarms: float
    undecided: float
    power: float
    resolution: float | None
    recommended: float | None
    stored: float


def assess(
    same: Pairs, slowed: Pairs, processes: Sequence[Sequence[float]], tolerance: float, prior: Prior, seed: int = 0
) -> Assessment:
    """Try the gate on pairs of unchanged code and on pairs whose head is slowed.

    Args:
        same: blocks of base and head, which are the same code; at least 2 pairs.
        slowed: blocks of base and of head slowed by `INJECTED`.
        processes: samples of every process of unchanged code.
        tolerance: accepted slowdown, as a fraction.
        prior: how much sittings of the case differ.
        seed: of the orders drawn.

    Raises:
        ValueError: as `pairs.compare`.
    """
    rng = random.Random(seed)
    figures = [median(samples) for samples in processes]
    unchanged = _rates(rng, same, tolerance, exchange=True)
    caught = (
        slowdown for slowdown in GRID if _rates(rng, _slower(same, slowdown), tolerance)[Outcome.REGRESSION] >= MOST
    )
    return Assessment(
        tolerance=tolerance,
        pairs=len(same),
        false_alarms=unchanged[Outcome.REGRESSION],
        undecided=unchanged[Outcome.INCONCLUSIVE],
        power=_rates(rng, slowed, tolerance)[Outcome.REGRESSION],
        resolution=next(caught, None),
        recommended=next((one for one in GRID if _serves(_rates(rng, same, one, exchange=True))), None),
        stored=stored.interval([figures], [stored.centre(figures)], prior).upper - 1,
    )


def _serves(rates: dict[Outcome, float]) -> bool:
    return not rates[Outcome.REGRESSION] and rates[Outcome.OK] >= MOST


def _rates(rng: random.Random, pairs: Pairs, tolerance: float, exchange: bool = False) -> dict[Outcome, float]:
    """How the comparison ends, over orders of the pairs, and over which arm is head if they may be exchanged."""
    found: Counter[Outcome] = Counter()
    for _ in range(DECISIONS):
        drawn = [
            [Block(one.head, one.base) for one in pair] if exchange and rng.random() < 0.5 else list(pair)
            for pair in rng.sample(list(pairs), len(pairs))
        ]
        found[_decided(drawn, tolerance)] += 1
    return {outcome: found[outcome] / DECISIONS for outcome in Outcome}


def _decided(pairs: Pairs, tolerance: float) -> Outcome:
    """The outcome of a comparison that takes pairs in this order until it is final."""
    for count in range(2, len(pairs) + 1):
        found, final = compare(pairs[:count], tolerance)
        if final:
            break
    return found.outcome


def _slower(pairs: Pairs, slowdown: float) -> Pairs:
    return [[Block(one.base, one.head * (1 + slowdown)) for one in pair] for pair in pairs]
