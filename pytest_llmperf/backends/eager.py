"""eager: transformers' plain attention, the reference of every speedup and every parity check."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llmperf.backends.base import Backend

if TYPE_CHECKING:
    from pytest_llmperf.backends.transformers_engine import Profile, TransformersEngine


def extend(engine: type[TransformersEngine]) -> type[TransformersEngine]:
    """Matrix products and a softmax, one kernel at a time."""

    class Eager(engine):  # type: ignore[misc,valid-type]
        attention = "eager"
        expected = (*engine.expected, "a softmax of scores and no fused attention in every layer")

        def engaged(self, profile: Profile) -> bool:
            fused = profile.count("aten::scaled_dot_product_attention")
            # A compiler fuses the softmax with its neighbours, under names of its own.
            softmax = self.compiled or profile.scores >= self.layers * profile.steps
            return bool(super().engaged(profile) and softmax and not fused)

    return Eager


BACKEND = Backend(
    name="eager",
    load=extend,
    slot="attention",
    engines=("transformers", "transformers-paged"),
    optimizes="none",
    proof="attn_implementation is eager; a softmax of scores in every layer with attention; no fused attention kernel",
)
