"""What a Python has installed, and where it came from (PEP 610)."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_llmperf import installed
from pytest_llmperf.interpreter import Interpreter
from pytest_llmperf.machine.fingerprint import everything_installed

COMMIT = "c0ffee" + "0" * 34


class Site:
    """A folder of installed distributions, first on the path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def install(self, name: str, version: str = "1", origin: Any = None, files: str | None = None) -> None:
        folder = self.path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir(parents=True, exist_ok=True)
        if files is not None:
            (folder / "RECORD").write_text(files)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        if origin is not None:
            (folder / "direct_url.json").write_text(origin if isinstance(origin, str) else json.dumps(origin))

    def editable(self, name: str, folder: Path) -> None:
        self.install(name, origin={"url": folder.as_uri(), "dir_info": {"editable": True}})


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    found = Site(tmp_path / "site")
    found.path.mkdir()
    monkeypatch.syspath_prepend(found.path)
    return found


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "a stack"
    (folder / "python").mkdir(parents=True)
    (folder / "python" / "stack.py").write_text("TPOT = 1\n")
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "a revision")
    return folder


def test_a_distribution_of_an_index_has_a_version_alone(site: Site) -> None:
    site.install("Some_Stack.Core", "1.2")
    found = installed.distributions()
    assert found["some-stack-core"] == {"version": "1.2"}
    assert found[""] == {"version": platform.python_version()}


def test_of_two_of_a_name_the_first_on_the_path_counts(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("stack", "1")
    other = Site(tmp_path / "other")
    other.install("Stack", "2")
    monkeypatch.syspath_prepend(other.path)
    assert installed.distributions()["stack"] == {"version": "2"}


@pytest.mark.parametrize(
    "origin",
    [
        {
            "url": "https://host/stack.git",
            "vcs_info": {"vcs": "git", "commit_id": COMMIT, "requested_revision": "main"},
        },
        {"url": "ssh://host/stack.git", "vcs_info": {"vcs": "hg", "commit_id": COMMIT}, "subdirectory": "python"},
    ],
)
def test_what_came_from_version_control_has_its_revision(site: Site, origin: Any) -> None:
    site.install("stack", origin=origin)
    assert installed.distributions()["stack"] == {"version": "1", "revision": COMMIT}


@pytest.mark.parametrize(
    "origin",
    [
        {"url": "https://host/stack.whl", "archive_info": {"hash": "sha256=00"}},
        "not JSON",
        "",
        "[]",
        '{"vcs_info": []}',
        '{"dir_info": []}',
    ],
    ids=["archive", "broken", "empty", "a list", "no commit", "no folder"],
)
def test_an_archive_has_a_version_alone(site: Site, origin: Any) -> None:
    site.install("stack", origin=origin, files="stack.py,sha256=a,9\n")
    assert installed.distributions()["stack"] == {"version": "1"}


@pytest.mark.parametrize("how", [{}, {"editable": False}], ids=["", "not editable"])
def test_the_copy_of_a_folder_has_a_digest_of_its_files(site: Site, how: dict[str, bool]) -> None:
    """By ``pip install .``: the version is the same for any number of commits."""
    origin = {"url": "file:///src/stack", "dir_info": how}
    revisions = []
    for files in ("stack.py,sha256=a,9\n", "stack.py,sha256=b,9\n", "stack.py,sha256=a,9\n"):
        site.install("stack", origin=origin, files=files)
        found = installed.distributions()["stack"]
        assert found.keys() == {"version", "revision"}, "it is not used in place"
        revisions.append(found["revision"])
    first, second, again = revisions
    assert re.fullmatch("[0-9a-f]{12}", first)
    assert (first == again, first == second) == (True, False)


def test_a_missing_version_is_said_to_be_unknown(site: Site) -> None:
    (site.path / "stack-1.dist-info").mkdir()
    (site.path / "stack-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: stack\n")
    assert installed.distributions()["stack"] == {"version": "?"}


def test_what_is_installed_in_place_has_its_folder_and_the_revision_there(site: Site, repository: Path) -> None:
    site.editable("stack", repository / "python")
    revision = git(repository, "rev-parse", "HEAD")
    folder = str(repository / "python")
    assert installed.distributions()["stack"] == {"version": "1", "folder": folder, "revision": revision}
    (repository / "notes.txt").write_text("nobody imports it")
    assert installed.distributions()["stack"]["revision"] == revision
    (repository / "python" / "stack.py").write_text("TPOT = 2\n")
    assert installed.distributions()["stack"]["revision"] == f"{revision}+"


def test_a_folder_without_a_repository_may_hold_any_code(site: Site, tmp_path: Path) -> None:
    (tmp_path / "stack").mkdir()
    site.editable("stack", tmp_path / "stack")
    folder = str(tmp_path / "stack")
    found = installed.distributions()["stack"]
    assert found == {"version": "1", "folder": folder, "revision": "unknown+"}
    recorded = {"stack": "1 (unknown+)"}
    assert installed.changes(recorded, recorded) == "stack 1 (unknown+), whose files differ from that revision"


def test_so_may_a_repository_without_a_revision_or_a_machine_without_git(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stack").mkdir()
    git(tmp_path / "stack", "init", "--quiet")
    site.editable("stack", tmp_path / "stack")
    expected = {"version": "1", "folder": str(tmp_path / "stack"), "revision": "unknown+"}
    assert installed.distributions()["stack"] == expected
    monkeypatch.setenv("PATH", str(tmp_path))
    assert installed.distributions()["stack"] == expected


@pytest.mark.parametrize("sources", [True, False], ids=["setuptools", "another build"])
def test_metadata_beside_the_code_is_of_code_in_place(
    repository: Path, monkeypatch: pytest.MonkeyPatch, sources: bool
) -> None:
    """As ``pip install -e .`` leaves it for an old setuptools, or PYTHONPATH finds it after any build in the tree."""
    metadata = repository / "python" / "stack.egg-info"
    metadata.mkdir()
    (metadata / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: stack\nVersion: 1\n")
    if sources:
        (metadata / "SOURCES.txt").write_text("stack.py\n")
    monkeypatch.syspath_prepend(repository / "python")
    place = {"folder": str(repository / "python"), "revision": git(repository, "rev-parse", "HEAD")}
    assert installed.distributions()["stack"] == {"version": "1"} | (place if sources else {})


def test_setuptools_metadata_in_site_packages_is_of_a_copy(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = site.path / "stack-1.egg-info"
    metadata.mkdir()
    (metadata / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: stack\nVersion: 1\n")
    (metadata / "SOURCES.txt").write_text("stack.py\n")
    monkeypatch.setattr(sys, "prefix", str(site.path.parent))
    assert installed.distributions()["stack"] == {"version": "1"}


def test_in_a_hook_of_git_another_repository_s_revision_is_found(
    site: Site, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.editable("stack", repository)
    expected = installed.distributions()["stack"]
    git(tmp_path, "init", "--quiet", "hooked")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "hooked" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "hooked"))
    assert installed.distributions()["stack"] == expected


def test_links_to_a_folder_are_followed(site: Site, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(repository)
    site.editable("stack", tmp_path / "link" / "python")
    assert installed.distributions()["stack"]["folder"] == str(repository / "python")


def test_another_interpreter_says_the_same(site: Site, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(site.path))
    site.editable("stack", repository)
    site.install("other", origin={"url": "https://host", "vcs_info": {"commit_id": COMMIT}})
    done = subprocess.run([sys.executable, installed.__file__], capture_output=True, text=True, check=True)
    here, there = installed.distributions(), json.loads(done.stdout)
    assert {name: there[name] for name in ("stack", "other", "torch", "")} == {
        name: here[name] for name in ("stack", "other", "torch", "")
    }


# Of the code under test


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask anew: what an interpreter has installed is asked once in a run."""
    monkeypatch.setattr(Interpreter, "installed", lambda _: installed.distributions())


@pytest.mark.usefixtures("everything")
def test_the_code_under_test_is_no_version(site: Site, repository: Path, tmp_path: Path) -> None:
    """The checkout says what it is, and an update of it is what the gate is to judge."""
    (tmp_path / "elsewhere").mkdir()
    site.editable("inside", repository / "python")
    site.editable("root", repository)
    site.editable("outside", tmp_path / "elsewhere")
    site.install("other", origin={"url": "https://host", "vcs_info": {"commit_id": COMMIT}})
    found = everything_installed(Interpreter(), repository)
    assert not {"inside", "root"} & found.keys()
    assert (found["outside"], found["other"]) == ("1 (unknown+)", f"1 ({COMMIT})")
    assert found["python"] == platform.python_version()


@pytest.mark.usefixtures("everything")
def test_another_repository_s_code_has_its_revision(site: Site, repository: Path, tmp_path: Path) -> None:
    site.editable("stack", repository / "python")
    revision = git(repository, "rev-parse", "HEAD")
    assert everything_installed(Interpreter(), tmp_path / "suites")["stack"] == f"1 ({revision})"
    (repository / "python" / "stack.py").write_text("TPOT = 2\n")
    assert everything_installed(Interpreter(), tmp_path / "suites")["stack"] == f"1 ({revision}+)"
