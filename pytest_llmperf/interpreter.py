"""A Python that workers run in: what is installed there, asked without importing any of it."""

from __future__ import annotations

import contextlib
import importlib.util
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
from typing import Any

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

    def source(self, package: str, pattern: str) -> str:
        """The files of a package that a pattern matches, one after the other; empty where there are none.

        Raises:
            InterpreterError: the interpreter cannot be asked.
        """
        files = [file for folder in _folders(self.path, package) for file in sorted(Path(folder).glob(pattern))]
        return "\n".join(file.read_text(encoding="utf-8") for file in files)

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
    return _asked(python, str(Path(installed.__file__)))  # type: ignore[no-any-return]


@cache
def _folders(python: str, package: str) -> list[str]:
    """Where a Python has a package, without importing it; empty if it has none."""
    if python == sys.executable:
        spec = importlib.util.find_spec(package)
        return list((spec and spec.submodule_search_locations) or ())
    find = f"spec = importlib.util.find_spec({package!r})"
    say = "print(json.dumps(list((spec and spec.submodule_search_locations) or ())))"
    return _asked(python, "-c", f"import importlib.util, json; {find}; {say}")  # type: ignore[no-any-return]


def _asked(python: str, *arguments: str) -> Any:
    """What a Python prints, as JSON. Raises InterpreterError: it cannot be asked."""
    try:
        done = subprocess.run([python, *arguments], capture_output=True, text=True, timeout=60, check=True)
        return json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        said = f"cannot ask {python!r} what is installed there: {error}"
        raise InterpreterError(f"--llm-python or --llm-base-python: {said}") from None
