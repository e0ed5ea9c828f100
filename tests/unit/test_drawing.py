"""Which timed rows parity judges: each request, of generations that the seed alone chooses."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.parity.drawing import FEWEST_ROWS, drawn

numbers = st.sets(st.integers(0, 100), min_size=1, max_size=20)
sizes = st.integers(1, 9)
seeds = st.integers(0, 1000).map(str)


@given(numbers, sizes, seeds)
def test_each_request_is_judged_and_only_of_what_was_timed(timed: set[int], size: int, seed: str) -> None:
    found = drawn(timed, size, seed)
    assert {generation for generation, _ in found} <= timed
    assert Counter(request for _, request in found).keys() == set(range(size))
    assert len(set(found)) == len(found)
    assert len(found) >= min(FEWEST_ROWS, size * len(timed))
    assert len(found) < size + FEWEST_ROWS


@given(numbers, sizes, seeds)
def test_rows_come_batch_by_batch(timed: set[int], size: int, seed: str) -> None:
    """So that the reference generates batches of the same size from their prompts."""
    requests = [request for _, request in drawn(timed, size, seed)]
    assert requests == list(range(size)) * (len(requests) // size)


@given(numbers, numbers, sizes, seeds)
def test_of_two_backends_the_same_rows_are_judged(one: set[int], more: set[int], size: int, seed: str) -> None:
    """Or the reference would score equal tokens twice. A generation that only one of them made may come before."""
    first = dict(reversed([(request, number) for number, request in drawn(one, size, seed)]))
    for number, request in drawn(one | more, size, seed)[:size]:
        assert number in more - one or number == first[request]


def test_every_generation_is_as_likely_as_any_other() -> None:
    found = Counter(number for seed in range(4000) for number, _ in drawn(range(10), 1, str(seed))[:1])
    assert all(320 < found[number] < 480 for number in range(10))


def test_the_requests_of_a_batch_come_of_different_generations() -> None:
    assert len({number for number, _ in drawn(range(20), 16, "0")}) > 8
