"""sdpa: PyTorch's fused scaled-dot-product attention (its own flash and memory-efficient kernels)."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pytest_llmperf.backends.base import Backend
from pytest_llmperf.output import in_short

if TYPE_CHECKING:
    from pytest_llmperf.backends.transformers_engine import Profile, TransformersEngine


def extend(engine: type[TransformersEngine]) -> type[TransformersEngine]:
    """``attn_implementation="sdpa"``, transformers' default."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    class Sdpa(engine):  # type: ignore[misc,valid-type]
        attention = "sdpa"
        expected = (*engine.expected, "a fused scaled_dot_product_attention kernel in every layer")

        def engaged(self, profile: Profile) -> bool:
            # PyTorch's own fallback, _scaled_dot_product_attention_math, is the S x S matrix again.
            fused = profile.count("aten::_scaled_dot_product", prefix=True)
            math = profile.count("aten::_scaled_dot_product_attention_math", prefix=True)
            ran = fused - math >= max(1, self.layers) * profile.steps
            return bool(super().engaged(profile) and ran)

        def seen(self, profile: Profile) -> dict[str, Any]:
            found: dict[str, Any] = super().seen(profile)
            if profile.count("aten::_scaled_dot_product_attention_math", prefix=True):
                found["why no fused kernel"] = self.why_math()
            return found

        def why_math(self) -> str:
            """Why PyTorch has no fused kernel for the last prompts. It says so where its fallback is forbidden."""
            fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
            with warnings.catch_warnings(record=True) as caught, sdpa_kernel(fused), suppress(RuntimeError):
                warnings.simplefilter("always")
                self.shortened(1)
            said = dict.fromkeys(str(one.message).partition(" (Triggered internally")[0] for one in caught)
            return (
                "; ".join(in_short(one) for one in said if "kernel not used because" not in one)
                or "PyTorch does not say"
            )

    return Sdpa


BACKEND = Backend(
    name="sdpa",
    load=extend,
    slot="attention",
    engines=("transformers", "transformers-paged"),
    optimizes="prefill",
    proof="attn_implementation is sdpa; a fused kernel, which is named, ran in every layer (math is none)",
)
