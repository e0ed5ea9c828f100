"""sdpa-flash: the Flash Attention 2 that PyTorch brings, where ``sdpa`` may choose another of its fused kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llmperf.backends.base import Backend

if TYPE_CHECKING:
    from pytest_llmperf.backends.transformers_engine import Profile, TransformersEngine
    from pytest_llmperf.machine.table import Device


def extend(engine: type[TransformersEngine]) -> type[TransformersEngine]:
    """``attn_implementation="sdpa"``, with PyTorch's choice of kernel taken from it."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    class SdpaFlash(engine):  # type: ignore[misc,valid-type]
        attention = "sdpa"
        expected = (*engine.expected, "PyTorch's flash attention in every layer")

        def _generate(self, *arguments: Any, **options: Any) -> None:
            # PyTorch's flash attention takes no mask, which a padded batch needs.
            with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION], set_priority=True):
                super()._generate(*arguments, **options)

        def engaged(self, profile: Profile) -> bool:
            flash = profile.count("aten::_scaled_dot_product_flash_attention", prefix=True)
            return bool(super().engaged(profile) and flash >= max(1, self.layers) * profile.steps)

    return SdpaFlash


def not_another(device: Device) -> str | None:
    """The reason why it would be ``sdpa`` once more on a device, or None."""
    return "sdpa is PyTorch's flash attention already on a CPU" if device.kind == "cpu" else None


BACKEND = Backend(
    name="sdpa-flash",
    load=extend,
    slot="attention",
    engines=("transformers",),
    conflicts={"compile-static": "a static cache needs a mask, which PyTorch's flash attention does not take"},
    optimizes="prefill",
    proof="attn_implementation is sdpa; PyTorch's flash attention ran in every layer",
    requires=not_another,
)
