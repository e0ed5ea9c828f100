"""A Python that workers run in: what is installed there, asked without importing any of it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

from pytest_llmperf import installed


class InterpreterError(ValueError):
    """There is no Python at the path."""


@dataclass(frozen=True)
class Interpreter:
    """A Python by its path; pytest's own unless another is named."""

    path: str = sys.executable

    @property
    def own(self) -> bool:
        """Whether it is the one that pytest runs in."""
        return self.path == sys.executable

    def python_version(self) -> str:
        return platform.python_version() if self.own else self.installed()[""]["version"]

    def installed(self) -> Mapping[str, Mapping[str, str]]:
        """Everything that is installed, as `pytest_llmperf.installed.distributions` says it.

        Raises:
            InterpreterError: the interpreter cannot be asked.
        """
        return _installed(self.path)

    def compiled_against(self) -> list[str]:
        """The folders of torch and of Python's headers, which the command of a C++ compiler names; nothing is imported.

        Of another interpreter, the folder that it is installed in.
        """
        if not self.own:
            return [str(Path(self.path).absolute().parent.parent)]
        torch = PathFinder.find_spec("torch")
        found = [str(Path(torch.origin).parent)] if torch and torch.origin else []
        return [*found, sysconfig.get_path("include")]

    def version(self, distribution: str) -> str | None:
        """The version of an installed distribution, or None.

        Raises:
            InterpreterError: the interpreter cannot be asked.
        """
        if not self.own:
            return self.installed().get(installed.normal(distribution), {}).get("version")
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(distribution)
        return None

    def found(self, distributions: Iterable[str]) -> tuple[str, str] | None:
        """Name and version of the first of the distributions that is installed, or None."""
        versions = ((name, self.version(name)) for name in distributions)
        return next(((name, version) for name, version in versions if version is not None), None)

    def search_path(self) -> list[str | None]:
        """Where a suite's backend imports from in a worker: pytest's ``sys.path``, so it finds what the suite finds.

        None stands for what the worker's interpreter has there by itself, and by the worker's variables.
        """
        found: list[str | None] = [os.path.abspath(entry) for entry in sys.path]
        first = next((number for number, entry in enumerate(found) if entry in _own_path()), len(found))
        return [entry for entry in [*found[:first], None, *found[first:]] if entry not in _own_path()]


@cache
def _own_path() -> frozenset[str]:
    """What pytest's interpreter has on ``sys.path`` without what pytest and a suite put there."""
    code = "import json, sys; print(json.dumps(sys.path))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own = filter(None, [*json.loads(done.stdout), sysconfig.get_path("scripts")])
    return frozenset(map(os.path.abspath, own))


@cache
def _installed(python: str) -> dict[str, dict[str, str]]:
    if python == sys.executable:
        return installed.distributions()
    try:
        done = subprocess.run(
            [python, str(Path(installed.__file__))], capture_output=True, text=True, timeout=60, check=True
        )
        answer: dict[str, dict[str, str]] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        said = f"cannot ask {python!r} what is installed there: {error}"
        raise InterpreterError(f"--llm-python or --llm-base-python: {said}") from None
    return answer
