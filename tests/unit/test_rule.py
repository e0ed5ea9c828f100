"""The rule of the gate: an interval of the slowdown in, a verdict out."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.cases import FLOOR, METRICS
from pytest_llmperf.gate import rule
from pytest_llmperf.gate.rule import CLEARLY, LARGE, Interval, Outcome, decide, nothing

TOLERANCE = 0.10
MEMORY = METRICS["memory"]
#: From the best that can be said of a case to the worst.
RANK = (Outcome.FASTER, Outcome.OK, Outcome.INCONCLUSIVE, Outcome.REGRESSION)

tolerances = st.floats(0.01, 1)


@st.composite
def intervals(draw: st.DrawFn, least: float = 1e-6) -> Interval:
    baseline, log = draw(st.floats(least, 100)), draw(st.floats(-1, 1))
    below, above, further = (draw(st.floats(0, 1)) for _ in range(3))
    return Interval(
        math.exp(log),
        math.exp(log - below),
        math.exp(log + above + further),
        math.exp(log + above),
        baseline * math.exp(log),
        baseline,
        draw(st.integers(1, 12)),
        draw(st.sampled_from(["stored", "base"])),
        draw(st.booleans()),
    )


def slowed(interval: Interval, factor: float) -> Interval:
    """The same figures of head, all that many times as long."""
    longer = {name: getattr(interval, name) * factor for name in ("ratio", "low", "high", "upper", "head")}
    return replace(interval, **longer)


def at(ratio: float, reach: float = 0.0, baseline: float = 1.0, enough: bool = True, **changes: Any) -> Interval:
    """An interval that reaches to either side by a factor of 1 + reach."""
    low, high = ratio / (1 + reach), ratio * (1 + reach)
    return replace(Interval(ratio, low, high, high, ratio * baseline, baseline, 4, "base", enough), **changes)


# For all intervals


@given(intervals(), tolerances)
def test_a_verdict_has_the_figures_of_the_interval(interval: Interval, tolerance: float) -> None:
    found = asdict(decide(interval, tolerance))
    expected = asdict(interval) | {"tolerance": tolerance}
    assert {name: found[name] for name in expected if name != "enough"} == {
        name: value for name, value in expected.items() if name != "enough"
    }
    assert decide(interval, tolerance).compared


@given(intervals(), tolerances)
def test_a_regression_needs_all_of_its_conditions(interval: Interval, tolerance: float) -> None:
    conditions = (
        interval.enough,
        interval.ratio > 1 + tolerance,
        interval.low > 1 + tolerance * CLEARLY,
        interval.head - interval.baseline > FLOOR,
    )
    assert (decide(interval, tolerance).outcome is Outcome.REGRESSION) == all(conditions)


@given(intervals(), tolerances)
def test_without_enough_processes_there_is_no_regression(interval: Interval, tolerance: float) -> None:
    assert decide(replace(interval, enough=False), tolerance).outcome is not Outcome.REGRESSION


@given(intervals(), tolerances)
def test_whether_there_are_enough_changes_nothing_but_a_regression(interval: Interval, tolerance: float) -> None:
    few, many = (decide(replace(interval, enough=enough), tolerance).outcome for enough in (False, True))
    assert few is many or (few, many) == (Outcome.INCONCLUSIVE, Outcome.REGRESSION)


@given(intervals(), tolerances)
def test_ok_is_exactly_where_the_tolerance_is_excluded_or_all_is_within_the_floor(
    interval: Interval, tolerance: float
) -> None:
    outcome = decide(interval, tolerance).outcome
    excluded = interval.upper < 1 + tolerance
    within_floor = interval.head - interval.baseline <= FLOOR and interval.baseline * tolerance <= FLOOR
    assert (outcome in (Outcome.OK, Outcome.FASTER)) == (excluded or within_floor)


@given(intervals(), tolerances)
def test_what_is_faster_excludes_the_tolerance_too(interval: Interval, tolerance: float) -> None:
    if decide(interval, tolerance).outcome is Outcome.FASTER:
        assert interval.upper <= interval.high < 1 / (1 + tolerance * CLEARLY)


@given(intervals(), tolerances, st.floats(1, 3))
def test_what_is_slower_still_is_judged_no_better(interval: Interval, tolerance: float, factor: float) -> None:
    before, after = (decide(one, tolerance).outcome for one in (interval, slowed(interval, factor)))
    assert RANK.index(before) <= RANK.index(after)


@given(intervals(), tolerances, st.floats(1, 3))
def test_what_a_tolerance_allows_a_larger_one_allows(interval: Interval, tolerance: float, factor: float) -> None:
    if interval.baseline * tolerance <= FLOOR:
        return  # a larger tolerance may be above the floor
    strict, lax = (decide(interval, one).outcome for one in (tolerance, tolerance * factor))
    if strict in (Outcome.OK, Outcome.FASTER):
        assert lax in (Outcome.OK, Outcome.FASTER)
    if lax is Outcome.REGRESSION:
        assert strict is Outcome.REGRESSION


@given(intervals(least=1), tolerances, st.integers(0, 20))
def test_the_unit_does_not_matter_above_the_floor(interval: Interval, tolerance: float, power: int) -> None:
    unit = 2.0**power  # exact in binary
    other = replace(interval, head=interval.head * unit, baseline=interval.baseline * unit)
    found, scaled = decide(interval, tolerance), decide(other, tolerance)
    assert replace(scaled, head=found.head, baseline=found.baseline) == found


@given(intervals(), tolerances)
def test_a_verdict_has_a_reason_unless_it_is_plainly_ok(interval: Interval, tolerance: float) -> None:
    found = decide(interval, tolerance)
    assert bool(found.reason) == (found.outcome is not Outcome.OK)
    if found.outcome is Outcome.INCONCLUSIVE:
        assert found.reason.endswith(f"a slowdown of {interval.upper - 1:.1%} cannot be excluded")
        assert found.not_excluded > 0 or interval.baseline < 1
    assert found.not_excluded >= 0


# Examples


@pytest.mark.parametrize(
    ("interval", "outcome", "reason"),
    [
        (at(1.0, 0.05), Outcome.OK, ""),
        (
            at(1.0, 0.12),
            Outcome.INCONCLUSIVE,
            "0.0% slower than base in 4 pairs of fresh processes; a slowdown of 12.0%",
        ),
        (at(1.12, 0.05), Outcome.REGRESSION, "12.0% slower than base in 4 pairs of fresh processes"),
        (at(1.12, 0.05, enough=False), Outcome.INCONCLUSIVE, "12.0% slower than base"),
        (at(1.12, 0.09), Outcome.INCONCLUSIVE, "12.0% slower than base"),  # the low end is 2.8 %, below 3.3 %
        (at(1.09, 0.0), Outcome.OK, ""),
        (at(0.95, 0.0), Outcome.OK, ""),
        (at(0.85, 0.05), Outcome.FASTER, "15.0% faster than base in 4 pairs of fresh processes"),
        (at(0.85, 0.05, enough=False), Outcome.FASTER, "15.0% faster than base"),
        (at(0.85, 0.2), Outcome.OK, ""),  # not surely faster, but surely not slower
        (
            at(0.5),
            Outcome.FASTER,
            "50.0% faster than base in 4 pairs of fresh processes; is something not measured any",
        ),
    ],
)
def test_the_rule_by_example(interval: Interval, outcome: Outcome, reason: str) -> None:
    found = decide(interval, TOLERANCE)
    assert found.outcome is outcome
    assert found.reason.startswith(reason)


@pytest.mark.parametrize(
    ("count", "said"),
    [(1, "20.0% slower than the baseline in 1 process"), (3, "20.0% slower than the baseline in 3 fresh processes")],
)
def test_what_head_was_compared_with_is_said(count: int, said: str) -> None:
    assert decide(at(1.2, basis="stored", count=count), TOLERANCE).reason == said


def test_a_difference_below_the_floor_is_neither_slower_nor_faster() -> None:
    tiny = 1e-4
    assert decide(at(1.3, baseline=tiny), TOLERANCE).outcome is Outcome.OK
    assert decide(at(0.7, baseline=tiny), TOLERANCE).outcome is Outcome.OK
    assert decide(at(1.6, baseline=tiny), TOLERANCE).outcome is Outcome.REGRESSION
    assert decide(at(0.4, baseline=tiny), TOLERANCE).outcome is Outcome.FASTER


def test_where_the_tolerance_is_above_the_floor_a_small_difference_alone_is_not_ok() -> None:
    wide = at(1.00001, 0.5, baseline=1.0)
    assert wide.head - wide.baseline < FLOOR
    assert decide(wide, TOLERANCE).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize("ratio", [1.04, 1.2])
def test_what_looks_slower_by_more_than_a_third_of_the_tolerance_is_suspicious(ratio: float) -> None:
    assert decide(at(ratio, 0.5), TOLERANCE).suspicious
    assert not decide(at(1.03, 0.5), TOLERANCE).suspicious
    assert not decide(at(ratio), TOLERANCE).suspicious, "it is ok, or a regression"


def test_a_large_improvement_is_questionable() -> None:
    assert decide(at(1 - LARGE - 0.01), TOLERANCE).questionable
    assert not decide(at(1 - LARGE + 0.01), TOLERANCE).questionable
    assert not decide(at(0.7, 1.0), TOLERANCE).questionable, "it may be no improvement"


def test_nothing_to_compare_with_is_said() -> None:
    found = nothing(Outcome.NO_BASELINE, "tiny.json does not exist", "record one")
    assert (found.outcome, found.reason, found.remedy) == (
        Outcome.NO_BASELINE,
        "tiny.json does not exist",
        "record one",
    )
    assert not found.compared
    assert not nothing(Outcome.INCONCLUSIVE, "base was lost").compared
    assert {one for one in Outcome if not one.compared} == {Outcome.NEW, Outcome.NO_BASELINE}


def test_a_change_is_said_in_per_cent() -> None:
    assert [rule.change_of(ratio) for ratio in (1.042, 1.0, 0.9)] == ["4.2% slower", "0.0% slower", "10.0% faster"]
    assert [rule.change_of(ratio, MEMORY) for ratio in (1.042, 0.9)] == ["4.2% more memory", "10.0% less memory"]


@pytest.mark.parametrize(("more", "outcome"), [(0.9, Outcome.OK), (1.1, Outcome.REGRESSION)])
def test_bytes_have_a_floor_of_their_own(more: float, outcome: Outcome) -> None:
    """A case that takes as much as the floor, and ``more`` floors more."""
    assert decide(at(1 + more, baseline=MEMORY.floor), TOLERANCE, MEMORY).outcome is outcome


def test_an_increase_of_bytes_is_no_slowdown() -> None:
    reason = decide(at(1.05, 0.2, baseline=2.0**30), TOLERANCE, MEMORY).reason
    assert reason == "5.0% more memory than base in 4 pairs of fresh processes; an increase of 26.0% cannot be excluded"


@pytest.mark.parametrize("tolerance", [0, -0.1, math.nan, math.inf])
def test_a_tolerance_that_is_none_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match="the tolerance must be above 0"):
        decide(at(1), tolerance)
