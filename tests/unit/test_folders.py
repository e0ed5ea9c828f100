"""Folders where the user has no home, none that can be written, or one whose path breaks a compiler's command."""

from __future__ import annotations

import getpass
import json
import os
import pwd
import tempfile
from pathlib import Path
from typing import Any

import pytest
from inner import Suite, usage_error

from pytest_llmperf import folders
from pytest_llmperf.availability import why_not
from pytest_llmperf.backends.registry import BUILT_IN, Registry
from pytest_llmperf.backends.toolchain import why_not_compiled
from pytest_llmperf.interpreter import Interpreter
from pytest_llmperf.machine.table import DEVICES

NAMES = ("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "HF_HOME", "HF_HUB_CACHE", "TMPDIR")
NOBODY_S = "/proc/home"  # where nobody can make a folder, root included


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A user without a name, a home or variables, whose temporary files have a folder of their own."""

    def unknown(uid: int) -> Any:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in (*NAMES, "TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return monkeypatch


@pytest.mark.parametrize(
    "variables",
    [{}, {"HOME": NOBODY_S}, {"HOME": ""}, {"XDG_CACHE_HOME": NOBODY_S}, {"HOME": NOBODY_S, "XDG_CACHE_HOME": "here"}],
)
def test_a_user_whose_cache_cannot_be_written_has_one_among_the_temporary_files(
    user: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        user.setenv(name, value)
    found = folders.cache()
    assert found.folder == tmp_path / "tmp" / f"pytest-llmperf-{os.getuid()}"
    assert found.folder.stat().st_mode & 0o777 == 0o700
    assert found.instead.startswith(f"{found.folder}, since the user's cache folder cannot be used (")
    told = folders.of_workers(found.folder, variables)
    assert all(not folders.unwritable(Path(told[name])) for name in ("HOME", "XDG_CACHE_HOME") if name in told)
    assert told.get("HOME", variables.get("HOME")) != NOBODY_S
    assert told["USER"] == f"user-{os.getuid()}"
    assert told["TORCHINDUCTOR_CACHE_DIR"] == str(found.folder / "inductor")
    user.setenv("USER", told["USER"])
    assert getpass.getuser() == told["USER"]


def test_a_user_whose_home_can_be_written_keeps_it(user: pytest.MonkeyPatch, tmp_path: Path) -> None:
    user.setenv("HOME", str(tmp_path))
    user.setenv("USER", "somebody")
    found = folders.cache()
    assert found == folders.Cache(tmp_path / ".cache" / "pytest-llmperf")
    assert folders.of_workers(found.folder, os.environ) == {"TORCHINDUCTOR_CACHE_DIR": str(found.folder / "inductor")}
    assert folders.of_workers(found.folder, {**os.environ, "TORCHINDUCTOR_CACHE_DIR": "/mine"}) == {}


def test_where_nothing_can_be_written_the_variable_to_set_is_named(user: pytest.MonkeyPatch) -> None:
    user.setattr(tempfile, "tempdir", NOBODY_S)
    with pytest.raises(folders.FolderError, match=r"nor can the folder of temporary files .*; set XDG_CACHE_HOME to a"):
        folders.cache()


def test_another_user_s_folder_among_the_temporary_files_is_not_used(user: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "tmp" / f"pytest-llmperf-{os.getuid()}").symlink_to(tmp_path / "theirs")
    with pytest.raises(folders.FolderError, match="is another user's"):
        folders.cache()


# Paths in a compiler's command


@pytest.mark.parametrize("name", ["a b", "a'b", 'a"b', "a\\b", "tab\tbed"])
def test_kernels_are_kept_where_no_blank_or_quote_breaks_the_command(
    user: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    assert folders.compiled(tmp_path / name) == tmp_path / "tmp" / f"pytest-llmperf-{os.getuid()}"
    user.setattr(tempfile, "tempdir", str(tmp_path / name))
    assert not folders.breaks_commands(folders.compiled(tmp_path / name))
    user.setenv("HOME", str(tmp_path / name))
    cache = folders.cache().folder
    assert cache == tmp_path / name / ".cache" / "pytest-llmperf"
    told = folders.of_workers(cache, os.environ)
    assert not any(map(folders.breaks_commands, (told["TORCHINDUCTOR_CACHE_DIR"], told["VLLM_CACHE_ROOT"])))


@pytest.mark.parametrize("name", ["a$b", "aéb", "a(b)", "a;b", "a=b"])
def test_other_characters_do_not_break_it(tmp_path: Path, name: str) -> None:
    assert folders.compiled(tmp_path / name) == tmp_path / name


@pytest.mark.parametrize(
    ("environ", "places", "said"),
    [
        ({"TORCHDYNAMO_DISABLE": "1"}, [], "TORCHDYNAMO_DISABLE=1 turns torch.compile off; unset it"),
        ({"TORCH_COMPILE_DISABLE": "1"}, [], "TORCH_COMPILE_DISABLE=1 turns torch.compile off; unset it"),
        ({"TORCH_COMPILE_DISABLE": "0"}, ["/opt/torch"], None),
        ({}, ["/my env/torch"], "torch or Python lies in /my env/torch, in whose path a blank"),
        ({}, ["/opt/torch", "/it's/include"], "torch or Python lies in /it's/include, in whose path a blank"),
        ({"TORCHINDUCTOR_CACHE_DIR": "/a b"}, [], "TORCHINDUCTOR_CACHE_DIR is /a b, in whose path a blank"),
        ({"CXX": "no-such-compiler"}, [], "needs a C++ compiler"),
    ],
)
def test_torch_compile_says_up_front_what_keeps_it_from_compiling(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], places: list[str], said: str | None
) -> None:
    compilers = {"g++": "/usr/bin/g++"}
    monkeypatch.setattr("pytest_llmperf.backends.toolchain.shutil.which", compilers.get)
    found = why_not_compiled(DEVICES["cpu"], environ, places)
    assert (found is None) == (said is None)
    assert (said or "") in (found or "")
    on_gpu = why_not_compiled(DEVICES["h100"], environ, places)
    assert on_gpu == (found if "DISABLE" in (said or "") else None)  # no C++ is compiled there


@pytest.mark.parametrize("name", ["compile", "compile-static", "compile-static+max-autotune", "int8+compile", "vllm"])
def test_every_backend_that_compiles_names_the_variable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    monkeypatch.setattr(Interpreter, "found", lambda self, names: ("torch", "2"))
    registry = Registry(BUILT_IN)
    assert why_not(registry[name], DEVICES["cpu"], Interpreter()) == (
        "TORCHDYNAMO_DISABLE=1 turns torch.compile off; unset it"
    )
    assert why_not(registry["eager"], DEVICES["cpu"], Interpreter()) is None
    assert why_not(registry["vllm-eager"], DEVICES["cpu"], Interpreter()) is None


# Whole runs


def test_a_run_without_a_home_measures_and_the_doctor_says_where_its_cache_is(
    suite: Suite, user: pytest.MonkeyPatch
) -> None:
    user.setenv("HOME", NOBODY_S)
    result = suite.decode("--llm-results=raw.json", backends="ref,sim")
    result.assert_outcomes(passed=2)
    findings = json.loads((suite.path / "raw.json").read_text())["findings"]
    (found,) = [one for one in findings if one["subject"] == "cache"]
    assert (found["level"], found["remedy"]) == ("warn", folders.REMEDY)
    result = suite.run("--llm-doctor")
    result.stdout.fnmatch_lines("warn *cache *")
    assert suite.run("--llm-list").ret == 0


def test_a_run_without_any_folder_for_its_cache_ends_in_one_line(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", NOBODY_S)
    temporary = folders._temporary
    monkeypatch.setattr(folders, "_temporary", lambda _root: temporary(NOBODY_S))
    assert "set XDG_CACHE_HOME to a folder that can be written" in usage_error(suite.decode())


def test_a_worker_without_room_for_temporary_files_fails_its_tests_in_one_line(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pytest_llmperf.worker.reaper.scratch", full)
    result = suite.decode()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines("cannot start a worker: *No space left on device; check the disk and TMPDIR")
    result.stdout.no_fnmatch_line("*Traceback*")
