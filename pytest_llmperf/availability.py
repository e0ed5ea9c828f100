"""Whether a backend can run here: its device, its packages, its interpreter, its server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from packaging.version import Version

from pytest_llmperf.backends.registry import Combination, Registry
from pytest_llmperf.backends.toolchain import why_not_compiled
from pytest_llmperf.interpreter import Interpreter
from pytest_llmperf.machine import cards, detect
from pytest_llmperf.machine.table import Device
from pytest_llmperf.secret import Secret
from pytest_llmperf.settings import Settings


class UnusableError(ValueError):
    """The run cannot begin; one line says what was asked, why it cannot be, and what to do."""


def interpreter_of(backend: Combination, stated: Sequence[tuple[str, str]]) -> Interpreter:
    """The Python that a backend runs in: the one stated for it or a part of it, else for every one, else pytest's own.

    Raises:
        UnusableError: two are stated.
    """
    paths = dict(stated)
    variant = backend.variant
    if variant is not None and (own := {variant.name, variant.id} & paths.keys()):
        return Interpreter(paths[min(own)])
    found = {paths[name]: name for name in (backend.name, *(part.name for part in backend.all)) if name in paths}
    if len(found) > 1:
        what = ",".join(f"{name}={path}" for path, name in found.items())
        raise UnusableError(f"--llm-python={what}: {backend.name} needs one interpreter; name one for all its parts")
    stated_path = next(iter(found), paths.get(""))
    return Interpreter() if stated_path is None else Interpreter(stated_path)


def chosen_device(settings: Settings, registry: Registry) -> Device:
    """The device to measure on, with its memory: the one named, else one that the reference's torch can use.

    Raises:
        KeyError, ValueError: there is no such device, no such reference, or an interpreter cannot be asked.
    """
    torch = torch_of(settings, registry) if settings.device is None else None
    found = detect.resolve(settings.device, torch=torch)
    return replace(found, memory_bytes=cards.memory(found)) if found.memory_bytes is None else found


def torch_of(settings: Settings, registry: Registry) -> str | None:
    """The version of torch in the reference's interpreter, or None.

    Raises:
        KeyError, ValueError: there is no such reference, or its interpreter cannot be asked.
    """
    return interpreter_of(registry[settings.reference], settings.python).version("torch")


def check_interpreters(stated: Sequence[tuple[str, str]], registry: Registry) -> None:
    """Check each interpreter: its backend is known and called by its own name, and the interpreter runs.

    Raises:
        KeyError, ValueError: one of them is wrong.
    """
    for name, path in stated:
        if name and "+" not in name and not registry.variants_of(name):
            registry.part(name)
        elif "+" in name and registry[name].name != name:
            raise UnusableError(f"--llm-python={name}: this backend is called {registry[name].name}; write that")
        Interpreter(path).python_version()


def check_servers(named: Mapping[str, Secret], registry: Registry) -> None:
    """Check each server: its backend can connect to a server that already runs.

    Raises:
        KeyError, ValueError: one of them is wrong.
    """
    for name in named:
        if not registry.part(name).attaches:
            can = ", ".join(one for one in registry.names() if registry.part(one).attaches)
            raise UnusableError(
                f"--llm-server={name}=...: {name} cannot connect to a server that already runs; {can} can"
            )


def why_not(backend: Combination, device: Device, interpreter: Interpreter, servers: Container[str] = ()) -> str | None:
    """The reason why a backend cannot run on a device in an interpreter, or None.

    Args:
        backend: what is to run.
        device: where.
        interpreter: in which Python.
        servers: the backends for which a server is named that runs already.
    """
    if reason := backend.requires(device):
        return reason
    engine = backend.engine
    if engine.attaches and engine.name not in servers:
        prefix = "" if engine.name == "server" else f"{engine.name}="
        remedy = f"name one that already runs, as in --llm-server={prefix}http://127.0.0.1:8000"
        if not engine.launcher:
            return f"no server is named; {remedy}"
        if shutil.which(engine.launcher) is None:
            return f"{engine.launcher} is not on PATH; {remedy}"
    for part in backend.all:
        if part.distributions and interpreter.found(part.distributions) is None:
            where = "" if interpreter.own else f" in {interpreter.path}"
            return f"{' or '.join(part.distributions)} is not installed{where}"
        if part.at_least and (found := interpreter.found([part.at_least[0]])):
            (name, version), lowest = found, part.at_least[1]
            if Version(version) < Version(lowest):
                return f"{name} {version} is too old: it needs {lowest}; pip install '{name}>={lowest}'"
    if any(part.compiles for part in backend.all) and engine.name not in servers:
        return why_not_compiled(device, {**os.environ, **backend.environment}, interpreter.compiled_against())
    return None
