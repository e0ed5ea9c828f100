"""Parity with the real bundled model: wrong attention kernels fail, right ones pass however they sum."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache

import pytest

from benchmarks.wrong_kernels import WRONG, Bench, kernel
from pytest_llmperf.backends.base import OBSERVED_LOGITS
from pytest_llmperf.cases import Workload
from pytest_llmperf.models import Model
from pytest_llmperf.parity.decision import FLOAT32_ERROR_MARGIN, Parity, Row, decide, error_margin
from pytest_llmperf.plan import cpu_dtype

#: Two requests of 16 tokens: one untimed batch has few positions.
WORKLOAD = Workload(batch_size=2, prompt_length=48, max_new_tokens=16)
SEEDS = range(2)
#: In bfloat16 their errors are near what rounding explains.
NEAR = ("softmax scale off by 5 %", "softmax scale off by 3 %", "one key-value slot stale")


@pytest.fixture(scope="module")
def benches(bundled_model: Model, shallow: Model, one_thread: None) -> Callable[[str, bool], Bench]:
    """The bench of a type, loaded once. What is near rounding, which adds up over the layers, needs the whole model."""
    return cache(lambda dtype, whole: Bench(bundled_model if whole else shallow, dtype))


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def right_kernel() -> Iterator[None]:
    yield
    kernel.mutation = kernel.split = None


def show(bench: Bench, name: str, found: Parity) -> None:
    print(
        f"{bench.dtype} {name}: passed={found.passed} exact={found.exact_match:.3f} regret={found.largest_regret:.3g} "
        f"tolerance={found.tolerance:.3g} error ratio={found.error_ratio:.3g} {found.reason}"
    )


@pytest.mark.parametrize("mutation", WRONG)
def test_a_wrong_kernel_is_out_of_parity_with_any_text(
    benches: Callable[[str, bool], Bench], dtype: str, mutation: str
) -> None:
    near = dtype == "bfloat16" and mutation in NEAR
    bench = benches(dtype, near)
    kernel.mutation = mutation
    for seed in SEEDS if near else SEEDS[:1]:
        found = bench.judge(mutation, WORKLOAD, seed, timed=False)
        show(bench, f"{mutation}, seed {seed}", found)
        assert not found.passed
        assert "carry information" not in found.reason
        if bench.dtype == "float32":  # far from what another right kernel may be
            assert found.error_ratio is not None
            assert found.error_ratio > 5 * FLOAT32_ERROR_MARGIN


@pytest.mark.parametrize("split", [None, lambda terms: terms // 2], ids=["as eager", "in two halves"])
def test_a_right_kernel_is_in_parity_however_it_sums(
    benches: Callable[[str, bool], Bench], dtype: str, split: Callable[[int], int] | None
) -> None:
    bench = benches(dtype, dtype == "bfloat16" and split is not None)
    kernel.split = split
    for seed in SEEDS[:2]:
        found = bench.judge(f"right {split}", WORKLOAD, seed)
        show(bench, f"right, seed {seed}", found)
        assert found.passed, found.reason
        assert found.error_ratio == pytest.approx(1, abs=0.5)


def test_other_orders_of_summation_pass_every_time(benches: Callable[[str, bool], Bench], dtype: str) -> None:
    """Each judgement is one request: a prompt of its own, and in every layer and step sums cut at drawn places."""
    bench = benches(dtype, False)
    passed, rows = 0, 10  # requests that are computed together, which share the reading of the weights
    # In float64, by which float32 is judged, a request takes half a second; in emulated bfloat16, five, for nothing.
    emulated = bench.dtype == "bfloat16" and cpu_dtype() != "bfloat16"
    wanted = 10 if emulated else {"float32": 10, "bfloat16": 20}[bench.dtype]
    lengths = random.Random(1)
    for seed in range(wanted // rows):
        kernel.split = random.Random(seed).randrange
        prompts = [
            bench.prompts(0).batch(Workload(1, lengths.randint(8, 16), 1), rows * seed + row)[0] for row in range(rows)
        ]
        observed = bench.workers["under test"].engine.observe(prompts, 12, OBSERVED_LOGITS)
        scores = bench.workers["eager"].engine.score(
            prompts, [one.tokens for one in observed], [one.candidates for one in observed]
        )
        for one, score in zip(observed, scores, strict=True):
            found = decide(
                [Row("a request", one.tokens, score, one)],
                bench.model.end_of_sequence,
                margin=error_margin(bench.dtype),
            )
            show(bench, f"order {seed}", found)
            passed += found.passed
    assert passed == wanted
