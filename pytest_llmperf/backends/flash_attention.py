"""flash-attention-2, -3, -4: the packages of that name, under transformers' ``attn_implementation``.

transformers may serve one of them by a kernel from the hub instead. That is another build, and counts only where it is
asked for by its own name, ``flash-attention-2-hub`` and so on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llmperf.backends.base import Backend
from pytest_llmperf.backends.toolchain import no_accelerator

if TYPE_CHECKING:
    from pytest_llmperf.backends.transformers_engine import Profile, TransformersEngine

#: What a profile calls a flash attention: operators, autograd functions and kernels on CUDA; Composable Kernel on ROCm.
KERNELS = ("flash_attn", "flash_fwd", "flashattn", "flash::", "fmha_fwd")


def _extend(engine: type[TransformersEngine], name: str) -> type[TransformersEngine]:
    class FlashAttention(engine):  # type: ignore[misc,valid-type]
        attention = name
        expected = (*engine.expected, "a flash attention kernel in every layer and no other attention")

        def kernels(self, profile: Profile) -> dict[str, int]:
            return {
                name: count
                for name, count in profile.counts.items()
                if any(kernel in name.lower() for kernel in KERNELS) and not name.startswith("aten::")
            }

        def engaged(self, profile: Profile) -> bool:
            ran = max(self.kernels(profile).values(), default=0) >= max(1, self.layers) * profile.steps
            other = profile.count("aten::_scaled_dot_product", prefix=True) + profile.scores
            return bool(super().engaged(profile) and ran and not other)

        def seen(self, profile: Profile) -> dict[str, Any]:
            return {**super().seen(profile), **self.kernels(profile)}

    return FlashAttention


def extend_2(engine: type[TransformersEngine]) -> type[TransformersEngine]:
    """``attn_implementation="flash_attention_2"``."""
    return _extend(engine, "flash_attention_2")


def extend_3(engine: type[TransformersEngine]) -> type[TransformersEngine]:
    """``attn_implementation="flash_attention_3"``."""
    return _extend(engine, "flash_attention_3")


def extend_4(engine: type[TransformersEngine]) -> type[TransformersEngine]:
    """``attn_implementation="flash_attention_4"``."""
    return _extend(engine, "flash_attention_4")


def extend_2_hub(engine: type[TransformersEngine]) -> type[TransformersEngine]:
    """The hub's build of flash attention 2, from the local cache."""
    return _extend(engine, "kernels-community/flash-attn2")


def extend_3_hub(engine: type[TransformersEngine]) -> type[TransformersEngine]:
    """The hub's build of flash attention 3, from the local cache."""
    return _extend(engine, "kernels-community/flash-attn3")


def _backend(name: str, load: Any, implementation: str, distributions: tuple[str, ...]) -> Backend:
    return Backend(
        name=name,
        load=load,
        slot="attention",
        engines=("transformers", "transformers-paged"),
        optimizes="prefill",
        proof=f"attn_implementation is {implementation}, as resolved; a flash kernel, which is named, in every layer",
        distributions=distributions,
        dtypes=("float16", "bfloat16"),
        requires=no_accelerator,
    )


BACKENDS = (
    _backend("flash-attention-2", extend_2, "flash_attention_2", ("flash-attn",)),
    _backend("flash-attention-3", extend_3, "flash_attention_3", ("flash-attn-3", "flash_attn_3")),
    _backend("flash-attention-4", extend_4, "flash_attention_4", ("flash-attn-4",)),
    _backend("flash-attention-2-hub", extend_2_hub, "kernels-community/flash-attn2", ("kernels",)),
    _backend("flash-attention-3-hub", extend_3_hub, "kernels-community/flash-attn3", ("kernels",)),
)
