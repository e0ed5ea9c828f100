"""What accepting a sitting changes: the arithmetic, without files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.cases import FLOOR, Case, Workload
from pytest_llmperf.gate import stored
from pytest_llmperf.gate.priors import CPU
from pytest_llmperf.gate.rule import LARGE, decide
from pytest_llmperf.gate.stored import centre
from pytest_llmperf.gate.update import Change, change

CASE = Case("m", "bfloat16", "eager", Workload(1, 16, 8), "tpot")
processes = st.lists(st.floats(0.5, 2), min_size=1, max_size=4)
histories = st.lists(processes, max_size=4)
tolerances = st.floats(0.01, 0.5)


def accepted(before: list[list[float]], newest: list[float], tolerance: float = 0.1, kept: int = 0) -> Change:
    return change(CASE, before, before[:kept], newest, tolerance, CPU)


@given(histories, processes, tolerances, st.integers(0, 4))
def test_a_change_is_told_by_the_figures_before_and_after(
    before: list[list[float]], newest: list[float], tolerance: float, kept: int
) -> None:
    found = accepted(before, newest, tolerance, kept)
    assert found.new == centre(newest)
    assert found.sittings == 1 + min(kept, len(before))
    assert found.doubt is None
    if not before:
        assert (found.old, found.ratio, found.beyond_noise, found.slower) == (None, None, False, False)
        return
    assert found.ratio == pytest.approx(centre(newest) / centre(before[0])), "the newest sitting is the one before"
    assert found.slower == (found.ratio > 1 + tolerance)
    assert found.questionable == (found.ratio < 1 - LARGE)


@given(histories.filter(bool), processes)
def test_a_change_is_starred_where_sittings_of_one_code_do_not_explain_it(
    before: list[list[float]], newest: list[float]
) -> None:
    found = stored.interval(before, newest, CPU)
    assert accepted(before, newest).beyond_noise == (not found.low <= 1 <= found.high)


@given(histories, processes, tolerances)
def test_what_is_not_excluded_is_what_the_gate_would_say_of_an_unchanged_process(
    before: list[list[float]], newest: list[float], tolerance: float
) -> None:
    found = accepted(before, newest, tolerance, len(before))
    as_fast = centre([centre(one) for one in (newest, *before)])
    verdict = decide(stored.interval([newest, *before], [as_fast], CPU), tolerance)
    assert found.not_excluded == verdict.not_excluded
    assert verdict.ratio == pytest.approx(1)


def test_sittings_that_differ_exclude_less_and_more_sittings_exclude_more() -> None:
    calm, slow = [1.0, 1.0, 1.0], [1.2, 1.2, 1.2]
    one = accepted([], calm).not_excluded
    two = accepted([calm], calm, kept=1).not_excluded
    apart = accepted([slow], calm, kept=1).not_excluded
    replaced = accepted([slow], calm).not_excluded
    assert two < one < apart
    assert replaced == one, "figures of other code say nothing of this one's"


@pytest.mark.parametrize(
    ("new", "tolerance", "slower"),
    [(1.25, 0.2, True), (1.25, 0.3, False), (0.8, 0.1, False)],
    ids=["beyond the tolerance", "within it", "faster"],
)
def test_a_slowdown_counts_beyond_the_tolerance(new: float, tolerance: float, slower: bool) -> None:
    assert accepted([[1.0] * 3], [new] * 3, tolerance).slower == slower


@pytest.mark.parametrize("seconds", [FLOOR * 0.9, FLOOR * 1.1])
def test_a_slowdown_counts_beyond_the_floor(seconds: float) -> None:
    figure = FLOOR / 2
    assert accepted([[figure] * 3], [figure + seconds] * 3).slower == (seconds > FLOOR)
