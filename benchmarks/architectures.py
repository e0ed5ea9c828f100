"""Is every kind of model measured, in parity, or refused in one line? A tiny checkpoint of each, through the suites.

    python -m benchmarks.architectures [--folder DIR] [--backends eager,sdpa,compile-static] [--only llama,gpt2]

The script draws the weights from a seed, saves them as a checkpoint with the bundled model's tokenizer, and runs
`pytest suites/` on it. It prints a row of Markdown for each model: what became of each backend.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pytest_llmperf import folders

VOCABULARY = 49152
TOKENIZER = folders.cache().folder / "models" / "smollm2-135m" / "tokenizer.json"
#: With a tied head, random weights of these types repeat the last token, which shows no parity.
UNTIED: dict[str, Any] = {"tie_word_embeddings": False}
#: Sizes by the names of most configurations, of GPT-2's, and of a mixture of experts.
SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip
GPT: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.2}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 24, "n_routed_experts": 4, "n_shared_experts": 2, "first_k_dense_replace": 1, "n_group": 1,
    "topk_group": 1,
}  # fmt: skip
LINEAR: dict[str, Any] = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
}  # fmt: skip

#: Tiny configurations by model type. Grouped and multi-query heads, gates and none, windows, experts, latents, hybrids.
MODELS: dict[str, dict[str, Any]] = {
    "arcee": SIZES,
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
    "codegen": GPT | {"rotary_dim": 8},
    "cohere": SIZES | {"use_qk_norm": True},
    "deepseek_v2": SIZES | EXPERTS | LATENT,
    "deepseek_v3": SIZES | EXPERTS | LATENT | {"v_head_dim": 16},
    "exaone4": SIZES | {"sliding_window": 16, "num_hidden_layers": 4},
    "falcon": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2},
    "gemma": SIZES | UNTIED | {"head_dim": 32},
    "gemma2": SIZES | UNTIED | {"head_dim": 32, "sliding_window": 16},
    "gemma3": UNTIED | {
               "text_config": {"model_type": "gemma3_text"} | SIZES | UNTIED | {"head_dim": 32, "sliding_window": 16},
               "vision_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                                 "intermediate_size": 32, "image_size": 28, "patch_size": 14}},
    "gemma3_text": SIZES | UNTIED | {"head_dim": 32, "sliding_window": 16, "num_hidden_layers": 6},
    "glm": SIZES | {"head_dim": 16},
    "glm4": SIZES | {"head_dim": 16},
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neox": SIZES,
    "gpt_oss": SIZES | {"num_experts_per_tok": 2, "num_local_experts": 4, "head_dim": 16, "sliding_window": 16},
    "gptj": GPT | {"rotary_dim": 8},
    "granite": SIZES | {"attention_bias": True},
    "helium": SIZES | {"head_dim": 16},
    "lfm2": SIZES | {"num_hidden_layers": 4, "layer_types": ["conv", "conv", "full_attention", "conv"]},
    "llama": SIZES | {"attention_bias": True, "mlp_bias": True},
    "mamba": UNTIED | {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.2},
    "mistral": SIZES | {"sliding_window": 16, "head_dim": 32},
    "mixtral": SIZES | {"num_local_experts": 4},
    "mpt": {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 512, "initializer_range": 0.2},
    "nemotron": SIZES,
    "olmo": SIZES,
    "olmo2": SIZES,
    "olmoe": SIZES | {"num_experts_per_tok": 2, "num_experts": 4},
    "opt": {"hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "init_std": 0.2,
            "max_position_embeddings": 512, "word_embed_proj_dim": 32},
    "phi": SIZES | {"qk_layernorm": True},
    "phi3": SIZES | {"sliding_window": 32},
    "qwen2": SIZES,
    "qwen2_moe": SIZES | EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 48, "decoder_sparse_step": 2},
    "qwen3": SIZES | {"head_dim": 16},
    "qwen3_moe": SIZES | EXPERTS | {"num_experts": 4, "mlp_only_layers": [0]},
    "qwen3_next": SIZES | EXPERTS | LINEAR | {"num_hidden_layers": 4, "head_dim": 16, "num_experts": 4,
                                              "shared_expert_intermediate_size": 32},
    "seed_oss": SIZES | {"head_dim": 16},
    "smollm3": SIZES | {"num_hidden_layers": 4},
    "stablelm": SIZES | {"qk_layernorm": True, "use_qkv_bias": True},
    "starcoder2": SIZES | {"sliding_window": 32},
}  # fmt: skip


def configuration(model_type: str, vocabulary: int = VOCABULARY) -> dict[str, Any]:
    """The tiny configuration of a model type."""
    more = {"vocab_size": vocabulary, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    sizes = dict(MODELS[model_type])
    if "text_config" in sizes:
        sizes["text_config"] = sizes["text_config"] | more
    return {"model_type": model_type} | sizes | more


def save(model_type: str, folder: Path, vocabulary: int = VOCABULARY) -> Any:
    """Draw a model from a seed and save it with the tokenizer; returns it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = configuration(model_type, vocabulary)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    model.eval().save_pretrained(folder)
    if vocabulary == VOCABULARY:
        shutil.copy(TOKENIZER, folder)
    return model


def row(model_type: str, folder: Path, backends: list[str]) -> str:
    """Run the suites on a checkpoint; what became of each backend, as a row of Markdown."""
    report = folder / "results.json"
    command = [
        *(sys.executable, "-m", "pytest", "suites/", "-q", "-p", "no:cacheprovider", f"--llm-model={folder}"),
        *(f"--llm-backends={','.join(backends)}", f"--llm-results={report}", "--llm-device=cpu", "--llm-dtype=float32"),
        *("--llm-batch-sizes=2", "--llm-prompt-lengths=48", "--llm-max-new-tokens=16", "--llm-compare=never", "-rsf"),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "400"})
    (folder / "output.txt").write_text(ran.stdout + ran.stderr)
    held = json.loads(report.read_text()) if report.is_file() else {}
    return f"| `{model_type}` | {' | '.join(cell(one, held, ran.stdout) for one in backends)} |"


def cell(backend: str, results: dict[str, Any], output: str) -> str:
    """What became of a backend: measured and in parity, or why not."""
    measured = {one["case"].rpartition("/")[2] for one in results.get("results", ()) if f"/{backend}/" in one["case"]}
    judged = [one["passed"] for one in results.get("parity", ()) if one["backend"] == backend]
    if {"ttft", "tpot", "latency"} <= measured and judged and all(judged):
        return "in parity"
    pattern = rf"^(?:SKIPPED .*?: {re.escape(backend)}: |FAILED \S*\[{re.escape(backend)}-\S* - )(.*)$"
    why = re.search(pattern, output, re.MULTILINE)
    return why[1] if why else f"{len(measured)} metrics, parity {judged}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--backends", default="eager,sdpa,compile-static")
    parser.add_argument("--only", default=",".join(MODELS))
    arguments = parser.parse_args()
    backends = arguments.backends.split(",")
    print(f"| model type | {' | '.join(f'`{one}`' for one in backends)} |")
    print("| --- |" + " --- |" * len(backends))
    with tempfile.TemporaryDirectory() as temporary:
        for model_type in arguments.only.split(","):
            folder = (arguments.folder or Path(temporary)) / model_type
            folder.mkdir(parents=True, exist_ok=True)
            save(model_type, folder)
            print(row(model_type, folder, backends), flush=True)


if __name__ == "__main__":
    main()
