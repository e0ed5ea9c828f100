"""compile: torch.compile of every layer's self_attn with dynamic shapes (the article's recipe)."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any

from pytest_llmperf.backends.base import Backend
from pytest_llmperf.backends.toolchain import cpp_compiler_missing

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llmperf.backends.base import OnToken
    from pytest_llmperf.backends.transformers_engine import Profile, TransformersEngine


def in_order(shapes: Any, source: str) -> int:
    """The number in the name of a symbol, counted in each graph.

    Torch hashes the symbol's source, which names the layer that a KV cache is of. So each layer's decode step was
    another graph to inductor's cache, and was compiled again: 55 of SmolLM2's 90 graphs instead of 3, 115 s in place
    of 65 s. What is generated is the same but for the names.
    """
    number = len(shapes.unique_ids)
    while number in shapes.unique_ids:
        number += 1
    shapes.unique_ids.add(number)
    return number


def of_any_layer(reduced: Callable[..., Any]) -> Callable[..., Any]:
    """What AOTAutograd's cache knows a graph's setup by, without the numbers in its inputs' sources.

    It names where each input comes from, ``L['past_key_values'].layers[3].keys``, though it counts them in the graph
    itself. So thirty equal layers were thirty entries: 45 s in place of 38, nothing cached. Sources matter to inputs
    that are one tensor or share its memory, of which a layer has none.
    """
    if hasattr(reduced, "__wrapped__"):  # already
        return reduced

    @wraps(reduced)
    def reduced_of_any(pickler: Any, config: Any) -> Any:
        sources = [source and _without_numbers(source) for source in config.aot_autograd_arg_pos_to_source or ()]
        return reduced(pickler, replace(config, aot_autograd_arg_pos_to_source=sources or None))

    return reduced_of_any


def _without_numbers(source: Any) -> str:
    name = source.name() if callable(source.name) else source.name  # a method in older versions
    return re.sub(r"\[\d+\]", "[]", name)


def extend(engine: type[TransformersEngine]) -> type[TransformersEngine]:
    """``layer.self_attn = torch.compile(layer.self_attn, dynamic=True)`` for every layer."""
    from inspect import signature

    import torch
    from torch._dynamo.exc import FailOnRecompileLimitHit
    from torch._functorch._aot_autograd import autograd_cache
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    from pytest_llmperf.backends.base import NotEngagedError
    from pytest_llmperf.backends.transformers_engine import decoder_layers

    apart: dict[str, Any] = (
        {"isolate_recompiles": True} if "isolate_recompiles" in signature(torch.compile).parameters else {}
    )

    class Compile(engine):  # type: ignore[misc,valid-type]
        compiled = True
        expected = (*engine.expected, "a compiled region in every layer")

        def prepare(self) -> None:
            super().prepare()
            # Every layer specializes the one code object on its layer index, so dynamo counts layers x shapes against
            # a limit of 8; beyond it the rest would run eager behind one log line. Raise the limit, and make hitting
            # it an error. Where torch can keep the layers' graphs apart, the guards of one layer are not checked for
            # every other, which makes compiling thirty layers linear instead of quadratic.
            config = torch._dynamo.config
            config.recompile_limit = 64 * self.layers
            config.accumulated_recompile_limit = 256 * self.layers
            config.fail_on_recompile_limit_hit = True
            # A cache of operators' shapes that costs more than it saves where shapes are symbols: tracing SmolLM2 in
            # three kinds of batch took 104 s with it and 81 s without. What is generated is the same.
            config.fake_tensor_cache_enabled = False
            if hasattr(ShapeEnv, "_generate_unique_id"):
                ShapeEnv._generate_unique_id = in_order  # type: ignore[method-assign,assignment]
            key: Any = getattr(autograd_cache, "AOTAutogradCachePickler", None)
            if hasattr(key, "_reduce_aot_config"):
                key._reduce_aot_config = of_any_layer(key._reduce_aot_config)
            for layer in decoder_layers(self.model):
                layer.self_attn = torch.compile(layer.self_attn, dynamic=True, **apart)

        def generate(self, prompts: list[list[int]], max_new_tokens: int, on_token: OnToken) -> None:
            try:
                super().generate(prompts, max_new_tokens, on_token)
            except FailOnRecompileLimitHit as error:
                raise NotEngagedError(
                    "torch.compile fell back to eager: dynamo's recompile_limit of "
                    f"{torch._dynamo.config.recompile_limit} was hit, so not every one of the {self.layers} layers is "
                    f"compiled ({str(error).splitlines()[0]})"
                ) from error

        def engaged(self, profile: Profile) -> bool:
            regions = profile.count("Torch-Compiled Region", prefix=True)
            return bool(super().engaged(profile) and regions >= self.layers * profile.steps)

    return Compile


BACKEND = Backend(
    name="compile",
    load=extend,
    slot="compile",
    engines=("transformers",),
    optimizes="prefill",
    proof="a compiled region ran in every layer of every step; hitting dynamo's recompile limit is an error",
    requires=cpp_compiler_missing,
)
