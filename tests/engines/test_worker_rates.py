"""The machine's rates, measured: the roofs are above what products reach, and a host's are of what decode waits for."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from pytest_llmperf.machine.fitness import Barrier
from pytest_llmperf.worker import rates
from pytest_llmperf.worker.rates import ATTEMPTS, LAUNCHES, measure

INTERPRETER = f"interpreter {sys.implementation.cache_tag}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_linear_layer_does_not_pass_the_roof(dtype: str) -> None:
    kind = getattr(torch, dtype)
    x, weight = torch.randn(256, 576, dtype=kind), torch.randn(1536, 576, dtype=kind)
    best = 0.0
    for _ in range(20):
        start = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        best = max(best, 2 * 256 * 576 * 1536 / (time.perf_counter() - start))
    # By how much a neighbour can slow one of the two down meanwhile is open; one layout was 17 times too slow.
    assert measure("cpu", dtype, 2**22, seconds=0.2)["flops"] > best / 3


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_a_cpus_rates_say_how_soon_its_threads_met() -> None:
    with threads(2):
        found = measure("cpu", "bfloat16", 2**20, seconds=0.01)
    assert 1 < found["meetings 2"] < 1e7, "a thread that has no CPU of its own waits for one"


def test_one_thread_meets_no_other() -> None:
    with threads(1):
        found = measure("cpu", "bfloat16", 2**20, seconds=0.01)
    assert found.keys() == {"flops", "bandwidth", INTERPRETER}


def test_a_known_device_has_a_data_sheet_for_its_roofs() -> None:
    with threads(1):
        assert measure("cpu", "bfloat16", 2**20, roofs=False, seconds=0.01).keys() == {INTERPRETER}


@pytest.mark.parametrize(
    ("seconds", "looks", "meetings"),
    [
        ([3e-6, 3.1e-6], 2, 1 / 3e-6),
        ([3e-6, 5e-6, 5e-6, 5.1e-6], 4, 1 / 5e-6),
        ([3e-6, 5e-6] * ATTEMPTS, 2 * ATTEMPTS, 1 / 3e-6),
    ],
    ids=["still", "moved once", "moved all the time"],
)
def test_rates_of_two_states_are_measured_again(
    monkeypatch: pytest.MonkeyPatch, seconds: list[float], looks: int, meetings: float
) -> None:
    met = iter(seconds)
    seen: list[float] = []

    def barrier() -> Barrier:
        seen.append(next(met))
        return Barrier(seen[-1], 2)

    monkeypatch.setattr(rates, "barrier", barrier)
    found = measure("cpu", "bfloat16", 2**20, roofs=False, seconds=0.0)
    assert found["meetings 2"] == pytest.approx(meetings)
    assert len(seen) == looks


# The types that engines compute in


def test_a_narrower_type_has_a_roof_of_its_own_or_none() -> None:
    floats, whole = rates.peak("cpu", "float32", 0.05), rates.peak("cpu", "int8", 0.05)
    assert floats is not None
    assert whole is None or whole > floats / 3, "a product without the CPU's instructions is no roof"
    assert rates.peak("cpu", "fp8", 0.05) is rates.peak("cpu", "int3", 0.05) is None


@pytest.mark.parametrize(("seconds", "faster"), [(1e-4, True), (1e-2, False)])
def test_a_product_of_integers_is_a_roof_only_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, seconds: float, faster: bool
) -> None:
    took = {"_int_mm": seconds, "matmul": 1e-3}
    monkeypatch.setattr(rates, "_timed", lambda work, *_: [took[work.func.__name__]])
    assert rates.peak("cpu", "int8") == (2.0 * 1024**3 / seconds if faster else None)


# An accelerator's host


class Token:
    """A tensor on a device: what is done to it takes so long on a clock of its own."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def add_(self, _: int) -> None:
        self.clock.now += 5e-6

    def item(self) -> None:
        self.clock.now += 20e-6


class Clock:
    """Seconds that pass only where something is said to take them."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def tick(self, seconds: float) -> Callable[[], None]:
        def work() -> None:
            self.now += seconds

        return work


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A device that launches in 5 us, brings a token to the host in 20 us and waits 250 us for all to end."""
    clock = Clock()
    monkeypatch.setattr(rates, "time", clock)
    monkeypatch.setattr(rates, "loop", clock.tick(2e-3))
    made = SimpleNamespace(
        int64=torch.int64,
        zeros=lambda *shape, dtype, device: Token(clock),
        cuda=SimpleNamespace(synchronize=clock.tick(250e-6)),
    )
    monkeypatch.setattr(rates, "torch", made)
    return clock


@pytest.mark.usefixtures("accelerator")
def test_an_accelerator_s_host_has_rates_of_launching_and_of_bringing_tokens_back() -> None:
    found = measure("cuda", "bfloat16", 2**20, roofs=False, seconds=0.1)
    assert found == pytest.approx(
        {
            INTERPRETER: rates.ROUNDS / 2e-3,
            "launches": LAUNCHES / (LAUNCHES * 5e-6 + 250e-6),
            "to host": 1 / 25e-6,
        }
    )


def test_they_are_the_usual_rates_and_not_the_best(accelerator: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A neighbour on a core's other hardware thread leaves gaps, in which a loop is as fast as ever."""
    took = iter([1e-3, 2e-3, 2e-3] * 100)
    monkeypatch.setattr(rates, "loop", lambda: accelerator.tick(next(took))())
    assert measure("cuda", "bfloat16", 2**20, roofs=False, seconds=0.1)[INTERPRETER] == pytest.approx(
        rates.ROUNDS / 2e-3
    )


@pytest.mark.usefixtures("accelerator")
def test_each_is_measured_at_least_once() -> None:
    assert measure("cuda", "bfloat16", 2**20, roofs=False, seconds=0.0).keys() == {INTERPRETER, "launches", "to host"}
