"""The base arm: what head is measured against, side by side. Git at the edge: finds a revision, checks it out."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_llmperf.measure.worker_process import Arm, Checkout


class BaseError(ValueError):
    """The base that was asked for cannot be had: one line with what, why and what to do."""


@dataclass(frozen=True)
class Base:
    """What was asked for, and found to be there.

    Attributes:
        root: the repository under test.
        revision: the commit of ``--llm-base``; None for the tree as it is.
        stated: that revision in the user's words.
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


def head(folder: Path) -> str | None:
    """The commit of the tree under test, with a plus sign where files differ from it; None outside a repository."""
    try:
        commit = _git(folder, "rev-parse", "--verify", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except BaseError:
        return None
    return f"{commit}{'+' * bool(changed)}"


#: What git tells its hooks of the repository that it works on; there a worktree would be given that one's index.
OF_A_HOOK = {"GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_PREFIX"}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in OF_A_HOOK}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    except OSError as error:
        raise BaseError(f"--llm-base needs git, which cannot be run ({error})") from None
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split()) or f"exit status {error.returncode}"
        raise BaseError(f"--llm-base: git {arguments[0]} in {folder} failed: {said}") from None
    return done.stdout.strip()
