"""What accelerators say of their state before anything is measured, a `Gpu` a die, by whatever can ask them here.

NVIDIA: NVML (``pynvml``), else ``nvidia-smi``. AMD: ``amdsmi``, else the kernel driver's files, else ``rocm-smi``.
Nothing is read that reading changes: an XGMI error status is cleared by a look.
"""

from __future__ import annotations

import csv
import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from pytest_llmperf.machine import placement
from pytest_llmperf.machine.cgroup import contents
from pytest_llmperf.machine.detect import amd_name, output
from pytest_llmperf.machine.doctor import MIB, Gpu
from pytest_llmperf.machine.gpu import NVML_REASONS, Amd, Nvml
from pytest_llmperf.machine.table import Device, device_for_product
from pytest_llmperf.machine.topology import TopologyError

Ask = Callable[..., str]
Load = Callable[[str], Any]


class UnreadableError(ValueError):
    """Nothing here can ask the cards; one line says what was tried."""


def read(kind: str, root: Path = Path("/"), ask: Ask = output, load: Load = importlib.import_module) -> list[Gpu]:
    """Every die of the machine, in its vendor's order: that of the PCI addresses.

    Args:
        kind: ``cuda`` or ``rocm``.
        root: where ``sys`` is.
        ask: runs a tool and returns what it prints, empty if it cannot.
        load: imports a library.

    Raises:
        UnreadableError: nothing tells anything.
    """
    if kind == "cuda":
        found = _library(load, "pynvml", nvml) or nvidia_smi(ask(*NVIDIA_SMI), ask("nvidia-smi", "nvlink", "-s"))
        tried = "no nvidia-ml-py, and nvidia-smi says nothing"
    else:
        found = _library(load, "amdsmi", amdsmi) or drm(root / "sys/class/drm") or rocm_smi(ask(*ROCM_SMI))
        found = _with_xgmi(found, root)
        tried = "no amdsmi, no card in /sys/class/drm, and rocm-smi says nothing"
    if not found:
        raise UnreadableError(tried)
    return [replace(gpu, siblings=device.dies) if (device := device_for_product(gpu.name)) else gpu for gpu in found]


def memory(
    device: Device, root: Path = Path("/"), ask: Ask = output, load: Load = importlib.import_module
) -> int | None:
    """Bytes of a device's memory by its driver, the least of several cards; None for the CPU, and if nothing tells."""
    if device.kind == "cpu":
        return None
    try:
        gpus = read(device.kind, root, ask, load)
    except Exception:  # vendors' libraries raise what they like
        return None
    sizes = [gpu.memory for gpu in gpus if gpu.memory and re.search(device.match, gpu.name, re.IGNORECASE)]
    return min(sizes, default=None)


def _library(load: Load, name: str, use: Callable[[Any], list[Gpu]]) -> list[Gpu]:
    try:
        library = load(name)
    except (ImportError, OSError, KeyError, AttributeError):  # not installed, or without its driver's library
        return []
    error: type[Exception] = library.NVMLError if name == "pynvml" else library.AmdSmiException
    try:
        return use(library)
    except error:
        return []


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# NVIDIA


def nvml(library: Any) -> list[Gpu]:
    """By NVML. Raises its ``NVMLError`` where there is no driver."""
    library.nvmlInit()
    handles = map(library.nvmlDeviceGetHandleByIndex, range(library.nvmlDeviceGetCount()))
    return [_by_nvml(library, Nvml(library, _text(library.nvmlDeviceGetPciInfo(one).busId))) for one in handles]


def _by_nvml(library: Any, card: Nvml) -> Gpu:
    reading = card.read()
    mode, memory = card.ask("nvmlDeviceGetEccMode"), card.ask("nvmlDeviceGetMemoryInfo")
    persistent = card.ask("nvmlDeviceGetPersistenceMode")
    # A link that a card does not have is not supported, and the first of those is the end.
    states = (card.ask("nvmlDeviceGetNvLinkState", link) for link in range(library.NVML_NVLINK_MAX_LINKS))
    links = list(takewhile(lambda state: state is not None, states))
    return Gpu(
        name=_text(card.ask("nvmlDeviceGetName")),
        clock=reading.clock,
        highest_clock=card.ask("nvmlDeviceGetMaxClockInfo", library.NVML_CLOCK_SM),
        throttles=reading.throttles,
        power_cap=_thousandth(card.ask("nvmlDeviceGetEnforcedPowerLimit")),
        default_cap=_thousandth(card.ask("nvmlDeviceGetPowerManagementDefaultLimit")),
        persistent=None if persistent is None else bool(persistent),
        ecc=None if mode is None else bool(mode[0]),
        uncorrected=card.ask(
            "nvmlDeviceGetTotalEccErrors", library.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, library.NVML_VOLATILE_ECC
        ),
        memory=None if memory is None else memory.total,
        used=None if memory is None else memory.used,
        links=sum(map(bool, links)) if links else None,
        down=sum(not state for state in links) if links else None,
    )


def _thousandth(value: float | None) -> float | None:
    return None if value is None else value / 1e3


_FIELDS = (
    "name,clocks.sm,clocks.max.sm,clocks_throttle_reasons.active,enforced.power.limit,power.default_limit,"
    "persistence_mode,ecc.mode.current,ecc.errors.uncorrected.volatile.total,memory.total,memory.used"
)
NVIDIA_SMI = ("nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits")


def nvidia_smi(text: str, links: str = "") -> list[Gpu]:
    """By what `NVIDIA_SMI` and ``nvidia-smi nvlink -s`` print: MHz, W and MiB; ``[N/A]`` and the like are not told."""
    up = _nvlinks(links)
    found = []
    for index, row in enumerate(csv.reader(text.splitlines(), skipinitialspace=True)):
        if len(row) != _FIELDS.count(",") + 1:
            continue
        cells = dict(zip(_FIELDS.split(","), map(str.strip, row), strict=True))
        reasons = cells["clocks_throttle_reasons.active"]
        bits = int(reasons, 16) if re.fullmatch(r"0x[0-9a-fA-F]+", reasons) else None
        states = up.get(index)
        found.append(
            Gpu(
                name=cells["name"],
                clock=_number(cells["clocks.sm"]),
                highest_clock=_number(cells["clocks.max.sm"]),
                throttles=None if bits is None else tuple(name for bit, name in NVML_REASONS.items() if bits & bit),
                power_cap=_number(cells["enforced.power.limit"]),
                default_cap=_number(cells["power.default_limit"]),
                persistent=_switch(cells["persistence_mode"]),
                ecc=_switch(cells["ecc.mode.current"]),
                uncorrected=_whole(cells["ecc.errors.uncorrected.volatile.total"]),
                memory=_whole(cells["memory.total"], MIB),
                used=_whole(cells["memory.used"], MIB),
                links=sum(states) if states else None,
                down=states.count(False) if states else None,
            )
        )
    return found


def _nvlinks(text: str) -> dict[int, list[bool]]:
    """Whether each NVLink is up, by GPU."""
    found: dict[int, list[bool]] = {}
    current: list[bool] = []
    for line in text.splitlines():
        if match := re.match(r"GPU (\d+):", line):
            current = found.setdefault(int(match[1]), [])
        elif match := re.match(r"\s+Link \d+: (.*)", line):
            current.append("inactive" not in match[1])
    return {index: states for index, states in found.items() if states}


def _number(text: Any) -> float | None:
    match = re.search(r"\d+(\.\d+)?", str(text))
    return float(match[0]) if match else None


def _whole(text: Any, unit: int = 1) -> int | None:
    value = _number(text)
    return None if value is None else int(value) * unit


def _switch(text: str) -> bool | None:
    return {"Enabled": True, "Disabled": False}.get(text)


# AMD


def amdsmi(library: Any) -> list[Gpu]:
    """By ``amdsmi``. Raises its ``AmdSmiException`` where there is no driver."""
    library.amdsmi_init()
    handles = library.amdsmi_get_processor_handles()
    return [_by_amdsmi(library, Amd(library, library.amdsmi_get_gpu_device_bdf(handle))) for handle in handles]


def _by_amdsmi(library: Any, card: Amd) -> Gpu:
    reading = card.read()
    asic = card.ask("amdsmi_get_gpu_asic_info") or {}
    clock = card.ask("amdsmi_get_clock_info", library.AmdSmiClkType.GFX) or {}
    power = card.ask("amdsmi_get_power_cap_info") or {}
    memory = card.ask("amdsmi_get_gpu_vram_usage") or {}
    errors = card.ask("amdsmi_get_gpu_total_ecc_count") or {}
    return Gpu(
        name=str(asic.get("market_name", "")),
        clock=reading.clock,
        highest_clock=_number(clock.get("max_clk")),
        throttles=reading.throttles,
        power_cap=_watts(power.get("power_cap")),
        default_cap=_watts(power.get("default_power_cap")),
        uncorrected=_whole(errors.get("uncorrectable_count")),
        memory=_whole(memory.get("vram_total"), MIB),
        used=_whole(memory.get("vram_used"), MIB),
    )


def _watts(microwatts: Any) -> float | None:
    """W of µW; 0 and nothing are the second die of a package, whose first one has its power."""
    value = _number(microwatts)
    return value / 1e6 if value else None


def drm(root: Path) -> list[Gpu]:
    """By the kernel driver's files, as its documentation (amdgpu: hwmon, pp_dpm_sclk, mem_info_vram, ras) has them."""
    cards = [card / "device" for card in root.glob("card*") if card.name.removeprefix("card").isdecimal()]
    cards = [card for card in cards if contents(card / "vendor").strip() == "0x1002"]
    # Numbers of cards depend on who came first at boot; vendors' tools count by address.
    return [_by_files(card) for card in sorted(cards, key=lambda card: (_address(card), card.parent.name))]


def _address(card: Path) -> str:
    lines = (line.partition("=") for line in contents(card / "uevent").splitlines())
    return next((value for name, _, value in lines if name == "PCI_SLOT_NAME"), "")


def _by_files(card: Path) -> Gpu:
    sensors = next(iter(sorted(card.glob("hwmon/hwmon*"))), card / "hwmon")
    states = contents(card / "pp_dpm_sclk").splitlines()
    clocks = [float(match[1]) for line in states if (match := re.match(r"\d+:\s*(\d+)Mhz", line))]
    current = next((line.partition(":")[2] for line in states if line.rstrip().endswith("*")), "")
    errors = re.search(r"ue:\s*(\d+)", contents(card / "ras/umc_err_count"))
    return Gpu(
        name=amd_name(card) or contents(card / "product_name").strip(),
        clock=_number(current),
        highest_clock=max(clocks, default=None),
        power_cap=_watts(contents(sensors / "power1_cap")),
        default_cap=_watts(contents(sensors / "power1_cap_default")),
        uncorrected=int(errors[1]) if errors else None,
        memory=_whole(contents(card / "mem_info_vram_total")),
        used=_whole(contents(card / "mem_info_vram_used")),
    )


ROCM_SMI = ("rocm-smi", "--showproductname", "--showmaxpower", "--showmeminfo", "vram", "--json")


def rocm_smi(text: str) -> list[Gpu]:
    """By what `ROCM_SMI` prints: W and bytes; a default cap is not among it."""
    try:
        cards = json.loads(text)
    except ValueError:
        return []
    found: Sequence[tuple[str, Mapping[str, Any]]] = [
        (key, fields)
        for key, fields in (cards.items() if isinstance(cards, dict) else ())
        if re.fullmatch(r"card\d+", key) and isinstance(fields, dict)
    ]
    return [
        Gpu(
            name=str(fields.get("Card Series") or fields.get("Card series") or ""),
            power_cap=_number(fields.get("Max Graphics Package Power (W)")),
            memory=_whole(fields.get("VRAM Total Memory (B)")),
            used=_whole(fields.get("VRAM Total Used Memory (B)")),
        )
        for _, fields in sorted(found, key=lambda pair: int(pair[0].removeprefix("card")))
    ]


def _with_xgmi(gpus: list[Gpu], root: Path) -> list[Gpu]:
    """How many dies XGMI reaches from each, by the kernel's topology, where it knows as many dies."""
    try:
        known = placement.kfd(root / "sys/class/kfd/kfd/topology/nodes", root / "sys/bus/pci/devices")
    except TopologyError:  # a pair without a link, for which the choice of dies has a line
        return gpus
    if known is None or known.size != len(gpus) or known.size == 1:
        return gpus
    reached = [sum(link is not None and link.kind == "XGMI" for link in row) for row in known.links]
    return [replace(gpu, links=count) for gpu, count in zip(gpus, reached, strict=True)]
