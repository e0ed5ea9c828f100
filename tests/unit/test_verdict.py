"""The gate's statistics: what they promise for all data, and how often they err in simulation."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_llmperf.gate import verdict as gate
from pytest_llmperf.gate.judge import CONFIRMATIONS
from pytest_llmperf.gate.verdict import Outcome, Verdict
from pytest_llmperf.settings import OPTIONS

Arm = list[list[float]]

TOLERANCE = 0.10
FLOOR = 1e-4
#: Processes of a baseline.
INVOCATIONS: int = next(option.default for option in OPTIONS if option.name == "invocations")

seconds = st.floats(0.5, 2.0)
samples = st.lists(seconds, min_size=1, max_size=7)
arms = st.lists(samples, min_size=1, max_size=4)
fresh = st.lists(samples, min_size=2, max_size=4)
histories = st.lists(arms, min_size=1, max_size=5)
few = settings(max_examples=30)  # each example is one bootstrap or more


def scaled(arm: Arm, factor: float) -> Arm:
    return [[factor * sample for sample in process] for process in arm]


def steady(*processes: float) -> Arm:
    """Processes without noise inside, of six samples each."""
    return [[value] * 6 for value in processes]


# Simulation: kinds of noise, each a generator of one process


def lognormal(rng: random.Random, at: float) -> list[float]:
    """Samples vary by 2 %, processes by 0.5 %."""
    at *= rng.lognormvariate(0, 0.005)
    return [at * rng.lognormvariate(0, 0.02) for _ in range(8)]


def spiky(rng: random.Random, at: float) -> list[float]:
    """One sample in seven is up to three times slower, as when a neighbour takes a core."""
    return [at * rng.lognormvariate(0, 0.01) * (rng.uniform(1, 3) if rng.random() < 1 / 7 else 1) for _ in range(8)]


def drifting(rng: random.Random, at: float) -> list[float]:
    """Every process starts up to 2 % off and drifts by up to 2 % more, as a clock that warms up."""
    start, end = rng.uniform(-0.02, 0.02), rng.uniform(-0.02, 0.02)
    return [at * (1 + start + end * i / 7) * rng.lognormvariate(0, 0.01) for i in range(8)]


def stepping(rng: random.Random, at: float) -> list[float]:
    """The machine changes its speed now and then, by up to a quarter."""
    speed, samples = rng.choice([1.0, 1.1, 1.25]), []
    for _ in range(8):
        speed = rng.choice([1.0, 1.1, 1.25]) if rng.random() < 0.1 else speed
        samples.append(at * speed * rng.lognormvariate(0, 0.015))
    return samples


def autocorrelated(rng: random.Random, at: float) -> list[float]:
    """An AR(1) process whose spread is 4.6 %."""
    log, samples = rng.gauss(0, 0.046), []
    for _ in range(8):
        log = 0.9 * log + rng.gauss(0, 0.02)
        samples.append(at * math.exp(log))
    return samples


def heavy_tailed(rng: random.Random, at: float) -> list[float]:
    """Every sample is late by a Pareto variate without a variance."""
    return [at * (1 + 0.02 * (rng.paretovariate(1.5) - 1)) * rng.lognormvariate(0, 0.015) for _ in range(8)]


def two_states(rng: random.Random, at: float) -> list[float]:
    """A process is fast or slow for life."""
    return lognormal(rng, at * rng.choice([1.0, 1.1]))


def near(rng: random.Random, at: float) -> list[float]:
    """Processes differ by 1.5 %, as on a shared machine of 2 CPUs that is quiet."""
    return lognormal(rng, at * rng.lognormvariate(0, 0.014))


def apart(rng: random.Random, at: float) -> list[float]:
    """Processes differ by 2 %."""
    return lognormal(rng, at * rng.lognormvariate(0, 0.02))


def far_apart(rng: random.Random, at: float) -> list[float]:
    """Processes differ by 7 %, as on the worst machine seen."""
    return lognormal(rng, at * rng.lognormvariate(0, 0.07))


Noise = Callable[[random.Random, float], list[float]]


def gated(rng: random.Random, noise: Noise, slowdown: float, tolerance: float, processes: int = INVOCATIONS) -> Verdict:
    """What becomes of one case: screened, and confirmed in fresh processes if flagged, of a regression in one more."""
    baseline = [noise(rng, 1.0) for _ in range(processes)]
    verdict = gate.screen(baseline, [noise(rng, 1 + slowdown)], tolerance, FLOOR)
    if verdict.flagged:
        fresh = [noise(rng, 1 + slowdown) for _ in range(CONFIRMATIONS + 1)]
        if (cleared := gate.clear(baseline, fresh[:1], tolerance, FLOOR)) is not None:
            return cleared
        for count in (CONFIRMATIONS, CONFIRMATIONS + 1):
            verdict = gate.confirm(baseline, fresh[:count], tolerance, FLOOR)
            if verdict.outcome is not Outcome.REGRESSION:
                break
    return verdict


def share(
    outcome: Outcome, noise: Noise, *, slowdown: float, tolerance: float, trials: int, processes: int = INVOCATIONS
) -> float:
    rng = random.Random(2024)
    found = [gated(rng, noise, slowdown, tolerance, processes).outcome for _ in range(trials)]
    return found.count(outcome) / trials


CALM = [lognormal, spiky, drifting, heavy_tailed]


@pytest.mark.parametrize("processes", [CONFIRMATIONS + 1, INVOCATIONS])
@pytest.mark.parametrize("noise", [*CALM, stepping, autocorrelated, two_states, near, apart, far_apart])
def test_unchanged_code_is_not_called_a_regression(noise: Noise, processes: int) -> None:
    """A baseline's set has that many processes at least where its CPUs were moved."""
    found = share(Outcome.REGRESSION, noise, slowdown=0, tolerance=0.05, trials=500, processes=processes)
    assert found <= 0.01


@pytest.mark.parametrize("noise", CALM)
def test_a_slowdown_of_15_percent_is_caught_at_a_tolerance_of_10(noise: Noise) -> None:
    assert share(Outcome.REGRESSION, noise, slowdown=0.15, tolerance=0.10, trials=150) >= 0.95


@pytest.mark.parametrize("noise", [lognormal, near])
def test_a_slowdown_of_10_percent_is_caught_at_a_tolerance_of_5_where_processes_agree(noise: Noise) -> None:
    assert share(Outcome.REGRESSION, noise, slowdown=0.10, tolerance=0.05, trials=150) >= 0.90


def test_where_processes_differ_as_much_it_is_inconclusive_more_often_than_caught() -> None:
    rates = {
        outcome: share(outcome, two_states, slowdown=0.15, tolerance=0.10, trials=100)
        for outcome in (Outcome.REGRESSION, Outcome.INCONCLUSIVE)
    }
    assert 0 < rates[Outcome.REGRESSION] < rates[Outcome.INCONCLUSIVE]


@pytest.mark.parametrize("noise", [spiky, drifting])
def test_a_large_slowdown_never_passes_in_disturbed_runs(noise: Noise) -> None:
    assert share(Outcome.OK, noise, slowdown=0.25, tolerance=0.10, trials=60) == 0


# What holds for all data


@few
@given(arms, samples)
def test_the_interval_contains_the_ratio_and_the_threshold_is_at_least_the_tolerance(
    base: Arm, head: list[float]
) -> None:
    verdict = gate.screen(base, [head], TOLERANCE, FLOOR)
    assert 0 < verdict.low <= verdict.ratio <= verdict.high
    low, high = gate.bootstrap_interval(base, [head], resamples=1)
    assert low <= verdict.ratio <= high
    assert TOLERANCE <= verdict.threshold <= verdict.resolution
    assert (verdict.processes, verdict.blocks) == (1, max(1, len(head) // 2))


@few
@given(arms, fresh, st.randoms())
def test_the_order_of_processes_does_not_matter(base: Arm, head: Arm, rng: random.Random) -> None:
    shuffled = rng.sample(base, k=len(base)), rng.sample(head, k=len(head))
    assert gate.confirm(*shuffled, TOLERANCE, FLOOR) == gate.confirm(base, head, TOLERANCE, FLOOR)


@few
@given(arms, fresh, st.integers(-9, 9))
def test_the_unit_of_time_does_not_matter(base: Arm, head: Arm, power: int) -> None:
    unit = 2.0**power  # exact in binary
    plain = gate.confirm(base, head, TOLERANCE, 0)
    other = gate.confirm(scaled(base, unit), scaled(head, unit), TOLERANCE, 0)
    assert (other.head, other.baseline) == (plain.head * unit, plain.baseline * unit)
    assert replace(other, head=plain.head, baseline=plain.baseline) == plain


@few
@given(arms, samples, fresh, st.floats(1, 2))
def test_what_is_slower_still_is_no_less_of_a_regression(base: Arm, first: list[float], head: Arm, more: float) -> None:
    if (found := gate.screen(base, [first], TOLERANCE, FLOOR)).flagged and found.ratio > 1:
        assert gate.screen(base, scaled([first], more), TOLERANCE, FLOOR).flagged
    if gate.confirm(base, head, TOLERANCE, FLOOR).outcome is Outcome.REGRESSION:
        assert gate.confirm(base, scaled(head, more), TOLERANCE, FLOOR).outcome is Outcome.REGRESSION


@few
@given(arms, fresh)
@example(steady(1), steady(1.02, *[1.2] * 8))
def test_the_same_samples_slowed_down_to_the_resolution_are_a_regression(base: Arm, head: Arm) -> None:
    verdict = gate.confirm(base, head, TOLERANCE, FLOOR)
    slowed = scaled(head, (1 + verdict.resolution) / verdict.ratio * 1.000001)
    assert gate.confirm(base, slowed, TOLERANCE, FLOOR).outcome is Outcome.REGRESSION


@few
@given(arms, fresh)
def test_the_same_data_have_the_same_interval(base: Arm, head: Arm) -> None:
    assert gate.bootstrap_interval(base, head) == gate.bootstrap_interval(base, head)


def test_more_processes_narrow_the_interval() -> None:
    rng = random.Random(0)
    few_low, few_high = gate.bootstrap_interval([lognormal(rng, 1)] * 3, [lognormal(rng, 1) for _ in range(3)])
    many_low, many_high = gate.bootstrap_interval([lognormal(rng, 1)] * 3, [lognormal(rng, 1) for _ in range(30)])
    assert many_high - many_low < few_high - few_low


# Screening


def test_an_unchanged_latency_is_plainly_ok() -> None:
    verdict = gate.screen(steady(1, 1, 1), steady(1), TOLERANCE, FLOOR)
    assert verdict == Verdict(Outcome.OK, 1, 1, 1, TOLERANCE, verdict.resolution, 1, 3, head=1, baseline=1)
    assert verdict.resolution == pytest.approx(TOLERANCE)
    assert verdict.change == 0


def test_a_slow_process_is_flagged_and_not_yet_a_regression() -> None:
    verdict = gate.screen(steady(1, 1, 1), steady(1.12), TOLERANCE, FLOOR, "speedup over eager")
    assert verdict.flagged
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.reason == "flagged: 12.0% slower in one process, above the threshold of 10.0%"
    assert verdict.basis == "speedup over eager"


def test_a_baseline_that_varied_asks_for_more() -> None:
    assert gate.noise_floor(steady(0.98, 1.00, 1.02)) == pytest.approx(0.01 + 1.5 * 0.02)
    assert not gate.screen(steady(0.92, 1, 1.08), steady(1.12), TOLERANCE, FLOOR).flagged


def test_the_slowest_process_of_a_baseline_is_one_of_unchanged_code() -> None:
    assert gate.noise_floor(steady(1, 1, 1, 1, 1.2)) == pytest.approx(0.2)


# Several days


@few
@given(histories)
def test_history_never_makes_the_floor_smaller(sets: list[Arm]) -> None:
    assert gate.noise_floor(sets[0], sets[1:]) >= gate.noise_floor(sets[0])


@few
@given(histories)
def test_what_counts_is_the_newest_set_and_those_just_before_it(sets: list[Arm]) -> None:
    counted = gate.unchanged(sets)
    assert counted
    assert counted == sets[: len(counted)]


@few
@given(histories)
def test_every_process_of_unchanged_code_is_within_the_floor(sets: list[Arm]) -> None:
    floor = gate.noise_floor(sets[0], sets[1:])
    for process in chain.from_iterable(gate.unchanged(sets)):
        assert gate.centre([process]) <= gate.centre(sets[0]) * (1 + floor) * (1 + 1e-9)


@few
@given(histories, st.integers(-20, 20))
def test_the_floor_has_no_unit(sets: list[Arm], power: int) -> None:
    other = [scaled(one, 2.0**power) for one in sets]
    assert gate.noise_floor(other[0], other[1:]) == gate.noise_floor(sets[0], sets[1:])


@few
@given(arms, histories, st.floats(50, 500), st.booleans())
def test_what_came_before_a_change_does_not_count(new: Arm, before: list[Arm], factor: float, faster: bool) -> None:
    changed = scaled(new, 1 / factor if faster else factor)
    assert gate.noise_floor(changed, before) == gate.noise_floor(changed)


def test_days_that_differ_are_noise_and_a_change_of_the_code_is_not() -> None:
    today, yesterday = steady(1.0, 1.01, 1.02), steady(1.02, 1.03, 1.04)
    assert gate.noise_floor(today) == pytest.approx(0.02 / 1.01)
    # Of the processes Q1 and Q3 are 0.9927 and 1.0073 of their day's centre; of the days, 1.015 and 1.025.
    assert gate.noise_floor(today, [yesterday]) == pytest.approx(math.hypot(0.0292, 0.03 / 1.01), rel=0.01)
    improved = scaled(today, 0.8)
    assert gate.noise_floor(improved, [today, yesterday]) == gate.noise_floor(improved)
    days = [scaled(improved, 1.02), improved, today, yesterday]
    assert gate.unchanged(days) == days[:2]


def test_small_steps_in_one_direction_do_not_add_up() -> None:
    days = [scaled(steady(1, 1.01, 1.02), 1.03**day) for day in range(12, 0, -1)]
    assert 2 < len(gate.unchanged(days)) < 6
    assert gate.noise_floor(days[0], days[1:]) < 0.2, "not the 38 % of all of them"


def test_the_threshold_knows_the_days_before() -> None:
    today, yesterday = steady(1.0, 1.02, 1.04), steady(1.06, 1.08, 1.10)
    head = steady(1.12, 1.12)
    assert gate.screen(today, head[:1], 0.05, FLOOR).flagged
    assert not gate.screen(today, head[:1], 0.05, FLOOR, earlier=[yesterday]).flagged
    assert gate.confirm(today, head, 0.05, FLOOR).outcome is Outcome.REGRESSION
    assert gate.confirm(today, head, 0.05, FLOOR, [yesterday]).outcome is Outcome.INCONCLUSIVE


def test_what_the_baselines_own_processes_hide_is_inconclusive() -> None:
    noisy = steady(1, 1, 1, 1, 1.2)
    for found in (
        gate.screen(noisy, steady(1.15), TOLERANCE, FLOOR),
        gate.confirm(noisy, steady(1.15, 1.15), TOLERANCE, FLOOR),
    ):
        assert found.outcome is Outcome.INCONCLUSIVE
        assert not found.flagged
        assert found.reason.startswith(
            "15.0% slower, more than the 10% allowed, but this baseline's own processes differ"
        )
    assert gate.screen(noisy, steady(1.09), TOLERANCE, FLOOR).outcome is Outcome.OK


def test_one_process_says_nothing_of_the_noise_between_processes() -> None:
    assert gate.noise_floor([[1.0, 2.0, 3.0, 4.0]]) == 0


def test_a_difference_within_the_floor_is_ok() -> None:
    verdict = gate.screen(steady(0.001), steady(0.0013), TOLERANCE, 0.0005)
    assert (verdict.outcome, verdict.flagged) == (Outcome.OK, False)
    assert verdict.reason == "30.0% slower, but within the floor of 0.5 ms"
    assert verdict.resolution == pytest.approx(0.5)


def test_faster_needs_more_than_the_tolerance() -> None:
    assert gate.screen(steady(1, 1), steady(0.95), TOLERANCE, FLOOR).outcome is Outcome.OK
    verdict = gate.screen(steady(1, 1), steady(0.8), TOLERANCE, FLOOR)
    assert (verdict.outcome, verdict.reason) == (Outcome.FASTER, "20.0% faster")


def test_faster_needs_an_interval_below_one() -> None:
    head = [[0.8, 0.8, 0.8, 0.8, 1.3, 1.3]]
    assert gate.screen(steady(1, 1), head, TOLERANCE, FLOOR).outcome is Outcome.OK


# Confirming


@given(arms, st.floats(-0.05, 0.05), arms, st.floats(0.2, 0.5))
def test_what_one_process_clears_no_further_one_could_have_confirmed(
    baseline: Arm, off: float, further: Arm, tolerance: float
) -> None:
    first = [gate.centre(baseline) * (1 + off)]
    cleared = gate.clear(baseline, [first], tolerance, FLOOR)
    assert cleared is not None
    assert cleared.outcome is Outcome.OK
    confirmed = gate.confirm(baseline, [first, *further], tolerance, FLOOR)
    assert confirmed.outcome not in (Outcome.REGRESSION, Outcome.FASTER)


@pytest.mark.parametrize(
    ("baseline", "at", "outcome"),
    [
        (steady(1, 1, 1), 1.03, Outcome.OK),
        (steady(1, 1, 1), 0.97, Outcome.OK),
        (steady(1, 1, 1), 1.05, None),
        (steady(1, 1, 1), 0.95, None),
        (steady(0.9, 1, 1.6), 1.15, Outcome.INCONCLUSIVE),  # its own processes differ by 60 %, more than is allowed
    ],
)
def test_a_process_as_fast_as_the_baseline_clears_a_case(baseline: Arm, at: float, outcome: Outcome | None) -> None:
    found = gate.clear(baseline, steady(at), TOLERANCE, FLOOR)
    assert (found and found.outcome) == outcome
    if outcome is Outcome.OK:
        assert found
        assert found.reason == "not confirmed in a fresh process"


def test_one_process_is_what_clears() -> None:
    with pytest.raises(ValueError, match="1 fresh invocation of head, not 2"):
        gate.clear(steady(1, 1), steady(1, 1), TOLERANCE, FLOOR)


@pytest.mark.parametrize(
    ("head", "floor", "outcome", "reason"),
    [
        (steady(1.12, 1.12), FLOOR, Outcome.REGRESSION, "12.0% slower in 2 fresh processes"),
        (steady(1.0, 1.2, 1.01), FLOOR, Outcome.OK, "not confirmed in 3 fresh processes"),
        (steady(1.12, 1.12), 0.2, Outcome.INCONCLUSIVE, "but the difference is within the floor of 200 ms"),
        (
            steady(1.02, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2),
            FLOOR,
            Outcome.INCONCLUSIVE,
            "20.0% slower in 9 fresh processes, but one process was 2.0% slower, not above 3.3%",
        ),
        (
            [[1.12, 1.12, 1.12, 1.12, 0.99, 0.99]] * 2,
            FLOOR,
            Outcome.INCONCLUSIVE,
            "but the 99% interval reaches down to 1.0% faster, not above 3.3%",
        ),
    ],
)
def test_a_regression_needs_every_reading_to_agree(head: Arm, floor: float, outcome: Outcome, reason: str) -> None:
    verdict = gate.confirm(steady(1, 1, 1), head, TOLERANCE, floor)
    assert verdict.outcome is outcome
    assert verdict.reason.endswith(reason)
    assert not verdict.flagged


def test_a_machine_that_was_not_quiet_takes_the_certainty_back() -> None:
    slower = gate.confirm(steady(1), steady(1.2, 1.2), TOLERANCE, FLOOR)
    doubted = gate.contaminated(slower, "the GPU was throttled")
    assert doubted.outcome is Outcome.INCONCLUSIVE
    assert doubted.reason == "20.0% slower in 2 fresh processes, but the GPU was throttled"
    same = gate.screen(steady(1), steady(1), TOLERANCE, FLOOR)
    assert gate.contaminated(same, "the GPU was throttled") == same


# Samples, blocks, speedups


def test_a_block_is_the_best_of_its_samples_and_the_last_takes_the_rest() -> None:
    assert gate.blocks([3, 1, 2, 5, 4]) == [1, 2]
    assert gate.blocks([3.0]) == [3.0]
    assert gate.blocks([9, 8, 7, 6], k=1) == [9, 8, 7, 6]


@given(samples, st.integers(1, 9))
def test_blocks_cover_all_samples(one: list[float], k: int) -> None:
    best = gate.blocks(one, k)
    assert len(best) == max(1, len(one) // k)
    assert min(best) == min(one)


@given(samples)
def test_a_spread_is_in_order(one: list[float]) -> None:
    spread = gate.summarize(one)
    assert spread.minimum <= spread.q1 <= spread.median <= spread.q3 <= spread.maximum
    assert spread.n == len(one)


def test_quartiles_interpolate_linearly() -> None:
    assert gate.summarize([1, 2, 3, 4]) == gate.Spread(2.5, 1.75, 3.25, 1, 4, 4)


@few
@given(arms, arms, st.floats(0.1, 10))
def test_a_faster_machine_has_the_same_speedups(eager: Arm, backend: Arm, speed: float) -> None:
    here = gate.speedup_invocations(eager, backend)
    there = gate.speedup_invocations(scaled(eager, speed), scaled(backend, speed))
    assert [pytest.approx(process) for process in here] == there


def test_a_backend_twice_as_fast_takes_half_of_eagers_latency() -> None:
    assert gate.speedup_invocations(steady(2, 2.2, 1.9), [[1, 1.1]]) == [[0.5, 0.55]]


# What is refused


@pytest.mark.parametrize(
    "bad", [[], [[]], [[1.0], []], [[0.0]], [[-1.0]], [[math.nan]], [[math.inf]], [["1"]]], ids=str
)
def test_data_that_cannot_be_latencies_are_refused(bad: Arm) -> None:
    with pytest.raises(ValueError, match=r"^baseline: "):
        gate.bootstrap_interval(bad, [[1.0]])
    with pytest.raises(ValueError, match=r"^baseline: "):
        gate.noise_floor(bad)
    with pytest.raises(ValueError, match=r"^eager: "):
        gate.speedup_invocations(bad, [[1.0]])


@pytest.mark.parametrize("out_of_range", [-0.1, math.nan, math.inf])
def test_a_tolerance_or_floor_out_of_range_is_refused(out_of_range: float) -> None:
    for tolerance, floor in ((out_of_range, 0), (0, out_of_range)):
        with pytest.raises(ValueError, match="tolerance and the floor"):
            gate.screen([[1.0]], [[1.0]], tolerance, floor)


def test_the_number_of_processes_is_checked() -> None:
    with pytest.raises(ValueError, match="takes 1 invocation of head, not 2"):
        gate.screen([[1.0]], [[1.0], [1.0]], TOLERANCE, FLOOR)
    with pytest.raises(ValueError, match="at least 2 fresh invocations of head, not 1"):
        gate.confirm([[1.0]], [[1.0]], TOLERANCE, FLOOR)
