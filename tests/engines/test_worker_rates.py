"""The machine's rates, measured: the roofs are above what products reach, and a host's are of what decode waits for."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

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


# An accelerator's roofs, where it has no data sheet

#: FLOP/s in each type, and bytes/s.
SPEED = {"float32": 2e13, "float16": 1e14, "bfloat16": 1.1e14, "int8": 2e14, "float8_e4m3fn": 2.2e14, "memory": 1e12}
SIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "float8_e4m3fn": 1}


class Matrix:
    """A matrix, or a vector, on a device; ``T`` is laid out the other way."""

    def __init__(self, clock: Clock, shape: tuple[int, ...], dtype: str, turned: bool = False) -> None:
        self.clock, self.shape, self.dtype, self.turned = clock, shape, dtype, turned

    @property
    def T(self) -> Matrix:  # noqa: N802  as torch has it
        return Matrix(self.clock, self.shape[::-1], self.dtype, not self.turned)

    def to(self, dtype: str) -> Matrix:
        return Matrix(self.clock, self.shape, dtype)

    def numel(self) -> int:
        return math.prod(self.shape)

    def element_size(self) -> int:
        return SIZES[self.dtype]

    def sum(self) -> None:
        self.clock.now += self.numel() * self.element_size() / SPEED["memory"]

    def __matmul__(self, _: Matrix) -> None:
        self.sum()


class Gpu:
    """A fake ``torch`` whose device multiplies as fast as `SPEED` says, and int8 in one layout alone."""

    int8, float32, float16, bfloat16 = "int8", "float32", "float16", "bfloat16"
    float8_e4m3fn, float8_e4m3fnuz = "float8_e4m3fn", "float8_e4m3fnuz"

    def __init__(self, clock: Clock, free: int) -> None:
        self.clock = clock
        self.made: list[Matrix] = []
        self.kept = False
        self.cuda = SimpleNamespace(
            synchronize=clock.tick(250e-6), mem_get_info=lambda: (free, 2 * free), empty_cache=self.give_back
        )

    def give_back(self) -> None:
        self.kept = False

    def randn(self, *shape: int, device: str, dtype: str = "float32") -> Matrix:
        assert device == "cuda"
        self.kept = True
        self.made.append(Matrix(self.clock, shape, dtype))
        return self.made[-1]

    def randint(self, low: int, high: int, shape: tuple[int, int], dtype: str, device: str) -> Matrix:
        return self.randn(*shape, dtype=dtype, device=device)

    def ones(self, shape: tuple[int, ...], device: str) -> Matrix:
        return self.randn(*shape, device=device)

    def matmul(self, a: Matrix, b: Matrix) -> None:
        if a.dtype not in SPEED:
            raise RuntimeError("not supported")
        self.clock.now += 2 * a.shape[0] ** 3 / SPEED[a.dtype]

    def _int_mm(self, a: Matrix, b: Matrix) -> None:
        if not b.turned:
            raise RuntimeError("no kernel for this layout")
        self.matmul(a, b)

    def _scaled_mm(self, a: Matrix, b: Matrix, scale_a: Matrix, scale_b: Matrix, **options: Any) -> None:
        assert b.turned
        assert options == {"out_dtype": "bfloat16", "use_fast_accum": True}
        self.matmul(a, b)


@pytest.fixture
def unlisted(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Gpu]:
    def make(free: int) -> Gpu:
        clock = Clock()
        monkeypatch.setattr(rates, "time", clock)
        monkeypatch.setattr(rates, "torch", gpu := Gpu(clock, free))
        monkeypatch.setattr(rates, "_host", lambda device, seconds: {})
        return gpu

    return make


@pytest.mark.parametrize(
    ("dtype", "fastest"),
    [
        ("bfloat16", "bfloat16"),
        ("float16", "float16"),
        ("float32", "float16"),  # which TF32 is not faster than
        ("int8", "int8"),
        ("fp8", "float8_e4m3fn"),
        ("int3", None),
    ],
)
@pytest.mark.parametrize(("free", "side"), [(2**35, 8192), (2**30, 4096), (2**20, 2048)])
def test_an_accelerator_s_peak_is_its_gemm_s_rate_without_the_waiting(
    unlisted: Callable[[int], Gpu], dtype: str, fastest: str | None, free: int, side: int
) -> None:
    gpu = unlisted(free)
    found = rates.peak("cuda", dtype)
    assert (found is None) == (fastest is None)
    if fastest is not None:
        amount = rates.BURST * 2 * side**3
        assert found == pytest.approx(amount / (amount / SPEED[fastest] + 250e-6))
        assert {matrix.shape for matrix in gpu.made} <= {(side, side), ()}
    assert not gpu.kept


def test_a_type_that_the_libraries_refuse_has_no_peak(
    unlisted: Callable[[int], Gpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    unlisted(2**35)
    for name in ("int8", "float8_e4m3fn"):
        monkeypatch.delitem(SPEED, name)
    assert rates.peak("cuda", "int8") is rates.peak("cuda", "fp8") is None


@pytest.mark.parametrize(
    ("weights", "free", "read"), [(2**28, 2**35, 2**28), (2**34, 2**35, 2**30), (2**34, 2**30, 2**28)]
)
def test_an_accelerator_s_memory_is_read_beside_what_engines_have(
    unlisted: Callable[[int], Gpu], weights: int, free: int, read: int
) -> None:
    gpu = unlisted(free)
    found = measure("cuda", "bfloat16", weights)
    assert found.keys() == {"flops", "bandwidth"}
    assert found["bandwidth"] == pytest.approx(SPEED["memory"], rel=0.1)
    assert max(matrix.numel() * matrix.element_size() for matrix in gpu.made if matrix.shape[1:] == (4096,)) == read
    assert not gpu.kept
