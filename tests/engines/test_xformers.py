"""The xFormers adapter against scaled-dot-product attention: its masks, groups and caches, without its kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny import EQUAL, NEW, UNEQUAL, generate, load, spec
from transformers.masking_utils import sdpa_mask, sliding_window_causal_mask_function

pytest.importorskip("xformers")

from xformers.ops import fmha
from xformers.ops.fmha.attn_bias import BlockDiagonalCausalFromBottomRightMask, LowerTriangularFromBottomRightMask

from pytest_llmperf.backends import xformers
from pytest_llmperf.backends import xformers_attention as adapter
from pytest_llmperf.backends.base import NotEngagedError
from pytest_llmperf.backends.transformers_engine import TransformersEngine

pytestmark = pytest.mark.usefixtures("one_thread")

GARBAGE = 100.0


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any, scale: float | None) -> torch.Tensor:
    """What xFormers computes, of the inputs that it takes."""
    fmha.Inputs(query=q, key=k, value=v, attn_bias=bias, scale=scale).validate_inputs()
    if q.ndim == 5:  # how its kernels are told of groups
        assert k.stride(3) == v.stride(3) == 0
    scores = torch.einsum("bq...d,bk...d->b...qk", q.float(), k.float())
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        assert type(bias) in (LowerTriangularFromBottomRightMask, BlockDiagonalCausalFromBottomRightMask)
        scores = scores + bias.materialize((q.shape[1], k.shape[1]))
    return torch.einsum("b...qk,bk...d->bq...d", scores.softmax(-1), v.float()).to(q.dtype)


def counted(*inputs: Any) -> torch.Tensor:
    adapter.served["reference"] += 1
    return reference(*inputs)


@dataclass(frozen=True)
class Case:
    """One call of one layer. ``left`` and ``right`` are each row's padding; ``tail`` is a static cache's unused end."""

    left: tuple[int, ...] = (0,)
    right: tuple[int, ...] = (0,)
    queries: int = 5
    earlier: int = 0
    tail: int = 0
    shared: int = 1
    share: int = 1
    scaling: float | None = None
    masked: bool = True  # an attention mask is given, though it may hide nothing
    seed: int = 0

    @property
    def end(self) -> int:
        return self.earlier + self.queries

    @property
    def real(self) -> torch.Tensor:
        """The attention mask."""
        at = torch.arange(self.end)
        left, right = (torch.tensor(one)[:, None] for one in (self.left, self.right))
        real = (at >= left) & (at < self.end - right)
        if self.queries == 1:
            real[:, -1] = True  # what is decoded is no padding
        return real

    @property
    def arguments(self) -> dict[str, Any]:
        """Of the mask functions, as transformers passes them: the offset of a static cache is a tensor."""
        return {
            "batch_size": len(self.left),
            "q_length": self.queries,
            "kv_length": self.end + self.tail,
            "q_offset": torch.tensor(self.earlier) if self.tail else self.earlier,
            "kv_offset": 0,
            "attention_mask": self.real if self.masked else None,
            "device": "cpu",
            "dtype": torch.float32,
        }


@st.composite
def cases(draw: st.DrawFn) -> Case:
    end = draw(st.integers(1, 200))
    queries = draw(st.sampled_from(sorted({1, end, draw(st.integers(1, end))})))
    batch = draw(st.integers(1, 3))
    padded = draw(st.sampled_from(("none", "left", "right", "both")))
    left, right = [], []
    for _ in range(batch):
        before = draw(st.integers(0, end - 1)) if padded in ("left", "both") else 0
        left.append(before)
        right.append(draw(st.integers(0, end - 1 - before)) if padded in ("right", "both") else 0)
    return Case(
        left=tuple(left),
        right=tuple(right),
        queries=queries,
        earlier=end - queries,
        tail=draw(st.sampled_from((0, 0, 1, 17, 64))),
        shared=draw(st.integers(1, 3)),
        share=draw(st.integers(1, 4)),
        scaling=draw(st.sampled_from((None, 0.5))),
        masked=padded != "none" or draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )


def compare(case: Case, sight: Callable[..., Any] = adapter.sight) -> None:
    """That the adapter attends as SDPA does; whatever must not be seen is garbage."""
    torch.manual_seed(case.seed)
    batch, depth, length = len(case.left), 8, case.end + case.tail
    query = torch.randn(batch, case.shared * case.share, case.queries, depth)
    key, value = torch.randn(2, batch, case.shared, length, depth)
    hidden = torch.ones(batch, length, dtype=torch.bool)
    hidden[:, : case.end] = ~case.real
    for one in (key, value):
        one[hidden[:, None].expand(one.shape[:3])] *= GARBAGE
    found, weights = adapter.attend(None, query, key, value, sight(**case.arguments), case.scaling)
    mask = sdpa_mask(**case.arguments, allow_is_causal_skip=False)
    repeated = (one.repeat_interleave(case.share, dim=1) for one in (key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(query, *repeated, attn_mask=mask, scale=case.scaling)
    real = case.real[:, case.earlier :]
    assert weights is None
    assert found.shape == (batch, case.queries, query.shape[1], depth)
    torch.testing.assert_close(found[real], expected.transpose(1, 2)[real], atol=1e-5, rtol=1e-5)
    assert not found[~real].any()


@pytest.fixture(scope="module", autouse=True)
def _reference() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter, "memory_efficient", reference)
        yield


PREFILL = Case(left=(0, 0), right=(0, 0), queries=7, shared=2, share=2)
LEFT = replace(PREFILL, left=(0, 3))
RIGHT = replace(PREFILL, right=(4, 1))
DECODE = replace(LEFT, queries=1, earlier=6)
CHUNK = replace(LEFT, queries=3, earlier=6)
STATIC = replace(PREFILL, tail=9)
STATIC_DECODE = replace(PREFILL, queries=1, earlier=6, tail=9)
STATIC_LEFT = replace(LEFT, tail=9)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
@example(PREFILL)
@example(LEFT)
@example(RIGHT)
@example(DECODE)
@example(replace(RIGHT, queries=1, earlier=6))  # a hole in the mask
@example(CHUNK)
@example(replace(RIGHT, queries=3, earlier=6))  # a row without a real query
@example(replace(RIGHT, right=(4, 5), queries=3, earlier=6))  # no row has one
@example(STATIC)
@example(STATIC_DECODE)
@example(STATIC_LEFT)
@example(replace(DECODE, tail=9))
@example(replace(CHUNK, tail=9))
def test_it_attends_as_sdpa_does(case: Case) -> None:
    compare(case)


def test_an_attention_mask_as_long_as_a_static_cache_is_read_to_its_valid_end() -> None:
    for case in (STATIC, STATIC_LEFT, replace(DECODE, tail=9)):
        full = torch.nn.functional.pad(case.real, (0, case.tail), value=True)
        compare(case, lambda full=full, **arguments: adapter.sight(**arguments | {"attention_mask": full}))


def test_without_padding_nothing_is_packed() -> None:
    assert adapter.sight(**PREFILL.arguments) == adapter.Sight(7, None)
    assert adapter.sight(**STATIC_DECODE.arguments) == adapter.Sight(7, None)
    assert adapter.sight(**LEFT.arguments).packed is not None


# Wrong adapters


@pytest.mark.parametrize("case", [PREFILL, LEFT, RIGHT, DECODE, CHUNK, STATIC, STATIC_LEFT])
def test_without_its_bias_it_is_wrong(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(case)
    monkeypatch.setattr(adapter, "memory_efficient", lambda q, k, v, bias, scale: reference(q, k, v, None, scale))
    with pytest.raises(AssertionError):
        compare(case)


@pytest.mark.parametrize("case", [LEFT, RIGHT, DECODE, CHUNK, STATIC_LEFT])
def test_without_its_padding_it_is_wrong(case: Case) -> None:
    with pytest.raises(AssertionError):
        compare(case, lambda **arguments: adapter.sight(**arguments | {"attention_mask": None}))


@pytest.mark.parametrize("case", [PREFILL, LEFT, RIGHT, DECODE, CHUNK, STATIC, STATIC_DECODE])
def test_with_its_groups_swapped_it_is_wrong(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        share = q.shape[2] // k.shape[2]
        return q, k.repeat(1, 1, share, 1), v.repeat(1, 1, share, 1)  # head h attends with h % H_kv

    monkeypatch.setattr(adapter, "grouped", swapped)
    with pytest.raises(AssertionError):
        compare(case)
    compare(replace(case, share=1))  # where nothing is shared it is the same


@pytest.mark.parametrize("case", [STATIC, STATIC_DECODE, replace(STATIC, queries=3, earlier=4)])
def test_with_the_tail_of_a_static_cache_it_is_wrong(case: Case) -> None:
    def uncut(**arguments: Any) -> adapter.Sight:
        return replace(adapter.sight(**arguments), end=arguments["kv_length"])

    with pytest.raises(AssertionError):
        compare(case, uncut)
    compare(replace(case, tail=0), uncut)


# What is refused


@pytest.mark.parametrize(
    "changes", [{"mask_function": sliding_window_causal_mask_function(3)}, {"kv_offset": 2}], ids=["window", "offset"]
)
def test_more_than_causal_attention_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(NotImplementedError, match="only plain causal attention"):
        adapter.sight(**PREFILL.arguments | changes)


def op(name: str, *reasons: str) -> Any:
    return SimpleNamespace(NAME=name, not_supported_reasons=lambda inputs: list(reasons))


@pytest.fixture
def inputs(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(adapter, "_chosen", {})
    return fmha.Inputs(*torch.zeros(3, 1, 4, 2, 8))


def test_the_first_op_without_reasons_against_it_is_chosen(inputs: Any) -> None:
    assert adapter.choose(inputs, (op("fa2F", "too old"), op("cutlassF"), op("ckF"))).NAME == "cutlassF"


def test_without_an_op_each_ones_reasons_are_given(inputs: Any) -> None:
    ops = (op("fa2F", "too old", "dtype"), op("cutlassF", "not built"))
    with pytest.raises(NotEngagedError, match=r"fa2F: too old, dtype; cutlassF: not built"):
        adapter.choose(inputs, ops)


def test_xformers_own_ops_refuse_a_cpu(inputs: Any) -> None:
    with pytest.raises(NotEngagedError, match="cpu"):
        adapter.choose(inputs)


def test_why_its_library_did_not_load_is_said(inputs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = RuntimeError("xFormers can't load C++/CUDA extensions.\nPlease reinstall")
    failed.__cause__ = OSError("Could not load this library")
    failed.__cause__.__cause__ = OSError("libcudart.so.12: cannot open shared object file")
    monkeypatch.setattr(adapter._cpp_lib, "_cpp_library_load_exception", failed)
    with pytest.raises(NotEngagedError, match=r"not built\); its library did not load: libcudart\.so\.12: cannot"):
        adapter.choose(inputs, (op("cutlassF", "not built"),))
    monkeypatch.setattr(adapter._cpp_lib, "_cpp_library_load_exception", None)
    with pytest.raises(NotEngagedError, match=r"not built\)$"):
        adapter.choose(inputs, (op("cutlassF", "not built"),))


# A model


@pytest.fixture(scope="module")
def eager() -> Any:
    return load("eager", spec())


class Static(xformers.extend(TransformersEngine)):  # type: ignore[misc]
    """On a static cache, uncompiled."""

    def generation_options(self) -> dict[str, Any]:
        return {"cache_implementation": "static", "disable_compile": True}


@pytest.mark.parametrize("prompts", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(xformers.extend(TransformersEngine), id="dynamic"),
        pytest.param(Static, id="static"),
    ],
)
def test_a_model_generates_the_references_tokens_and_it_engages(
    kind: Any, prompts: list[list[int]], eager: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "memory_efficient", counted)
    engine = kind(spec())
    assert generate(engine, prompts) == generate(eager, prompts)
    found = engine.evidence()
    found.require()
    assert found.seen["attn_implementation"] == "xformers"
    assert found.seen["reference"] == engine.layers * min(NEW, 3)


def test_it_does_not_engage_where_nothing_was_served() -> None:
    engine = xformers.extend(TransformersEngine)(spec())
    adapter.served["reference"] = 100  # of another generation
    generate(engine, EQUAL)
    with pytest.raises(NotEngagedError, match="a memory-efficient attention op in every layer"):
        engine.evidence().require()
