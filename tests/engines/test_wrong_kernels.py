"""Parity with the real bundled model: wrong attention kernels fail, right ones pass however they sum."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.models.llama.modeling_llama import rotate_half

from pytest_llmperf.backends import eager
from pytest_llmperf.backends.base import EngineSpec
from pytest_llmperf.backends.transformers_engine import TransformersEngine
from pytest_llmperf.cases import Workload
from pytest_llmperf.models import Model
from pytest_llmperf.parity.decision import FLOAT32_ERROR_MARGIN, Parity, Row, decide, error_margin
from pytest_llmperf.parity.scoring import Made, Referee
from pytest_llmperf.plan import cpu_dtype
from pytest_llmperf.prompts import Prompts
from pytest_llmperf.worker.server import OBSERVED_LOGITS, Worker

WORKLOAD = Workload(batch_size=2, prompt_length=48, max_new_tokens=32)
#: The slot of the key-value cache that a stale kernel never writes: of the last prompt token but one.
STALE = WORKLOAD.prompt_length - 2
MUTATIONS = [
    "causal mask shifted by one",
    "padding ignored",
    "key-value head of the wrong group",
    "softmax scale off by 5 %",
    "query rotated one position too far",
    "one key-value slot stale",
]


@dataclass
class Kernel:
    """What the attention under test does now. ``split`` draws where a sum over so many terms is cut in two."""

    mutation: str | None = None
    split: Callable[[int], int] | None = None


kernel = Kernel()


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``left @ right``, the inner axis summed in one go or in two parts, each row of the batch cut elsewhere."""
    if kernel.split is None:
        return left @ right
    rows = []
    for a, b in zip(left, right, strict=True):
        cut = kernel.split(a.shape[-1])
        rows.append(a[..., :cut] @ b[..., :cut, :] + a[..., cut:] @ b[..., cut:, :])
    return torch.stack(rows)


def one_position_on(module: Any, query: torch.Tensor) -> torch.Tensor:
    half = torch.arange(0, module.head_dim, 2).float() / module.head_dim
    angle = module.config.rope_parameters["rope_theta"] ** -torch.cat([half, half])
    rotated = query.float() * angle.cos() + rotate_half(query.float()) * angle.sin()
    return rotated.to(query.dtype)


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention as transformers' own, but for what `kernel` asks for."""
    wrong = kernel.mutation
    groups, length = query.shape[1] // key.shape[1], key.shape[2]
    decoding = query.shape[2] == 1
    mask = attention_mask[..., :length]
    if wrong == "causal mask shifted by one" and not decoding:
        mask = torch.cat([mask[..., 1:, :], mask[..., -1:, :]], dim=2)
    if wrong == "padding ignored":
        causal = torch.full((query.shape[2], length), torch.finfo(query.dtype).min, dtype=query.dtype)
        mask = causal.triu(length - query.shape[2] + 1)
    if wrong == "softmax scale off by 5 %":
        scaling *= 1.05
    if wrong == "query rotated one position too far" and decoding:
        query = one_position_on(module, query)
    if wrong == "one key-value slot stale" and decoding:
        key, value = key.clone(), value.clone()
        for cache in (key, value):
            cache[:, :, STALE] = cache[:, :, STALE - 1]
    if wrong == "key-value head of the wrong group":
        key, value = key.repeat(1, groups, 1, 1), value.repeat(1, groups, 1, 1)
    else:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    weights = product(query, key.transpose(2, 3)) * scaling + mask
    weights = torch.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    return product(weights, value).transpose(1, 2).contiguous(), weights


class UnderTest(TransformersEngine):
    attention = "llmperf-under-test"


AttentionInterface.register(UnderTest.attention, attention)
AttentionMaskInterface.register(UnderTest.attention, eager_mask)


@dataclass
class Bench:
    """The reference and the kernel under test, loaded in one precision, and judged as a run judges backends."""

    model: Model
    dtype: str
    workers: dict[str, Worker] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spec = EngineSpec(str(self.model.folder), None, self.dtype, "cpu")
        for name, load in (("eager", eager.extend(TransformersEngine)), ("under test", UnderTest)):
            self.workers[name] = Worker()
            self.workers[name].engine = load(spec)
        # In bfloat16, 64 positions may not tell the smallest errors from rounding with every seed.
        self.prompts = Prompts(self.model.architecture.vocabulary, self.model.tokenizer_file, seed=1)
        self.referee = Referee(
            self.ask, "eager", self.model.end_of_sequence, lambda text: None, error_margin(self.dtype)
        )

    def ask(self, backend: str, operation: str, **arguments: Any) -> Any:
        return getattr(self.workers[backend], operation)(**arguments)

    def timed(self, backend: str) -> list[Made]:
        prompts = self.prompts.batch(WORKLOAD)
        answer = self.ask(backend, "generate", prompts=prompts, max_new_tokens=WORKLOAD.max_new_tokens)
        rows = zip(prompts, answer["tokens"], strict=True)
        return [Made(f"request {index}", prompt, tuple(row)) for index, (prompt, row) in enumerate(rows)]

    def judge(self, name: str) -> Parity:
        """What `Run.parity_of` says of the kernel as it is now, which goes by ``name``."""
        self.workers[name] = self.workers["under test"]
        return self.referee.judge(
            name,
            WORKLOAD,
            timed=self.timed(name),
            unequal=self.prompts.unequal_batch(WORKLOAD),
        )


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def bench(request: pytest.FixtureRequest, bundled_model: Model, one_thread: None) -> Bench:
    return Bench(bundled_model, request.param)


@pytest.fixture(autouse=True)
def right_kernel() -> Iterator[None]:
    yield
    kernel.mutation = kernel.split = None


def show(bench: Bench, name: str, found: Parity) -> None:
    print(
        f"{bench.dtype} {name}: passed={found.passed} exact={found.exact_match:.3f} regret={found.largest_regret:.3g} "
        f"tolerance={found.tolerance:.3g} error ratio={found.error_ratio:.3g} {found.reason}"
    )


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_wrong_kernel_is_out_of_parity(bench: Bench, mutation: str) -> None:
    kernel.mutation = mutation
    found = bench.judge(mutation)
    show(bench, mutation, found)
    assert not found.passed
    assert "carry information" not in found.reason
    if bench.dtype == "float32":  # far from what another right kernel may be
        assert found.error_ratio is not None
        assert found.error_ratio > 5 * FLOAT32_ERROR_MARGIN


def test_a_right_kernel_is_in_parity(bench: Bench) -> None:
    found = bench.judge("right")
    show(bench, "right", found)
    assert found.passed, found.reason
    assert found.error_ratio == pytest.approx(1, abs=0.5)


def test_a_right_kernel_that_sums_in_another_order_is_in_parity(bench: Bench) -> None:
    kernel.split = lambda terms: terms // 2
    found = bench.judge("another order")
    show(bench, "another order", found)
    assert found.passed, found.reason


def test_a_hundred_other_orders_of_summation_pass_a_hundred_times(bench: Bench) -> None:
    """Each judgement is one request: a prompt of its own, and in every layer and step sums cut at drawn places."""
    passed, rows = 0, 4
    # Where bfloat16 is emulated, a hundred requests take eight minutes, and nothing is measured in it.
    emulated = bench.dtype == "bfloat16" and cpu_dtype() != "bfloat16"
    wanted = 8 if emulated else 100
    lengths = random.Random(1)
    for seed in range(wanted // rows):
        kernel.split = random.Random(seed).randrange
        prompts = [
            bench.prompts.batch(Workload(1, lengths.randint(8, 24), 1), rows * seed + row)[0] for row in range(rows)
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
