"""max-autotune: torch.compile's own search for the fastest matrix products, over weights packed once on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llmperf.backends.base import Backend

if TYPE_CHECKING:
    from pytest_llmperf.backends.transformers_engine import Profile, TransformersEngine

#: PyTorch's own matrix products, which is what a graph calls that was not tuned, or for which nothing was faster.
PLAIN = ("aten::mm", "aten::addmm")
#: What a tuned product's kernel is called on a GPU.
TUNED = "triton_tem"


def extend(engine: type[TransformersEngine]) -> type[TransformersEngine]:
    """Inductor's ``max_autotune``; on a CPU with ``freezing``, without which it packs and tunes nothing there."""
    from unittest.mock import patch

    import torch
    import torch._inductor.config as inductor

    class MaxAutotune(engine):  # type: ignore[misc,valid-type]
        expected = (*engine.expected, "matrix products of the decode steps by tuned kernels")

        def prepare(self) -> None:
            inductor.max_autotune = True
            inductor.freezing = self.spec.device == "cpu"
            super().prepare()

        def compile_mode(self) -> str:
            return "default" if self.spec.device == "cpu" else "max-autotune"

        def _generate(self, *arguments: Any, **more: Any) -> None:
            # Freezing takes every input of fixed address for a constant, the static cache's own counter of tokens too,
            # which transformers marks so for CUDA graphs: every token would be written to the first one's place.
            fixed = torch._dynamo.mark_static_address
            unmarked = (lambda *_, **__: None) if inductor.freezing else fixed
            with patch.object(torch._dynamo, "mark_static_address", unmarked):
                super()._generate(*arguments, **more)

        def plain(self, profile: Profile) -> int:
            """Products in the decode steps that nothing tuned: all but the prefill's, which is not compiled."""
            prefill = sum(isinstance(module, torch.nn.Linear) for module in self.model.modules())
            return max(0, sum(profile.count(name) for name in PLAIN) - prefill)

        def engaged(self, profile: Profile) -> bool:
            on_cpu = self.spec.device == "cpu"
            tuned = self.plain(profile) == 0 if on_cpu else profile.count(TUNED, prefix=True) > 0
            return bool(super().engaged(profile) and tuned)

        def seen(self, profile: Profile) -> dict[str, Any]:
            tuned = {"tuned kernels": profile.count(TUNED, prefix=True)} if self.spec.device != "cpu" else {}
            return {**super().seen(profile), "untuned products in decode steps": self.plain(profile), **tuned}

    return MaxAutotune


BACKEND = Backend(
    name="max-autotune",
    load=extend,
    slot="gemm",
    engines=("transformers",),
    needs=("compile-static",),
    optimizes="decode",
    proof="no plain matrix product left in a decode step on a CPU; tuned kernels, by name, on a GPU",
)
