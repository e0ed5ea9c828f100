"""int8: weight-only quantization by torchao, a scale per output channel, of every linear layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llmperf.backends.base import Backend

if TYPE_CHECKING:
    from pytest_llmperf.backends.transformers_engine import Profile, TransformersEngine

#: Share of the elements of all matrices that must be int8. The weights of experts and of GPT-2 are in no linear layer.
MOST = 0.99


def extend(engine: type[TransformersEngine]) -> type[TransformersEngine]:
    """``quantize_(model, Int8WeightOnlyConfig())``."""
    import torch
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
    from torchao.utils import TorchAOBaseTensor

    class Int8(engine):  # type: ignore[misc,valid-type]
        expected = (*engine.expected, "int8 weights in every linear layer, and few matrices outside of them")

        def prepare(self) -> None:
            quantize_(self.model, Int8WeightOnlyConfig())
            super().prepare()

        def linears(self) -> list[Any]:
            return [module for module in self.model.modules() if isinstance(module, torch.nn.Linear)]

        def quantized(self) -> int:
            return sum(
                isinstance(module.weight, TorchAOBaseTensor) and module.weight.qdata.dtype == torch.int8
                for module in self.linears()
            )

        def share(self) -> float:
            """Of all elements of matrices, those that are int8. Embeddings are looked up, and count as no matrix."""
            matrices = [
                weight
                for module in self.model.modules()
                if not isinstance(module, torch.nn.Embedding)
                for weight in module.parameters(recurse=False)
                if weight.ndim > 1
            ]
            packed = sum(weight.numel() for weight in matrices if isinstance(weight, TorchAOBaseTensor))
            return float(packed / max(1, sum(weight.numel() for weight in matrices)))

        def engaged(self, profile: Profile) -> bool:
            whole = self.quantized() == len(self.linears()) and self.share() >= MOST
            return bool(super().engaged(profile) and whole)

        def seen(self, profile: Profile) -> dict[str, Any]:
            return {
                **super().seen(profile),
                "int8 linear layers": f"{self.quantized()} of {len(self.linears())}",
                "share of the matrices that is int8": round(self.share(), 4),
            }

    return Int8


BACKEND = Backend(
    name="int8",
    load=extend,
    slot="weights",
    engines=("transformers",),
    optimizes="decode",
    proof="every linear layer's weight is an int8 tensor; its tokens are bounded in regret, never called equal",
    distributions=("torchao",),
    weight_bytes=1.0,
)
