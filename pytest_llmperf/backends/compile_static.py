"""compile-static: a static KV cache, and the decode step's whole forward compiled (CUDA graphs on a GPU)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llmperf.backends.base import Backend
from pytest_llmperf.backends.toolchain import drop_unfinished, kernel_caches, no_fallback

if TYPE_CHECKING:
    from pytest_llmperf.backends.transformers_engine import Profile, TransformersEngine


def extend(engine: type[TransformersEngine]) -> type[TransformersEngine]:
    """``generate(cache_implementation="static")``, which compiles the decode step by itself."""
    import torch
    from transformers import CompileConfig

    class CompileStatic(engine):  # type: ignore[misc,valid-type]
        compiled = True
        expected = (*engine.expected, "one compiled region in every decode step")

        def prepare(self) -> None:
            super().prepare()
            drop_unfinished(kernel_caches())
            torch._dynamo.config.fail_on_recompile_limit_hit = True
            torch._dynamo.config.recompile_limit = 64

        def compile_mode(self) -> str:
            """torch.compile's mode. ``reduce-overhead`` means CUDA graphs, which a CPU does not have."""
            return "default" if self.spec.device == "cpu" else "reduce-overhead"

        def generation_options(self) -> dict[str, Any]:
            compiler = CompileConfig(dynamic=False, fullgraph=True, mode=self.compile_mode())
            # generate compiles by itself only on accelerators; this asks for it everywhere.
            compiler._compile_all_devices = True
            return {**super().generation_options(), "cache_implementation": "static", "compile_config": compiler}

        def _generate(self, *arguments: Any, **options: Any) -> None:
            with no_fallback("every decode step"):
                super()._generate(*arguments, **options)

        def engaged(self, profile: Profile) -> bool:
            # The prefill is not compiled by generate: its length changes from request to request.
            regions = profile.count("Torch-Compiled Region", prefix=True)
            return bool(super().engaged(profile) and regions >= profile.steps - 1)

    return CompileStatic


BACKEND = Backend(
    name="compile-static",
    load=extend,
    slot="compile",
    engines=("transformers",),
    optimizes="decode",
    proof="a compiled region ran in every decode step, on a static cache",
    compiles=True,
)
