"""Base against head: the decision's properties, and how often it is wrong under scripted noise."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from statistics import fmean, stdev

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pytest_llmperf.cases import FLOOR
from pytest_llmperf.gate.compare import MOST_PAIRS
from pytest_llmperf.gate.pairs import FEWEST_TO_FAIL, PRECISE, Block, Pairs, compare, interval, precise
from pytest_llmperf.gate.rule import Outcome

TOLERANCE = 0.03

figures = st.floats(1e-3, 10)
blocks = st.builds(Block, figures, figures)
some_pairs = st.lists(st.lists(blocks, min_size=1, max_size=5), min_size=2, max_size=8)
tolerances = st.floats(0.005, 0.5)


def exactly(ratio: float, pairs: int, base: float = 0.04) -> Pairs:
    return [[Block(base, base * ratio)] * 3] * pairs


# The decision


@given(some_pairs, tolerances)
def test_the_interval_holds_the_ratio_and_is_what_the_rule_decides_by(pairs: Pairs, tolerance: float) -> None:
    found, made = compare(pairs, tolerance)[0], interval(pairs)
    assert made.low <= made.ratio <= made.upper <= made.high
    assert (made.count, made.basis, made.enough) == (len(pairs), "base", len(pairs) >= FEWEST_TO_FAIL)
    assert (found.ratio, found.low, found.high, found.upper) == (made.ratio, made.low, made.high, made.upper)
    assert (found.head, found.baseline, found.count, found.tolerance) == (
        made.head,
        made.baseline,
        len(pairs),
        tolerance,
    )


@given(some_pairs, tolerances)
def test_a_regression_is_surely_slower_than_a_third_of_the_tolerance(pairs: Pairs, tolerance: float) -> None:
    found, final = compare(pairs, tolerance)
    if found.outcome is Outcome.REGRESSION:
        assert final
        assert len(pairs) >= FEWEST_TO_FAIL
        assert found.ratio > 1 + tolerance
        assert found.low > 1 + tolerance / 3
        assert found.head - found.baseline > FLOOR
    assert final == (found.outcome is not Outcome.INCONCLUSIVE)


@given(st.lists(blocks, min_size=1, max_size=12), st.floats(0.5, 2))
def test_whether_a_pair_is_precise_does_not_depend_on_which_arm_is_slower(pair: list[Block], slowdown: float) -> None:
    logs = [math.log(block.head / block.base) for block in pair]
    assume(len(logs) < 2 or abs(stdev(logs) / math.sqrt(len(logs)) - PRECISE) > 1e-9)
    swapped = [Block(block.head, block.base) for block in pair]
    slowed = [Block(block.base, block.head * slowdown) for block in pair]
    assert precise(pair) == precise(swapped) == precise(slowed)


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [([1.0] * 3, False), ([1.05] * 4, True), ([1.0, 1.004, 1.002, 1.0], True), ([1.0, 1.01, 0.99, 1.0], False)],
)
def test_a_pair_is_precise_when_its_blocks_agree(ratios: list[float], expected: bool) -> None:
    assert precise([Block(0.04, 0.04 * ratio) for ratio in ratios]) == expected


@given(some_pairs, st.floats(0.1, 10))
def test_the_unit_does_not_matter(pairs: Pairs, scale: float) -> None:
    scaled = [[Block(block.base * scale, block.head * scale) for block in pair] for pair in pairs]
    found, other = interval(pairs), interval(scaled)
    assert other.ratio == pytest.approx(found.ratio)
    assert (other.low, other.high) == pytest.approx((found.low, found.high))


@given(some_pairs, tolerances)
def test_neither_does_the_order_of_the_pairs(pairs: Pairs, tolerance: float) -> None:
    found, other = compare(pairs, tolerance)[0], compare(pairs[::-1], tolerance)[0]
    assert other.outcome == found.outcome
    assert other.low == pytest.approx(found.low)


@pytest.mark.parametrize(
    ("ratio", "pairs", "outcome"),
    [
        (1.00, 2, Outcome.INCONCLUSIVE),
        (1.00, 3, Outcome.OK),
        (1.02, 3, Outcome.OK),
        (1.05, 3, Outcome.INCONCLUSIVE),
        (1.05, 4, Outcome.REGRESSION),
        (0.98, 3, Outcome.OK),
        (0.95, 3, Outcome.FASTER),
    ],
)
def test_what_is_clear_is_decided_by_few_pairs(ratio: float, pairs: int, outcome: Outcome) -> None:
    found, final = compare(exactly(ratio, pairs), TOLERANCE)
    assert found.outcome is outcome
    assert final == (outcome is not Outcome.INCONCLUSIVE)


def test_one_pair_that_disagrees_is_a_doubt() -> None:
    found, final = compare([*exactly(1.10, 4), *exactly(0.99, 1)], TOLERANCE)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert not final
    assert "10.0% slower than base in 5 pairs of fresh processes; a slowdown of " in found.reason
    assert f"a slowdown of {found.not_excluded:.1%} cannot be excluded" in found.reason


def test_less_than_the_floor_is_no_regression() -> None:
    base = 1e-4
    assert compare(exactly(1.2, 8, base), TOLERANCE)[0].outcome is Outcome.OK
    assert compare(exactly(1.2, 8, 10 * base), TOLERANCE)[0].outcome is Outcome.REGRESSION


@pytest.mark.parametrize("pairs", [[], exactly(1, 1), [*exactly(1, 2), []]])
def test_too_little_to_compare_is_an_error(pairs: Pairs) -> None:
    with pytest.raises(ValueError, match="at least 2 pairs"):
        compare(pairs, TOLERANCE)


# Under noise


def drift(rng: random.Random) -> Iterator[float]:
    """The machine gets slower all the time, 0.2 % a sample."""
    speed = 1.0
    while True:
        speed *= 1.002
        yield speed


def steps(rng: random.Random) -> Iterator[float]:
    """It changes its speed now and then, by up to a quarter."""
    speed = 1.0
    while True:
        if rng.random() < 0.02:
            speed = rng.choice([1.0, 1.1, 1.25])
        yield speed


def autocorrelated(rng: random.Random) -> Iterator[float]:
    """An AR(1) process whose spread is 4.6 %."""
    log = 0.0
    while True:
        log = 0.9 * log + rng.gauss(0, 0.02)
        yield math.exp(log)


def heavy_tails(rng: random.Random) -> Iterator[float]:
    """Every sample is late by a Pareto variate without a variance."""
    while True:
        yield 1 + 0.02 * (rng.paretovariate(1.5) - 1)


def still(rng: random.Random) -> Iterator[float]:
    while True:
        yield 1.0


def alike(rng: random.Random) -> float:
    return 1.0


def two_states(rng: random.Random) -> float:
    """A process is fast or slow for life."""
    return rng.choice([1.0, 1.1])


def apart(rng: random.Random) -> float:
    """Processes differ by 2 %."""
    return math.exp(rng.gauss(0, 0.02))


def far_apart(rng: random.Random) -> float:
    """Processes differ by 7 %, as on the worst machine seen."""
    return math.exp(rng.gauss(0, 0.07))


Machine = Callable[[random.Random], Iterator[float]]
Process = Callable[[random.Random], float]


Arms = Mapping[str, float]
#: A pair of processes of these speeds, the first or the second of which goes first: its blocks.
Taken = Callable[[random.Random, Iterator[float], Arms, int], list[Block]]


def there_and_back(first: int) -> tuple[str, ...]:
    return ("base", "head", "head", "base") if first % 2 else ("head", "base", "base", "head")


def in_turns(rng: random.Random, speed: Iterator[float], arms: Arms, first: int) -> list[Block]:
    """Three turns of whole generations."""
    turns = []
    for turn in range(3):
        samples: dict[str, list[float]] = {"base": [], "head": []}
        for arm in there_and_back(first + turn):
            samples[arm].append(arms[arm] * next(speed) * math.exp(rng.gauss(0, 0.015)))
        turns.append(Block(min(samples["base"]), min(samples["head"])))
    return turns


def in_step(rng: random.Random, speed: Iterator[float], arms: Arms, first: int) -> list[Block]:
    """Up to six generations of 16 steps, of which now one arm computes one and now the other; fewer if they agree."""
    turns: list[Block] = []
    while len(turns) < 6 and not precise(turns):
        steps: dict[str, list[float]] = {"base": [], "head": []}
        for arm in there_and_back(first + len(turns)) * 8:
            steps[arm].append(arms[arm] * next(speed) * math.exp(rng.gauss(0, 0.06)))
        turns.append(Block(fmean(steps["base"]), fmean(steps["head"])))
    return turns


def decided(seed: int, machine: Machine, process: Process, slowdown: float, taken: Taken = in_turns) -> Outcome:
    """The outcome of a comparison that goes on until it is final or has used its pairs up."""
    rng = random.Random(seed)
    speed = machine(rng)
    pairs: list[list[Block]] = []
    while True:
        arms = {"base": process(rng), "head": process(rng) * (1 + slowdown)}
        pairs.append(taken(rng, speed, arms, len(pairs)))
        if len(pairs) > 1:
            found, final = compare(pairs, TOLERANCE)
            if final or len(pairs) == MOST_PAIRS:
                return found.outcome


NOISE = [
    (still, alike),
    (drift, alike),
    (steps, alike),
    (autocorrelated, alike),
    (heavy_tails, alike),
    (still, two_states),
    (still, apart),
    (still, far_apart),
]


@pytest.mark.parametrize("taken", [in_turns, in_step])
@pytest.mark.parametrize(("machine", "process"), NOISE)
def test_unchanged_code_fails_less_than_once_in_a_hundred(machine: Machine, process: Process, taken: Taken) -> None:
    trials = 3000 if process is two_states else 600  # which comes close
    found = Counter(decided(seed, machine, process, 0.0, taken) for seed in range(trials))
    assert found[Outcome.REGRESSION] < trials / 100
    if process is alike:
        assert found[Outcome.OK] > 590


@pytest.mark.parametrize("taken", [in_turns, in_step])
@pytest.mark.parametrize(("machine", "process"), [noise for noise in NOISE if noise[1] is alike])
@pytest.mark.parametrize(("slowdown", "least"), [(0.05, 0.95), (0.10, 0.99)])
def test_what_slows_head_alone_is_caught(
    machine: Machine, process: Process, slowdown: float, least: float, taken: Taken
) -> None:
    found = Counter(decided(seed, machine, process, slowdown, taken) for seed in range(200))
    assert found[Outcome.REGRESSION] >= least * 200


@pytest.mark.parametrize(("process", "least"), [(two_states, 0.7), (apart, 0.99)])
def test_ten_per_cent_are_caught_although_processes_differ(process: Process, least: float) -> None:
    found = Counter(decided(seed, still, process, 0.10) for seed in range(200))
    assert found[Outcome.REGRESSION] >= least * 200
    assert found[Outcome.OK] <= 0.03 * 200  # what cannot be told is said to be inconclusive
