"""eager: transformers' plain attention, the reference of every speedup and every parity check."""

from __future__ import annotations

from pytest_llmperf.backends.base import Backend, Engine, EngineSpec


def load(spec: EngineSpec) -> Engine:
    """Matrix products and a softmax, one kernel at a time."""
    from pytest_llmperf.backends.transformers_engine import Profile, TransformersEngine

    class Eager(TransformersEngine):
        attention = "eager"
        expected = "softmax kernels in every layer and no fused attention"

        def engaged(self, profile: Profile) -> bool:
            softmax = profile.count("aten::_softmax")
            return softmax >= self.layers * profile.steps and not profile.count("aten::scaled_dot_product_attention")

    return Eager(spec)


BACKEND = Backend(
    name="eager",
    load=load,
    optimizes="none",
    proof="attn_implementation is eager; softmax kernels in every layer; no fused attention kernel",
)
