"""sdpa: PyTorch's fused scaled-dot-product attention (its own flash and memory-efficient kernels)."""

from __future__ import annotations

from pytest_llmperf.backends.base import Backend, Engine, EngineSpec


def load(spec: EngineSpec) -> Engine:
    """``attn_implementation="sdpa"``, transformers' default."""
    from pytest_llmperf.backends.transformers_engine import Profile, TransformersEngine

    class Sdpa(TransformersEngine):
        attention = "sdpa"
        expected = "a fused scaled_dot_product_attention kernel in every layer"

        def engaged(self, profile: Profile) -> bool:
            # PyTorch's own fallback, _scaled_dot_product_attention_math, is the S x S matrix again.
            fused = profile.count("aten::_scaled_dot_product", prefix=True)
            math = profile.count("aten::_scaled_dot_product_attention_math", prefix=True)
            return fused - math >= self.layers * profile.steps

    return Sdpa(spec)


BACKEND = Backend(
    name="sdpa",
    load=load,
    optimizes="prefill",
    proof="attn_implementation is sdpa; a fused kernel, which is named, ran in every layer (math is none)",
)
