"""Parameters, windows and caches as they are counted, against transformers' own models of every such type."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from benchmarks.architectures import MODELS, configuration
from pytest_llmperf import known
from pytest_llmperf.architecture import FORMS, Architecture

VOCABULARY = 512
#: More of a type than the tiny configuration shows: other biases, norms, heads, windows and ties.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": False, "mlp_bias": False, "head_dim": 8}),
    ("llama", {"tie_word_embeddings": True}),
    ("cohere", {"use_qk_norm": False, "tie_word_embeddings": False}),
    ("deepseek_v2", {"q_lora_rank": None, "attention_bias": True}),
    ("deepseek_v3", {"q_lora_rank": None, "first_k_dense_replace": 0}),
    ("deepseek_v3", {"attention_bias": True}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    ("falcon", {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}),
    ("falcon", {"multi_query": False, "parallel_attn": False, "alibi": True}),
    ("gemma2", {"tie_word_embeddings": True}),
    ("gpt2", {"n_inner": 80, "tie_word_embeddings": False}),
    ("gpt_bigcode", {"multi_query": False}),
    ("gpt_neox", {"attention_bias": False, "tie_word_embeddings": True}),
    ("gptj", {"n_inner": 80}),
    ("ministral", {}),
    ("mistral", {"sliding_window": None}),
    ("olmo", {"attention_bias": True}),
    ("opt", {"enable_bias": False, "word_embed_proj_dim": 64}),
    ("opt", {"do_layer_norm_before": False}),
    ("phi", {"qk_layernorm": False, "tie_word_embeddings": True}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    ("qwen2_moe", {"qkv_bias": False, "decoder_sparse_step": 1, "use_sliding_window": True, "sliding_window": 16}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1, "attention_bias": True}),
    ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 16}),
    ("seed_oss", {"attention_bias": False, "attention_out_bias": True, "mlp_bias": True}),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 16}),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 16, "layer_types": ["full_attention"] * 4}),
    ("stablelm", {"qk_layernorm": False, "use_qkv_bias": False, "use_parallel_residual": True}),
    ("starcoder2", {"use_bias": False, "sliding_window": None}),
]
CASES = [*((kind, {}) for kind in FORMS if kind in MODELS), *VARIANTS]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join([case[0], *map(str, case[1])]))
def counted(request: pytest.FixtureRequest) -> tuple[Architecture, Any]:
    """What is counted, and transformers' model without its weights."""
    kind, changes = request.param
    fields = {**configuration(kind if kind in MODELS else "mistral", VOCABULARY), **changes, "model_type": kind}
    found = known.architecture(fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    return found, model


def test_parameters_are_transformers_own(counted: tuple[Architecture, Any]) -> None:
    found, model = counted
    assert found.parameters == sum(one.numel() for one in model.parameters())


def test_windows_are_those_of_transformers_cache(counted: tuple[Architecture, Any]) -> None:
    found, model = counted
    layers = DynamicCache(config=model.config).layers
    assert found.windows == tuple(getattr(layer, "sliding_window", None) for layer in layers)


@pytest.mark.parametrize("kind", [kind for kind in FORMS if kind in MODELS])
def test_a_tokens_keys_and_values_are_as_many_as_transformers_stores(kind: str) -> None:
    fields = configuration(kind, VOCABULARY)
    found = known.architecture(fields)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    cache = DynamicCache(config=model.config)
    model(torch.ones(1, 1, dtype=torch.long), past_key_values=cache, use_cache=True)
    stored = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert found.kv_bytes_per_token("float16") == 2 * stored


@pytest.mark.parametrize("kind", [kind for kind in FORMS if kind in MODELS and kind != "nemotron"])  # has no defaults
def test_what_a_configuration_leaves_out_is_what_its_class_assumes(kind: str) -> None:
    """At full size, from nothing but the model's type."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind))
    assert known.architecture({"model_type": kind}).parameters == sum(one.numel() for one in model.parameters())


def test_every_type_that_is_counted_is_tried() -> None:
    assert FORMS.keys() == {kind for kind, _ in CASES}
    assert len(FORMS) >= 20
    assert FORMS.keys() <= known.causal_models().keys()


@pytest.mark.parametrize("kind", sorted(MODELS.keys() - FORMS.keys()))
def test_a_type_that_is_not_counted_says_so(kind: str) -> None:
    found = known.architecture(configuration(kind, VOCABULARY))
    assert (found.parameters, found.vocabulary) == (None, VOCABULARY)
