"""The clock of a generation that waits between its steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.worker import recorder
from pytest_llmperf.worker.recorder import Recorder, SlowedRecorder


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
