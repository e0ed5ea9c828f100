"""What a run writes: results, reports and baselines. One that cannot be written costs a line, and not the others."""

from __future__ import annotations

import json
import os
import stat
import threading
from fnmatch import fnmatch
from pathlib import Path

import pytest
from inner import Suite

UPDATED = ("--llm-update-baselines", "--llm-invocations=3")


def summary(result: pytest.RunResult) -> str:
    """The output as one line, however it was wrapped."""
    return " ".join(result.stdout.str().split())


#: For the conftest.py: a hook that does something to a path when the last test is over.
LATE = """
def pytest_runtest_teardown(item, nextitem):
    from pathlib import Path
    from shutil import rmtree

    if nextitem is None:
        {do}
"""


@pytest.fixture
def full(suite: Suite) -> Path:
    """A link to a device that is always full. The device itself stays out of reach of a rename."""
    path = suite.path / "full.json"
    path.symlink_to("/dev/full")
    return path


@pytest.mark.parametrize("option", ["--llm-results=full.json", "--llm-report=report.md,full.json"])
def test_a_full_disk_costs_a_line_and_not_the_summary(suite: Suite, full: Path, option: str) -> None:
    result = suite.decode(option, backends="ref,sim")
    result.assert_outcomes(passed=2)
    assert result.ret == 1
    assert f"ERROR: {full} was not written: OSError: [Errno 28] No space left on device" in summary(result)
    result.stdout.fnmatch_lines(["0 cases gated: 2 no baseline", "tpot b1-p16-n8 sim *"])
    assert full.is_symlink()
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def test_each_file_is_tried_whatever_became_of_the_others(suite: Suite, full: Path) -> None:
    (suite.path / "full.md").symlink_to("/dev/full")
    taken = LATE.format(do="(HERE / 'baselines' / 'cpu' / 'tiny.json').mkdir(parents=True)")
    suite.backends(extra=taken)
    result = suite.decode(*UPDATED, "--llm-results=full.json", "--llm-report=a.md,full.md,b.csv")
    assert result.ret == 1
    said = summary(result)
    for path in ("a.md", "b.csv"):
        assert f"report written to {suite.path / path}" in said
        assert (suite.path / path).exists()
    for path in (full, suite.path / "full.md"):
        assert f"ERROR: {path} was not written: OSError: [Errno 28]" in said
    assert fnmatch(said, f"*ERROR: {suite.baseline}: cannot be read (*Is a directory*")


@pytest.mark.parametrize(
    "do",
    [
        "rmtree(HERE / 'out'); (HERE / 'out').touch()",
        "rmtree(HERE / 'out'); (HERE / 'out' / 'raw.json').mkdir(parents=True)",
    ],
    ids=["its folder is a file", "it is a folder"],
)
def test_what_became_unwritable_meanwhile_is_said(suite: Suite, do: str) -> None:
    suite.backends(extra=LATE.format(do=do))
    result = suite.decode("--llm-results=out/raw.json", "--llm-report=report.md")
    result.assert_outcomes(passed=1)
    assert result.ret == 1
    assert f"ERROR: {suite.path / 'out' / 'raw.json'} was not written: " in summary(result)
    assert (suite.path / "report.md").exists()


def test_a_folder_that_vanished_is_made_again(suite: Suite) -> None:
    suite.backends(extra=LATE.format(do="rmtree(HERE / 'out')"))
    assert suite.decode("--llm-results=out/raw.json").ret == 0
    assert json.loads((suite.path / "out" / "raw.json").read_text())["results"]


def test_what_fails_for_a_while_is_no_failure(suite: Suite) -> None:
    """The results are written after every test, and again at the end."""
    suite.test(
        "from pathlib import Path\n\n"
        "def test_one(llm_perf):\n    llm_perf.gate('tpot')\n    Path('raw.json').mkdir()\n\n"
        "def test_two():\n    Path('raw.json').rmdir()\n"
    )
    result = suite.run("test_it.py", "--llm-backends=sim", "--llm-results=raw.json")
    result.assert_outcomes(passed=2)
    assert result.ret == 0
    assert json.loads((suite.path / "raw.json").read_text())["results"]


def test_a_pipe_gets_the_results_once(suite: Suite) -> None:
    os.mkfifo(suite.path / "pipe")
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append((suite.path / "pipe").read_text()), daemon=True)
    reader.start()
    result = suite.decode("--llm-results=pipe", backends="ref,sim")
    reader.join(10)
    assert result.ret == 0
    assert len(json.loads(found[0])["results"]) == 2


def test_links_and_modes_stay(suite: Suite) -> None:
    (suite.path / "far").mkdir()
    for name in ("raw.json", "report.md"):
        (suite.path / "far" / name).touch(0o600)
        (suite.path / name).symlink_to(f"far/{name}")
    suite.baseline.parent.mkdir(parents=True)
    suite.baseline.symlink_to(suite.path / "far" / "tiny.json")
    assert suite.decode(*UPDATED, "--llm-results=raw.json", "--llm-report=report.md").ret == 0
    assert suite.baseline.is_symlink()
    assert suite.stored()["entries"]
    for name in ("raw.json", "report.md"):
        assert (suite.path / name).is_symlink()
        assert stat.S_IMODE((suite.path / "far" / name).stat().st_mode) == 0o600
        assert (suite.path / "far" / name).stat().st_size
