"""Files that runs write: replaced in one step, through links, or written into where nothing can be replaced."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest

from pytest_llmperf import files

TEXT = "new\n"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Replaced


def test_a_new_file_gets_its_folder_and_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    path = tmp_path / "a" / "b" / "r.json"
    files.check(path)
    assert list(path.parent.iterdir()) == []
    files.replace(path, TEXT)
    assert path.read_text() == TEXT
    assert mode(path) == mode(tmp_path / "usual")


@pytest.mark.parametrize("kept", [0o600, 0o664, 0o444, 0o755])
def test_a_file_keeps_its_mode(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "r.json"
    path.write_text("old, and longer\n")
    path.chmod(kept)
    files.replace(path, TEXT)
    assert (path.read_text(), mode(path)) == (TEXT, kept)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_keeps_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.touch()
    os.chown(path, 12345, 54321)
    files.replace(path, TEXT)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)


def test_whoever_may_not_give_files_away_writes_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.json"
    path.touch()
    monkeypatch.setattr(os, "fchown", Mock(side_effect=PermissionError(1, "Operation not permitted")))
    files.replace(path, TEXT)
    assert path.read_text() == TEXT


@pytest.mark.parametrize("there", [True, False], ids=["file", "no file yet"])
@pytest.mark.parametrize("relative", [True, False])
def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path, there: bool, relative: bool) -> None:
    target, link, first = tmp_path / "far" / "r.json", tmp_path / "link", tmp_path / "first"
    target.parent.mkdir()
    if there:
        target.write_text("old\n")
    link.symlink_to(Path("far/r.json") if relative else target)
    first.symlink_to("link")
    files.check(first)
    files.replace(first, TEXT)
    assert target.read_text() == TEXT
    assert first.is_symlink()
    assert link.is_symlink()
    assert [one.name for one in target.parent.iterdir()] == ["r.json"]


def test_a_link_in_a_circle_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        files.replace(tmp_path / "a", TEXT)


@pytest.mark.parametrize("error", [13, 1, 16, 30], ids=["EACCES", "EPERM", "EBUSY", "EROFS"])
def test_what_cannot_be_replaced_is_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    """Such as a file that a container mounts, or one that is ours in a folder that is not."""
    path = tmp_path / "r.json"
    path.write_text("old, and longer\n")
    inode = path.stat().st_ino
    monkeypatch.setattr(os, "replace", Mock(side_effect=OSError(error, os.strerror(error))))
    files.replace(path, TEXT)
    assert (path.read_text(), path.stat().st_ino) == (TEXT, inode)
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match=os.strerror(error)):
        files.replace(tmp_path / "new.json", TEXT)
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.json"
    path.write_text("old\n")
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        files.replace(path, TEXT)
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["folder", "file/r.json"])
def test_a_folder_in_its_place_or_a_file_in_its_folder_s_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for write in (files.check, lambda path: files.replace(path, TEXT)):
        with pytest.raises(OSError, match=r"[Dd]irectory|File exists"):
            write(tmp_path / name)
    assert {one.name for one in tmp_path.iterdir()} == {"folder", "file"}


# Written into


def device(path: Path) -> tuple[int, int]:
    return path.stat().st_mode, path.stat().st_rdev


def test_a_device_is_written_into_and_stays(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    before = device(Path("/dev/null"))
    for path in (Path("/dev/null"), link):
        assert files.stream(path)
        files.check(path)
        files.replace(path, TEXT)
    assert device(Path("/dev/null")) == before
    assert link.is_symlink()
    assert not list(Path("/dev").glob(".*.tmp"))


def test_a_full_device_is_an_error_and_stays() -> None:
    before = device(Path("/dev/full"))
    with pytest.raises(OSError, match="No space left"):
        files.replace(Path("/dev/full"), TEXT)
    assert device(Path("/dev/full")) == before


def test_a_pipe_gets_the_text(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(path.read_text()))
    reader.start()
    large = TEXT * 100_000  # more than a pipe holds
    while reader.is_alive() and not found:
        try:
            files.replace(path, large)
            break
        except OSError:  # the reader has not opened it yet
            continue
    reader.join(10)
    assert found == [large]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_pipe_that_nobody_reads_is_an_error_and_no_wait(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    files.check(path)
    with pytest.raises(OSError, match="No such device or address"):
        files.replace(path, TEXT)
    assert stat.S_ISFIFO(path.stat().st_mode)


WRITES = "import sys; from pathlib import Path; from pytest_llmperf import files; print('before', flush=True); "


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("to", ["a file", "a pipe"])
def test_an_open_descriptor_is_written_into(tmp_path: Path, name: str, to: str) -> None:
    """Of a file too: a log is not replaced by what was to be added to it."""
    code = f"{WRITES}assert files.stream(Path({name!r})); files.replace(Path({name!r}), 'new\\n')"
    log = tmp_path / "log"
    with log.open("a") as file:
        where = file if to == "a file" else subprocess.PIPE
        done = subprocess.run([sys.executable, "-c", code], check=True, stdout=where, text=True)
    assert (log.read_text() if to == "a file" else done.stdout) == "before\nnew\n"


def test_a_file_in_shared_memory_is_a_file() -> None:
    path = Path(f"/dev/shm/llmperf-test-{os.getpid()}")
    try:
        assert not files.stream(path)
        files.replace(path, TEXT)
        files.replace(path, TEXT)
        assert path.read_text() == TEXT
    finally:
        path.unlink(missing_ok=True)


# Locked


HOLDS = """\
from pathlib import Path
from pytest_llmperf import files

held = files.lock(Path("."), 0)
print(held, flush=True)
input()
"""


def test_a_folder_is_locked_as_long_as_its_owner_lives(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDS]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        with pytest.raises(TimeoutError, match=r"another process has kept it locked for 0\.05 s"):
            files.lock(tmp_path, 0.05)
        owner.kill()
    os.close(files.lock(tmp_path, 0))
    os.close(files.lock(tmp_path, 0))
    assert list(tmp_path.iterdir()) == []


def test_where_there_are_no_locks_there_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(95, "Operation not supported")))
    os.close(files.lock(tmp_path, 0))
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        files.lock(tmp_path, 0)
