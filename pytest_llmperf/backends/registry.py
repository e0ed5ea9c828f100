"""The backends of a run: the built-in ones, and those that a suite's ``conftest.py`` registers."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmperf.backends import compile, compile_static, eager, sdpa  # noqa: A004  the optimization's name
from pytest_llmperf.backends.base import Backend

BUILT_IN: tuple[Backend, ...] = (eager.BACKEND, sdpa.BACKEND, compile.BACKEND, compile_static.BACKEND)


class Registry:
    """The backends of this run, by name, in order of registration."""

    def __init__(self, backends: Sequence[Backend] = ()) -> None:
        self._backends: dict[str, Backend] = {}
        for backend in backends:
            self.add(backend)

    def add(self, backend: Backend) -> None:
        """Register a backend. Raises ValueError if its name is taken or its loader cannot be passed on."""
        if backend.name in self._backends:
            raise ValueError(f"backend {backend.name!r} is registered twice; choose another name")
        backend.reference()
        self._backends[backend.name] = backend

    def names(self) -> tuple[str, ...]:
        return tuple(self._backends)

    def __getitem__(self, name: str) -> Backend:
        """The backend of that name. Raises KeyError, with the known names, if there is none."""
        if name not in self._backends:
            raise KeyError(f"unknown backend {name!r}; known: {', '.join(self._backends)}")
        return self._backends[name]
