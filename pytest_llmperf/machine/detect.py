"""Which accelerators are here, found without torch: the parent process never imports it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

from pytest_llmperf.machine.table import DEVICES, Device, device_for_product

#: PCI device ids of the table's AMD products, from libdrm's amdgpu.ids, which is where ROCm has its names from.
AMD_IDS = {
    0x7408: "AMD Instinct MI250X",
    0x740C: "AMD Instinct MI250X / MI250",
    0x740F: "AMD Instinct MI210",
    0x74A1: "AMD Instinct MI300X",
    0x74A5: "AMD Instinct MI325X",
}


class DeviceError(ValueError):
    """The device asked for cannot be measured on here."""


class UnknownDeviceError(DeviceError):
    """No device has this name."""


class DeviceNotPresentError(DeviceError):
    """The device is known, and not here."""


def _text(file: Path) -> str:
    """What a file of the kernel's says; nothing if it is not there or may not be read, as in many a container."""
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""


def nvidia_products(root: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """Product names from the driver's ``information`` files. A GPU that it has not started is "Unknown": left out."""
    found = []
    for file in sorted(root.glob("*/information")):
        for line in _text(file).splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "Model" and value.strip() not in ("", "Unknown"):
                found.append(value.strip())
    return found


def amd_products(root: Path = Path("/sys/class/drm")) -> list[str]:
    """Product names from the kernel driver's ``product_name`` files of AMD cards (vendor 0x1002)."""
    cards = [card for card in sorted(root.glob("card[0-9]*/device")) if _text(card / "vendor") == "0x1002"]
    return [name for card in cards if (name := _text(card / "product_name"))]


def kfd_products(root: Path = Path("/sys/class/kfd/kfd/topology/nodes")) -> list[str]:
    """Product names by the PCI ids of the nodes that ROCm computes on, a die each; ids not in the table are left out.

    A node's ``properties`` are lines of a name and a decimal number; CPUs are nodes of vendor 0.
    """
    found = []
    for file in sorted(root.glob("*/properties"), key=lambda path: (len(path.parent.name), path.parent.name)):
        properties = dict(line.split(maxsplit=1) for line in _text(file).splitlines() if " " in line)
        if properties.get("vendor_id") == str(0x1002) and properties.get("device_id", "").isdecimal():
            found.append(AMD_IDS.get(int(properties["device_id"]), ""))
    return [name for name in found if name]


def rocm_smi_products(text: str) -> list[str]:
    """Product names in the output of ``rocm-smi --showproductname --json``."""
    try:
        cards = json.loads(text)
    except ValueError:
        return []
    names = []
    for card in cards.values() if isinstance(cards, dict) else ():
        fields = {key.lower(): str(value) for key, value in card.items()} if isinstance(card, dict) else {}
        name = fields.get("card series") or fields.get("card model")
        names += [name] if name else []
    return names


def output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


@cache
def found() -> tuple[str, ...]:
    """The product names of every accelerator here, as their vendors call them."""
    nvidia = nvidia_products() or [
        line.strip()
        for line in output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()
        if line.strip()
    ]
    return (*nvidia, *first_known(amd_products, kfd_products, _rocm_smi))


def _rocm_smi() -> list[str]:
    return rocm_smi_products(output("rocm-smi", "--showproductname", "--json"))


def first_known(*sources: Callable[[], list[str]]) -> list[str]:
    """The names of the first source that names a device of the table, else of the first that names anything.

    A source is asked only when those before it named nothing in the table: a card's own ``product_name`` may be its
    board's ("AMD INSTINCT MI200 (MCM) OAM LC MBA HPE C2"), or that of a display adapter.
    """
    answers: list[list[str]] = []
    for source in sources:
        answers.append(source())
        if any(device_for_product(name) for name in answers[-1]):
            return answers[-1]
    return next((names for names in answers if names), [])


def count(device: Device) -> int:
    """How many of a device are here, a die each: what lists an MI250 lists its two dies."""
    return sum(device_for_product(product) == device or _same_product(device, (product,)) for product in found())


def resolve(name: str | None, products: tuple[str, ...] | None = None) -> Device:
    """The device to measure on: the one named, else the first accelerator that the table knows, else the CPU.

    Raises:
        UnknownDeviceError: no device has the name. DeviceNotPresentError: none such is here.
    """
    here = found() if products is None else products
    known = [device for product in here if (device := device_for_product(product))]
    if name is None:
        return known[0] if known else DEVICES["cpu"]
    device = DEVICES.get(name.lower())
    if device is None:
        raise UnknownDeviceError(f"--llm-device={name}: unknown device; known: {', '.join(DEVICES)}")
    if device.kind != "cpu" and device not in known and not _same_product(device, here):
        seen = ", ".join(here) or "no accelerator"
        raise DeviceNotPresentError(
            f"--llm-device={device.name}: not present; found {seen}; leave the option out to use what is here"
        )
    return device


def _same_product(device: Device, products: tuple[str, ...]) -> bool:
    # "MI250X / MI250" is either: who names one of them is believed.
    return any(re.search(device.match, product, re.IGNORECASE) for product in products)
