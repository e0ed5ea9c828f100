"""Whether the tree is what recorded a baseline, and whether that can be checked out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
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
    assert head(tree) == (revision, None)
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


def worktrees(tree: Path) -> int:
    return git(tree, "worktree", "list").count("\n") + 1


def checked_out(tree: Path, revision: str, *names: str) -> list[str]:
    """The content of files of a checkout of base, which is gone afterwards."""
    base = resolve(revision, None, tree / "suites")
    assert base is not None
    with base.arm() as arm:
        checkout = arm("python").checkout
        assert checkout is not None
        found = [(checkout.folder / name).read_text() for name in names]
    assert not checkout.folder.exists()
    assert worktrees(tree) == 1
    return found


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "hook",
    [
        "echo 'No .pre-commit-config.yaml file was found' >&2; exit 1",
        "echo slower > stack/model.py",
        "rm stack/model.py",
        "echo new > stack/new.py",
    ],
    ids=["fails", "changes a file", "removes a file", "makes a file"],
)
def test_no_hook_of_the_user_s_runs(tree: Path, hook: str, shared: bool) -> None:
    """Such as pre-commit's, which refuses a revision of before it had a configuration."""
    script = (tree / "hooks" if shared else tree / ".git" / "hooks") / "post-checkout"
    write(script, f"#!/bin/sh\n{hook}\n")
    script.chmod(0o755)
    if shared:
        git(tree, "config", "core.hooksPath", str(tree / "hooks"))
    assert checked_out(tree, "HEAD", "stack/model.py") == ["stack/model.py"]


def filtered(tree: Path, pattern: str, clean: str, smudge: str) -> None:
    """Filter files on their way into and out of the repository, by this user's own configuration."""
    write(tree / ".git" / "info" / "attributes", f"{pattern} filter=ours\n")
    git(tree, "config", "filter.ours.clean", clean)
    git(tree, "config", "filter.ours.smudge", smudge)


@pytest.mark.parametrize(
    ("smudge", "named"),
    [
        ("sed s/model/other/", "stack/model.py"),
        ("cat; touch made", "made, stack/made"),
    ],
    ids=["another content", "a new file"],
)
def test_a_checkout_that_is_not_the_revision_is_no_base(tree: Path, smudge: str, named: str) -> None:
    filtered(tree, "model.py", "cat", smudge)
    with pytest.raises(BaseError, match=f"with other content than it has, in ({'|'.join(named.split(', '))});"):
        checked_out(tree, "HEAD")
    assert worktrees(tree) == 1


def test_a_filter_and_its_inverse_give_the_revision(tree: Path) -> None:
    filtered(tree, "model.py", "tr A-Z a-z", "tr a-z A-Z")
    write(tree / "stack" / "other.py")
    commit(tree)
    assert checked_out(tree, "HEAD~1", "stack/model.py") == ["STACK/MODEL.PY"]


def test_what_git_holds_for_unchanged_is_in_base_as_it_is_in_head(tree: Path) -> None:
    """Git LFS, told to skip the content, would check out the pointers alone."""
    filtered(tree, "*.bin", "cat > /dev/null; echo pointer", "cat")
    write(tree / "weights.bin", "the weights\n")
    write(tree / "stack" / "model.py", "before\n")
    commit(tree)
    write(tree / "stack" / "model.py", "after, and longer\n")
    commit(tree)
    assert git(tree, "show", "HEAD:weights.bin") == "pointer"
    assert checked_out(tree, "HEAD~1", "weights.bin", "stack/model.py") == ["the weights\n", "before\n"]


def test_line_ends_that_were_committed_before_their_attributes_are_no_change(tree: Path) -> None:
    """Git calls such a file changed in every clone."""
    dos = tree / "stack" / "dos.py"
    dos.write_bytes(b"a\r\nb\r\n")
    commit(tree)
    write(tree / ".gitattributes", "*.py text\n")
    git(tree, "add", ".gitattributes")
    git(tree, "commit", "--quiet", "--message", "attributes")
    os.utime(dos, (1, 1))
    assert git(tree, "status", "--porcelain") == "M stack/dos.py"
    assert clean_revision(tree, []) == git(tree, "rev-parse", "HEAD")
    assert checked_out(tree, "HEAD", "stack/model.py") == ["stack/model.py"]
    dos.write_bytes(b"a\r\nc\r\n")
    assert clean_revision(tree, []) is None


def test_a_monitor_of_the_file_system_that_lags_behind_hides_no_change(tree: Path) -> None:
    monitor = tree / ".git" / "monitor"
    write(monitor, "#!/bin/sh\nprintf '%s\\0' token\n")
    monitor.chmod(0o755)
    git(tree, "config", "core.fsmonitor", str(monitor))
    git(tree, "update-index", "--fsmonitor")
    git(tree, "status")
    write(tree / "stack" / "model.py")
    write(tree / "stack" / "new.py")
    assert git(tree, "diff", "--name-only") == "", "the monitor is asked"
    assert clean_revision(tree, []) is None


def test_a_file_that_becomes_executable_has_changed(tree: Path) -> None:
    (tree / "stack" / "model.py").chmod(0o755)
    assert clean_revision(tree, []) is None


@pytest.mark.parametrize("name", [b"caf\xe9.py", b"two\nlines.py", b'"quoted".py', b" blank"], ids=str)
def test_any_name_of_a_file_will_do(tree: Path, name: bytes) -> None:
    file = tree / "stack" / os.fsdecode(name)
    write(file)
    assert clean_revision(tree, []) is None
    revision = commit(tree)
    assert clean_revision(tree, []) == revision
    assert checked_out(tree, "HEAD", f"stack/{file.name}") == ["new\n"]
    write(file, "changed\n")
    assert clean_revision(tree, []) is None


# Submodules


@pytest.fixture
def with_submodule(tree: Path, tmp_path: Path) -> Path:
    """The repository with another one in ``lib``; at the revision before, that was at its first one."""
    other = tmp_path / "other"
    write(other / "kernel.py", "slow\n")
    git(other, "init", "--quiet")
    commit(other)
    git(tree, "-c", "protocol.file.allow=always", "submodule", "add", "--quiet", str(other), "lib")
    commit(tree)
    write(tree / "lib" / "kernel.py", "fast\n")
    commit(tree / "lib")
    commit(tree)
    return tree


def test_a_submodule_is_checked_out_at_its_own_revision(with_submodule: Path) -> None:
    assert checked_out(with_submodule, "HEAD~1", "lib/kernel.py") == ["slow\n"]
    assert checked_out(with_submodule, "HEAD", "lib/kernel.py") == ["fast\n"]
    assert worktrees(with_submodule / "lib") == 1


@pytest.mark.parametrize("change", ["kernel.py", "new.py", "commit"])
def test_a_change_in_a_submodule_is_a_change(with_submodule: Path, change: str) -> None:
    git(with_submodule, "config", "diff.ignoreSubmodules", "all")
    assert clean_revision(with_submodule, []) is not None
    write(with_submodule / "lib" / change.replace("commit", "kernel.py"), "else\n")
    if change == "commit":
        commit(with_submodule / "lib")
    assert clean_revision(with_submodule, []) is None


def test_a_submodule_that_lacks_the_revision_is_named(with_submodule: Path) -> None:
    git(with_submodule, "update-index", "--cacheinfo", f"160000,{'1' * 40},lib")
    git(with_submodule, "commit", "--quiet", "--message", "of somebody who did not push")
    with pytest.raises(BaseError, match=r"git worktree in .*/lib failed: "):
        checked_out(with_submodule, "HEAD")


def test_a_submodule_that_head_does_not_have_is_left_out(with_submodule: Path) -> None:
    git(with_submodule, "submodule", "deinit", "--quiet", "--force", "lib")
    assert checked_out(with_submodule, "HEAD", "stack/model.py") == ["stack/model.py"]


# A run that was killed


HOLDS = """\
import sys
from pathlib import Path
from pytest_llmperf.gate.checkout import resolve

held = resolve("HEAD", None, Path(sys.argv[1])).arm()
print(held.__enter__()("python").checkout.folder, flush=True)
sys.stdin.read()
"""


def test_the_checkout_of_a_run_that_was_killed_goes_with_the_next_one_and_no_other(tree: Path) -> None:
    command = [sys.executable, "-c", HOLDS, str(tree)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        folder = Path(run.stdout.readline().strip())
        base = resolve("HEAD", None, tree)
        assert base is not None
        with base.arm():
            assert worktrees(tree) == 3
        assert folder.is_dir(), "its run lives"
        run.kill()
        run.wait()
        assert folder.is_dir()
    with base.arm():
        assert worktrees(tree) == 2
    assert not folder.parent.exists()
    assert worktrees(tree) == 1


# No commit


def unowned(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """As in a container whose user is not the owner of the repository."""
    git(folder, "init", "--quiet")
    commit(folder)
    patch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        patch.setenv(name, os.devnull)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (lambda patch, folder: None, "not a git repository"),
        (lambda patch, folder: patch.setenv("PATH", ""), "git cannot be run"),
        (lambda patch, folder: git(folder, "init", "--quiet"), "has no commit yet"),
        (unowned, "safe.directory"),
    ],
    ids=["no repository", "no git", "no commit", "another owner"],
)
def test_why_there_is_no_commit_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Callable[[pytest.MonkeyPatch, Path], object], why: str
) -> None:
    how(monkeypatch, tmp_path)
    commit, said = head(tmp_path)
    assert commit is None
    assert said is not None
    assert why in said
    assert "\n" not in said
