"""The roofline: sizes of real models, FLOPs and bytes of a workload, bounds, and figures that cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf import known, roofline
from pytest_llmperf.architecture import Architecture
from pytest_llmperf.cases import Workload

#: (model, config.json in part, parameters, bytes of keys and values per token in bfloat16)
MODELS: list[tuple[str, dict[str, Any], int, int]] = [
    ("llama-2-7b", {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
                    "intermediate_size": 11008, "vocab_size": 32000}, 6_738_415_616, 524_288),
    ("llama-2-70b", {"model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
                     "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 32000},
     68_976_648_192, 327_680),
    ("llama-3.1-8b", {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
                      "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256},
     8_030_261_248, 131_072),
    ("qwen3-0.6b", {"model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
                    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936,
                    "tie_word_embeddings": True}, 596_049_920, 114_688),
    ("smollm2-135m", {"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
                      "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152,
                      "tie_word_embeddings": True}, 134_515_008, 23_040),
]  # fmt: skip
CONFIGS = {name: config for name, config, _, _ in MODELS}
LLAMA = Architecture.from_config(CONFIGS["llama-2-7b"])
SMOLLM = Architecture.from_config(CONFIGS["smollm2-135m"])
PEAKS = {"flops": 181e12, "bandwidth": 1.6e12}

batches = st.integers(1, 64)
lengths = st.integers(1, 4096)
news = st.integers(2, 512)
dtypes = st.sampled_from(["float32", "float16", "bfloat16"])
times = st.floats(1e-6, 1e3)


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    kv_heads, group, half = draw(st.integers(1, 8)), draw(st.integers(1, 8)), draw(st.integers(4, 64))
    return Architecture.from_config(
        {
            "model_type": "llama",
            "hidden_size": kv_heads * group * 2 * half,
            "num_hidden_layers": draw(st.integers(1, 80)),
            "num_attention_heads": kv_heads * group,
            "num_key_value_heads": kv_heads,
            "intermediate_size": draw(st.integers(16, 30_000)),
            "vocab_size": draw(st.integers(16, 200_000)),
            "tie_word_embeddings": draw(st.booleans()),
        }
    )


# Architecture


@pytest.mark.parametrize(("name", "config", "parameters", "kv_bytes"), MODELS, ids=CONFIGS)
def test_published_models_have_their_published_sizes(
    name: str, config: dict[str, Any], parameters: int, kv_bytes: int
) -> None:
    arch = Architecture.from_config(config)
    assert arch.parameters == parameters
    assert arch.kv_bytes_per_token("bfloat16") == kv_bytes
    assert arch.weight_bytes("float32") == 4 * parameters


#: (config.json in part, parameters, parameters of one token without norms, lookups and biases) as their authors say.
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "mixtral-8x7b": ({"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336,
                      "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
                      "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000}, 46_702_792_704),
    "mistral-7b": ({"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
                    "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 32000, "sliding_window": 4096},
                   7_241_732_096),
    "gpt2": ({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
              "vocab_size": 50257}, 124_439_808),
    "opt-125m": ({"model_type": "opt", "hidden_size": 768, "ffn_dim": 3072, "num_attention_heads": 12,
                  "num_hidden_layers": 12, "max_position_embeddings": 2048, "vocab_size": 50272,
                  "word_embed_proj_dim": 768}, 125_239_296),
    "phi-2": ({"model_type": "phi", "hidden_size": 2560, "intermediate_size": 10240, "num_attention_heads": 32,
               "num_hidden_layers": 32, "vocab_size": 51200}, 2_779_683_840),
    "gemma-2b": ({"model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_attention_heads": 8,
                  "num_hidden_layers": 18, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 256000},
                 2_506_172_416),
    "falcon-7b": ({"model_type": "falcon", "hidden_size": 4544, "num_attention_heads": 71, "num_hidden_layers": 32,
                   "multi_query": True, "vocab_size": 65024, "num_kv_heads": 71}, 6_921_720_704),
    "bloom-7b1": ({"model_type": "bloom", "n_embed": 4096, "n_layer": 30, "num_attention_heads": 32,
                   "vocab_size": 250880}, 7_069_016_064),
    "gpt-neox-20b": ({"model_type": "gpt_neox", "hidden_size": 6144, "intermediate_size": 24576,
                      "num_attention_heads": 64, "num_hidden_layers": 44, "vocab_size": 50432}, 20_554_567_680),
    "qwen3-30b-a3b": ({"model_type": "qwen3_moe", "hidden_size": 2048, "moe_intermediate_size": 768,
                       "intermediate_size": 6144, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
                       "num_hidden_layers": 48, "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936},
                      30_532_122_624),
    "deepseek-v3": ({"model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432,
                     "moe_intermediate_size": 2048, "num_attention_heads": 128, "num_hidden_layers": 61,
                     "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
                     "v_head_dim": 128, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
                     "first_k_dense_replace": 3, "vocab_size": 129280}, 671_026_404_352),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_of_other_kinds_have_their_published_sizes(name: str) -> None:
    config, parameters = PUBLISHED[name]
    assert known.architecture(config).parameters == parameters


def test_a_token_is_sent_to_few_experts_and_no_roof_counts_more() -> None:
    arch = known.architecture(PUBLISHED["mixtral-8x7b"][0])
    assert arch.matrix_parameters == pytest.approx(12.7e9, rel=0.01)  # 12.9e9 with the embedding, as published
    for batch in (1, 64):
        kv = batch * 100 * arch.kv_bytes_per_token("bfloat16")
        assert roofline.decode_bytes(arch, batch, 100, "bfloat16") - kv < 2 * 12.9e9
    deepseek = known.architecture(PUBLISHED["deepseek-v3"][0])
    assert deepseek.matrix_parameters == pytest.approx(37e9, rel=0.02)
    assert deepseek.kv_bytes_per_token("bfloat16") == 61 * (512 + 64) * 2


def test_a_window_bounds_what_a_layer_attends_to() -> None:
    config = PUBLISHED["mistral-7b"][0]
    windowed, whole = known.architecture(config), known.architecture({**config, "sliding_window": None})
    for length in (1, 100, 4096):
        assert roofline.prefill_flops(windowed, 1, length) == roofline.prefill_flops(whole, 1, length)
    scores = 32 * 4 * 4096
    more = roofline.prefill_flops(windowed, 1, 32_000) - roofline.prefill_flops(windowed, 1, 31_999)
    assert more == pytest.approx(2 * (windowed.matrix_parameters - windowed.head_parameters) + scores * 4096)
    assert roofline.decode_flops(windowed, 1, 32_000) == roofline.decode_flops(whole, 1, 4096)
    assert roofline.decode_bytes(windowed, 1, 32_000, "float16") == roofline.decode_bytes(whole, 1, 4096, "float16")


@given(st.integers(1, 50), st.lists(st.one_of(st.none(), st.integers(1, 60)), min_size=1, max_size=5))
def test_pairs_are_what_each_token_reaches(tokens: int, windows: list[int | None]) -> None:
    arch = replace(LLAMA, windows=tuple(windows))
    assert arch.pairs(tokens) == sum(arch.reach(one) for one in range(1, tokens + 1))


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 512},
        {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 64, "vocab_size": 512}},
        {**CONFIGS["llama-2-7b"], "quantization_config": {"quant_method": "gptq", "bits": 4}},
        {**CONFIGS["llama-2-7b"], "model_type": "a type that nobody has seen", "intermediate_size": [1, 2]},
    ],
    ids=["no attention", "a tower for images", "quantized", "unknown"],
)
def test_what_is_not_counted_has_no_roof_and_no_size(config: dict[str, Any]) -> None:
    arch = known.architecture(config)
    assert arch.weight_bytes("float16") is None
    for metric in ("ttft", "tpot"):
        assert roofline.utilization(arch, Workload(1, 16, 4), metric, 1e-9, "float16", PEAKS) is None


def test_quantized_weights_whose_bytes_a_backend_states_have_a_roof() -> None:
    arch = known.architecture({**CONFIGS["llama-2-7b"], "quantization_config": {"quant_method": "gptq", "bits": 4}})
    found = roofline.utilization(arch, Workload(1, 16, 4), "tpot", 1.0, "float16", PEAKS, weight_bytes=0.5)
    plain = roofline.utilization(LLAMA, Workload(1, 16, 4), "tpot", 1.0, "float16", PEAKS, weight_bytes=0.5)
    assert found == plain


def test_a_hybrids_layers_with_attention_are_counted() -> None:
    types = ["conv", "full_attention", "linear_attention", "sliding_attention"]
    config = {**CONFIGS["llama-3.1-8b"], "model_type": "lfm2", "num_hidden_layers": 4, "layer_types": types}
    assert known.architecture(config).attention_layers == 2
    assert known.architecture(config).kv_bytes_per_token("float16") == 2 * 2 * 8 * 128 * 2


def test_what_a_config_leaves_out_is_what_transformers_assumes() -> None:
    assert (LLAMA.kv_heads, LLAMA.head_dim, LLAMA.tied_embeddings) == (32, 128, False)


def test_qwen2_has_biases_on_queries_keys_and_values() -> None:
    plain = {**CONFIGS["llama-3.1-8b"]}
    biased = Architecture.from_config({**plain, "model_type": "qwen2"})
    assert biased.parameters - Architecture.from_config(plain).parameters == 32 * (32 + 2 * 8) * 128


def test_a_size_that_is_missing_is_named() -> None:
    with pytest.raises(KeyError, match="hidden_size"):
        Architecture.from_config({"model_type": "llama"})
    with pytest.raises(KeyError, match="vocab_size"):
        Architecture.from_config({"model_type": "a type that nobody has seen"})


def test_norms_and_biases_are_no_matrices() -> None:
    sizes = CONFIGS["qwen3-0.6b"]
    kinds = [Architecture.from_config({**sizes, "model_type": kind}) for kind in ("llama", "qwen2", "qwen3")]
    assert len({arch.parameters for arch in kinds}) == 3
    assert len({arch.matrix_parameters for arch in kinds}) == 1


@given(architectures())
def test_the_embedding_counts_as_a_matrix_only_where_it_is_the_head(arch: Architecture) -> None:
    norms = (2 * arch.layers + 1) * arch.hidden
    untied = 0 if arch.tied_embeddings else arch.vocabulary * arch.hidden
    assert arch.matrix_parameters == arch.parameters - norms - untied
    assert arch.matrix_parameters > arch.head_parameters


# FLOPs and bytes


def test_prefill_flops_are_the_formula_with_one_output_head() -> None:
    s, head = 2048, 32000 * 4096
    body = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert roofline.prefill_flops(LLAMA, 1, s) == 2 * body * s + 2 * head + 2 * 32 * 32 * 128 * s * (s + 1)


def test_decode_flops_are_the_formula() -> None:
    n = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32000 * 4096
    assert roofline.decode_flops(LLAMA, 3, 100) == 3 * (2 * n + 4 * 32 * 32 * 128 * 100)


@given(architectures(), batches)
def test_a_prompt_of_one_token_is_a_decode_step_at_context_one(arch: Architecture, batch: int) -> None:
    assert roofline.prefill_flops(arch, batch, 1) == roofline.decode_flops(arch, batch, 1)
    assert roofline.prefill_bytes(arch, batch, 1, "bfloat16") == roofline.decode_bytes(arch, batch, 1, "bfloat16")


@given(architectures(), batches, lengths)
def test_prefill_is_its_tokens_one_by_one_but_for_the_heads_not_asked(arch: Architecture, batch: int, s: int) -> None:
    one_by_one = sum(roofline.decode_flops(arch, batch, context) for context in range(1, s + 1))
    not_asked = 2 * batch * (s - 1) * arch.head_parameters
    assert roofline.prefill_flops(arch, batch, s) == pytest.approx(one_by_one - not_asked, rel=1e-9)


@given(lengths, news)
def test_the_mean_context_is_over_the_steps_after_the_first_token(prompt: int, new: int) -> None:
    contexts = range(prompt + 1, prompt + new)
    assert roofline.mean_context(prompt, new) == pytest.approx(sum(contexts) / len(contexts))


@given(architectures(), dtypes)
def test_a_batch_reads_the_weights_once(arch: Architecture, dtype: str) -> None:
    one, two, three = (roofline.decode_bytes(arch, batch, 100, dtype) for batch in (1, 2, 3))
    assert three - two == two - one == 100 * arch.kv_bytes_per_token(dtype)


@given(architectures(), batches, lengths, dtypes)
def test_work_grows_with_every_size(arch: Architecture, batch: int, length: int, dtype: str) -> None:
    def work(arch: Architecture, batch: int, length: int) -> list[float]:
        return [
            roofline.prefill_flops(arch, batch, length),
            roofline.decode_flops(arch, batch, length),
            roofline.prefill_bytes(arch, batch, length, dtype),
            roofline.decode_bytes(arch, batch, length, dtype),
        ]

    base = work(arch, batch, length)
    assert all(a > b > 0 for a, b in zip(work(arch, batch + 1, length), base, strict=True))
    assert all(a > b > 0 for a, b in zip(work(arch, batch, length + 1), base, strict=True))
    for size in ("num_hidden_layers", "intermediate_size", "vocab_size"):
        assert all(a > b for a, b in zip(work(grown(arch, size), batch, length), base, strict=True)), size


def grown(arch: Architecture, size: str) -> Architecture:
    config = {
        "model_type": "llama",
        "hidden_size": arch.hidden,
        "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads,
        "num_key_value_heads": arch.kv_heads,
        "intermediate_size": arch.ffn,
        "vocab_size": arch.vocabulary,
        "tie_word_embeddings": arch.tied_embeddings,
    }
    return Architecture.from_config({**config, size: config[size] + 1})


# Bounds and utilization


@given(architectures(), batches, lengths, news, dtypes, st.floats(1e9, 1e16), st.floats(1e9, 1e14))
def test_a_bound_is_the_higher_of_two_roofs(
    arch: Architecture, batch: int, prompt: int, new: int, dtype: str, flops: float, bandwidth: float
) -> None:
    for bound, faster_compute, faster_memory in (
        [roofline.prefill_bound(arch, batch, prompt, dtype, f, b) for f, b in roofs(flops, bandwidth)],
        [roofline.decode_bound(arch, batch, prompt, new, dtype, f, b) for f, b in roofs(flops, bandwidth)],
    ):
        assert bound.seconds > 0
        assert faster_compute.seconds <= bound.seconds
        assert faster_memory.seconds <= bound.seconds
        unmoved = faster_memory if bound.limit == "compute" else faster_compute
        assert unmoved == bound


def roofs(flops: float, bandwidth: float) -> list[tuple[float, float]]:
    return [(flops, bandwidth), (2 * flops, bandwidth), (flops, 2 * bandwidth)]


def test_a_long_prefill_is_bound_by_compute_and_a_decode_by_memory() -> None:
    prefill = roofline.prefill_bound(LLAMA, 1, 2048, "float16", PEAKS["flops"], PEAKS["bandwidth"])
    decode = roofline.decode_bound(LLAMA, 1, 2048, 128, "float16", PEAKS["flops"], PEAKS["bandwidth"])
    assert (prefill.limit, decode.limit) == ("compute", "memory")
    assert prefill.seconds == pytest.approx(0.153, abs=0.003)
    assert decode.seconds == pytest.approx(8.95e-3, rel=0.01)


@given(architectures(), batches, lengths, news, dtypes, times)
def test_utilization_is_inverse_to_time(
    arch: Architecture, batch: int, prompt: int, new: int, dtype: str, seconds: float
) -> None:
    mfu = [roofline.mfu(arch, batch, prompt, s, 1e12) for s in (seconds, 2 * seconds)]
    mbu = [roofline.mbu(arch, batch, prompt, new, dtype, s, 1e12) for s in (seconds, 2 * seconds)]
    for fast, slow in (mfu, mbu):
        assert fast == pytest.approx(2 * slow)


@given(architectures(), batches, lengths, news, dtypes)
def test_at_the_roof_utilization_is_one(arch: Architecture, batch: int, prompt: int, new: int, dtype: str) -> None:
    only_compute = roofline.prefill_bound(arch, batch, prompt, dtype, 1e9, 1e30)
    only_memory = roofline.decode_bound(arch, batch, prompt, new, dtype, 1e30, 1e9)
    assert roofline.mfu(arch, batch, prompt, only_compute.seconds, 1e9) == pytest.approx(1)
    assert roofline.mbu(arch, batch, prompt, new, dtype, only_memory.seconds, 1e9) == pytest.approx(1)


@pytest.mark.parametrize(("metric", "name"), [("ttft", "MFU"), ("tpot", "MBU")])
def test_prefill_is_judged_by_flops_and_decode_by_bytes(metric: str, name: str) -> None:
    found = roofline.utilization(SMOLLM, Workload(1, 256, 32), metric, 0.1, "float32", PEAKS)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("metric", ["latency", "cold-start"])
def test_what_mixes_prefill_and_decode_has_no_utilization(metric: str) -> None:
    assert roofline.utilization(SMOLLM, Workload(1, 256, 32), metric, 0.1, "float32", PEAKS) is None


# Impossible figures


@given(st.sampled_from(["ttft", "tpot"]), batches, lengths, news, st.floats(0.2, 5))
def test_only_what_is_faster_than_the_roof_is_impossible(
    metric: str, batch: int, prompt: int, new: int, share: float
) -> None:
    workload = Workload(batch, prompt, new)
    at_roof = roofline.utilization(LLAMA, workload, metric, 1.0, "float16", PEAKS)
    assert at_roof is not None
    seconds = at_roof.bound / share
    found = roofline.utilization(LLAMA, workload, metric, seconds, "float16", PEAKS)
    assert found is not None
    for measured, limit in ((False, 1.0), (True, roofline.MEASURED_ROOF_MARGIN)):
        if abs(share - limit) > 1e-6:
            assert (roofline.impossible(found, seconds, measured) is not None) == (share > limit)


@pytest.mark.parametrize(("fraction", "data_sheet", "measured"), [(1.0, 0, 0), (1.1, 1, 0), (1.15, 1, 0), (1.2, 1, 1)])
def test_a_measured_roof_is_allowed_its_noise_and_a_card_its_clock(
    fraction: float, data_sheet: bool, measured: bool
) -> None:
    found = roofline.Utilization("MFU", fraction, fraction, "compute", 1.0, 1.0)
    assert bool(roofline.impossible(found, 1.0, measured_roof=False)) == bool(data_sheet)
    for measured_roof, strict in ((True, True), (True, False), (False, False)):
        assert bool(roofline.impossible(found, 1.0, measured_roof, strict)) == bool(measured)


def test_an_impossible_figure_says_why() -> None:
    reason = roofline.impossible(roofline.Utilization("MBU", 1.5, 0.015, "memory", 1.0, 1.0), 0.01, measured_roof=False)
    assert reason is not None
    assert "\n" not in reason
    assert "MBU is 150% of the device's data-sheet roof" in reason
    assert reason.endswith("or the backend does not say its weight_bytes")


def test_a_latency_under_the_other_roof_is_impossible_too() -> None:
    found = roofline.Utilization("MFU", 0.5, 0.02, "memory", 1.0, 1.0)
    assert "under the memory bound" in str(roofline.impossible(found, 0.01, measured_roof=False))
    assert roofline.impossible(replace(found, bound=0.005), 0.01, measured_roof=False) is None
