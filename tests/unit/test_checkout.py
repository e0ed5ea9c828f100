"""Whether the tree is what recorded a baseline, and whether that can be checked out."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pytest_llmperf.gate.checkout import BaseError, clean_revision, head, is_at, recorded, resolve, top


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(folder: Path) -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "a revision")
    return git(folder, "rev-parse", "HEAD")


def write(path: Path, text: str = "new\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with a stack, suites, baselines and a revision."""
    folder = tmp_path / "head"
    for name in ("stack/model.py", "suites/test_it.py", "perf/baselines/cpu/tiny.json"):
        write(folder / name, name)
    write(folder / ".gitignore", "*.log\nbuild/\n")
    git(folder, "init", "--quiet")
    commit(folder)
    return folder


# Whether the tree is a revision


def test_a_clean_tree_is_its_revision(tree: Path) -> None:
    revision = git(tree, "rev-parse", "HEAD")
    assert clean_revision(tree, []) == revision
    assert head(tree) == revision
    assert is_at(revision, tree, [])
    assert is_at("HEAD", tree, [])


@pytest.mark.parametrize(
    "name", ["stack/model.py", "stack/new.py", "suites/test_it.py", "perf/notes", "perf/baselines/cpu/tiny.json"]
)
@pytest.mark.parametrize("staged", [False, True])
def test_a_changed_or_new_file_makes_another_tree(tree: Path, name: str, staged: bool) -> None:
    write(tree / name)
    if staged:
        git(tree, "add", "--all")
    assert clean_revision(tree, []) is None
    assert clean_revision(tree / "suites", []) is None, "wherever in the repository the suites are"
    assert not is_at("HEAD", tree / "suites", [])


def test_so_does_one_that_is_gone(tree: Path) -> None:
    (tree / "stack" / "model.py").unlink()
    assert clean_revision(tree, []) is None


@pytest.mark.parametrize("name", ["run.log", "stack/build/kernel.so", "stack/run.log"])
def test_what_is_ignored_does_not_count(tree: Path, name: str) -> None:
    write(tree / name)
    assert clean_revision(tree, []) is not None


@pytest.mark.parametrize(
    "name",
    [
        "__pycache__/conftest.pyc",
        "suites/__pycache__/test_it.pyc",
        "suites/.pytest_cache/v/cache/nodeids",
        ".benchmarks/0001.json",
        ".hypothesis/examples/0",
    ],
)
def test_nor_does_what_pytest_and_python_write(tree: Path, name: str) -> None:
    write(tree / name)
    assert clean_revision(tree, []) is not None


def test_a_file_that_was_written_again_as_it_was_is_no_change(tree: Path) -> None:
    write(tree / "stack" / "model.py", "stack/model.py")
    assert clean_revision(tree, []) is not None


@pytest.mark.parametrize("name", ["perf/baselines/cpu/tiny.json", "perf/baselines/h100/new.json", "out/[r] *.json"])
def test_what_runs_write_does_not_count(tree: Path, name: str, tmp_path: Path) -> None:
    apart = [tree / "perf" / "baselines", tree / "out" / "[r] *.json", tmp_path / "elsewhere"]
    write(tree / name)
    assert clean_revision(tree, apart) is not None
    assert clean_revision(tree / "suites", apart) is not None
    write(tree / "stack" / "model.py")
    assert clean_revision(tree, apart) is None


def test_a_path_is_no_pattern(tree: Path) -> None:
    write(tree / "out" / "r.json")
    assert clean_revision(tree, [tree / "out" / "[r].json"]) is None
    assert clean_revision(tree, [tree / "out" / "*"]) is None


@pytest.mark.parametrize("above", [False, True])
def test_baselines_at_the_root_do_not_hide_the_code(tree: Path, above: bool) -> None:
    write(tree / "stack" / "model.py")
    assert clean_revision(tree, [tree.parent if above else tree]) is None


def test_a_revision_that_differs_in_what_does_not_count_is_the_same_code(tree: Path) -> None:
    """Such as the one that recorded, when its baseline was committed."""
    first = git(tree, "rev-parse", "HEAD")
    write(tree / "perf" / "baselines" / "cpu" / "tiny.json")
    second = commit(tree)
    apart = [tree / "perf" / "baselines"]
    assert is_at(first, tree, apart)
    assert not is_at(first, tree, [])
    write(tree / "stack" / "model.py")
    third = commit(tree)
    assert [is_at(one, tree, apart) for one in (first, second, third)] == [False, False, True]
    git(tree, "revert", "--no-edit", third)
    assert is_at(first, tree, apart), "it is the same again"


def test_a_worktree_has_a_revision_of_its_own(tree: Path, tmp_path: Path) -> None:
    first = git(tree, "rev-parse", "HEAD")
    write(tree / "stack" / "model.py")
    second = commit(tree)
    other = tmp_path / "other"
    git(tree, "worktree", "add", "--quiet", "--detach", str(other), first)
    assert (clean_revision(tree, []), clean_revision(other, [])) == (second, first)
    write(other / "stack" / "new.py")
    assert (clean_revision(tree, []), clean_revision(other / "stack", [])) == (second, None)
    assert top(other / "stack") == other


def test_outside_a_repository_there_is_no_revision(tmp_path: Path) -> None:
    assert clean_revision(tmp_path, []) is None
    assert head(tmp_path) is None
    assert not is_at("HEAD", tmp_path, [])
    assert recorded("0" * 40, tmp_path) is None
    assert top(tmp_path) == tmp_path


def test_a_repository_without_a_revision_has_none(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    assert clean_revision(tmp_path, []) is None
    assert top(tmp_path) == tmp_path


def test_a_revision_that_git_does_not_have_is_not_the_tree(tree: Path) -> None:
    assert not is_at("0" * 40, tree, [])


def test_in_a_hook_of_git_the_tree_is_looked_at_all_the_same(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_INDEX_FILE", str(tree / "nowhere"))
    monkeypatch.setenv("GIT_DIR", str(tree / "nowhere"))
    assert clean_revision(tree, []) is not None


# Checking it out


def test_the_code_that_recorded_a_baseline_is_a_base(tree: Path) -> None:
    revision = git(tree, "rev-parse", "HEAD")
    commit(tree)
    found = recorded(revision, tree / "suites")
    assert found is not None
    assert (found.root, found.revision, found.python) == (tree, revision, None)
    assert str(found) == f"the baseline's revision ({revision[:12]})"


def test_what_git_does_not_have_is_none(tree: Path, tmp_path: Path) -> None:
    assert recorded("0" * 40, tree) is None
    git(tmp_path, "clone", "--quiet", "--depth=1", tree.as_uri(), "shallow")
    first = git(tree, "rev-parse", "HEAD")
    assert recorded(first, tmp_path / "shallow") is not None
    commit(tree)
    git(tmp_path, "clone", "--quiet", "--depth=1", tree.as_uri(), "shallower")
    assert recorded(first, tmp_path / "shallower") is None


def test_a_file_is_no_revision(tree: Path) -> None:
    blob = git(tree, "rev-parse", "HEAD:stack/model.py")
    assert recorded(blob, tree) is None
    with pytest.raises(BaseError, match="no such revision"):
        resolve(blob, None, tree)


HOOK = "#!/bin/sh\necho 'No .pre-commit-config.yaml file was found' >&2\nexit 1\n"


@pytest.mark.parametrize("shared", [False, True])
def test_no_hook_of_the_user_s_runs(tree: Path, shared: bool) -> None:
    """Such as pre-commit's, which refuses a revision of before it had a configuration."""
    hook = (tree / "hooks" if shared else tree / ".git" / "hooks") / "post-checkout"
    write(hook, HOOK)
    hook.chmod(0o755)
    if shared:
        git(tree, "config", "core.hooksPath", str(tree / "hooks"))
    base = resolve("HEAD", None, tree / "suites")
    assert base is not None
    with base.arm() as arm:
        checkout = arm("python").checkout
        assert checkout is not None
        assert (checkout.folder / "stack" / "model.py").read_text() == "stack/model.py"
    assert not checkout.folder.exists()
    assert git(tree, "worktree", "list").count("\n") == 0
