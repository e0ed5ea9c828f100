"""vLLM inside the worker: requests are submitted together and the engine is stepped until all are done.

The cache of keys and values is as large as the largest workload needs, prefix caching is off, and a step may hold a
whole batch's prefill, so that none is chunked unseen. vLLM keeps time itself, by which the worker's stamps are checked.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import torch

from pytest_llmperf import known
from pytest_llmperf.backends import tensor_parallel
from pytest_llmperf.backends.base import (
    OBSERVED_LOGITS,
    TIME_IN_COLLECTIVES,
    Engagement,
    EngineSpec,
    Observation,
    OnToken,
    RequestStatistics,
)
from pytest_llmperf.backends.profiling import Profiler, mark
from pytest_llmperf.backends.toolchain import drop_unfinished, kernel_caches
from pytest_llmperf.explain.families import calls, family
from pytest_llmperf.explain.names import short
from pytest_llmperf.models import loading
from pytest_llmperf.variants import leaves, same

#: Forward passes that `evidence` profiles.
PROFILED = 3
#: Tokens in a block of the cache, at most: vLLM takes 128 on a CPU and 16 on a GPU, and the budget suffices for both.
LARGEST_BLOCK = 128
#: Blocks beyond what the requests fill: vLLM keeps one empty.
SPARE_BLOCKS = 2
#: The operator that every attention layer of vLLM goes through on a CPU, whichever kernel is behind it.
ATTENTION = "vllm::unified_attention"
#: What collectives are called: those of PyTorch's backends, and vLLM's own over shared memory or between GPUs.
COLLECTIVES = (*tensor_parallel.COLLECTIVES, "_C::shm_", "void vllm::cross_device_reduce")
#: Arguments that say what is compiled.
COMPILATION = {"enforce_eager", "compilation_config", "optimization_level"}
#: What vLLM's configuration calls arguments that have another name there.
CALLED = {"kv_cache_dtype": "cache_dtype", "attention_backend": "attention_config.backend"}
#: What a compiled graph and a replayed one show.
COMPILED = ("## Call CompiledFxGraph", "Torch-Compiled Region", "cudaGraphLaunch", "hipGraphLaunch")


_profiler: Any = None
_runner: Any = None


def begin_profile(worker: Any, device: str, chunks: int) -> None:
    """In a rank: note every operator from now on, and where each step begins after the prefill, of so many chunks."""
    global _profiler, _runner
    _runner = worker.model_runner
    execute, begun = _runner.execute_model, 0

    def marked(*arguments: Any, **more: Any) -> Any:
        nonlocal begun
        if begun >= chunks:
            mark()
        begun += 1
        return execute(*arguments, **more)

    _runner.execute_model = marked
    _profiler = Profiler(device)
    _profiler.__enter__()


def end_profile(_worker: Any) -> tuple[dict[str, int], float, str, dict[str, Any]]:
    """In a rank: how often each operator or kernel ran, collectives' share of the time, the host, and the phases.

    On a GPU a replayed graph calls no operators, so kernels alone count there, and calls of graphs.
    """
    mark()
    _profiler.__exit__()
    del _runner.execute_model
    events = _profiler.averages()
    collectives = [event for event in events if event.key.startswith(COLLECTIVES)]
    waited = sum(event.device_time_total or event.cpu_time_total for event in collectives) / 1e6
    counts = {event.key: event.count for event in events if _counts(event, _profiler.device)}
    return counts, waited / _profiler.seconds, platform.node(), _profiler.phases()


class VllmEngine:
    """Greedy generation by ``LLMEngine``, in process."""

    compiled = True

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.pausable = spec.tp == 1  # ranks of vLLM's own would go on
        os.environ.update(environment(spec))
        self._folder = tempfile.TemporaryDirectory() if spec.config is not None else None
        config = dict(spec.config) if spec.config is not None else configuration(Path(spec.model))
        # A variant that says what is compiled has that looked at as one of its arguments.
        self._says = not COMPILATION.isdisjoint(spec.arguments)
        shared = arguments(spec, config, self.compiled)
        if self.compiled:
            drop_unfinished(kernel_caches())
        from vllm import EngineArgs, LLMEngine

        with loading("vLLM", spec.model):
            engine_arguments = EngineArgs(
                model=spec.model if self._folder is None else written(Path(self._folder.name), config),
                async_scheduling=False,
                disable_log_stats=False,
                max_logprobs=OBSERVED_LOGITS,
                **shared,
            )
            self.engine = LLMEngine.from_engine_args(engine_arguments)
        self.layers = known.architecture(config).attention_layers
        self._generations = count()
        self._last: list[list[int]] = []
        self._last_new_tokens = 0
        self._statistics: list[RequestStatistics] = []
        self._prefill_steps = 0

    def generate(self, prompts: list[list[int]], max_new_tokens: int, on_token: OnToken) -> None:
        """See `Engine.generate`."""
        self._generate(prompts, max_new_tokens, on_token)

    def _generate(
        self, prompts: list[list[int]], max_new_tokens: int, on_token: OnToken, logprobs: int | None = None
    ) -> list[list[dict[int, Any]]]:
        """Generate; with ``logprobs``, return that many a token: a dictionary by token id, per request."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if len(prompts) > self.spec.batch_size:
            raise ValueError(
                f"{len(prompts)} requests were submitted to an engine that was loaded for {self.spec.batch_size}: "
                "vLLM would run some after the others"
            )
        self._last, self._last_new_tokens = prompts, max_new_tokens
        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=max_new_tokens,
            ignore_eos=True,
            detokenize=False,
            logprobs=logprobs,
            output_kind=RequestOutputKind.DELTA,
        )
        names = {f"{next(self._generations)}": index for index in range(len(prompts))}
        kept: list[list[dict[int, Any]]] = [[] for _ in prompts]
        statistics: dict[int, RequestStatistics] = {}
        steps = waiting = 0
        first = set(range(len(prompts)))
        arrived = time.time()  # all of them, as the stamps count from here: vLLM would count each from its own turn
        try:
            for name, prompt in zip(names, prompts, strict=True):
                self.engine.add_request(name, {"prompt_token_ids": prompt}, parameters, arrival_time=arrived)
            while self.engine.has_unfinished_requests():
                steps += 1
                output: Any  # of a request for text, not one for an embedding
                for output in self.engine.step():
                    index, completion = names[output.request_id], output.outputs[0]
                    for token in completion.token_ids:
                        on_token(index, token)
                    kept[index] += completion.logprobs or ()
                    first.discard(index)
                    if output.finished:
                        statistics[index] = _statistics(output, max_new_tokens)
                waiting += bool(first)
        except BaseException:
            self.engine.abort_request(list(names))
            raise
        self._prefill_steps = waiting + 1
        self._statistics = [statistics[index] for index in range(len(prompts))]
        return kept

    def statistics(self) -> list[RequestStatistics]:
        """See `Timekeeper.statistics`: vLLM's ``RequestStateStats``."""
        return self._statistics

    def observe(self, prompts: list[list[int]], max_new_tokens: int, leading: int) -> list[Observation]:
        """See `Observable.observe`. These are log-probabilities, which differ from logits by a constant a position."""
        tokens: list[list[int]] = [[] for _ in prompts]
        kept = self._generate(prompts, max_new_tokens, lambda index, token: tokens[index].append(token), leading)
        observations = []
        for row, positions in zip(tokens, kept, strict=True):
            ranked = [
                sorted(((one.logprob, token) for token, one in position.items()), reverse=True)[:leading]
                for position in positions
            ]
            observations.append(
                Observation(
                    tokens=row,
                    candidates=[[token for _, token in position] for position in ranked],
                    logits=[[logit for logit, _ in position] for position in ranked],
                )
            )
        return observations

    def evidence(self) -> Engagement:
        """See `Engine.evidence`: a profile of how the last prompts' generation begins."""
        chunks, steps = self._prefill_steps, min(PROFILED, self._last_new_tokens)
        self.engine.collective_rpc(begin_profile, args=(self.spec.device, chunks))
        profiles: list[tuple[dict[str, int], float, str, dict[str, Any]]]
        try:
            self._generate(self._last, steps, lambda index, token: None)
        finally:
            profiles = self.engine.collective_rpc(end_profile)
        counts, in_collectives, _, phases = profiles[0]
        ranks: dict[str, Any] = {
            "tensor parallel degree": len(profiles),
            TIME_IN_COLLECTIVES: round(in_collectives, 3),
        }
        if self.spec.executor:  # which may span hosts
            hosts = Counter(host for _, _, host, _ in profiles)
            ranks |= {
                "executor": self.spec.executor,
                "ranks by host": ", ".join(f"{host} {count}" for host, count in sorted(hosts.items())),
            }
        attention = attention_calls(counts, self.spec.device)
        graphs = sum(number for name, number in counts.items() if name.startswith(COMPILED))
        config = self.engine.vllm_config
        # On a GPU several kernels share the work.
        ran = max(attention.values(), default=0) if self.spec.device == "cpu" else calls("attention", attention)
        paged = ran >= self.layers * steps and len(profiles) == self.spec.tp
        graph = ", and a compiled graph in every step" if self.compiled else ", and no compiled graph"
        graph = "" if self._says else graph
        mode = str(getattr(config.compilation_config.mode, "name", config.compilation_config.mode))
        # Ranks share the vocabulary, and vLLM compiles the lookup's mask by itself whatever is asked for.
        plain = not graphs or (self.spec.tp > 1 and mode == "NONE")
        compiled = graphs >= steps and mode != "NONE" if self.compiled else plain
        return Engagement(
            engaged=paged and (compiled or self._says),
            expected=f"vLLM's attention in every layer{graph} ({self.layers} layers, {steps} steps)"
            + (f", by {self.spec.tp} ranks" if self.spec.tp > 1 else ""),
            seen={
                **(ranks if self.spec.tp > 1 else {}),
                **attention,
                "graph calls": graphs,
                "compilation mode": mode,
                "block size": config.cache_config.block_size,
                "blocks": config.cache_config.num_gpu_blocks,
                "steps of the prefill": chunks,
            },
            profile=phases,
        )

    @property
    def compile_seconds(self) -> float:
        """See `Compiling.compile_seconds`: by vLLM's own account, of the rank that took longest."""
        compilation = self.engine.vllm_config.compilation_config
        return float(getattr(compilation, "compilation_time", 0.0))

    def in_effect(self) -> dict[str, Any]:
        """See `Adjustable.in_effect`: what vLLM's configuration has, after vLLM has settled it."""
        config = self.engine.vllm_config
        inside = [config, *(one for one in vars(config).values() if hasattr(one, "__dict__"))]
        found = {}
        for path, asked in leaves(self.spec.arguments):
            has = [value for one in inside if (value := _at(one, CALLED.get(path, path))) is not ...]
            if has:  # of several the one that was asked for
                found[path] = next((value for value in has if same(asked, value)), has[0])
        return found

    def processes(self) -> list[int]:
        """The ranks that vLLM started, and what they did."""
        import psutil

        return [child.pid for child in psutil.Process().children(recursive=True)] if self.spec.tp > 1 else []

    def resident(self) -> list[int] | None:
        """The processes whose memory is the engine's; None for this one alone."""
        return self.processes() if self.spec.tp > 1 else None

    def close(self) -> None:
        """Stop what vLLM started."""
        self.engine.engine_core.shutdown()
        if self._folder is not None:
            self._folder.cleanup()


class VllmEagerEngine(VllmEngine):
    """``enforce_eager``: no compilation, no graphs."""

    compiled = False


def arguments(spec: EngineSpec, config: Mapping[str, Any], compiled: bool = True) -> dict[str, Any]:
    """What vLLM is told of the model and the sizes, in process and as a server.

    Raises:
        MemoryError: the cache of keys and values does not fit into what is free.
    """
    block = max(LARGEST_BLOCK, spec.arguments.get("block_size") or 0)
    blocks = spec.batch_size * -(-spec.sequence_length // block) + SPARE_BLOCKS
    architecture = known.architecture(config)
    # What a rank is told is its own: KV heads are shared out, and copied where there are fewer of them than ranks.
    shared = min(spec.tp, architecture.kv_heads or 1)
    cache = blocks * block * architecture.kv_bytes_per_token(spec.dtype) // shared
    _check_room(spec, cache)
    return {
        "load_format": "auto" if spec.config is None else "dummy",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # not the model's own, which may sample
        "dtype": spec.dtype,
        "seed": spec.seed,
        "max_model_len": spec.sequence_length,
        "max_num_seqs": spec.batch_size,
        "max_num_batched_tokens": spec.batch_size * spec.sequence_length,
        "enable_prefix_caching": False,
        **({"kv_cache_memory_bytes": cache} if cache else {}),  # unknown sizes: vLLM's own share of the memory
        "enforce_eager": not compiled,
        **({"tensor_parallel_size": spec.tp} if spec.tp > 1 else {}),
        **({"distributed_executor_backend": spec.executor} if spec.executor else {}),
        **spec.arguments,
    }


def _at(held: Any, path: str) -> Any:
    """What is at a path of attributes and keys; an ellipsis where nothing is."""
    for name in path.split("."):
        held = held.get(name, ...) if isinstance(held, Mapping) else getattr(held, name, ...)
    return held


def environment(spec: EngineSpec) -> dict[str, str]:
    """What vLLM reads of its environment on a CPU; a variable that somebody has set keeps its value."""
    if spec.device != "cpu":
        return {}
    found = {
        # vLLM reduces torch to one thread unless it is told that somebody chose; every other backend has them all.
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // spec.tp)),
        # vLLM 0.32 cannot load what it compiled ahead of time for a CPU ("'function' object has no attribute
        # 'finalize_loading'"), so it would compile at every start; inductor's own cache works.
        "VLLM_USE_AOT_COMPILE": "0",
        # Or it wants a NUMA node for each rank.
        **({"VLLM_CPU_OMP_THREADS_BIND": "nobind"} if spec.tp > 1 else {}),
    }
    return {name: os.environ.get(name, value) for name, value in found.items()}


def _check_room(spec: EngineSpec, cache: int) -> None:
    """Raise MemoryError where the cache (bytes) does not fit into what is free, before hours go into swapping."""
    if spec.device == "cpu":
        free = available_memory()
    else:
        free, _ = torch.cuda.mem_get_info()
    if cache > free:
        raise MemoryError(
            f"out of KV space: {spec.batch_size} requests of {spec.sequence_length} tokens need a cache of "
            f"{cache / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free; lower --llm-batch-sizes or "
            "--llm-prompt-lengths"
        )


def available_memory(file: Path = Path("/proc/meminfo")) -> float:
    """Bytes that may be had without swapping, what caches hold included; infinite where the system does not say."""
    try:
        lines = dict(line.split(":") for line in file.read_text().splitlines() if ":" in line)
        return float(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return float("inf")


def _counts(event: Any, device: str) -> bool:
    """Whether how often it ran tells something: on a GPU, of a kernel and of a call of a graph."""
    if device == "cpu" or event.key.startswith(COMPILED):
        return True
    return event.device_type.name != "CPU" and not event.is_user_annotation


def attention_calls(counts: Mapping[str, int], device: str) -> dict[str, int]:
    """How often attention ran, by name: vLLM's operator on a CPU; on a GPU each kernel, by its short name."""
    if device == "cpu":
        return {name: number for name, number in counts.items() if name.startswith(ATTENTION)}
    found: Counter[str] = Counter()
    for name, number in counts.items():
        if (one := family(name)) is not None and one[0] == "attention":
            found[short(name)] += number
    return dict(found)


def _statistics(output: Any, max_new_tokens: int) -> RequestStatistics:
    """What vLLM says of a finished request."""
    own = output.metrics
    return RequestStatistics(
        ttft=own.first_token_latency,
        tpot=(own.last_token_ts - own.first_token_ts) / max(1, max_new_tokens - 1),
        cached_tokens=getattr(output, "num_cached_tokens", None) or 0,
        preemptions=getattr(own, "num_preemptions", 0),  # before 0.30 vLLM does not say
    )


def configuration(folder: Path) -> dict[str, Any]:
    """The model's configuration. Raises ModelError: transformers does not read it."""
    from transformers import AutoConfig

    with loading("transformers", str(folder)):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()  # type: ignore[no-any-return]


def written(folder: Path, config: dict[str, Any]) -> str:
    """A folder with the configuration alone, which is what vLLM wants for random weights."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = str(config["model_type"])
    named = {"architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind, kind)], **config}
    (folder / "config.json").write_text(json.dumps(named))
    return str(folder)
