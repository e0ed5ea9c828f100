"""Attention kernels that are wrong in one way each, right ones that sum in other orders, and what parity says of them.

`benchmarks.parity` counts how often parity finds the wrong ones, and the project's tests try each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.models.llama.modeling_llama import rotate_half

from pytest_llmperf.backends.base import EngineSpec
from pytest_llmperf.backends.registry import BUILT_IN, Registry
from pytest_llmperf.backends.transformers_engine import TransformersEngine
from pytest_llmperf.cases import Workload
from pytest_llmperf.models import Model
from pytest_llmperf.parity.decision import Parity, error_margin
from pytest_llmperf.parity.scoring import Made, Referee
from pytest_llmperf.prompts import Prompts
from pytest_llmperf.worker.server import Worker

WRONG = [
    "causal mask shifted by one",
    "padding ignored",
    "key-value head of the wrong group",
    "softmax scale off by 5 %",
    "softmax scale off by 3 %",
    "query rotated one position too far",
    "one key-value slot stale",
    "first token dropped",
    "keys rounded to 4 bits",
]


@dataclass
class Kernel:
    """What the attention under test does now.

    Attributes:
        mutation: how it is wrong; None for a right one.
        split: draws where a sum over so many terms is cut in two.
        stale: the slot of the key-value cache that a stale kernel never writes.
    """

    mutation: str | None = None
    split: Callable[[int], int] | None = None
    stale: int = 0


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
    rotated: torch.Tensor = query.float() * angle.cos() + rotate_half(query.float()) * angle.sin()
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
    if wrong == "softmax scale off by 3 %":
        scaling *= 1.03
    if wrong == "first token dropped" and decoding:
        mask = mask.clone()
        mask[..., 0] = torch.finfo(mask.dtype).min
    if wrong == "keys rounded to 4 bits":
        step = key.abs().amax(dim=-1, keepdim=True) / 7
        key = (key / step).round() * step
    if wrong == "query rotated one position too far" and decoding:
        query = one_position_on(module, query)
    if wrong == "one key-value slot stale" and decoding:
        key, value = key.clone(), value.clone()
        for cache in (key, value):
            cache[:, :, kernel.stale] = cache[:, :, kernel.stale - 1]
    if wrong == "key-value head of the wrong group":
        key, value = key.repeat(1, groups, 1, 1), value.repeat(1, groups, 1, 1)
    else:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    weights = product(query, key.transpose(2, 3)) * scaling + mask
    weights = torch.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    return product(weights, value).transpose(1, 2).contiguous(), weights


class UnderTest(TransformersEngine):
    """Its attention is `kernel`, as it is at the time."""

    attention = "llmperf-under-test"


AttentionInterface.register(UnderTest.attention, attention)
AttentionMaskInterface.register(UnderTest.attention, eager_mask)


class Bench:
    """The reference and backends beside it, judged as a run judges them.

    The kernel under test is `kernel` as it is at the time, whatever name it goes by.

    Args:
        model: with real weights.
        dtype: of all engines.
    """

    def __init__(self, model: Model, dtype: str) -> None:
        self.model, self.dtype = model, dtype
        self.spec = EngineSpec(str(model.folder), None, dtype, "cpu", batch_size=8)
        self.workers: dict[str, Worker] = {}
        self.load("eager")
        self.workers["under test"] = Worker()
        self.workers["under test"].engine = UnderTest(self.spec)

    def load(self, backend: str) -> None:
        """Load a backend, once."""
        if backend not in self.workers:
            worker = self.workers[backend] = Worker()
            worker.load(Registry(BUILT_IN)[backend].reference(), asdict(self.spec))

    def prompts(self, seed: int) -> Prompts:
        """The prompts of a run with that seed."""
        return Prompts(self.model.architecture.vocabulary, self.model.tokenizer_file, seed)

    def ask(self, backend: str, operation: str, **arguments: Any) -> Any:
        return getattr(self.workers.get(backend, self.workers["under test"]), operation)(**arguments)

    def judge(self, name: str, workload: Workload, seed: int, timed: bool = True) -> Parity:
        """What a run with that seed says of a backend, or of the kernel under test.

        Args:
            name: a backend that is loaded; any other name is the kernel's.
            workload: what is generated.
            seed: of the prompts.
            timed: whether a generation stands for the timed ones, or only the untimed batches are judged.
        """
        kernel.stale = workload.prompt_length - 2  # of the last prompt token but one
        prompts, rows = self.prompts(seed), []
        if timed:
            asked = prompts.batch(workload)
            answer = self.ask(name, "generate", prompts=asked, max_new_tokens=workload.max_new_tokens)
            made = zip(asked, answer["tokens"], strict=True)
            rows = [Made(f"request {index}", prompt, tuple(row)) for index, (prompt, row) in enumerate(made)]
        referee = Referee(self.ask, "eager", self.model.end_of_sequence, lambda text: None, error_margin(self.dtype))
        coarser = name in self.workers and Registry(BUILT_IN)[name].approximates(self.dtype)
        return referee.judge(
            name, workload, timed=rows, untimed=partial(prompts.unequal_batch, workload), other_weights=coarser
        )
