"""Times of tokens of which some came together."""

from __future__ import annotations

import math
from fnmatch import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf import stamps
from pytest_llmperf.result import Arrivals

GAPS = st.lists(st.floats(1e-3, 1.0), min_size=2, max_size=12)


@given(GAPS, st.data())
def test_gaps_are_what_lies_between_the_first_time_and_the_last(steps: list[float], data: st.DataObject) -> None:
    times: list[float] = []
    for step in steps:
        now = (times[-1] if times else 0.0) + step
        times += [now] * data.draw(st.integers(1, 4))
    found = stamps.gaps(times)
    assert len(found) == len(steps) - 1
    assert math.isclose(sum(found), times[-1] - times[0], rel_tol=1e-9)
    assert all(gap > 0 for gap in found)


@given(st.floats(1e-3, 1.0), st.floats(0, 1), st.integers(1, 8), st.integers(2, 64))
def test_time_per_token_is_the_same_however_many_are_flushed_together(
    step: float, ttft: float, together: int, count: int
) -> None:
    """A token is sent with the last one of its chunk."""
    made = [ttft + step * at for at in range(count)]
    times = [made[min(at - at % together + together, count) - 1] for at in range(count)]
    assert stamps.first(times) == min(together, count)
    if together < count:
        assert math.isclose(stamps.tpot(times), step, rel_tol=1e-6)


@pytest.mark.parametrize(("tokens", "of", "allowed"), [(0, 8, True), (1, 32, True), (1, 8, False), (2, 32, False)])
def test_few_tokens_may_lack_a_time(tokens: int, of: int, allowed: bool) -> None:
    said = stamps.untimed(tokens, of)
    assert (said == "") == allowed
    assert allowed or said.startswith(f"{tokens} of {of} tokens have no event of their own")


@pytest.mark.parametrize(
    ("arrivals", "marked", "said"),
    [
        (Arrivals(320, 320, 1.0), (), ""),
        (Arrivals(320, 318, 1.0), (), ""),
        (
            Arrivals(32, 8, 4.0),
            ("ttft", "tpot", "itl"),
            "32 tokens came in 8 reads * TTFT is when the first 4 tokens came",
        ),
        (
            Arrivals(32, 16, 1.0),
            ("tpot", "itl"),
            "32 tokens came in 16 reads of the socket, so gaps are between chunks",
        ),
        (Arrivals(32, 32, 1.0, 1), ("ttft", "tpot", "itl"), "*; 1 tokens had no event of their own, so TTFT may be *"),
    ],
)
def test_what_is_said_of_tokens_that_came_together(arrivals: Arrivals, marked: tuple[str, ...], said: str) -> None:
    metrics = ("ttft", "tpot", "latency", "itl")
    assert {name: arrivals.mark(name) for name in metrics} == {name: " ICL" * (name in marked) for name in metrics}
    assert fnmatch(arrivals.said, said)
