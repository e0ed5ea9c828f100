"""The base arm's code: finds a revision with git, says whether the tree still is that revision, and checks it out."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_llmperf.installed import OF_A_HOOK
from pytest_llmperf.measure.worker_process import Arm, Checkout


class BaseError(ValueError):
    """The base that was asked for cannot be had: one line with what, why and what to do."""


@dataclass(frozen=True)
class Base:
    """The code that head is compared with.

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
    def arm(self) -> Iterator[Callable[[str], Arm]]:
        """How to make the arm for a backend that head runs with that interpreter; the checkout goes afterwards.

        Raises:
            BaseError: git cannot check the revision out.
        """
        if self.revision is None:
            yield lambda python: Arm("base", self.python or python)
            return
        with tempfile.TemporaryDirectory(prefix="llmperf-base-") as parent:
            folder = Path(parent).resolve() / self.root.name
            checkout = Checkout(self.revision, self.root, folder)
            # Kernels that torch builds at run time are kept by their names, under which base would find head's.
            environment = {"TORCH_EXTENSIONS_DIR": str(Path(parent).resolve() / "extensions")}
            try:
                _git(self.root, "worktree", "add", "--detach", "--quiet", str(folder), self.revision)
                yield lambda python: Arm("base", self.python or python, environment, checkout)
            finally:
                # Where it fails, git was interrupted or has forgotten the folder already; what was measured stands.
                with suppress(BaseError):  # the second --force: one that was killed while adding it left it locked
                    _git(self.root, "worktree", "remove", "--force", "--force", str(folder))


def resolve(revision: str | None, python: str | None, folder: Path) -> Base | None:
    """The base, or None where none was asked for.

    Args:
        revision: a branch, a tag or a commit of the repository that ``folder`` is in.
        python: an interpreter.
        folder: of the suites under test.

    Raises:
        BaseError: there is no repository, or no such commit in it.
    """
    if revision is None:
        return Base(folder, None, None, python) if python is not None else None
    root = Path(_git(folder, "rev-parse", "--show-toplevel")).resolve()
    try:
        commit = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except BaseError:
        raise BaseError(
            f"--llm-base={revision}: {root} has no such revision; fetch it (a shallow clone has few), or name another"
        ) from None
    return Base(root, commit, revision, python)


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
        only = ["--", ".", *(f":(exclude,literal){path}" for path in inside), *GENERATED]
        changed = _git(root, "diff", "--name-only", "--no-ext-diff", revision, *only)
        new = _git(root, "ls-files", "--others", "--exclude-standard", *only)
    except BaseError:
        return False
    return not (changed or new)


#: What pytest and Python write beside the code, as git's patterns.
GENERATED = tuple(
    f":(exclude,glob)**/{name}/**" for name in ("__pycache__", ".pytest_cache", ".benchmarks", ".hypothesis")
)


def head(folder: Path) -> str | None:
    """The commit of the tree under test, with a plus sign where files differ from it; None outside a repository."""
    try:
        commit = _git(folder, "rev-parse", "--verify", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except BaseError:
        return None
    return f"{commit}{'+' * bool(changed)}"


def _git(folder: Path, *arguments: str) -> str:
    # A hook, as of a checkout, is for the people who work there.
    command = ["git", "-c", f"core.hooksPath={os.devnull}", "-C", str(folder), *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in OF_A_HOOK}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    except OSError as error:
        raise BaseError(f"base cannot be had: git cannot be run ({error}); install git") from None
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split()) or f"exit status {error.returncode}"
        raise BaseError(f"base cannot be had: git {arguments[0]} in {folder} failed: {said}") from None
    return done.stdout.strip()
