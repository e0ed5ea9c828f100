"""Warm-up ends where the figures settle, and sampling ends when there is enough."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.sampling import Plan, collect, settled_from

PLAN = Plan(minimum=3, maximum=10, budget=6.0, warm_up=6)


def run(latencies: list[float], plan: Plan = PLAN):
    made = iter([*latencies, *[latencies[-1]] * 40])
    return collect(lambda: next(made), lambda latency: latency, plan)


def test_the_first_generation_never_counts() -> None:
    assert run([1.0]).warm_up == (1.0,)


def test_slow_generations_after_the_first_are_warm_up_too() -> None:
    samples = run([40.0, 12.0, 2.0])
    assert samples.warm_up == (40.0, 12.0)
    assert samples.kept == (2.0, 2.0, 2.0)
    assert samples.settled


def test_sampling_stops_at_the_budget_but_not_before_the_minimum() -> None:
    assert len(run([9.0, 4.0]).kept) == 3
    assert len(run([9.0, 1.0]).kept) == 6
    assert len(run([9.0, 0.01]).kept) == 10


def test_figures_that_never_settle_are_said_to() -> None:
    samples = run([100 * 0.8**n for n in range(60)])
    assert not samples.settled
    assert len(samples.warm_up) == PLAN.warm_up


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=40))
def test_everything_generated_is_warm_up_or_kept_in_order(latencies: list[float]) -> None:
    samples = run(latencies)
    made = [*latencies, *[latencies[-1]] * 40]
    both = [*samples.warm_up, *samples.kept]
    assert both == made[: len(both)]
    assert len(samples.warm_up) >= 1
    assert PLAN.minimum <= len(samples.kept) <= PLAN.maximum + PLAN.warm_up


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=30), st.floats(0.1, 10))
def test_where_warm_up_ends_does_not_depend_on_the_unit(latencies: list[float], scale: float) -> None:
    nudged = [latency * 4 for latency in latencies]  # a power of two, so that no comparison is rounded
    assert settled_from(nudged) == settled_from(latencies)
