"""What ``pytest --llm-list`` prints: backends, models and devices, and which of them can be used here."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from pytest_llmperf import models
from pytest_llmperf.availability import check_interpreters, check_servers, chosen_device, interpreter_of, why_not
from pytest_llmperf.backends.registry import Combination, Registry
from pytest_llmperf.machine import detect
from pytest_llmperf.machine.table import DEVICES, Device, device_of
from pytest_llmperf.settings import Settings

HERE = "yes"


def listing(settings: Settings, registry: Registry) -> list[str]:
    """The lines, three tables of them, and one of the variants if there are any.

    Args:
        settings: whose device and interpreters count.
        registry: every backend known.

    Raises:
        KeyError, ValueError: the device, a backend of ``--llm-python`` or its interpreter is not there.
    """
    check_interpreters(settings.python, registry)
    check_servers(dict(settings.server), registry)
    device = chosen_device(settings, registry)
    combined = [name for name in registry.everything() if "+" in name and not registry.variants_of(name)]
    names = [*registry.names(), *combined]
    backends = [_backend(name, registry, device, settings) for name in names]
    variants = [_variant(one.id, registry, device, settings) for one in registry.variants]
    found = [(name, _model(name)) for name in models.CONFIGS]
    here = {one.name: one for product in detect.found() if (one := device_of(product))}
    devices = [(one.name, _device(one), _peak(one)) for one in (DEVICES | here).values()]
    width = max(100, shutil.get_terminal_size((160, 24)).columns)
    return [
        *table(("backend", f"on {device.name}", "package", "optimizes", "proven by"), backends, width),
        "",
        *(table(("variant", f"on {device.name}", "is", "proven by"), variants, width) if variants else ()),
        *([""] if variants else []),
        *table(("model", "here"), found, width),
        "",
        *table(("device", "here", "peak"), devices, width),
    ]


def _backend(name: str, registry: Registry, device: Device, settings: Settings) -> tuple[str, ...]:
    if name in registry.everything():
        combination = registry[name]
        complete = [combination]
    else:  # it changes another, and is shown by itself
        combination = Combination("+" + name, registry.part(name), ())
        complete = registry.completed(name)
        name = f"+{name}"
    interpreter = interpreter_of(combination, settings.python)
    servers = dict(settings.server)
    reasons = [why_not(one, device, interpreter_of(one, settings.python), servers) for one in complete]
    reason = None if None in reasons else next(iter(reasons), "no backend that it changes is known")
    distributions = [part.distributions for part in combination.all if part.distributions] or [("transformers",)]
    packages = [" ".join(found) for one in distributions if (found := interpreter.found(one))]
    return (
        name,
        f"no: {reason}" if reason else HERE,
        ", ".join(packages) or "-",
        combination.optimizes,
        combination.proof or "-",
    )


def _variant(name: str, registry: Registry, device: Device, settings: Settings) -> tuple[str, ...]:
    one = registry[name]
    assert one.variant is not None
    interpreter = interpreter_of(one, settings.python)
    reason = why_not(one, device, interpreter, dict(settings.server)) or one.refuses(interpreter)
    return name, f"no: {reason}" if reason else HERE, one.variant.said, one.proof or "-"


def _model(name: str) -> str:
    try:
        models.resolve(name, False, Path())
    except models.ModelError as error:
        return f"no: {str(error).partition(': ')[2] or error}"
    return HERE


def _device(device: Device) -> str:
    try:
        detect.resolve(device.name)
    except detect.DeviceNotPresentError as error:
        return f"no: {str(error).partition(': ')[2].rpartition(';')[0]}"
    return HERE


def _peak(device: Device) -> str:
    if device.peak_flops is None or device.peak_bandwidth is None:
        return device.source
    dies = f" a die, {device.dies} dies" if device.dies > 1 else ""
    memory = "" if device.memory_bytes is None else f", {device.memory_bytes / 1e9:g} GB"
    return f"{device.peak_flops / 1e12:g} TFLOP/s, {device.peak_bandwidth / 1e12:g} TB/s{memory}{dies}"


def table(header: tuple[str, ...], body: Sequence[tuple[str, ...]], width: int) -> list[str]:
    """Columns as wide as their longest cell, but for the reasons and proofs, which are wrapped to fit."""
    rows = [header, *body]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    free = width - sum(size for size in widths if size <= 30) - 2 * (len(widths) - 1)
    wide = sum(size > 30 for size in widths)
    widths = [size if size <= 30 else min(size, max(24, free // wide)) for size in widths]
    lines = []
    for row in rows:
        cells = [textwrap.wrap(cell, size) or [""] for cell, size in zip(row, widths, strict=True)]
        for index in range(max(map(len, cells))):
            parts = (cell[index] if index < len(cell) else "" for cell in cells)
            lines.append("  ".join(part.ljust(size) for part, size in zip(parts, widths, strict=True)).rstrip())
    return lines
