"""The real vLLM, in a worker of its own, with the real bundled model."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from inner import eventually, running
from tiny import generate as generated
from tiny import load as loaded
from transformers import AutoConfig, AutoModelForCausalLM

from pytest_llmperf.availability import why_not
from pytest_llmperf.backends.base import OBSERVED_LOGITS, EngineSpec, RequestStatistics
from pytest_llmperf.backends.registry import BUILT_IN, Registry
from pytest_llmperf.backends.vllm_engine import VllmEngine, available_memory
from pytest_llmperf.cases import Workload
from pytest_llmperf.interpreter import Interpreter
from pytest_llmperf.machine.table import DEVICES
from pytest_llmperf.measure import trace
from pytest_llmperf.measure.worker_process import Arm, Host, WorkerFailedError, WorkerLostError
from pytest_llmperf.models import Model
from pytest_llmperf.prompts import Prompts

REGISTRY = Registry(BUILT_IN)
EAGER = REGISTRY["vllm-eager"]  # the same engine without minutes of compilation
#: The first prompt and its new tokens are in three pages of the cache, of 128 tokens on a CPU.
WORKLOAD = Workload(batch_size=4, prompt_length=280, max_new_tokens=24)
PATIENCE = 300.0
#: For two ranks: SmolLM2 has 9 heads. vLLM's CPU kernels take heads of 32.
EVEN = {
    "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
    "intermediate_size": 512, "vocab_size": 512, "max_position_embeddings": 512, "initializer_range": 0.2,
    "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")

if (reason := why_not(EAGER, DEVICES["cpu"], Interpreter())) is not None:
    pytest.skip(reason, allow_module_level=True)


def start(backend: str) -> Host:
    quiet = {"TRANSFORMERS_VERBOSITY": "error"}
    return Host(Arm(environment=quiet), REGISTRY[backend].environment)


def load(host: Host, backend: str, model: str, **changes: Any) -> None:
    tokens = WORKLOAD.prompt_length + WORKLOAD.max_new_tokens
    size = {"batch_size": WORKLOAD.batch_size, "sequence_length": tokens} | changes
    spec = EngineSpec(model, None, "float32", "cpu", **size)
    host.call("load", PATIENCE, backend=REGISTRY[backend].reference(), spec=asdict(spec))


@pytest.fixture(scope="module")
def begun(bundled_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, list[str]]]:
    """A worker with the model, which first was asked to load what it cannot; and what it said."""
    host, said = start("vllm-eager"), []
    with pytest.raises(WorkerFailedError) as caught:
        load(host, "vllm-eager", str(bundled_model.folder), batch_size=65536, sequence_length=8192)
    said.append(str(caught.value))
    folder = tmp_path_factory.mktemp("nonesuch")
    text = (Path(str(bundled_model.folder)) / "config.json").read_text()
    text = text.replace("LlamaForCausalLM", "NonesuchForCausalLM").replace('"llama"', '"nonesuch"')
    (folder / "config.json").write_text(text)
    with pytest.raises(WorkerFailedError) as caught:
        load(host, "vllm-eager", str(folder))
    said.append(str(caught.value))
    load(host, "vllm-eager", str(bundled_model.folder))
    yield host, said
    host.close()


@pytest.fixture
def vllm(begun: tuple[Host, list[str]]) -> Host:
    return begun[0]


@pytest.fixture(scope="module")
def unequal(bundled_model: Model) -> list[list[int]]:
    return Prompts(49152, bundled_model.tokenizer_file).unequal_batch(WORKLOAD)


def generate(host: Host, prompts: list[list[int]]) -> Any:
    return host.call("generate", PATIENCE, prompts=prompts, max_new_tokens=WORKLOAD.max_new_tokens)


def test_in_float32_its_tokens_are_eager_s_over_several_pages_and_unequal_lengths(
    vllm: Host, unequal: list[list[int]], bundled_model: Model
) -> None:
    eager = loaded("eager", EngineSpec(str(bundled_model.folder), None, "float32", "cpu"))
    expected = generated(eager, unequal, WORKLOAD.max_new_tokens)
    assert generate(vllm, unequal)["tokens"] == expected
    assert len({token for row in expected for token in row}) > 20


def test_what_is_stamped_agrees_with_the_engine_s_own_statistics(vllm: Host, unequal: list[list[int]]) -> None:
    generate(vllm, unequal)
    answer = generate(vllm, unequal)
    found = trace.checked(answer["tokens"], answer["times"], requests=4, max_new_tokens=WORKLOAD.max_new_tokens)
    statistics = [RequestStatistics(**one) for one in answer["statistics"]]
    trace.check_statistics(found, statistics)
    assert found.ttft == pytest.approx(sum(one.ttft for one in statistics) / 4, rel=0.02)
    assert found.tpot == pytest.approx(sum(one.tpot for one in statistics) / 4, rel=0.02)


def test_the_same_prompt_twice_is_computed_twice(vllm: Host, unequal: list[list[int]]) -> None:
    answers = [generate(vllm, unequal[:1]) for _ in range(2)]
    assert [one["cached_tokens"] for answer in answers for one in answer["statistics"]] == [0, 0]
    assert answers[0]["tokens"] == answers[1]["tokens"]


def test_it_shows_that_paged_attention_ran_and_that_no_prefill_was_chunked(
    vllm: Host, unequal: list[list[int]]
) -> None:
    generate(vllm, unequal)
    seen = vllm.call("evidence", PATIENCE)["seen"]
    assert seen["steps of the prefill"] == 1
    assert seen["vllm::unified_attention_with_output"] == 90
    assert seen["graph calls"] == 0


def test_its_logits_are_those_of_its_choices(vllm: Host, unequal: list[list[int]]) -> None:
    observed = vllm.call("observe", PATIENCE, prompts=unequal, max_new_tokens=WORKLOAD.max_new_tokens)
    assert [one["tokens"] for one in observed] == generate(vllm, unequal)["tokens"]
    for one in observed:
        assert [candidates[0] for candidates in one["candidates"]] == one["tokens"]
        assert {len(row) for row in (*one["candidates"], *one["logits"])} == {OBSERVED_LOGITS}


def test_more_requests_than_it_holds_at_once_are_refused_and_it_lives_on(vllm: Host, unequal: list[list[int]]) -> None:
    with pytest.raises(WorkerFailedError, match="5 requests were submitted to an engine that was loaded for 4"):
        generate(vllm, [*unequal, unequal[0]])
    with pytest.raises(WorkerFailedError, match="maximum"):
        generate(vllm, [unequal[0] * 2])
    assert len(generate(vllm, unequal)["tokens"]) == 4


def test_two_tokens_are_enough_to_prove_it(vllm: Host, unequal: list[list[int]]) -> None:
    vllm.call("generate", PATIENCE, prompts=unequal, max_new_tokens=2)
    assert vllm.call("evidence", PATIENCE)["engaged"]


def test_what_it_compiled_while_it_loaded_is_by_its_own_account() -> None:
    def engine(**compilation: float) -> Any:
        config = SimpleNamespace(compilation_config=SimpleNamespace(**compilation))
        return SimpleNamespace(engine=SimpleNamespace(vllm_config=config))

    assert VllmEngine.compile_seconds.__get__(engine(compilation_time=2.5)) == 2.5
    assert VllmEngine.compile_seconds.__get__(engine()) == 0.0, "a version that does not say"


def test_memory_that_caches_hold_is_available(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable: 5 kB\n")
    assert available_memory(tmp_path / "meminfo") == 5 * 1024
    assert available_memory(tmp_path / "none") == float("inf")


def test_what_it_cannot_load_is_a_clear_failure_and_the_next_one_loads(begun: tuple[Host, list[str]]) -> None:
    large, unknown = begun[1]
    assert "out of KV space: 65536 requests of 8192 tokens need a cache of" in large
    assert "nonesuch" in unknown


def test_two_ranks_say_what_eager_says(tmp_path: Path) -> None:
    """Killed, it leaves none of its ranks behind.

    They have a variant's arguments, so that no other engine has to be loaded for these.
    """
    varied = {
        "arguments": {"block_size": 32, "attention_backend": "CPU_ATTN", "compilation_config": {"mode": 0}},
        "proofs": {"kernel": "unified_attention", "block size": "32"},
    }
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **EVEN)).save_pretrained(tmp_path)
    prompts = [[(7 * row + 13 * at) % 500 + 1 for at in range(length)] for row, length in enumerate((280, 17, 130, 1))]
    eager = loaded("eager", EngineSpec(str(tmp_path), None, "float32", "cpu"))
    expected = generated(eager, prompts, WORKLOAD.max_new_tokens)
    assert len({token for row in expected for token in row}) > 20
    backend = REGISTRY["vllm-eager+tp2"]
    host = Host(Arm(), backend.environment)
    try:
        load(host, "vllm-eager+tp2", str(tmp_path), tp=backend.tp, **varied)
        assert generate(host, prompts)["tokens"] == expected
        evidence = host.call("evidence", PATIENCE)
        assert evidence["expected"].endswith(
            "by 2 ranks, and a kernel that matches 'unified_attention', and block size that matches '32'"
        )
        seen = evidence["seen"]
        assert (seen["block size"], seen["attention_backend"]) == (32, "CPU_ATTN")
        assert seen["compilation_config.mode"] == "NONE"
        assert seen["tensor parallel degree"] == 2
        assert 0 < seen["share of time in collectives"] < 1
        family = psutil.Process(host.pids[0]).children(recursive=True)
        assert sum(child.memory_info().rss > 2e8 for child in family) >= 2, "two ranks hold weights"
    finally:
        host.kill()
    assert eventually(lambda: not any(running(child.pid) for child in family))


@pytest.mark.last
def test_killed_it_is_lost_and_nothing_stays_behind(vllm: Host) -> None:
    family = [vllm.pids[0], *(child.pid for child in psutil.Process(vllm.pids[0]).children(recursive=True))]
    os.kill(vllm.pids[0], signal.SIGKILL)
    with pytest.raises(WorkerLostError, match="killed by signal 9"):
        vllm.call("evidence", PATIENCE)
    assert eventually(lambda: not any(map(running, family)))
