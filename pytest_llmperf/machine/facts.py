"""What is read of a machine before it is measured on: the kernel's files, the cards, versions. Nothing is changed."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_llmperf import folders
from pytest_llmperf.architecture import Architecture
from pytest_llmperf.cases import Workload
from pytest_llmperf.machine import cards, fingerprint, health, topology
from pytest_llmperf.machine.cgroup import Group, contents, integer
from pytest_llmperf.machine.detect import output
from pytest_llmperf.machine.doctor import Facts, Finding, Gpu, Need, examine
from pytest_llmperf.machine.table import Device

#: Seconds in which others' CPU time is counted: ten of the kernel's ticks.
LOOK = 0.1


@dataclass(frozen=True)
class Busy:
    """What others do now: cores that they use and that nobody does, and who uses most."""

    others: float
    idle: float
    busiest: str | None


def busy() -> Busy:
    """A look at the CPU time of everybody, `LOOK` seconds long."""
    before = health.snapshot()
    busiest = health.busiest((), LOOK)
    used = health.contention(before, health.snapshot())
    return Busy(used.others + used.steal, used.idle, busiest)


@dataclass(frozen=True)
class Asked:
    """How a machine is asked; tests ask another one.

    Attributes:
        root: where ``proc``, ``sys`` and ``dev`` are.
        ask: runs a vendor's tool and returns what it prints, empty if it cannot.
        load: imports a vendor's library.
        busy: what others do now.
        versions: of drivers and libraries, as in the fingerprint.
        shm: bytes that a file system can hold, or None.
        cache: the folder for what outlives a run.
    """

    root: Path = Path("/")
    ask: Callable[..., str] = output
    load: Callable[[str], Any] = importlib.import_module
    busy: Callable[[], Busy] = busy
    versions: Callable[[], Mapping[str, str]] = fingerprint.versions
    shm: Callable[[Path], int | None] = lambda path: capacity(path)
    cache: Callable[[], folders.Cache] = folders.cache
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)


def capacity(path: Path) -> int | None:
    """Bytes that the file system of a path can hold, or None if it is not there."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_blocks * found.f_frsize


def need(architecture: Architecture, dtype: str, workload: Workload, name: str, devices: int = 1) -> Need:
    """Bytes on each device that a model needs: weights, keys and values of a workload, parity's copy.

    Parity's copy of the reference is one precision up, so that it has twice the bytes.
    """
    what = f"{name} in {dtype} at {workload}"
    whole = architecture.weight_bytes(dtype)
    if whole is None:
        return Need(what, None, 0, 0, devices)
    tokens = workload.prompt_length + workload.max_new_tokens
    cache = int(workload.batch_size * architecture.kv_bytes(tokens, dtype)) // devices
    return Need(what, whole // devices, cache, 2 * whole // devices, devices)


def findings(device: Device, needed: Callable[[], Need | None], asked: Asked = Asked()) -> list[Finding]:
    """What there is to say of this machine, whatever a reader does: no result is lost for it."""
    try:
        return examine(read(device, needed(), asked))
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        return [Finding("machine", "unknown", f"it could not be looked at: {said}", "what it was like is not known")]


def read(device: Device, needed: Need | None = None, asked: Asked = Asked()) -> Facts:
    """The facts of the machine, as far as they can be read."""
    root = asked.root
    unread: dict[str, str] = {}
    proc, system = root / "proc", root / "sys/devices/system"
    usable = _cpu_list(_field(contents(proc / "self/status"), "Cpus_allowed_list")) or health.usable_cpus()
    present = _cpu_list(contents(system / "cpu/online"))
    now = _look(asked, unread)
    memory = _meminfo(contents(proc / "meminfo"))
    group = Group(root)
    left = [value for value in (memory.get("MemAvailable"), group.left()) if value is not None]
    return Facts(
        kind=device.kind,
        numa_balancing=integer(contents(proc / "sys/kernel/numa_balancing")),
        numa_nodes=len(_cpu_list(contents(system / "node/has_memory"))) or None,
        governors=_each_cpu(system, usable, "scaling_governor"),
        driver=", ".join(_each_cpu(system, usable, "scaling_driver")),
        boost=_boost(system / "cpu"),
        cpus=len(usable),
        of=len(present) or None,
        quota=group.quota(),
        others=now.others if now else None,
        idle=now.idle if now else None,
        busiest=now.busiest if now else None,
        load=_float(contents(proc / "loadavg").partition(" ")[0]),
        pressure=_pressure(proc / "pressure"),
        available=min(left, default=None),
        limit=group.limit(memory.get("MemTotal")),
        swap=memory["SwapTotal"] - memory["SwapFree"] if {"SwapTotal", "SwapFree"} <= memory.keys() else None,
        shm=asked.shm(root / "dev/shm"),
        huge_pages=_chosen(contents(root / "sys/kernel/mm/transparent_hugepage/enabled")),
        gpus=_gpus(device, asked, unread),
        versions=asked.versions(),
        need=needed,
        cache=asked.cache(),
        unread=unread,
    )


def _look(asked: Asked, unread: dict[str, str]) -> Busy | None:
    try:
        return asked.busy()
    except (OSError, ValueError) as error:
        unread["other load"] = str(error)
        return None


def _gpus(device: Device, asked: Asked, unread: dict[str, str]) -> tuple[Gpu, ...]:
    """The dies that the user's variables leave visible, in their order."""
    if device.kind == "cpu":
        return ()
    try:
        found = cards.read(device.kind, asked.root, asked.ask, asked.load)
    except Exception as error:  # vendors' libraries raise what they like
        known = isinstance(error, cards.UnreadableError)
        unread["GPU"] = str(error) if known else f"{type(error).__name__}: {error}"
        return ()
    seen = topology.visible(asked.environ, device.kind).physical
    return tuple(found[index] for index in seen if index < len(found)) if seen is not None else tuple(found)


# The kernel's files


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _field(text: str, name: str) -> str:
    lines = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")


def _cpu_list(text: str) -> set[int]:
    """The numbers of a list such as ``0-3,8``; none if it is no such."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            return set()
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _meminfo(text: str) -> dict[str, int]:
    """Bytes by name, of lines in kB."""
    lines = (line.replace(":", " ").split() for line in text.splitlines())
    return {line[0]: int(line[1]) * 1024 for line in lines if len(line) == 3 and line[1].isdecimal()}


def _each_cpu(system: Path, cpus: set[int], name: str) -> tuple[str, ...]:
    """What the usable CPUs say, each once."""
    said = (contents(system / f"cpu/cpu{number}/cpufreq/{name}").strip() for number in sorted(cpus))
    return tuple(dict.fromkeys(filter(None, said)))


def _boost(cpu: Path) -> bool | None:
    off = integer(contents(cpu / "intel_pstate/no_turbo"))
    if off is not None:
        return not off
    on = integer(contents(cpu / "cpufreq/boost"))
    return None if on is None else bool(on)


def _pressure(folder: Path) -> dict[str, float]:
    """Share of the last 10 s in which some task waited, by resource."""
    found = {}
    for resource in health.RESOURCES:
        for line in contents(folder / resource).splitlines():
            fields = dict(one.partition("=")[::2] for one in line.split())
            if line.startswith("some ") and (value := _float(fields.get("avg10", ""))) is not None:
                found[resource] = value / 100
    return found


def _chosen(text: str) -> str | None:
    """The word in brackets."""
    _, _, rest = text.partition("[")
    return rest.partition("]")[0] or None
