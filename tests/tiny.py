"""A model that is small enough to compile in seconds, and how a test loads a backend on it and generates."""

from __future__ import annotations

from typing import Any

from pytest_llmperf.backends.base import EngineSpec
from pytest_llmperf.backends.registry import BUILT_IN, Registry
from pytest_llmperf.worker.recorder import Recorder
from pytest_llmperf.worker.server import find

#: A model small enough to compile in seconds; its weights are spread so widely that its tokens vary.
TINY: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 512, "max_position_embeddings": 256,
    "initializer_range": 0.2, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
REGISTRY = Registry(BUILT_IN)
NEW = 6
#: Of 20 tokens: dynamo takes sizes that are equal for the same size, and a head has 16.
EQUAL = [[(7 * row + 13 * index) % 500 + 1 for index in range(20)] for row in range(2)]
UNEQUAL = [EQUAL[0], EQUAL[1][:5]]


def spec(**changes: Any) -> EngineSpec:
    return EngineSpec("tiny", TINY | changes, "float32", "cpu", batch_size=2, sequence_length=32)


def load(name: str, spec: EngineSpec) -> Any:
    """The engine of a backend or combination, as a worker loads it."""
    loader: Any = None
    for reference in REGISTRY[name].reference():
        part = find(reference)
        loader = part if loader is None else part(loader)
    return loader(spec)


def generate(engine: Any, prompts: list[list[int]], new: int = NEW) -> list[list[int]]:
    recorder = Recorder(len(prompts))
    engine.generate(prompts, new, recorder)
    assert [len(times) for times in recorder.times] == [len(row) for row in recorder.tokens]
    return recorder.tokens
