"""sdpa: PyTorch's fused scaled-dot-product attention (its own flash and memory-efficient kernels)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llmperf.backends.base import Backend

if TYPE_CHECKING:
    from pytest_llmperf.backends.transformers_engine import Profile, TransformersEngine


def extend(engine: type[TransformersEngine]) -> type[TransformersEngine]:
    """``attn_implementation="sdpa"``, transformers' default."""

    class Sdpa(engine):  # type: ignore[misc,valid-type]
        attention = "sdpa"
        expected = (*engine.expected, "a fused scaled_dot_product_attention kernel in every layer")

        def engaged(self, profile: Profile) -> bool:
            # PyTorch's own fallback, _scaled_dot_product_attention_math, is the S x S matrix again.
            fused = profile.count("aten::_scaled_dot_product", prefix=True)
            math = profile.count("aten::_scaled_dot_product_attention_math", prefix=True)
            ran = fused - math >= max(1, self.layers) * profile.steps
            return bool(super().engaged(profile) and ran)

    return Sdpa


BACKEND = Backend(
    name="sdpa",
    load=extend,
    slot="attention",
    engines=("transformers", "transformers-paged"),
    optimizes="prefill",
    proof="attn_implementation is sdpa; a fused kernel, which is named, ran in every layer (math is none)",
)
