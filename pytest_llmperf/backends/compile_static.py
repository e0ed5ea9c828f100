"""compile-static: a static KV cache, and the decode step's whole forward compiled (CUDA graphs on a GPU)."""

from __future__ import annotations

from typing import Any

from pytest_llmperf.backends.base import Backend, Engine, EngineSpec
from pytest_llmperf.backends.toolchain import cpp_compiler_missing


def load(spec: EngineSpec) -> Engine:
    """``generate(cache_implementation="static")``, which compiles the decode step by itself."""
    import torch
    from transformers import CompileConfig

    from pytest_llmperf.backends.transformers_engine import Profile, TransformersEngine

    class CompileStatic(TransformersEngine):
        attention = "sdpa"
        expected = "one compiled region in every decode step"

        def prepare(self) -> None:
            torch._dynamo.config.fail_on_recompile_limit_hit = True
            torch._dynamo.config.recompile_limit = 64

        def generation_options(self) -> dict[str, Any]:
            on_cpu = self.spec.device == "cpu"
            # "reduce-overhead" means CUDA graphs, which a CPU does not have.
            compiler = CompileConfig(dynamic=False, fullgraph=True, mode="default" if on_cpu else "reduce-overhead")
            # generate compiles by itself only on accelerators; this asks for it everywhere.
            compiler._compile_all_devices = True
            return {"cache_implementation": "static", "compile_config": compiler}

        def engaged(self, profile: Profile) -> bool:
            # The prefill is not compiled by generate: its length changes from request to request.
            return profile.count("Torch-Compiled Region", prefix=True) >= profile.steps - 1

    return CompileStatic(spec)


BACKEND = Backend(
    name="compile-static",
    load=load,
    optimizes="decode",
    proof="a compiled region ran in every decode step, on a static cache",
    requires=cpp_compiler_missing,
)
