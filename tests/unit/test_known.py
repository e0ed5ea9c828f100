"""What is read of transformers' source: which types it loads, their defaults, and whether they have sdpa."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pytest_llmperf import known


@pytest.fixture
def without_transformers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    caches = (known._source, known.causal_models, known._folder, known.defaults, known.supports_sdpa)
    for one in caches:
        one.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    yield
    for one in caches:
        one.cache_clear()


def test_the_types_that_transformers_loads_are_read() -> None:
    types = known.causal_models()
    assert len(types) > 100
    assert types["llama"] == "LlamaForCausalLM"
    assert types["data2vec-text"] == "Data2VecTextForCausalLM"
    assert "t5" not in types


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("gemma", "tie_word_embeddings", True),
        ("mistral", "max_position_embeddings", 131072),  # written as a product
        ("gemma3_text", "vocab_size", 262208),  # in a file with another type
        ("mistral", "head_dim", None),
        ("roberta-prelayernorm", "hidden_size", 768),
        ("data2vec-text", "hidden_size", 768),  # a folder of another name, with several files
    ],
)
def test_the_defaults_of_a_type_are_read(kind: str, field: str, value: object) -> None:
    assert known.defaults(kind)[field] == value


def test_a_type_that_nobody_has_seen_has_no_defaults() -> None:
    assert known.defaults("a type that nobody has seen") == {}
    assert known.defaults("") == known.defaults("../llama") == {}
    assert known.supports_sdpa("a type that nobody has seen") is None


@pytest.mark.usefixtures("without_transformers")
def test_nothing_is_known_without_transformers() -> None:
    assert known.causal_models() == {}
    assert known.defaults("llama") == {}
    assert known.supports_sdpa("llama") is None
    assert (
        known.architecture({"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 9}).hidden == 8
    )


@pytest.mark.parametrize(
    ("source", "value"), [("3", 3), ("4096 * 32", 131072), ("2**4 - 1", 15), ("f(3)", ...), ("x * 3", ...), ("-1", -1)]
)
def test_only_constants_are_values(source: str, value: object) -> None:
    assert known._constant(ast.parse(source, mode="eval").body) == value


def test_nothing_heavy_is_imported() -> None:
    code = "import sys; from pytest_llmperf import known; known.defaults('gemma'), known.causal_models(); "
    code += "sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
