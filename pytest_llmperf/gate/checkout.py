"""The code of an arm: finds a revision with git, says whether the tree still is that revision, and checks it out."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_llmperf import files
from pytest_llmperf.installed import OF_A_HOOK
from pytest_llmperf.measure.worker_process import Arm, Checkout

#: How the names of the folders begin that hold checkouts of base. Each is locked as long as its run lives.
PREFIX = "llmperf-base-"
#: Files that an error names.
NAMED = 3


class BaseError(ValueError):
    """The base that was asked for cannot be had: one line with what, why and what to do."""


@contextmanager
def naming(stated: str) -> Iterator[None]:
    """Put an option before the error of what it asks for."""
    try:
        yield
    except BaseError as error:
        raise BaseError(f"{stated}: {error}") from None


@dataclass(frozen=True)
class Base:
    """The code that head is compared with; or head, where somebody named its revision.

    Attributes:
        root: the repository under test.
        revision: the commit; None for the tree as it is.
        stated: that revision in the user's words, or where it comes from.
        python: the interpreter of ``--llm-base-python``; None for each backend's own.
    """

    root: Path
    revision: str | None
    stated: str | None
    python: str | None

    def __str__(self) -> str:
        """For reports: ``main (1a2b3c4d5e6f)``, or the interpreter."""
        revision = f"{self.stated} ({self.revision[:12]})" if self.revision else ""
        return " with ".join(filter(None, [revision, self.python]))

    @contextmanager
    def arm(self, name: str = "base") -> Iterator[Callable[[str], Arm]]:
        """How to make the arm for a backend that head runs with that interpreter; the checkout goes afterwards.

        Raises:
            BaseError: git cannot check the revision out, or not as it is.
        """
        with ExitStack() as made:
            yield self._arm(name, made)

    def _arm(self, name: str, made: ExitStack) -> Callable[[str], Arm]:
        """As `arm`; what is made goes with ``made``."""
        if self.revision is None:
            return lambda python: Arm(name, self.python or python)
        _sweep(self.root)
        try:
            parent = made.enter_context(tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True))
            made.callback(os.close, files.lock(Path(parent), patience=0))
        except OSError as error:
            raise BaseError(f"there is no room for its checkout ({error}); check the disk and TMPDIR") from None
        folder = Path(parent).resolve() / (self.root.name or "root")
        made.enter_context(_checked_out(self.root, self.revision, folder))
        checkout = Checkout(self.revision, self.root, folder)
        # Kernels that torch builds at run time are kept by their names, under which base would find head's.
        environment = {"TORCH_EXTENSIONS_DIR": str(folder.with_name("extensions"))}
        return lambda python: Arm(name, self.python or python, environment, checkout)


@contextmanager
def _checked_out(root: Path, revision: str, folder: Path) -> Iterator[None]:
    """A worktree of a revision, with every submodule that head has.

    Raises:
        BaseError: git cannot, or what it checks out is not the revision.
    """
    with ExitStack() as made:
        made.callback(_remove, root, folder)
        _git(root, "worktree", "add", "--detach", "--quiet", str(folder), revision)
        try:
            _as_in_head(root, revision, folder)
        except OSError as error:
            raise BaseError(f"its checkout cannot be completed ({error}); check the disk and TMPDIR") from None
        if wrong := _other_content(folder, revision):
            more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
            raise BaseError(
                f"git checks {revision[:12]} out with other content than it has, in "
                f"{_printable(', '.join(wrong[:NAMED]))}{more}; look for a filter in .gitattributes"
            )
        for path, commit in _submodules(root, revision):
            made.enter_context(_checked_out(root / path, commit, folder / path))
        yield


def _as_in_head(root: Path, revision: str, folder: Path) -> None:
    """Give base head's own copy of each file that git says is the same in both.

    A filter may check another one out, as Git LFS does where it is told to skip the content.
    """
    changed = _differing(root, revision)
    for name in _files(folder, revision):
        ours, theirs = root / name, folder / name
        if name not in changed and _regular(ours) and ours.stat().st_size != theirs.stat().st_size:
            shutil.copyfile(ours, theirs)


def _other_content(folder: Path, revision: str) -> list[str]:
    """Files of a checkout that are not the revision's, neither byte for byte nor as git would store them; new ones."""
    blobs = _files(folder, revision)
    stored, bytewise = (_hashes(folder, blobs, *how) for how in ((), ("--no-filters",)))
    new = _git(folder, "ls-files", "--others", "--exclude-standard", "-z")
    return [
        *(name for name, blob in blobs.items() if blob not in (stored[name], bytewise[name])),
        *filter(None, new.split("\0")),
    ]


def _files(folder: Path, revision: str) -> dict[str, str]:
    """The blob of each regular file of a revision that is in a folder, by its path."""
    found = {path: blob for mode, blob, path in _tree(folder, revision) if mode.startswith("100") and _takes(path)}
    return {path: blob for path, blob in found.items() if _regular(folder / path)}


def _submodules(root: Path, revision: str) -> Iterator[tuple[str, str]]:
    """Path and commit of each submodule of a revision that head has checked out."""
    for mode, commit, path in _tree(root, revision):
        if mode == "160000" and (root / path / ".git").exists():
            yield path, commit


def _tree(root: Path, revision: str) -> Iterator[tuple[str, str, str]]:
    """Mode, object and path of everything in a revision."""
    for line in _git(root, "ls-tree", "-r", "-z", "--full-tree", revision).split("\0"):
        about, _, path = line.partition("\t")
        if path:
            mode, _, name = about.split()
            yield mode, name, path


def _hashes(root: Path, names: Iterable[str], *how: str) -> dict[str, str]:
    """The blobs that git would make of files."""
    names = list(names)
    if not names:
        return {}
    found = _git(root, "hash-object", *how, "--stdin-paths", given="".join(f"{name}\n" for name in names))
    return dict(zip(names, found.split(), strict=True))


def _takes(name: str) -> bool:
    """Whether ``git hash-object`` can be given a path, one a line."""
    return "\n" not in name and not name.startswith('"')


def _regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _sweep(root: Path) -> None:
    """Remove the checkouts of runs that were killed: nobody has their folders locked any more."""
    for line in _git(root, "worktree", "list", "--porcelain").splitlines():
        folder = Path(line.removeprefix("worktree "))
        if not line.startswith("worktree ") or not folder.parent.name.startswith(PREFIX):
            continue
        try:
            lock = files.lock(folder.parent, patience=0)
        except OSError:  # its run lives, or is another user's, or the folder is gone
            continue
        _remove(root, folder)
        shutil.rmtree(folder.parent, ignore_errors=True)
        os.close(lock)


def _remove(root: Path, folder: Path) -> None:
    # Where it fails, git was interrupted or has forgotten the folder already; what was measured stands.
    with suppress(BaseError):  # the second --force: one that was killed while adding it left it locked
        _git(root, "worktree", "remove", "--force", "--force", str(folder))


def resolve(revision: str | None, python: str | None, folder: Path, option: str = "--llm-base") -> Base | None:
    """The base, or None where none was asked for.

    Args:
        revision: a branch, a tag or a commit of the repository that ``folder`` is in.
        python: an interpreter.
        folder: of the suites under test.
        option: which names the revision.

    Raises:
        BaseError: there is no repository, or no such commit in it.
    """
    if revision is None:
        return Base(folder, None, None, python) if python is not None else None
    with naming(f"{option}={revision}"):
        root = Path(_git(folder, "rev-parse", "--show-toplevel")).resolve()
    try:
        commit = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except BaseError:
        raise BaseError(
            f"{option}={revision}: {root} has no such revision; fetch it (a shallow clone has few), or name another"
        ) from None
    return Base(root, commit, revision, python)


def line(good: str, bad: str, folder: Path) -> list[tuple[str, str]]:
    """The commits from one to another along first parents, the first of them included: hash and subject of each.

    Raises:
        BaseError: git does not have them, or the first is not among the ancestors of the other.
    """
    ends = [resolve(one, None, folder, option) for one, option in ((good, "GOOD"), (bad, "BAD"))]
    first, last = (end.revision for end in ends if end and end.revision)
    if _git(folder, "merge-base", first, last) != first:
        raise BaseError(f"{good} is no ancestor of {bad}; name the older revision first")
    after = _git(folder, "log", "--first-parent", "--reverse", "--format=%H %s", f"{first}..{last}")
    start = _git(folder, "log", "--max-count=1", "--format=%H %s", first)
    found = (line.partition(" ") for line in [start, *after.splitlines()])
    return [(commit, subject) for commit, _, subject in found]


def top(folder: Path) -> Path:
    """The root of the repository that a folder is in; the folder itself outside a repository."""
    try:
        return Path(_git(folder, "rev-parse", "--show-toplevel")).resolve()
    except BaseError:
        return folder


def recorded(revision: str, folder: Path) -> Base | None:
    """The base at the revision that recorded a baseline; None if git does not have it.

    Args:
        revision: the commit, in full.
        folder: of the suites under test.
    """
    try:
        root = Path(_git(folder, "rev-parse", "--show-toplevel")).resolve()
        _git(root, "cat-file", "-e", f"{revision}^{{commit}}")
    except BaseError:
        return None
    return Base(root, revision, "the baseline's revision", None)


def clean_revision(folder: Path, apart: Iterable[Path]) -> str | None:
    """The commit under test, if the tree is exactly that commit; None if it is not, or outside a repository.

    Args:
        folder: in the repository.
        apart: files and folders that do not count, such as the baselines.
    """
    try:
        commit = _git(folder, "rev-parse", "--verify", "HEAD")
    except BaseError:
        return None
    return commit if is_at(commit, folder, apart) else None


def is_at(revision: str, folder: Path, apart: Iterable[Path]) -> bool:
    """Whether the tree is the same as at a revision, but for what does not count.

    Args:
        revision: a commit.
        folder: in the repository.
        apart: files and folders that do not count, such as the baselines. The repository itself always counts.
    """
    try:
        root = Path(_git(folder, "rev-parse", "--show-toplevel")).resolve()
        inside = [path.relative_to(root) for path in map(Path.resolve, apart) if root in path.parents]
        excluded = [f":(exclude,literal){path}" for path in inside]
        return not _changed(root, revision, *excluded, *GENERATED) and all(
            is_at(commit, root / path, apart) for path, commit in _submodules(root, revision)
        )
    except BaseError:
        return False


def _changed(root: Path, revision: str, *excluded: str) -> bool:
    """Whether a file of a tree is not as at a revision, or new.

    A file that is byte for byte the revision's is unchanged, even where git would now store it otherwise: with other
    line ends, say, since ``.gitattributes`` is younger than the file.
    """
    found = _differing(root, revision, *excluded)
    if None in found.values() or found != _hashes(root, found, "--no-filters"):
        return True
    return bool(_git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", ".", *excluded))


def _differing(root: Path, revision: str, *excluded: str) -> dict[str, str | None]:
    """Files that git says differ from a revision, and their blob there; None where more than the content differs.

    Of a submodule, its commit counts here.
    """
    how = ("--raw", "-z", "--no-abbrev", "--no-renames", "--no-ext-diff", "--ignore-submodules=dirty")
    parts = _git(root, "diff", *how, revision, "--", ".", *excluded).split("\0")
    found: dict[str, str | None] = {}
    for about, name in zip(parts[::2], parts[1::2], strict=False):  # the last part is empty
        old_mode, mode, blob, _, status = about.lstrip(":").split()
        alike = status == "M" and old_mode == mode and mode.startswith("100") and _takes(name)
        found[name] = blob if alike else None
    return found


#: What pytest and Python write beside the code, as git's patterns.
GENERATED = tuple(
    f":(exclude,glob)**/{name}/**" for name in ("__pycache__", ".pytest_cache", ".benchmarks", ".hypothesis")
)


def head(folder: Path) -> tuple[str | None, str | None]:
    """The commit of the tree under test, with a plus sign where files differ from it; or None, and why."""
    try:
        _git(folder, "rev-parse", "--git-dir")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except BaseError as error:
        return None, str(error)
    try:
        return _git(folder, "rev-parse", "--verify", "HEAD") + "+" * bool(changed), None
    except BaseError:
        return None, f"the repository of {folder} has no commit yet"


def _git(folder: Path, *arguments: str, given: str = "") -> str:
    # A hook, as of a checkout, is for the people who work there. A monitor of the file system may lag behind.
    plain = ("-c", f"core.hooksPath={os.devnull}", "-c", "core.fsmonitor=false")
    environment = {name: value for name, value in os.environ.items() if name not in OF_A_HOOK}
    try:
        done = subprocess.run(
            ["git", *plain, "-C", str(folder), *arguments],
            input=given,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",  # as Python has paths
            check=True,
            env=environment | {"GIT_TERMINAL_PROMPT": "0"},  # a clone without all content may have to fetch
        )
    except OSError as error:
        raise BaseError(f"git cannot be run ({error}); install git") from None
    except subprocess.CalledProcessError as error:
        said = _printable(" ".join(error.stderr.split())) or f"exit status {error.returncode}"
        raise BaseError(f"git {arguments[0]} in {folder} failed: {said}") from None
    return done.stdout.rstrip("\n")


def _printable(text: str) -> str:
    """Without the bytes that are no text."""
    return text.encode(errors="replace").decode()
