"""Median, quartiles and range of samples."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.spread import Spread, quantile, spread_of

samples = st.lists(st.floats(0.5, 2.0), min_size=1, max_size=20)


@given(samples)
def test_a_spread_is_in_order(one: list[float]) -> None:
    spread = spread_of(one)
    assert spread.minimum <= spread.q1 <= spread.median <= spread.q3 <= spread.maximum
    assert spread.n == len(one)


@given(samples, st.floats(0, 1))
def test_a_quantile_is_within_the_samples_and_exact_at_the_ends(one: list[float], p: float) -> None:
    assert min(one) <= quantile(one, p) <= max(one)
    assert (quantile(one, 0), quantile(one, 1)) == (min(one), max(one))


def test_quartiles_interpolate_linearly() -> None:
    assert spread_of([1, 2, 3, 4]) == Spread(2.5, 1.75, 3.25, 1, 4, 4)


@pytest.mark.parametrize("bad", [[], [0.0], [-1.0], [math.nan], [math.inf]], ids=str)
def test_samples_that_cannot_be_latencies_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="samples must be positive and finite, and at least 1"):
        spread_of(bad)
