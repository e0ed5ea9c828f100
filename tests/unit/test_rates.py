"""Whether the machine is in the state in which a baseline was recorded."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.machine.fingerprint import take
from pytest_llmperf.machine.fitness import Barrier
from pytest_llmperf.machine.rates import LOOKS, SAME, Machine, difference, moved

RECORDED = {"flops": 1e12, "bandwidth": 1e10, "interpreter cpython-311": 1e7, "meetings 2": 3.3e5}
OF_A_GPU = {"launches": 2e5, "to host": 5e4, "interpreter cpython-311": 1e7}

rates = st.dictionaries(st.sampled_from(sorted(RECORDED | OF_A_GPU)), st.floats(1, 1e15))


def machine(*looks: Mapping[str, float]) -> Machine:
    """A machine that is measured as many times at most."""
    left = list(looks)
    return Machine(take(), lambda: left.pop(0))


@given(rates)
def test_a_machine_does_not_differ_from_itself(here: dict[str, float]) -> None:
    assert difference(here, here) is None


@given(rates, rates)
def test_a_state_differs_both_ways_or_not_at_all(one: dict[str, float], other: dict[str, float]) -> None:
    assert (difference(one, other) is None) == (difference(other, one) is None)


@given(rates, rates)
def test_a_rate_that_one_of_two_lacks_says_nothing(one: dict[str, float], other: dict[str, float]) -> None:
    common = one.keys() & other.keys()
    assert difference(one, other) == difference(*({name: each[name] for name in common} for each in (one, other)))


@pytest.mark.parametrize(
    ("name", "factor", "said"),
    [
        ("flops", 0.5, "its GEMM rate is 50% below the recorded one"),
        ("bandwidth", 0.8, "its memory bandwidth is 20% below the recorded one"),
        ("bandwidth", 1.3, "its memory bandwidth is 30% above the recorded one"),
        ("interpreter cpython-311", 0.7, "its interpreter is 30% below the recorded one"),
        ("launches", 0.5, "its rate of kernel launches is 50% below the recorded one"),
        ("to host", 0.6, "its rate of bringing tokens to the host is 40% below the recorded one"),
        ("flops", 1 - SAME, None),
        ("flops", 1 / (1 - SAME) - 1e-9, None),
        ("meetings 2", 2 / 3, "its threads take 1.5 times as long to meet as recorded"),
        ("meetings 2", 1.5, "its threads take 0.7 times as long to meet as recorded"),
        ("meetings 2", 0.85, None),
        ("meetings 2", 0.3, "its threads take 3.3 times as long to meet as recorded"),  # a busy host, say
        ("meetings 2", 10, "its threads take 0.1 times as long to meet as recorded"),
    ],
)
def test_the_rate_that_differs_is_named(name: str, factor: float, said: str | None) -> None:
    recorded = RECORDED | OF_A_GPU
    found = difference(recorded | {name: recorded[name] * factor}, recorded)
    assert found == said if said is None else found is not None and found.startswith(said)


def test_how_soon_threads_meet_is_said_before_what_they_do_together() -> None:
    found = difference(RECORDED | {"flops": 0.5e12, "meetings 2": 2e5}, RECORDED)
    assert found is not None
    assert "the host moved its CPUs, it seems" in found


def test_the_barrier_of_other_threads_says_nothing() -> None:
    assert moved(Barrier(4.5e-6, 4), Barrier(3e-6, 2)) is None
    assert moved(Barrier(4.5e-6, 2), None) is None
    assert moved(None, Barrier(3e-6, 2)) is None
    assert moved(Barrier(4.5e-6, 2), Barrier(3e-6, 2)) is not None


def test_another_interpreter_says_nothing_of_the_machine() -> None:
    assert difference({"interpreter cpython-310": 1e6}, {"interpreter cpython-311": 1e7}) is None


# How often it is looked at


SLOW = RECORDED | {"flops": 0.5e12}


def test_the_rates_are_those_of_the_first_look() -> None:
    one = machine(SLOW)
    assert (one.rates, one.rates) == (SLOW, SLOW), "measured once"


def test_a_machine_that_agrees_is_looked_at_once() -> None:
    one = machine(RECORDED)
    assert one.differs(RECORDED) is None
    assert one.differs(RECORDED) is None


def test_a_look_that_was_disturbed_is_followed_by_another() -> None:
    one = machine(SLOW, RECORDED)
    assert one.differs(RECORDED) is None
    assert len(one.looks) == 2


def test_a_machine_that_differs_in_every_look_is_in_another_state() -> None:
    one = machine(*[SLOW] * LOOKS)
    said = "its GEMM rate is 50% below the recorded one"
    assert (one.differs(RECORDED), one.differs(RECORDED)) == (said, said), "it is not looked at again"
