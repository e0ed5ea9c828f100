"""A stored baseline as an interval: what holds for all figures, and how often the rule errs in simulation."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.gate import stored
from pytest_llmperf.gate.priors import CPU, Prior, prior_of
from pytest_llmperf.gate.rule import Interval, Outcome, decide
from pytest_llmperf.gate.stored import interval
from pytest_llmperf.gate.student import student_t

TOLERANCE = 0.10
#: Processes of a sitting, as many as the option has by default.
PROCESSES = 5

figures = st.floats(0.5, 2.0)
sittings = st.lists(st.lists(figures, min_size=1, max_size=5), min_size=1, max_size=5)
heads = st.lists(figures, min_size=1, max_size=4)
priors = st.builds(Prior, st.floats(0.005, 0.1), st.integers(1, 8))
tolerances = st.floats(0.01, 1)

#: What changes in proportion to head.
OF_HEAD = ("ratio", "low", "high", "upper", "head")


def scaled(rows: Sequence[Sequence[float]], factor: float) -> list[list[float]]:
    return [[factor * figure for figure in row] for row in rows]


def values(found: Interval) -> list[float]:
    return [found.ratio, found.low, found.high, found.upper, found.head, found.baseline]


# For all figures


@given(sittings, heads, priors)
def test_the_ends_are_around_the_ratio(rows: list[list[float]], head: list[float], prior: Prior) -> None:
    found = interval(rows, head, prior)
    assert 0 < found.low < found.ratio < found.upper < found.high
    assert found.ratio == pytest.approx(found.head / found.baseline)
    assert (found.count, found.basis) == (len(head), "stored")


@given(sittings, heads, priors, tolerances)
def test_stored_figures_alone_are_never_a_regression(
    rows: list[list[float]], head: list[float], prior: Prior, tolerance: float
) -> None:
    found = interval(rows, head, prior)
    assert not found.enough
    assert decide(found, tolerance).outcome is not Outcome.REGRESSION


@given(sittings, heads, priors, st.randoms())
def test_the_order_of_sittings_and_processes_does_not_matter(
    rows: list[list[float]], head: list[float], prior: Prior, rng: random.Random
) -> None:
    shuffled = [rng.sample(row, k=len(row)) for row in rng.sample(rows, k=len(rows))]
    other = interval(shuffled, rng.sample(head, k=len(head)), prior)
    assert values(other) == pytest.approx(values(interval(rows, head, prior)))


@given(sittings, heads, priors, st.integers(-20, 20))
def test_the_unit_does_not_matter(rows: list[list[float]], head: list[float], prior: Prior, power: int) -> None:
    unit = 2.0**power
    plain, other = interval(rows, head, prior), interval(scaled(rows, unit), *scaled([head], unit), prior)
    same = replace(other, head=other.head / unit, baseline=other.baseline / unit)
    assert values(same) == pytest.approx(values(plain))


@given(sittings, heads, priors, st.floats(1, 3))
def test_a_slower_head_moves_the_whole_interval(
    rows: list[list[float]], head: list[float], prior: Prior, factor: float
) -> None:
    before, after = interval(rows, head, prior), interval(rows, *scaled([head], factor), prior)
    for name in OF_HEAD:
        assert getattr(after, name) == pytest.approx(getattr(before, name) * factor)
    assert after.baseline == before.baseline


@given(st.lists(figures, min_size=1, max_size=5), figures, priors)
def test_more_sittings_that_agree_exclude_more(row: list[float], head: float, prior: Prior) -> None:
    ends = [interval([row] * count, [head], prior).upper for count in range(1, 8)]
    assert all(more < fewer for fewer, more in pairwise(ends))


@given(figures, heads, priors)
def test_more_processes_of_head_that_agree_exclude_no_less(figure: float, head: list[float], prior: Prior) -> None:
    one, three = (interval([[figure] * 5], head[:1] * count, prior).upper for count in (1, 3))
    assert three <= one * (1 + 1e-12)


@given(sittings, heads, priors, st.floats(1.1, 3))
def test_a_wider_prior_excludes_less(rows: list[list[float]], head: list[float], prior: Prior, factor: float) -> None:
    wider = replace(prior, spread=prior.spread * factor)
    assert interval(rows, [head[0]], wider).low < interval(rows, [head[0]], prior).low


@given(figures, priors)
def test_one_sitting_that_agrees_says_what_the_prior_says(figure: float, prior: Prior) -> None:
    """Two sittings, the baseline's and head's, each have the prior's variance."""
    found = interval([[figure] * PROCESSES], [figure], prior)
    reach = math.sqrt(2) * prior.spread * student_t(0.95, prior.weight)
    assert found.upper == pytest.approx(math.exp(reach))


@given(sittings, heads)
def test_an_over_all_scale_cancels_over_the_reference(rows: list[list[float]], reference: list[float]) -> None:
    """A machine twice as fast has the same figures over the reference's."""
    for row in rows:
        here = stored.over_reference(row, reference)
        there = stored.over_reference(*scaled([row, reference], 0.5))
        assert here == pytest.approx(there)


# Examples


@pytest.mark.parametrize(("count", "excluded"), [(1, 0.095), (2, 0.068), (3, 0.057), (5, 0.044)])
def test_what_sittings_of_a_cpu_exclude(count: int, excluded: float) -> None:
    found = interval([[1.0] * PROCESSES] * count, [1.0], CPU)
    assert found.upper - 1 == pytest.approx(excluded, abs=1e-3)


def test_processes_that_differ_within_a_sitting_exclude_less() -> None:
    calm, restless = ([[1 - spread, 1, 1 + spread]] for spread in (0.0, 0.05))
    assert interval(restless, [1.0], CPU).upper > interval(calm, [1.0], CPU).upper


def test_sittings_that_differ_exclude_less() -> None:
    apart = [[0.9] * 3, [1.0] * 3, [1.1] * 3]
    assert interval(apart, [1.0], CPU).upper > interval([[1.0] * 3] * 3, [1.0], CPU).upper
    assert interval(apart, [1.1], CPU).low < 1, "a sitting of the baseline was as slow"


def test_sittings_count_alike_whatever_their_size() -> None:
    assert interval([[1.0], [2.0] * 9], [1.0], CPU).baseline == pytest.approx(math.sqrt(2))


def test_the_figure_of_a_sitting_is_the_geometric_mean_of_its_processes() -> None:
    assert stored.centre([1.0, 2.0, 4.0]) == pytest.approx(2.0)


def test_a_backend_twice_as_fast_takes_half_of_the_reference_s_time() -> None:
    assert stored.over_reference([1.0, 1.1], [2.0, 2.0]) == pytest.approx([0.5, 0.55])


def test_the_prior_depends_on_what_a_metric_waits_for() -> None:
    assert prior_of("cpu", "ttft") == prior_of("cpu", "tpot") == CPU
    for kind in ("cuda", "rocm"):
        assert prior_of(kind, "ttft").spread < CPU.spread, "the device alone computes a prefill"
        assert prior_of(kind, "tpot").spread > CPU.spread, "a decode step waits for the host"
        assert prior_of(kind, "latency") == prior_of(kind, "tpot")


def test_decode_on_a_gpu_in_three_recorded_sittings_is_no_regression() -> None:
    """19.4, 21.3 and 23.0 ms a token by unchanged code; even fresh processes may not call that a regression."""
    prior = prior_of("cuda", "tpot")
    for now in (21.3, 23.0, 19.4 * 1.266):
        found = replace(interval([[19.4] * PROCESSES], [now] * 3, prior), enough=True)
        assert decide(found, 0.05).outcome is Outcome.INCONCLUSIVE


# What is refused


@pytest.mark.parametrize("bad", [[], [0.0], [-1.0], [math.nan], [math.inf], [1.0, 0.0]], ids=str)
def test_figures_that_cannot_be_are_refused(bad: list[float]) -> None:
    said = "figures of processes must be positive and finite, and at least 1"
    for call in (
        lambda: interval([bad], [1.0], CPU),
        lambda: interval([[1.0], bad], [1.0], CPU),
        lambda: interval([[1.0]], bad, CPU),
        lambda: stored.centre(bad),
        lambda: stored.over_reference([1.0], bad),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_a_baseline_without_a_sitting_is_refused() -> None:
    with pytest.raises(ValueError, match="a stored baseline has at least 1 sitting"):
        interval([], [1.0], CPU)


# Simulation: what happens to a sitting, and in it to each process


Machine = Callable[[random.Random], Callable[[], float]]


def steady(rng: random.Random) -> Callable[[], float]:
    """Processes differ by 0.5 %."""
    return lambda: rng.lognormvariate(0, 0.005)


def restless(rng: random.Random) -> Callable[[], float]:
    """Processes differ by 1.5 %, as on a shared machine of 2 CPUs that is quiet."""
    return lambda: rng.lognormvariate(0, 0.015)


def sat(rng: random.Random) -> Callable[[], float]:
    """Sittings differ as the prior says, processes by 1 %."""
    speed = rng.lognormvariate(0, CPU.spread)
    return lambda: speed * rng.lognormvariate(0, 0.01)


def drifting(rng: random.Random) -> Callable[[], float]:
    """Each process of a sitting is slower than the one before, by up to 1 %, as on a machine that grows warm."""
    slower, made = rng.uniform(0, 0.01), iter(range(100))
    return lambda: (1 + slower) ** next(made) * rng.lognormvariate(0, 0.005)


def stepping(rng: random.Random) -> Callable[[], float]:
    """A sitting has one of two speeds, 6 % apart."""
    speed = rng.choice([1.0, 1.06])
    return lambda: speed * rng.lognormvariate(0, 0.005)


def heavy_tailed(rng: random.Random) -> Callable[[], float]:
    """A process is late by a Pareto variate without a variance."""
    return lambda: (1 + 0.005 * (rng.paretovariate(1.5) - 1)) * rng.lognormvariate(0, 0.005)


def two_states(rng: random.Random) -> Callable[[], float]:
    """A process is fast or slow for life."""
    return lambda: rng.choice([1.0, 1.06]) * rng.lognormvariate(0, 0.005)


MACHINES = (steady, restless, sat, drifting, stepping, heavy_tailed, two_states)


def trials(
    machine: Machine, count: int, *, slowdown: float = 0.0, head: int = 1, prior: Prior = CPU, number: int = 400
) -> list[Interval]:
    """Baselines of ``count`` sittings on a machine, each with head's processes in one more."""
    rng = random.Random(f"{machine.__name__} {count} {slowdown} {head}")
    found = []
    for _ in range(number):
        rows = []
        for _ in range(count):
            process = machine(rng)
            rows.append([process() for _ in range(PROCESSES)])
        process = machine(rng)
        found.append(interval(rows, [(1 + slowdown) * process() for _ in range(head)], prior))
    return found


def share(outcome: Outcome, found: Sequence[Interval], tolerance: float, **changes: Any) -> float:
    judged = [decide(replace(one, **changes), tolerance).outcome for one in found]
    return judged.count(outcome) / len(judged)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("machine", MACHINES)
def test_a_screening_is_never_a_regression(machine: Machine, count: int) -> None:
    for slowdown in (0.0, 0.3):
        assert share(Outcome.REGRESSION, trials(machine, count, slowdown=slowdown, number=100), 0.05) == 0


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("machine", MACHINES)
def test_fresh_processes_of_unchanged_code_are_not_called_a_regression(machine: Machine, count: int) -> None:
    found = trials(machine, count, head=3)
    assert share(Outcome.REGRESSION, found, 0.05, enough=True) <= 0.01


@pytest.mark.parametrize("tolerance", [0.05, 0.10])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("machine", MACHINES)
def test_a_slowdown_of_twice_the_tolerance_is_seldom_ok(machine: Machine, count: int, tolerance: float) -> None:
    assert share(Outcome.OK, trials(machine, count, slowdown=2 * tolerance), tolerance) <= 0.03


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_slowdown_of_the_tolerance_itself_is_ok_in_1_of_20_where_the_prior_is_right(count: int) -> None:
    assert share(Outcome.OK, trials(sat, count, slowdown=TOLERANCE, number=2000), TOLERANCE) <= 0.06


@pytest.mark.parametrize("head", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_interval_holds_the_truth_as_often_as_it_says_where_the_prior_is_right(count: int, head: int) -> None:
    found = trials(sat, count, head=head, number=2000)
    assert sum(one.low <= 1 <= one.high for one in found) / len(found) >= 0.985
    assert 0.935 <= sum(one.upper >= 1 for one in found) / len(found) <= 0.99


@pytest.mark.parametrize("head", [1, 3])
def test_one_process_differs_by_more_than_the_mean_of_a_sitting(head: int) -> None:
    """Where sittings agree and processes do not, a single process of head may be far from them all."""

    def apart(rng: random.Random) -> Callable[[], float]:
        return lambda: rng.lognormvariate(0, 0.03)

    found = trials(apart, 5, head=head, prior=Prior(0.001), number=2000)
    assert 0.93 <= sum(one.upper >= 1 for one in found) / len(found) <= 0.99


def test_a_slowdown_of_three_times_the_tolerance_is_caught_by_fresh_processes_with_two_sittings() -> None:
    found = trials(sat, 2, slowdown=0.30, head=3)
    assert share(Outcome.REGRESSION, found, TOLERANCE, enough=True) >= 0.8
    assert share(Outcome.OK, found, TOLERANCE, enough=True) == 0


def test_where_sittings_differ_by_more_than_the_prior_five_of_them_say_so() -> None:
    """Two speeds, 25 % apart: a prior of 3 % is wrong there, and head excludes little once that is known."""

    def apart(rng: random.Random) -> Callable[[], float]:
        speed = rng.choice([1.0, 1.25])
        return lambda: speed * rng.lognormvariate(0, 0.005)

    known = trials(apart, 5)
    assert share(Outcome.REGRESSION, trials(apart, 5, head=3), TOLERANCE, enough=True) <= 0.05
    assert sum(one.upper >= 1 for one in known) / len(known) >= 0.9
