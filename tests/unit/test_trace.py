"""Latencies follow from token times alone, and a generation that is not what was asked for never counts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.backends.base import RequestStatistics
from pytest_llmperf.measure.trace import TraceError, check_statistics, checked

gaps = st.floats(min_value=1e-6, max_value=10)
batches = st.integers(2, 12).flatmap(lambda n: st.lists(st.lists(gaps, min_size=n, max_size=n), min_size=1, max_size=5))


def make(rows: list[list[float]]):
    times = []
    for row in rows:
        stamps, now = [], 0.0
        for gap in row:
            now += gap
            stamps.append(now)
        times.append(stamps)
    tokens = [[7] * len(row) for row in rows]
    return checked(tokens, times, requests=len(rows), max_new_tokens=len(rows[0]))


@given(batches)
def test_tpot_is_the_mean_of_the_gaps_and_ttft_is_not_in_it(rows: list[list[float]]) -> None:
    trace = make(rows)
    assert math.isclose(trace.tpot, sum(trace.itl) / len(trace.itl), rel_tol=1e-9)
    assert math.isclose(trace.ttft, sum(row[0] for row in rows) / len(rows), rel_tol=1e-9)
    assert len(trace.itl) == len(rows) * (len(rows[0]) - 1)


@given(batches, st.floats(1e-3, 5))
def test_a_slower_prefill_changes_ttft_and_latency_by_as_much_and_tpot_by_nothing(rows, delay) -> None:
    before, after = make(rows), make([[row[0] + delay, *row[1:]] for row in rows])
    assert math.isclose(after.ttft - before.ttft, delay, rel_tol=1e-6)
    assert math.isclose(after.latency - before.latency, delay, rel_tol=1e-6, abs_tol=1e-9)
    assert math.isclose(after.tpot, before.tpot, rel_tol=1e-6, abs_tol=1e-9)


@given(batches)
def test_latency_is_at_most_the_last_token_and_throughput_counts_every_token(rows) -> None:
    trace = make(rows)
    assert trace.latency <= max(stamps[-1] for stamps in trace.times) * (1 + 1e-9)
    assert math.isclose(trace.throughput * trace.latency, trace.output_tokens)


@pytest.mark.parametrize(
    ("tokens", "times", "why"),
    [
        ([[1, 2]], [[0.1, 0.2]], "2 requests were submitted, 1 came back"),
        ([[1, 2], [1]], [[0.1, 0.2], [0.1]], "request 1: 1 tokens came back, 2 were asked for"),
        ([[1, 2], [1, 2, 3]], [[0.1, 0.2], [0.1, 0.2, 0.3]], "request 1: 3 tokens came back"),
        ([[1, 2], [1, 2]], [[0.1, 0.2], [0.1, 0.2, 0.3]], "2 tokens have 3 times"),  # a streamer's end() that stamps
        ([[1, 2], [1, 2]], [[0.1, 0.2], [0.0, 0.2]], "do not run forward"),
        ([[1, 2], [1, 2]], [[0.1, 0.2], [0.3, 0.2]], "do not run forward"),
        ([[1, 2], [1, 2]], [[0.1, 0.2], [0.2, 0.2]], "came at one instant"),  # one chunk taken for two tokens
        ([[1, 2], [1, 2]], [[0.1, 0.2], [float("nan"), 0.2]], "do not run forward"),
    ],
)
def test_a_generation_that_would_flatter_is_refused(tokens, times, why) -> None:
    with pytest.raises(TraceError, match=why):
        checked(tokens, times, requests=2, max_new_tokens=2)


def test_a_row_that_ended_early_may_be_shorter_where_the_engine_says_so() -> None:
    tokens, times = [[1, 2, 3], [1]], [[0.1, 0.2, 0.3], [0.1]]
    made = checked(tokens, times, requests=2, max_new_tokens=3, ended=[False, True])
    assert [len(row) for row in made.tokens] == [3, 1]
    for ended in ([True, False], [True], [], [False, False]):
        with pytest.raises(TraceError, match="request 1: 1 tokens came back, 3 were asked for"):
            checked(tokens, times, requests=2, max_new_tokens=3, ended=ended)


@pytest.mark.parametrize("row", [[], [1, 2, 3, 4]])
def test_a_row_that_ended_early_has_a_token_and_none_too_many(row: list[int]) -> None:
    with pytest.raises(TraceError, match=f"request 0: {len(row)} tokens came back, 3 were asked for"):
        checked([row], [[0.1 * (1 + at) for at in range(len(row))]], requests=1, max_new_tokens=3, ended=[True])


# The engine's own statistics


def own(trace, ttft: float = 1.0, tpot: float = 1.0, **more: int) -> list[RequestStatistics]:
    return [RequestStatistics(row[0] * ttft, (row[-1] - row[0]) / (len(row) - 1) * tpot, **more) for row in trace.times]


@given(batches, st.floats(0.985, 1.015), st.floats(0.985, 1.015))
def test_an_engine_may_count_a_moment_more_or_less(rows, ttft: float, tpot: float) -> None:
    trace = make(rows)
    check_statistics(trace, own(trace, ttft, tpot))
    check_statistics(trace, [])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"ttft": 1.1},
            "request 0: ttft was stamped as 100.000 ms, but is 110.000 ms by the engine's own account: "
            "10.000 ms of its account did not pass",
        ),
        (
            {"tpot": 0.9},
            "request 0: tpot was stamped as 20.000 ms, but is 18.000 ms by the engine's own account: "
            "2.000 ms passed outside the engine",
        ),
        ({"cached_tokens": 3}, "6 prompt tokens came from a prefix cache"),
        ({"preemptions": 1}, "out of KV space: requests lost their cache 2 times"),
    ],
)
def test_an_engine_that_denies_what_was_stamped(changes, said: str) -> None:
    trace = make([[0.1, 0.02, 0.02]] * 2)
    with pytest.raises(TraceError, match=said):
        check_statistics(trace, own(trace, **changes))


def test_requests_that_are_wrong_by_as_much_do_not_make_up_for_one_another() -> None:
    trace = make([[0.1, 0.02, 0.02]] * 2)
    first, second = own(trace)
    swapped = [replace(first, tpot=0.03), replace(second, tpot=0.01)]
    with pytest.raises(TraceError, match=r"request 0: tpot was stamped as 20\.000 ms, but is 30\.000 ms"):
        check_statistics(trace, swapped)


def test_statistics_of_other_requests_than_were_submitted() -> None:
    trace = make([[0.1, 0.02]] * 2)
    with pytest.raises(TraceError, match="2 requests were submitted, the engine has statistics of 1"):
        check_statistics(trace, own(trace)[:1])
