"""Warm-up ends where the figures settle, sampling ends when there is enough, and what is contaminated is replaced."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.measure.sampling import Bounds, Samples, collect, settled_from

PLAN = Bounds(minimum=3, maximum=10, budget=6.0, warm_up=6)

#: A generation: its latency, and its culprit.
Made = tuple[float, str | None]


def collected(made: Sequence[Made], plan: Bounds = PLAN) -> Samples[Made]:
    """The samples of those generations, of which the last goes on and on."""
    rest = iter([*made, *[made[-1]] * 100])
    return collect(lambda: next(rest), lambda one: one[0], lambda some: [culprit for _, culprit in some], plan)


def run(latencies: list[float]) -> Samples[Made]:
    return collected([(latency, None) for latency in latencies])


def latencies(pairs: Sequence[tuple[Made, str | None]]) -> list[float]:
    return [one[0] for one, _ in pairs]


def test_the_first_generation_never_counts() -> None:
    assert run([1.0]).warm_up == ((1.0, None),)


def test_slow_generations_after_the_first_are_warm_up_too() -> None:
    samples = run([40.0, 12.0, 2.0])
    assert [one for one, _ in samples.warm_up] == [40.0, 12.0]
    assert latencies(samples.kept) == [2.0, 2.0, 2.0]
    assert samples.settled


def test_sampling_stops_at_the_budget_but_not_before_the_minimum() -> None:
    assert len(run([9.0, 4.0]).kept) == 3
    assert len(run([9.0, 1.0]).kept) == 6
    assert len(run([9.0, 0.01]).kept) == 10


def test_figures_that_never_settle_are_said_to() -> None:
    samples = run([100 * 0.8**n for n in range(60)])
    assert not samples.settled
    assert len(samples.warm_up) == PLAN.warm_up


BUSY = "others used 0.8 cores"


def test_a_contaminated_generation_is_replaced() -> None:
    samples = collected([(9.0, None), (1.0, None), (1.5, BUSY), (1.0, None)])
    assert latencies(samples.kept) == [1.0] * 6
    assert samples.discarded == (((1.5, BUSY), BUSY),)
    assert samples.clean


def test_a_contaminated_generation_does_not_prolong_the_warm_up() -> None:
    """Judged by all figures, the slow third would make warm-up of the two before it that are as fast as the rest."""
    samples = collected([(9.0, None), (1.0, None), (5.0, BUSY), (1.0, None)])
    assert len(samples.warm_up) == 1


def test_a_contaminated_first_generation_is_warm_up_all_the_same() -> None:
    samples = collected([(9.0, BUSY), (1.0, None)])
    assert (len(samples.warm_up), len(samples.kept), samples.discarded) == (1, 6, ())


def test_without_enough_quiet_everything_is_kept_and_said_not_to_be_clean() -> None:
    samples = collected([(9.0, None), (1.0, None), (1.5, BUSY)])
    assert latencies(samples.kept) == [1.0, 1.5, 1.5, 1.5, 1.5]
    assert (samples.clean, samples.settled, samples.discarded) == (False, True, ())


def test_what_is_quiet_suffices_though_less_than_could_be() -> None:
    samples = collected([(9.0, None), *[(1.0, None)] * 3, (1.5, BUSY)])
    assert latencies(samples.kept) == [1.0, 1.0, 1.0]
    assert len(samples.discarded) == 4, "their budget was up: 4 of 1.5 s"
    assert samples.clean


def test_disturbed_figures_that_do_not_settle_are_said_to() -> None:
    samples = collected([(100 * 0.8**n, BUSY) for n in range(60)])
    assert (samples.clean, samples.settled, len(samples.warm_up)) == (False, False, PLAN.warm_up)


plans = st.builds(
    lambda minimum, more, budget, warm_up: Bounds(minimum, minimum + more, budget, warm_up),
    st.integers(1, 4),
    st.integers(0, 6),
    st.floats(0.1, 50),
    st.integers(1, 5),
)
generations = st.lists(st.tuples(st.floats(0.01, 100), st.none() | st.just(BUSY)), min_size=1, max_size=40)


@given(generations, plans)
def test_no_generation_is_lost_or_moved(made: list[Made], plan: Bounds) -> None:
    samples = collected(made, plan)
    all_of_them = [*samples.warm_up, *[one for one, _ in samples.steady]]
    assert all_of_them == [*made, *[made[-1]] * 100][: len(all_of_them)]
    assert len(samples.warm_up) >= 1
    for part in (samples.kept, samples.discarded):
        rest = iter(samples.steady)
        assert all(one in rest for one in part), "in the same order"
    assert len(samples.kept) + len(samples.discarded) == len(samples.steady)


@given(generations, plans)
def test_only_what_is_contaminated_is_discarded(made: list[Made], plan: Bounds) -> None:
    samples = collected(made, plan)
    assert all(culprit is not None for _, culprit in samples.discarded)
    assert samples.discarded == () or samples.clean
    assert samples.clean == all(culprit is None for _, culprit in samples.kept)


@given(generations, plans)
def test_there_are_always_enough_samples_and_never_too_many_generations(made: list[Made], plan: Bounds) -> None:
    samples = collected(made, plan)
    assert len(samples.kept) >= plan.minimum
    assert len(samples.warm_up) + len(samples.steady) <= plan.warm_up + 2 * plan.maximum


@given(st.integers(0), plans)
def test_it_ends_though_culprits_come_and_go(seed: int, plan: Bounds) -> None:
    """Whether a generation is contaminated may be seen only later."""
    random = Random(seed)

    def culprits(some: Sequence[float]) -> list[str | None]:
        return [random.choice([None, BUSY]) for _ in some]

    assert len(collect(lambda: 1.0, lambda one: one, culprits, plan).kept) >= plan.minimum


@given(generations, st.floats(0.01, 100))
def test_what_is_kept_does_not_depend_on_the_figures_of_what_is_not(made: list[Made], latency: float) -> None:
    plan = Bounds(3, 10, budget=1e9)  # counts alone, since the time that they take is bounded too
    changed = [(latency if culprit else own, culprit) for own, culprit in made]
    one, other = collected(made, plan), collected(changed, plan)
    if one.clean and other.clean:
        assert one.kept == other.kept


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=40))
def test_on_a_quiet_machine_everything_after_the_warm_up_is_kept(some: list[float]) -> None:
    samples = run(some)
    assert (samples.clean, samples.discarded) == (True, ())
    assert PLAN.minimum <= len(samples.kept) <= PLAN.maximum + PLAN.warm_up


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=30))
def test_where_warm_up_ends_does_not_depend_on_the_unit(latencies: list[float]) -> None:
    nudged = [latency * 4 for latency in latencies]  # a power of two, so that no comparison is rounded
    assert settled_from(nudged) == settled_from(latencies)


def test_enough_is_a_minimum_and_then_a_budget_or_a_maximum() -> None:
    assert [PLAN.enough([9.0] * count) for count in (0, 2, 3)] == [False, False, True]
    assert [PLAN.enough([0.1] * count) for count in (9, 10)] == [False, True]
