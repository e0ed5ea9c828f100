"""The real ``vllm serve``, started by a worker, with the real bundled model; and its command line."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from inner import eventually, running
from tiny import generate as generated
from tiny import load as loaded

from pytest_llmperf.availability import why_not
from pytest_llmperf.backends.base import EngineSpec, RequestStatistics
from pytest_llmperf.backends.registry import BUILT_IN, Registry
from pytest_llmperf.cases import Workload
from pytest_llmperf.interpreter import Interpreter
from pytest_llmperf.machine import health
from pytest_llmperf.machine.table import DEVICES
from pytest_llmperf.measure import trace
from pytest_llmperf.measure.worker_process import Arm, Host, WorkerFailedError
from pytest_llmperf.models import Model
from pytest_llmperf.prompts import Prompts
from pytest_llmperf.served.client import ServerError
from pytest_llmperf.served.process import ServerProcess
from pytest_llmperf.served.vllm import MAIN, command, flags
from pytest_llmperf.worker import reaper

REGISTRY = Registry(BUILT_IN)
SERVE = {"module": "uncompiled", "name": "Uncompiled", "file": str(Path(__file__).parent.parent / "uncompiled.py")}
WORKLOAD = Workload(batch_size=2, prompt_length=48, max_new_tokens=24)
PATIENCE = 300.0

needs_vllm = pytest.mark.skipif(
    why_not(REGISTRY["vllm-serve"], DEVICES["cpu"], Interpreter()) is not None, reason="vllm is not installed"
)


def test_engine_arguments_are_flags() -> None:
    assert flags({"dtype": "float32", "enable_prefix_caching": False, "skip_tokenizer_init": True, "seed": 0}) == [
        "--dtype", "float32", "--no-enable-prefix-caching", "--skip-tokenizer-init", "--seed", "0",
    ]  # fmt: skip


def test_the_server_s_command_line() -> None:
    assert command("/py", "/m", {"seed": 1}, 8123) == [
        "/py", "-c", MAIN, "serve", "/m", "--host", "127.0.0.1", "--port", "8123",
        "--served-model-name", "llmperf", "--seed", "1", "--enable-prompt-tokens-details",
        "--disable-uvicorn-access-log",
    ]  # fmt: skip
    assert "--tensor-parallel-size 4" in " ".join(command("/py", "/m", {"tensor_parallel_size": 4}, 8123))


def process(*command: str) -> ServerProcess:
    return ServerProcess("the server", ["sh", "-c", *command], {})


def test_a_server_that_dies_or_never_comes_up_is_said_with_its_last_lines() -> None:
    dead = process("for i in 1 2 3 4 5 6 7 8 9 10; do echo line $i; done; echo no CUDA >&2; exit 3")
    with pytest.raises(
        ServerError, match=r"^the server ended with status 3 before it was up; its last lines:"
    ) as caught:
        dead.until(lambda: False, 10)
    assert str(caught.value).splitlines()[1:] == [f"  line {n}" for n in range(4, 11)] + ["  no CUDA"]
    dead.stop()
    slow = process("echo loading; sleep 60")
    with pytest.raises(ServerError, match=r"was not up within 0.5 s; its last lines:\n  loading"):
        slow.until(lambda: False, 0.5)
    slow.stop()
    with pytest.raises(ServerError, match="cannot start /no/such: No such file"):
        ServerProcess("the server", ["/no/such"], {})


def test_what_does_not_end_by_itself_is_killed_with_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_llmperf.served.process.PATIENCE", 0.3)
    stubborn = process("trap '' TERM; sleep 60 & sleep 60; sleep 60")
    assert eventually(lambda: len(stubborn.pids()) == 3)
    family = stubborn.pids()
    stubborn.stop()
    assert eventually(lambda: not any(map(running, family)))


def load(host: Host, model: str, **changes: Any) -> None:
    tokens = WORKLOAD.prompt_length + WORKLOAD.max_new_tokens
    spec = EngineSpec(model, None, "float32", "cpu", batch_size=2, sequence_length=tokens, timeout=PATIENCE)
    host.call("load", PATIENCE, backend=[SERVE], spec=asdict(spec) | changes)


def generate(host: Host, prompts: list[list[int]]) -> Any:
    return host.call("generate", PATIENCE, prompts=prompts, max_new_tokens=WORKLOAD.max_new_tokens)


@pytest.fixture(scope="module")
def prompts(bundled_model: Model) -> list[list[int]]:
    return Prompts(49152, bundled_model.tokenizer_file).unequal_batch(WORKLOAD)


@pytest.fixture(scope="module")
def served(bundled_model: Model) -> Iterator[Host]:
    host = Host(Arm())
    load(host, str(bundled_model.folder))
    yield host
    host.close()


@needs_vllm
@pytest.mark.usefixtures("one_thread")
def test_in_float32_its_tokens_are_eager_s(served: Host, prompts: list[list[int]], bundled_model: Model) -> None:
    eager = loaded("eager", EngineSpec(str(bundled_model.folder), None, "float32", "cpu"))
    expected = generated(eager, prompts, WORKLOAD.max_new_tokens)
    answer = generate(served, prompts)
    assert answer["tokens"] == expected
    assert len({token for row in expected for token in row}) > 15
    found = trace.checked(answer["tokens"], answer["times"], requests=2, max_new_tokens=WORKLOAD.max_new_tokens)
    trace.check_statistics(found, [RequestStatistics(**one) for one in answer["statistics"]])
    assert served.call("evidence", PATIENCE)["memory"]["peak"] > 2**29, "the server's, not its client's"


@needs_vllm
def test_the_same_prompt_twice_is_computed_twice_and_the_server_s_account_is_shown(
    served: Host, prompts: list[list[int]]
) -> None:
    answers = [generate(served, prompts[:1]) for _ in range(2)]
    assert [one["cached_tokens"] for answer in answers for one in answer["statistics"]] == [0, 0]
    evidence = served.call("evidence", PATIENCE)
    assert evidence["engaged"]
    seen = evidence["seen"]
    assert seen["tokens counted"] == WORKLOAD.max_new_tokens
    assert seen["finish"] == "length"
    assert float(seen["queue time"].removesuffix(" ms")) >= 0
    assert float(seen["inference time"].removesuffix(" ms")) > 1
    assert "gaps" not in seen


@needs_vllm
def test_its_cpu_time_is_the_engine_s_own(served: Host, prompts: list[list[int]]) -> None:
    family = [child.pid for child in psutil.Process(served.pids[0]).children(recursive=True)]
    before = health.snapshot(family).own, health.snapshot().own
    generate(served, prompts)
    after = health.snapshot(family).own, health.snapshot().own
    assert after[0] - before[0] > 0.2 + (after[1] - before[1])


@needs_vllm
def test_more_requests_than_it_holds_at_once_are_refused_and_it_lives_on(
    served: Host, prompts: list[list[int]]
) -> None:
    with pytest.raises(WorkerFailedError, match="3 requests were submitted to an engine that was loaded for 2"):
        generate(served, [*prompts, prompts[0]])
    with pytest.raises(WorkerFailedError, match=r"ServerError: request 0: http://127.0.0.1:\d+/v1/completions answered "
                                                r"with status 400: .*maximum context length"):  # fmt: skip
        generate(served, [prompts[0] * 2])
    assert len(generate(served, prompts)["tokens"]) == 2


@needs_vllm
@pytest.mark.last
def test_killed_nothing_stays_behind(served: Host) -> None:
    family = [served.pids[0], *(child.pid for child in psutil.Process(served.pids[0]).children(recursive=True))]
    assert len(family) >= 3
    for pid in family:  # vLLM's processes name themselves, which must not cost them the mark
        assert reaper.MARK in Path(f"/proc/{pid}/environ").read_text()
    os.kill(served.pids[0], signal.SIGKILL)
    served.kill()
    assert eventually(lambda: not any(map(running, family)))


@needs_vllm
def test_a_model_that_it_cannot_serve_is_said_in_its_words(bundled_model: Model, tmp_path: Path) -> None:
    text = (Path(str(bundled_model.folder)) / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("LlamaForCausalLM", "NonesuchForCausalLM"))
    host = Host(Arm())
    try:
        with pytest.raises(WorkerFailedError, match=r"(?s)ended with status \d+ before it was up; its last lines:\n"):
            load(host, str(tmp_path))
    finally:
        host.close()
