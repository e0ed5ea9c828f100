"""What an engine's figures depend on beside the code is stored, reported, and named when it has changed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gated import SIM, TPOT, decode
from inner import Suite

from pytest_llmperf import interpreter
from pytest_llmperf.worker.server import Worker

STAND_IN = "Backend('sim', load_sim, distributions=('Stand_In.Engine',))"


def installed(folder: Path, version: str) -> Path:
    """A folder with a version of the stand-in distribution."""
    info = folder / f"stand_in_engine-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: Stand-In-Engine\nVersion: {version}\n")
    return folder


def python(folder: Path) -> Path:
    """An interpreter that has what is installed in a folder, besides what this one has."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    return script


@pytest.fixture(params=["pytest's own", "another"])
def version(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Installs a version of the stand-in; the option of the interpreter that has it."""

    def install(number: str) -> str:
        interpreter._installed.cache_clear()
        folder = installed(tmp_path / f"site-{number}", number)
        if request.param == "another":
            return f"--llm-python=sim={python(folder)}"
        monkeypatch.syspath_prepend(folder)  # the first of a name is the one that is imported
        return "--llm-backends=sim"

    yield install
    interpreter._installed.cache_clear()


def result_of(suite: Suite) -> dict[str, Any]:
    (one,) = json.loads((suite.path / "raw.json").read_text())["results"]
    return one  # type: ignore[no-any-return]


def test_an_upgrade_of_a_user_s_engine_is_named_whatever_the_verdict(suite: Suite, version: Any) -> None:
    suite.backends(backends=f"[Backend('ref', load_ref), {STAND_IN}]")
    old = version("1.0")
    assert suite.decode(old, "--llm-update-baselines", "--llm-invocations=3").ret == 0
    (stored,) = suite.stored()["versions"].values()
    assert stored["stand-in-engine"] == "1.0"

    result, said = decode(suite, old)
    assert said["outcome"] == "ok"
    assert result_of(suite)["changed"] == ""
    result.stdout.no_fnmatch_line("changed since*")

    new = version("2.0")
    result, said = decode(suite, new, "--llm-report=report.md,report.html,report.csv")
    assert said["outcome"] == "ok"
    named = "stand-in-engine 1.0 -> 2.0"
    assert result_of(suite)["changed"] == named
    assert result_of(suite)["engine"]["versions"]["Stand_In.Engine"] == "2.0"
    result.stdout.fnmatch_lines(f"changed since the baseline was recorded: {named} (tpot b1-p16-n8 sim)")
    for report in ("report.md", "report.html", "report.csv"):
        assert "2.0" in (suite.path / report).read_text()

    suite.backends(sim="Simulated(tpot=0.0025)", backends=f"[Backend('ref', load_ref), {STAND_IN}]")
    result, said = decode(suite, new)
    assert said["ratio"] == pytest.approx(0.5)
    result.stdout.fnmatch_lines(f"changed since the baseline was recorded: {named} (tpot b1-p16-n8 sim)")


def test_variables_of_a_backend_are_stored_and_compared_but_no_secret_is(suite: Suite) -> None:
    def backend(threads: int) -> None:
        environment = {"OURS_THREADS": str(threads), "OURS_API_KEY": "hunter2", "ours_token": "hunter2"}
        suite.backends(backends=f"[Backend('ref', load_ref), Backend('sim', load_sim, environment={environment})]")

    backend(1)
    assert suite.decode("--llm-update-baselines", "--llm-invocations=3").ret == 0
    (sitting,) = suite.stored()["sittings"].values()
    assert sitting["system"]["environment"] == {"OURS_THREADS": "1"}
    decode(suite)
    assert result_of(suite)["changed"] == ""
    backend(2)
    decode(suite, "--llm-report=report.md")
    assert result_of(suite)["changed"] == "OURS_THREADS 1 -> 2"
    assert result_of(suite)["engine"]["environment"] == {"OURS_THREADS": "2"}
    for file in (suite.baseline, suite.path / "raw.json", suite.path / "report.md"):
        assert "hunter2" not in file.read_text()


THREADS = """
class Threaded(Simulated):
    threads = {}
"""


def test_a_baseline_of_other_threads_is_of_another_state(suite: Suite) -> None:
    suite.backends(sim="Threaded(tpot=0.005)", extra=THREADS.format(1))
    assert suite.decode("--llm-update-baselines", "--llm-invocations=3").ret == 0
    (sitting,) = suite.stored()["sittings"].values()
    assert sitting["system"]["threads"] == 1
    assert decode(suite)[1]["outcome"] == "ok"
    suite.backends(sim="Threaded(tpot=0.005 / 1.5)", extra=THREADS.format(2))
    result, said = decode(suite)
    assert (result.ret, said["outcome"]) == (0, "inconclusive")
    assert "recorded with 1 thread, and this run has 2 threads" in said["reason"]
    assert result_of(suite)["engine"]["threads"] == 2
    result = suite.decode("--llm-update-baselines", "--llm-invocations=3")
    doubt = "recorded with 1 thread, and this run has 2 threads"
    result.stdout.fnmatch_lines(f"the machine was in another state when the old figures were recorded: {doubt}")


def test_a_baseline_of_other_variables_or_less_cpu_time_is_of_another_state(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    result = suite.decode("--llm-update-baselines", "--llm-invocations=3")
    result.stdout.fnmatch_lines(
        "recorded with *OMP_PROC_BIND=true*: the baseline decides nothing about runs with other*"
    )
    (sitting,) = suite.stored()["sittings"].values()
    assert sitting["system"]["variables"]["OMP_PROC_BIND"] == "true"
    monkeypatch.delenv("OMP_PROC_BIND")
    _, said = decode(suite)
    assert said["outcome"] == "inconclusive"
    assert "recorded with OMP_PROC_BIND=true, and this run has no OMP_PROC_BIND" in said["reason"]
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    monkeypatch.setattr("pytest_llmperf.machine.cgroup.Group.quota", lambda _group: 0.5)
    _, said = decode(suite)
    assert "and this run has 0.5 CPUs' worth of time" in said["reason"]


def test_a_baseline_that_does_not_say_compares_as_before(suite: Suite) -> None:
    suite.record({"sim/tpot": TPOT})
    suite.backends(sim="Threaded(tpot=0.005)", extra=THREADS.format(2))
    assert decode(suite)[1]["outcome"] == "ok"
    assert result_of(suite)["case"] == f"{SIM}/tpot"


@pytest.mark.parametrize(
    ("engine", "device", "threads"),
    [
        ({"threads": 3}, "cpu", 3),
        ({"threads": 3}, "cuda", 3),
        ({}, "cuda", None),
        ({"serve": print}, "cpu", None),
        ({}, "cpu", 7),
    ],
)
def test_the_engine_says_its_threads_or_torch_does(
    monkeypatch: pytest.MonkeyPatch, engine: dict[str, Any], device: str, threads: int | None
) -> None:
    worker = Worker()
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(get_num_threads=lambda: 7))  # type: ignore[misc]
    worker.engine, worker.device = SimpleNamespace(**engine), device  # type: ignore[assignment]
    assert worker._threads() == threads
