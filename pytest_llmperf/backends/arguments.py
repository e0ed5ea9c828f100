"""The arguments that a variant may give the built-in engines, read from their source: importing one takes seconds."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_llmperf.interpreter import Interpreter

#: Options of transformers' ``from_pretrained`` and of its generation that change how it computes, not what.
LOADING = (
    "experts_implementation",
    "use_kernels",
    "allow_all_kernels",
    "fusion_config",
    "disable_mmap",
)
GENERATION = ("cache_implementation", "cache_config", "disable_compile", "prefill_chunk_size")


def _held(**names: str) -> dict[str, str]:
    """A reason for each name, from the names of each reason. In a keyword, the first word says nothing."""
    reasons = {
        "model": "--llm-model chooses the model",
        "dtype": "--llm-dtype chooses the type",
        "greedy": "every backend decodes greedily, as many tokens as are asked for",
        "sizes": "sizes follow from the tests: --llm-batch-sizes, --llm-prompt-lengths, --llm-max-new-tokens",
        "cached": "a prompt that is found in a cache is no prefill",
        "ranks": "write +tp2 for ranks, and --llm-executor for what starts them",
        "stamps": "the plugin takes the time of every token, and reads the engine's own account of it",
        "server": "the plugin starts the server and talks to it",
        "coarser": "MFU, MBU and parity would take its figures for those of the run's dtype",
        "several": "figures and parity are of one token a step",
        "attention": "write a backend for the attention, such as sdpa",
    }
    return {name: reasons[reason] for reason, listed in names.items() for name in listed.split()}


TRANSFORMERS_HELD = _held(
    dtype="dtype torch_dtype",
    attention="attn_implementation",
    coarser="quantization_config",
    greedy="do_sample num_beams temperature top_k top_p max_new_tokens min_new_tokens max_length eos_token_id "
    "pad_token_id repetition_penalty use_cache stop_strings",
    several="prompt_lookup_num_tokens assistant_early_exit num_assistant_tokens",
    model="config revision trust_remote_code state_dict gguf_file",
    ranks="tp_plan tp_size device_map device_mesh distributed_config",
)
_VLLM_HELD = _held(
    model="model model_weights tokenizer tokenizer_mode hf_config_path hf_overrides model_class_overrides revision "
    "code_revision tokenizer_revision load_format config_format trust_remote_code skip_tokenizer_init hf_token",
    dtype="dtype",
    greedy="seed generation_config override_generation_config logits_processors",
    sizes="max_model_len max_num_seqs max_num_batched_tokens max_num_scheduled_tokens kv_cache_memory_bytes "
    "num_gpu_blocks_override",
    cached="enable_prefix_caching",
    ranks="tensor_parallel_size distributed_executor_backend pipeline_parallel_size data_parallel_size nnodes",
    stamps="disable_log_stats max_logprobs logprobs_mode stream_interval",
    coarser="quantization quantization_config kv_cache_dtype",
    several="speculative_config spec_method spec_model spec_tokens",
)
VLLM_HELD = _VLLM_HELD | _held(stamps="async_scheduling")
VLLM_SERVE_HELD = _VLLM_HELD | _held(
    server="host port uds served_model_name api_key root_path middleware ssl_keyfile ssl_certfile ssl_ca_certs "
    "headless config return_tokens_as_token_ids enable_prompt_tokens_details disable_uvicorn_access_log "
    "env:VLLM_NO_USAGE_STATS env:DO_NOT_TRACK env:VLLM_LOGGING_LEVEL"
)
TGI_HELD = _held(
    model="model_id revision trust_remote_code",
    dtype="dtype",
    sizes="max_concurrent_requests max_input_tokens max_input_length max_total_tokens max_batch_prefill_tokens",
    cached="env:PREFIX_CACHING",
    ranks="num_shard sharded",
    server="hostname port env:USAGE_STATS",
    coarser="quantize kv_cache_dtype",
    several="speculate",
)


@cache
def of_transformers(interpreter: Interpreter) -> frozenset[str] | None:
    """What a variant may give transformers' ``from_pretrained`` and ``generate``; None where no source is found."""
    return _known(interpreter, {"modeling_utils.py": LOADING, "generation/configuration_utils.py": GENERATION})


@cache
def of_transformers_paged(interpreter: Interpreter) -> frozenset[str] | None:
    """As `of_transformers`: continuous batching takes no options of generation."""
    return _known(interpreter, {"modeling_utils.py": LOADING})


def _known(interpreter: Interpreter, names: dict[str, Collection[str]]) -> frozenset[str] | None:
    sources = {file: interpreter.source("transformers", file) for file in names}
    if not all(sources.values()):
        return None
    return frozenset(one for file in names for one in names[file] if re.search(rf"\b{one}\b", sources[file]))


@cache
def of_vllm(interpreter: Interpreter) -> frozenset[str] | None:
    """The fields of vLLM's ``EngineArgs``; None where its source is not found."""
    return _fields(interpreter.source("vllm", "engine/arg_utils.py"), {"EngineArgs"}) or None


@cache
def of_vllm_serve(interpreter: Interpreter) -> frozenset[str] | None:
    """What ``vllm serve`` takes, by the names of `of_vllm`, underscores for hyphens; None as there."""
    engine = _fields(interpreter.source("vllm", "engine/arg_utils.py"), {"EngineArgs", "AsyncEngineArgs"})
    server = interpreter.source("vllm", "entrypoints/*/cli_args.py")  # its folder differs by version
    flags = {flag.replace("-", "_") for flag in re.findall(r'"--([a-z][a-z0-9-]+)"', server)}
    return engine | _fields(server, {"BaseFrontendArgs", "FrontendArgs"}) | flags or None


def of_tgi(interpreter: Interpreter) -> None:
    """Nobody knows: the launcher has no source here. It refuses what it does not know, before it loads anything."""


def _fields(source: str, classes: Collection[str]) -> frozenset[str]:
    """The annotated names of classes, private ones left out."""
    bodies = [node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name in classes]
    targets = (one.target for body in bodies for one in body if isinstance(one, ast.AnnAssign))
    return frozenset(one.id for one in targets if isinstance(one, ast.Name) and not one.id.startswith("_"))
