"""Which processes belong to a worker, and how the reaper ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inner import eventually, running

from pytest_llmperf.measure.worker_process import started_reaper
from pytest_llmperf.worker import reaper

SLEEP = [sys.executable, "-IS", "-c", "import time; time.sleep(3600)"]
FOLDER = "/tmp/llmperf-abc"
#: Values of the mark, and whether they are of the folder.
MARKS = {None: False, FOLDER: True, f"{FOLDER}/llmperf-x": True, f"{FOLDER}d": False, "/tmp": False, "": False}


def entry(proc: Path, pid: int, parent: int, mark: str | None, state: str = "S") -> None:
    """A process as the kernel shows it, with a name that has blanks and parentheses."""
    folder = proc / str(pid)
    folder.mkdir()
    (folder / "stat").write_text(f"{pid} (a) S 1 (b)) {state} {parent} 1 1 0")
    variables = ["PATH=/bin", *([] if mark is None else [f"{reaper.MARK}={mark}"]), f"OTHER={FOLDER}"]
    (folder / "environ").write_bytes(b"\0".join(one.encode() for one in variables) + b"\0")


@st.composite
def forests(draw: st.DrawFn) -> list[tuple[int, str | None, str]]:
    """The parent, the mark and the state of processes 1, 2, ...: each is younger than its parent."""
    count = draw(st.integers(1, 12))
    marks, states = st.sampled_from(list(MARKS)), st.sampled_from("SRDTZ")
    return [(draw(st.integers(0, number)), draw(marks), draw(states)) for number in range(count)]


@given(forests())
def test_members_have_the_mark_or_were_started_by_a_member(processes: list[tuple[int, str | None, str]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        for pid, (parent, mark, state) in enumerate(processes, 1):
            entry(Path(name), pid, parent, mark, state)
        (Path(name) / "self").mkdir()
        found = reaper.members(FOLDER, name)
    for pid, (parent, mark, state) in enumerate(processes, 1):
        assert (pid in found) == (state != "Z" and (MARKS[mark] or parent in found))


def test_a_system_without_proc_has_none() -> None:
    assert reaper.members(FOLDER, "/no/such/folder") == set()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv(reaper.MARK, str(tmp_path))
    made = reaper.scratch()
    assert Path(made).parent == tmp_path, "in that of whoever started it"
    yield made
    reaper.end(made)


def start(folder: str, *command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env={**os.environ, reaper.MARK: folder}, start_new_session=True)


def test_end_kills_sessions_of_their_own_and_what_cleared_its_environment(folder: str) -> None:
    (Path(folder) / "left").write_text("a file")
    marked = start(folder, "sh", "-c", f"trap '' TERM HUP; env -i {' '.join(map(repr, SLEEP))} & wait")
    nested = start(f"{folder}/deeper", *SLEEP)
    stranger = start(f"{folder}-other", *SLEEP)
    assert eventually(lambda: len(reaper.members(folder)) == 3)
    members = reaper.members(folder)
    reaper.end(folder)
    assert not any(map(running, members))
    assert not Path(folder).exists()
    assert running(stranger.pid)
    for one in (marked, nested, stranger):
        one.kill()
        one.wait()


def test_the_reaper_waits_for_the_end_of_its_lifeline_and_heeds_no_signal(folder: str) -> None:
    victim, grouped = start(folder, *SLEEP), subprocess.Popen(SLEEP, start_new_session=True)
    read, write = os.pipe()
    found = started_reaper(read, grouped.pid, folder)
    os.close(read)
    assert eventually(lambda: {signal.SIGHUP, signal.SIGINT, signal.SIGTERM} <= _ignored(found.pid))
    found.terminate()
    assert running(found.pid)
    assert running(victim.pid)
    os.close(write)
    assert found.wait(10) == 0
    assert victim.wait(10) == -9
    assert grouped.wait(10) == -9
    assert not Path(folder).exists()


def _ignored(pid: int) -> set[int]:
    """The signals that a process ignores; the kernel has a bit for each, the first for signal 1."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    bits = next(int(line.split()[1], 16) for line in lines if line.startswith("SigIgn"))
    return {number for number in range(1, 65) if bits >> (number - 1) & 1}


def test_what_cannot_be_killed_ends_in_time(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper, "PATIENCE", 0.1)
    monkeypatch.setattr(reaper, "members", lambda _folder: {os.getpid()})
    monkeypatch.setattr(reaper, "_killed", lambda _pid: True)
    reaper.end(folder)
