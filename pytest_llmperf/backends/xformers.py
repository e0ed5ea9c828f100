"""xformers: memory-efficient attention, registered with transformers' attention and mask interfaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llmperf.backends.base import Backend
from pytest_llmperf.backends.toolchain import no_accelerator

if TYPE_CHECKING:
    from pytest_llmperf.backends.transformers_engine import Profile, TransformersEngine


def extend(engine: type[TransformersEngine]) -> type[TransformersEngine]:
    """``attn_implementation="xformers"``, which is registered here."""
    from pytest_llmperf.backends import xformers_attention

    xformers_attention.register()

    class Xformers(engine):  # type: ignore[misc,valid-type]
        attention = xformers_attention.NAME
        expected = (*engine.expected, "a memory-efficient attention op in every layer")

        def profiled(self, steps: int) -> Profile:
            xformers_attention.served.clear()
            return super().profiled(steps)  # type: ignore[no-any-return]

        def engaged(self, profile: Profile) -> bool:
            served = sum(xformers_attention.served.values()) >= max(1, self.layers) * profile.steps
            return bool(super().engaged(profile) and served)

        def seen(self, profile: Profile) -> dict[str, Any]:
            return {**super().seen(profile), **xformers_attention.served}

    return Xformers


COMPILED = "its masks are Python objects, which a compiled graph cannot hold"
BACKEND = Backend(
    name="xformers",
    load=extend,
    slot="attention",
    engines=("transformers",),
    conflicts={"compile": COMPILED, "compile-static": COMPILED},
    optimizes="prefill",
    proof="an xFormers op, which is named (ckF on ROCm, fa2F or cutlassF on CUDA), served every layer",
    distributions=("xformers",),
    requires=no_accelerator,
)
