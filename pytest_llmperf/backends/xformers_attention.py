"""xFormers' memory-efficient attention under transformers' interfaces: grouped heads, padding, decode, static caches.

transformers hands over what the *mask* function of an implementation returned, so that function says which keys each
query may see, once a forward pass and without a matrix (`Sight`). The *attention* function then calls one op a layer:

* no padding: causal from the bottom right, or no bias at all for a single query;
* padding, on either side: the tokens that are there, packed one sequence after another, block-diagonal and causal.

A static cache hands keys and values over at full length; what lies beyond the last query is cut off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function
from xformers import _cpp_lib
from xformers.ops import fmha
from xformers.ops.fmha.attn_bias import BlockDiagonalCausalFromBottomRightMask, LowerTriangularFromBottomRightMask

from pytest_llmperf.backends.base import NotEngagedError

NAME = "xformers"
#: How many calls each op has served, by its name.
served: Counter[str] = Counter()


@dataclass(frozen=True)
class Packed:
    """A padded batch without its padding.

    Attributes:
        queries: indices of the real queries among all B x Sq, in order.
        keys: likewise among all B x end.
        bias: which of them see which.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    bias: Any


@dataclass(frozen=True)
class Sight:
    """Which keys the queries may see: those before ``end``, causally, but for padding.

    Attributes:
        end: keys that have been written, the queries' own included.
        packed: None where nothing is padded.
    """

    end: int
    packed: Packed | None

    # What transformers asks of a mask that was made ahead of the model's call, as it does with a static cache.
    ndim = 4

    def contiguous(self) -> Sight:
        """Itself."""
        return self


def sight(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: torch.Tensor | Sight | None = None,
    **_: Any,
) -> Sight:
    """What transformers' mask interface calls; see `transformers.masking_utils.sdpa_mask` for the arguments.

    Raises:
        NotImplementedError: the model wants more than causal attention over all keys.
    """
    if isinstance(attention_mask, Sight):
        return attention_mask
    if mask_function is not causal_mask_function or kv_offset:
        raise NotImplementedError("xformers: only plain causal attention is adapted, no windows, chunks or packing")
    end = int(q_offset) + q_length
    if attention_mask is None or bool(attention_mask[:, :end].all()):
        return Sight(end, None)
    keys = attention_mask[:, :end].bool()
    queries = keys[:, end - q_length :]
    lengths = [
        (queried, seen) for queried, seen in zip(queries.sum(1).tolist(), keys.sum(1).tolist(), strict=True) if queried
    ]
    keys = keys & queries.any(dim=1, keepdim=True)  # who asks nothing sees nothing
    bias = BlockDiagonalCausalFromBottomRightMask.from_seqlens(
        [queried for queried, _ in lengths], [seen for _, seen in lengths], device=keys.device
    )
    return Sight(end, Packed(queries.flatten().nonzero()[:, 0], keys.flatten().nonzero()[:, 0], bias))


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Sight | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers' attention interface calls, once a layer.

    Args:
        module: the attention layer; not used.
        query: of shape (B, H, Sq, d).
        key: of shape (B, H_kv, Sk, d); H is a multiple of H_kv, and head h attends with key-value head h // (H / H_kv).
        value: of the shape of ``key``.
        attention_mask: what `sight` returned.
        scaling: of the scores; None for 1 / sqrt(d).

    Returns:
        The output, of shape (B, Sq, H, d), and no weights. Rows of padded queries are 0.
    """
    seen = attention_mask or Sight(key.shape[2], None)
    q = query.transpose(1, 2)
    k, v = (one[:, :, : seen.end].transpose(1, 2) for one in (key, value))
    if seen.packed is None:
        bias = None if q.shape[1] == 1 else LowerTriangularFromBottomRightMask()
        return memory_efficient(*grouped(q, k, v), bias, scaling).reshape(q.shape), None
    packed = seen.packed
    rows = q.flatten(0, 1)
    parts = (rows[packed.queries][None], *(one.flatten(0, 1)[packed.keys][None] for one in (k, v)))
    out = memory_efficient(*grouped(*parts), packed.bias, scaling).reshape(parts[0].shape)
    return torch.zeros_like(rows).index_copy(0, packed.queries, out[0]).reshape(q.shape), None


def grouped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query heads beside the key-value head that they share: (B, S, H, d) becomes (B, S, H_kv, H / H_kv, d).

    The keys are expanded, not copied: that is how xFormers is told of groups.
    """
    heads, shared = q.shape[2], k.shape[2]
    if heads == shared:
        return q, k, v
    share = heads // shared
    k, v = (one[:, :, :, None].expand(-1, -1, -1, share, -1) for one in (k, v))
    return q.reshape(*q.shape[:2], shared, share, q.shape[-1]), k, v


def memory_efficient(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any, scale: float | None) -> torch.Tensor:
    """XFormers' forward, by an op that is chosen here, so that it is known which one served."""
    inputs = fmha.Inputs(query=q, key=k, value=v, attn_bias=bias, scale=scale)
    op = choose(inputs)
    served[op.NAME] += 1
    out: torch.Tensor = fmha.memory_efficient_attention_forward(q, k, v, attn_bias=bias, scale=scale, op=op)
    return out


_chosen: dict[tuple[Any, ...], Any] = {}


def choose(inputs: Any, ops: tuple[Any, ...] | None = None) -> Any:
    """The first op that supports the inputs: Composable Kernel on ROCm; Flash Attention, then CUTLASS, on CUDA.

    Raises:
        NotEngagedError: none does; the message has each one's reasons.
    """
    q = inputs.query
    kind = (q.dtype, q.device, q.shape[-1], q.shape[1] == 1, q.ndim, inputs.key.shape[1] == 1, type(inputs.attn_bias))
    if ops is None and kind in _chosen:
        return _chosen[kind]
    candidates = ops or ((fmha.ck.FwOp,) if torch.version.hip else (fmha.flash.FwOp, fmha.cutlass.FwOp))
    reasons = {}
    for op in candidates:
        reasons[op.NAME] = op.not_supported_reasons(inputs)
        if not reasons[op.NAME]:
            if ops is None:
                _chosen[kind] = op
            return op
    said = "; ".join(f"{name}: {', '.join(why)}" for name, why in reasons.items())
    raise NotEngagedError(f"no xFormers op supports these inputs ({said}){unloaded()}")


def unloaded() -> str:
    """Why xFormers' own library did not load, of which its ops say no more than that it has no CUDA; else nothing."""
    failed: BaseException | None = getattr(_cpp_lib, "_cpp_library_load_exception", None)
    if failed is None:
        return ""
    while failed.__cause__ is not None:  # the innermost is the linker's, which names what it misses
        failed = failed.__cause__
    return f"; its library did not load: {str(failed).strip().splitlines()[0]}"


def register() -> None:
    """Make ``attn_implementation="xformers"`` known, with its mask: without one, padding would be ignored."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sight)
