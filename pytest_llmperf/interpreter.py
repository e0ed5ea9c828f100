"""A Python that workers run in: what is installed there, asked without importing any of it."""

from __future__ import annotations

import contextlib
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import metadata

_ASK = """\
import json, platform
from importlib import metadata
found = {}
for one in metadata.distributions():  # the first of a name is the one that is imported
    found.setdefault(one.metadata["Name"] or "?", one.version)
print(json.dumps({"": platform.python_version(), **found}))
"""


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
        return platform.python_version() if self.own else _installed(self.path)[""]

    def version(self, distribution: str) -> str | None:
        """The version of an installed distribution, or None.

        Raises:
            InterpreterError: the interpreter cannot be asked.
        """
        if not self.own:
            return _installed(self.path).get(_normal(distribution))
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(distribution)
        return None

    def found(self, distributions: Iterable[str]) -> tuple[str, str] | None:
        """Name and version of the first of the distributions that is installed, or None."""
        versions = ((name, self.version(name)) for name in distributions)
        return next(((name, version) for name, version in versions if version is not None), None)


@cache
def _installed(python: str) -> dict[str, str]:
    """Versions by normalized name (PEP 503); that of Python itself under the empty one."""
    try:
        done = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, timeout=60, check=True)
        answer: dict[str, str] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        said = f"cannot ask {python!r} what is installed there: {error}"
        raise InterpreterError(f"--llm-python or --llm-base-python: {said}") from None
    return {_normal(name): version for name, version in answer.items()}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
