"""Load: when requests are due, and what is said of how they were answered."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.load import PERCENTILES, LoadResult, Served, arrivals, meets, missed, summarize

OBJECTIVES = {"ttft": 0.2, "itl": 0.05}
SECONDS = st.floats(1e-3, 1.0)


@st.composite
def served(draw: st.DrawFn) -> Served:
    due = draw(st.floats(0, 10))
    sent = due + draw(st.floats(0, 1))
    if draw(st.booleans()) and draw(st.booleans()):
        return Served(due, sent, (), draw(st.sampled_from(["refused", "cut"])))
    gaps = draw(st.lists(SECONDS, min_size=2, max_size=6))
    return Served(due, sent, tuple(accumulate(gaps, initial=sent + draw(SECONDS))))


@given(st.floats(0.1, 100), st.integers(1, 200), st.integers(0, 10))
def test_arrivals_come_one_after_the_other_and_are_the_same_for_a_seed(rate: float, count: int, seed: int) -> None:
    found = arrivals(rate, count, seed)
    assert len(found) == count
    assert found[0] > 0
    assert all(later >= earlier for earlier, later in pairwise(found))
    assert found == arrivals(rate, count, seed)


def test_arrivals_are_a_poisson_process() -> None:
    """Gaps of an exponential distribution: mean and standard deviation are both one over the rate."""
    found = [0.0, *arrivals(4.0, 20_000)]
    gaps = [later - earlier for earlier, later in pairwise(found)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(0.25, rel=0.03)
    assert math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) == pytest.approx(0.25, rel=0.03)
    assert sum(gap > 0.5 for gap in gaps) / len(gaps) == pytest.approx(math.exp(-2), rel=0.05)


@given(st.lists(served(), min_size=1, max_size=20))
def test_figures_hold_together(requests: list[Served]) -> None:
    found = summarize(requests, OBJECTIVES, open_loop=True)
    answered = [one for one in requests if not one.error]
    assert found.requests == len(requests)
    assert found.failed == len(requests) - len(answered)
    assert found.goodput is not None
    assert found.met is not None
    assert 0 <= found.goodput <= found.rate
    assert 0 <= found.met <= 1 - found.failed / found.requests + 1e-12
    assert found.lag >= 0
    for values in found.percentiles.values():
        assert len(values) == len(PERCENTILES)
        assert not answered or list(values) == sorted(values)
    assert found.throughput * found.seconds == pytest.approx(sum(len(one.times) for one in answered))


@given(st.lists(served(), min_size=1, max_size=20))
def test_without_an_objective_nothing_is_good_or_bad(requests: list[Served]) -> None:
    found = summarize(requests, {}, open_loop=False)
    assert (found.goodput, found.met, found.lag) == (None, None, 0.0)


@given(st.lists(served(), min_size=1, max_size=20), st.floats(1.0, 3.0))
def test_a_looser_objective_is_met_by_no_fewer(requests: list[Served], factor: float) -> None:
    strict, loose = (
        summarize(requests, {name: limit * by for name, limit in OBJECTIVES.items()}, open_loop=True).met
        for by in (1.0, factor)
    )
    assert strict is not None
    assert loose is not None
    assert loose >= strict


def test_a_request_that_waited_in_the_client_waited() -> None:
    """Coordinated omission: it was due at 1 s, sent at 3 s and answered in 0.1 s, and its user waited 2.1 s."""
    found = summarize([Served(1.0, 3.0, (3.1, 3.2))], {"ttft": 1.0}, open_loop=True)
    assert found.percentiles["ttft"] == pytest.approx((2.1, 2.1, 2.1))
    assert found.lag == 2.0
    assert found.met == 0.0


def test_an_objective_is_for_each_request() -> None:
    one = Served(0.0, 0.0, (0.1, 0.14, 0.20))  # gaps of 40 and 60 ms
    assert meets(one, {"itl": 0.05})
    assert not meets(one, {"itl": 0.049})
    assert meets(one, {"ttft": 0.1, "latency": 0.2})
    assert not meets(one, {"latency": 0.19})


def result(**changes: float) -> LoadResult:
    figures = dict.fromkeys(("ttft", "itl", "latency"), (0.01, 0.02, 0.3))
    values = {"requests": 100, "failed": 0, "seconds": 1.0, "throughput": 1.0, "rate": 1.0, "goodput": 1.0, "met": 1.0}
    return LoadResult(**values | {"percentiles": figures, "lag": 0.0, "errors": ("cut",)} | changes)  # type: ignore[arg-type]


def test_what_was_missed_is_said() -> None:
    assert missed(result(), OBJECTIVES) == []
    assert missed(result(met=0.99), OBJECTIVES) == []
    assert missed(result(met=0.985), OBJECTIVES) == [
        "98.5% of the requests met ttft 200 ms, itl 50 ms, and 99% must; p99: ttft 300.0 ms, itl 300.0 ms"
    ]
    assert missed(result(failed=2, met=None), {}) == ["2 of 100 requests failed: cut"]


def test_tokens_that_came_together_meet_no_objective_for_the_gaps_between_tokens() -> None:
    at_once, chunks = Served(0.0, 0.0, (0.3,) * 4), Served(0.0, 0.0, (0.1, 0.1, 0.2, 0.2, 0.3, 0.3))
    assert not meets(at_once, {"itl": 1e9}), "it shows no gap at all"
    assert meets(at_once, {"ttft": 0.3, "latency": 0.3})
    assert meets(chunks, {"itl": 0.11})
    assert not meets(chunks, {"itl": 0.09}), "the mean of 5 gaps, three of them 0, would be 40 ms"
    found = summarize([at_once, chunks], {}, open_loop=False)
    assert found.percentiles["itl"] == pytest.approx((0.1, 0.1, 0.1))
    assert (found.tokens, found.arrivals, found.first) == (10, 4, 3.0)
