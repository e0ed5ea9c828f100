"""sdpa: PyTorch's fused scaled-dot-product attention (its own flash and memory-efficient kernels)."""

from __future__ import annotations

from pytest_llmperf.backends.base import Backend, Engine, EngineSpec


def load(spec: EngineSpec) -> Engine:
    """``attn_implementation="sdpa"``, transformers' default."""
    from pytest_llmperf.backends.transformers_engine import Profile, TransformersEngine

    class Sdpa(TransformersEngine):
        attention = "sdpa"
        expected = "scaled_dot_product_attention in every layer"

        def engaged(self, profile: Profile) -> bool:
            return profile.count("aten::scaled_dot_product_attention") >= self.layers * profile.steps

    return Sdpa(spec)


BACKEND = Backend(
    name="sdpa",
    load=load,
    optimizes="prefill",
    proof="attn_implementation is sdpa; scaled_dot_product_attention ran in every layer; its kernel is named",
)
