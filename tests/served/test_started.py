"""A server that the plugin starts: it works elsewhere, says why it broke, and nothing of it outlives the run."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import launcher
import pytest
from inner import WORDLEVEL, Suite, eventually, pytest_process, running

from pytest_llmperf.availability import why_not
from pytest_llmperf.backends.base import EngineSpec
from pytest_llmperf.backends.registry import BUILT_IN, Registry
from pytest_llmperf.interpreter import Interpreter
from pytest_llmperf.machine import memory
from pytest_llmperf.machine.memory import Memory
from pytest_llmperf.machine.table import DEVICES
from pytest_llmperf.served.client import ServerError
from pytest_llmperf.served.process import ServerProcess, anchored
from pytest_llmperf.served.tgi import TgiEngine
from pytest_llmperf.worker.recorder import LoadRecorder, Recorder

REGISTRY = Registry(BUILT_IN)
PROMPT = [1, 2, 3]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-in, which is on PATH, says of each start which processes it is and where it works."""
    launcher.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LAUNCHED", str(tmp_path / "launched"))
    monkeypatch.setattr("pytest_llmperf.served.process.PATIENCE", 0.2)
    return tmp_path / "launched"


def started(log: Path) -> list[tuple[list[int], Path]]:
    """The processes and the folder of every start."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [([int(one) for one in line.split()[:2]], Path(line.split()[2])) for line in lines]


def gone(log: Path) -> bool:
    return all(not folder.exists() and not any(map(running, pids)) for pids, folder in started(log))


@pytest.fixture
def engine(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TgiEngine]:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    (home / "tokenizer.json").write_text(json.dumps(WORDLEVEL))
    found = TgiEngine(EngineSpec(str(home), None, "bfloat16", "cpu", sequence_length=16, timeout=20.0))
    try:
        yield found
    finally:
        found.close()
        assert gone(log)


def test_it_works_in_a_folder_of_its_own_that_goes_with_it(engine: TgiEngine, log: Path) -> None:
    ((pids, folder),) = started(log)
    assert sorted(os.listdir()) == ["tokenizer.json"]
    assert [one.name for one in folder.iterdir()] == ["out"]
    assert sorted(engine.processes()) == sorted(pids)
    recorder = Recorder(1)
    engine.generate([PROMPT], 4, recorder)
    assert recorder.tokens == [[1, 2, 3, 1]]
    engine.close()
    assert gone(log)
    assert sorted(os.listdir()) == ["tokenizer.json"]


def test_its_memory_is_that_of_its_processes(engine: TgiEngine) -> None:
    def took() -> Memory:
        found = memory.meter(engine, "cpu").of(lambda: None)
        assert isinstance(found, Memory)
        return found

    assert eventually(lambda: took().peak > 2**26)
    assert took().peak < 2**30


def test_what_breaks_while_it_answers_says_why(
    log: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PANIC", "1")
    engine = request.getfixturevalue("engine")
    with pytest.raises(ServerError) as caught:
        engine.generate([PROMPT], 4, Recorder(1))
    first, *lines = str(caught.value).splitlines()
    assert first.endswith("; text-generation-launcher ended with status 101; its last lines:")
    assert lines[-1] == "  12:00 ERROR router panicked at 'no shard'"
    assert "\x1b" not in str(caught.value)


def test_what_breaks_under_load_says_why(
    log: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PANIC", "1")
    engine = request.getfixturevalue("engine")
    with pytest.raises(ServerError, match=r"(?s)did not survive the load; .*status 101; .*router panicked"):
        engine.serve([PROMPT] * 2, 4, LoadRecorder(2), None, 1)


def test_a_shard_without_its_launcher_is_ended_too(engine: TgiEngine, log: Path) -> None:
    ((pids, _),) = started(log)
    os.kill(pids[0], signal.SIGKILL)
    assert eventually(lambda: engine.processes() == pids[1:])
    engine.close()
    assert gone(log)


def test_paths_of_the_environment_hold_in_another_folder(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    here = str(tmp_path / "src")
    given = {"PYTHONPATH": "src:/opt/x/:nowhere:", "HF_HOME": "src", "no_proxy": "src", "MODE": "src", "PATH": ""}
    assert anchored(given, tmp_path) == given | {"PYTHONPATH": f"{here}:/opt/x/:nowhere:", "HF_HOME": here}


def test_a_server_s_environment_is_anchored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src").mkdir()
    server = ServerProcess("it", ["sh", "-c", 'cd "$SOME_DIR" && pwd; exit 3'], {"SOME_DIR": "src"})
    with pytest.raises(ServerError, match=rf"status 3 before it was up; its last lines:\n  {tmp_path}/src"):
        server.until(lambda: False, 10)
    server.stop()


# What cannot be started is not


def test_what_tgi_cannot_do_is_known_before_it_is_started(suite: Suite, log: Path) -> None:
    assert why_not(REGISTRY["tgi+gptq"], DEVICES["cpu"], Interpreter()) == (
        "it has no CPU kernel; it needs a CUDA or ROCm device"
    )
    assert why_not(REGISTRY["tgi+gptq"], DEVICES["h100"], Interpreter()) is None
    result = suite.run("suites/test_decode.py", "--llm-backends=tgi,tgi+gptq", "--llm-dtype=float32", "-rs")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines("*tgi: tgi does not support float32; choose --llm-dtype=bfloat16")
    result.stdout.fnmatch_lines("*tgi+gptq: it has no CPU kernel*")
    assert started(log) == []


# However the run ends

CONFTEST = """
class Launched(Simulated):
    def __init__(self):
        super().__init__()
        from pytest_llmperf.served.tgi import TgiEngine
        from pytest_llmperf import EngineSpec
        self.server = TgiEngine(EngineSpec(str(HERE / "tiny"), None, "bfloat16", "cpu", sequence_length=64, timeout=20))

    def generate(self, prompts, max_new_tokens, on_token):
        self.server.generate([[1, 2, 3]], 2, lambda *_: None)
        (HERE / "generating").touch()
        if (HERE / "crash").exists():
            os.kill(os.getpid(), 11)
        time.sleep(3600)
"""


def ends(suite: Suite, process: Any, how: str) -> None:
    """End a run, or a worker of it."""
    (worker,) = suite.pids("sim")
    if how == "both":
        os.kill(worker, signal.SIGKILL)
        os.killpg(process.pid, signal.SIGKILL)
    elif how == "group":  # of the worker, and pytest
        os.killpg(worker, signal.SIGKILL)
        os.killpg(process.pid, signal.SIGKILL)
    elif how != "crash":
        process.send_signal(getattr(signal, how))


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL", "SIGHUP", "SIGINT", "crash", "both", "group"])
def test_nothing_of_it_outlives_the_run(suite: Suite, log: Path, how: str) -> None:
    suite.backends(sim="Launched()", extra=CONFTEST)
    if how == "crash":
        (suite.path / "crash").touch()
    with pytest_process("suites/test_decode.py", "--llm-backends=sim", cwd=suite.path) as process:
        assert eventually((suite.path / "generating").exists, 60)
        ((pids, folder),) = started(log)
        assert all(map(running, pids)) or how == "crash"
        ends(suite, process, how)
        output, _ = process.communicate(timeout=30)
    assert eventually(lambda: gone(log), 10), (pids, folder)
    if how in ("SIGTERM", "SIGHUP"):
        assert process.returncode == pytest.ExitCode.INTERRUPTED
        assert f"stopped by {how}" in output
    if how == "crash":
        assert "killed by signal 11 (SIGSEGV)" in output
