"""The recorder of a generation: its clock where it waits between steps, and the numbers that engines give it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.backends.base import UNKNOWN
from pytest_llmperf.worker import recorder
from pytest_llmperf.worker.recorder import Recorder, SlowedRecorder, TokenError, rows


class Time:
    """Seconds that pass when they are made to."""

    def __init__(self) -> None:
        self.now = 10.0

    def passes(self, seconds: float) -> None:
        self.now += seconds


def generation(waits: list[float], requests: int, share: float = 0.0) -> list[list[float]]:
    """Times of a generation of half-second steps; it waits so long after each, or never, if ``waits`` is empty."""
    time, left = Time(), list(waits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "clock", lambda: time.now)
        patch.setattr(recorder, "sleep", time.passes)
        pause = (lambda: time.passes(left.pop(0))) if waits else None
        made = SlowedRecorder(requests, share, pause) if share else Recorder(requests, pause)
        for _ in range(4):
            time.passes(0.5)
            for request in range(requests):
                made(request, 7)
    assert not left  # once a step, not once a token
    return made.times


@given(st.lists(st.floats(0, 100), min_size=4, max_size=4), st.integers(1, 4), st.sampled_from([0.0, 0.05]))
def test_waiting_between_steps_is_no_time_of_the_generation(waits: list[float], requests: int, share: float) -> None:
    expected = generation([], requests, share)
    for row, undisturbed in zip(generation(waits, requests, share), expected, strict=True):
        assert row == pytest.approx(undisturbed)
    assert len(expected[0]) == 4


@pytest.mark.parametrize("requests", [1, 4])
def test_a_known_share_slower_though_every_sleep_lasts_longer_than_asked(requests: int) -> None:
    time, step, over, steps = Time(), 0.003, 60e-6, 100

    def sleep(seconds: float) -> None:
        assert seconds > 0
        time.passes(seconds + over)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "clock", lambda: time.now)
        patch.setattr(recorder, "sleep", sleep)
        made = SlowedRecorder(requests, 0.05)
        for _ in range(steps):
            time.passes(step)
            for request in range(requests):
                made(request, 7)
    assert made.times[0][-1] == pytest.approx(1.05 * step * steps, abs=2 * over)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_tokens_that_came_together_have_one_time(share: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "sleep", lambda seconds: None)
        made = SlowedRecorder(2, share) if share else Recorder(2)
        made(0, 5, 6, 7)
        made(1, 8)
        made(0, 9)
    assert made.tokens == [[5, 6, 7, 9], [8]]
    assert len(set(made.times[0])) == 2
    assert made.times[0][0] == made.times[0][2] < made.times[1][0] < made.times[0][3]


# What engines give it


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 99), st.floats(0, 10)), max_size=40), st.data())
def test_any_integer_type_is_the_same_token(calls: list[tuple[int, int, float]], data: st.DataObject) -> None:
    kinds: list[Any] = [int, numpy.int64, numpy.uint16, numpy.array, torch.tensor, lambda value: torch.tensor([value])]
    as_given = [(data.draw(st.sampled_from(kinds))(r), data.draw(st.sampled_from(kinds))(t), at) for r, t, at in calls]
    tokens, times = rows(as_given, 4, 100)
    assert (tokens, times) == rows(calls, 4)
    assert all(type(token) is int for row in tokens for token in row)
    assert [len(row) for row in tokens] == [len(row) for row in times]
    assert sum(map(len, tokens)) == len(calls)


@pytest.mark.parametrize(
    ("request_", "token", "said"),
    [
        (0, 100, "on_token got the token 100; the model's vocabulary has the ids 0 to 99"),
        (0, numpy.int64(49159), "on_token got the token 49159; the model's vocabulary has the ids 0 to 99"),
        (0, -2, "on_token got the token -2; the model's vocabulary has the ids 0 to 99"),
        (4, 7, "on_token got the request 4; the batch has the requests 0 to 3"),
        (-1, 7, "on_token got the request -1; the batch has the requests 0 to 3"),
        (0, 7.0, "on_token got the token 7.0, a float; it takes an int"),
        (0, numpy.float32(7), "on_token got the token *, a float32; it takes an int"),
        (0, torch.tensor([5, 7]), "on_token got the token *, a Tensor; it takes an int"),
        (0, "seven", "on_token got the token 'seven', a str; it takes an int"),
        (0, None, "on_token got the token None, a NoneType; it takes an int"),
        (True, 7, "on_token got the request True, a bool; it takes an int"),
        (
            0,
            SimpleNamespace(device="cuda:0"),
            "on_token got a token that is still on cuda:0; bring it to the host first, with int()",
        ),
    ],
)
def test_what_is_no_token_of_the_batch_is_named(request_: Any, token: Any, said: str) -> None:
    with pytest.raises(TokenError) as caught:
        rows([(0, 7, 0.1), (request_, token, 0.2)], 4, 100)
    pytest.LineMatcher([str(caught.value)]).fnmatch_lines(said)


def test_a_token_that_a_server_does_not_name_is_kept() -> None:
    assert rows([(0, UNKNOWN, 0.1)], 1, 100) == ([[UNKNOWN]], [[0.1]])


def test_a_wrong_call_is_said_afterwards_and_never_delays_the_engine() -> None:
    made = Recorder(1)
    made(7, "seven")  # type: ignore[arg-type]
    with pytest.raises(TokenError):
        _ = made.tokens


def test_a_token_in_a_buffer_that_is_used_again_is_the_one_that_was_given() -> None:
    made, one, other = Recorder(2), torch.zeros(2, dtype=torch.int64), numpy.zeros((), dtype=numpy.int32)
    for step in range(3):
        one[1], other[...] = step, step
        made(0, one[1])  # type: ignore[arg-type]
        made(1, other)  # type: ignore[arg-type]
    assert made.tokens == [[0, 1, 2], [0, 1, 2]]
