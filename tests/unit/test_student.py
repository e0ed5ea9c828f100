"""Quantiles of Student's t, against tables and against the distribution itself."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.gate.student import student_t

#: From the usual tables, by degrees of freedom.
TABLE = {
    0.95: {1: 6.314, 2: 2.920, 3: 2.353, 4: 2.132, 5: 2.015, 8: 1.860, 10: 1.812, 30: 1.697, 120: 1.658},
    0.975: {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 8: 2.306, 10: 2.228, 30: 2.042, 120: 1.980},
    0.98: {1: 15.895, 2: 4.849, 3: 3.482, 4: 2.999, 5: 2.757, 10: 2.359, 30: 2.147},
    0.995: {1: 63.657, 2: 9.925, 3: 5.841, 4: 4.604, 5: 4.032, 8: 3.355, 10: 3.169, 30: 2.750, 120: 2.617},
    0.9975: {1: 127.32, 2: 14.089, 3: 7.453, 4: 5.598, 5: 4.773, 10: 3.581, 30: 3.030},
}

probabilities = st.sampled_from(sorted(TABLE))


def probability_below(quantile: float, freedom: float) -> float:
    """Student's distribution function, by Simpson's rule."""
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    steps = 400
    width = quantile / steps
    weights = [1 if step in (0, steps) else 4 if step % 2 else 2 for step in range(steps + 1)]
    heights = [(1 + (step * width) ** 2 / freedom) ** (-(freedom + 1) / 2) for step in range(steps + 1)]
    return 0.5 + scale * width / 3 * sum(weight * height for weight, height in zip(weights, heights, strict=True))


@pytest.mark.parametrize(
    ("probability", "freedom", "quantile"),
    [(probability, *row) for probability, rows in TABLE.items() for row in rows.items()],
)
def test_the_quantiles_are_those_of_the_tables(probability: float, freedom: int, quantile: float) -> None:
    assert student_t(probability, freedom) == pytest.approx(quantile, rel=1e-3)


@given(probabilities, st.floats(3, 200))
def test_between_whole_degrees_they_are_right_too(probability: float, freedom: float) -> None:
    found = student_t(probability, freedom)
    assert probability_below(found / 1.001, freedom) <= probability <= probability_below(found * 1.001, freedom)


@given(probabilities, st.floats(1, 3))
def test_below_three_degrees_they_are_never_too_small(probability: float, freedom: float) -> None:
    assert probability_below(student_t(probability, freedom), freedom) >= probability - 1e-3


@given(probabilities, st.floats(1, 100), st.floats(1, 100))
def test_more_degrees_of_freedom_reach_less_far(probability: float, one: float, other: float) -> None:
    few, many = sorted((one, other))
    assert student_t(probability, few) >= student_t(probability, many) * (1 - 1e-3)


@given(st.floats(0.6, 0.99), st.floats(0.6, 0.99), st.floats(1, 100))
def test_more_certainty_reaches_further(one: float, other: float, freedom: float) -> None:
    less, more = sorted((one, other))
    assert student_t(less, freedom) <= student_t(more, freedom) * (1 + 1e-3)


@pytest.mark.parametrize("probability", sorted(TABLE))
def test_with_many_degrees_it_is_the_normal_distribution(probability: float) -> None:
    assert student_t(probability, 1e6) == pytest.approx(NormalDist().inv_cdf(probability), rel=1e-3)


@pytest.mark.parametrize(
    ("probability", "freedom"), [(0.5, 4), (0.4, 4), (1.0, 4), (math.nan, 4), (0.95, 0.9), (0.95, 0), (0.95, math.nan)]
)
def test_what_has_no_quantile_is_refused(probability: float, freedom: float) -> None:
    with pytest.raises(ValueError, match="no quantile of probability"):
        student_t(probability, freedom)
