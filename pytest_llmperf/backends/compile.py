"""compile: torch.compile of every layer's attention with dynamic shapes (the article's recipe), one graph for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llmperf.backends.base import Backend
from pytest_llmperf.backends.toolchain import drop_unfinished, kernel_caches, no_fallback

if TYPE_CHECKING:
    from pytest_llmperf.backends.transformers_engine import Profile, TransformersEngine


class LayerCache:
    """A KV cache as one layer's attention sees it: its own layer of it, under whichever index it is asked for.

    ``past_key_values.update(key_states, value_states, self.layer_idx)`` makes each layer's graph another one, for it
    names the index and where in the cache the tensors are from. So thirty equal layers were traced thirty times: 15 s
    for each kind of step, where one trace, of half a second, serves them all.
    """

    def __init__(self, cache: Any, layer: Any) -> None:
        self.cache = cache
        self.layer = layer

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **options: Any) -> Any:
        """``Cache.update`` for this layer."""
        return self.layer.update(key_states, value_states, *args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)


def with_layer_cache(attention: Any, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The same call with this layer's view of the KV cache, if that has a layer for it (a hook before ``forward``)."""
    name = "layer_past" if "layer_past" in options else "past_key_values"  # older model types call it so
    cache: Any = options.get(name)
    layers: Any = getattr(cache, "layers", ())
    index: Any = getattr(attention, "layer_idx", None)
    if index is None or index >= len(layers) or getattr(cache, "offloading", False):
        return args, options
    return args, {**options, name: LayerCache(cache, layers[index])}


def extend(engine: type[TransformersEngine]) -> type[TransformersEngine]:
    """``layer.self_attn = torch.compile(layer.self_attn, dynamic=True)`` for every layer, whatever it is called."""
    import torch

    from pytest_llmperf.backends.base import NotEngagedError
    from pytest_llmperf.backends.transformers_engine import attentions

    class Compile(engine):  # type: ignore[misc,valid-type]
        compiled = True
        expected = (*engine.expected, "a compiled region in every layer")

        def prepare(self) -> None:
            super().prepare()
            drop_unfinished(kernel_caches())
            # Layers share one code object. Where their graphs differ, dynamo counts layers x shapes against a limit of
            # 8; beyond it the rest would run eager behind one log line. Raise it, and make hitting it an error.
            found = attentions(self.model)
            if not found:
                raise NotEngagedError(f"{type(self.model).__name__} has no attention module, which compile compiles")
            self.regions = len(found)
            config = torch._dynamo.config
            config.recompile_limit = 64 * self.regions
            config.accumulated_recompile_limit = 256 * self.regions
            config.fail_on_recompile_limit_hit = True
            for path in found:
                parent, _, name = path.rpartition(".")
                compiled: Any = torch.compile(self.model.get_submodule(path), dynamic=True)
                compiled.register_forward_pre_hook(with_layer_cache, with_kwargs=True)
                setattr(self.model.get_submodule(parent), name, compiled)

        def _generate(self, *arguments: Any, **options: Any) -> None:
            with no_fallback(f"every one of the {self.regions} layers"):
                super()._generate(*arguments, **options)

        def engaged(self, profile: Profile) -> bool:
            regions = profile.count("Torch-Compiled Region", prefix=True)
            return bool(super().engaged(profile) and regions >= self.regions * profile.steps)

    return Compile


BACKEND = Backend(
    name="compile",
    load=extend,
    slot="compile",
    engines=("transformers",),
    optimizes="prefill",
    proof="a compiled region ran in every layer of every step; hitting dynamo's recompile limit is an error",
    compiles=True,
)
