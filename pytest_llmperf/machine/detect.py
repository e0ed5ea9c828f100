"""Which accelerators are here, found without torch: the parent process never imports it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

from pytest_llmperf.machine.table import DEVICES, Device, can_use, device_for_product, device_of, slug

#: AMD's products by PCI device id, from libdrm's amdgpu.ids, which is where ROCm has its names from.
AMD_IDS = {
    0x738C: "AMD Instinct MI100",
    0x7408: "AMD Instinct MI250X",
    0x740C: "AMD Instinct MI250X / MI250",
    0x740F: "AMD Instinct MI210",
    0x74A0: "AMD Instinct MI300A",
    0x74A1: "AMD Instinct MI300X",
    0x74A2: "AMD Instinct MI308X",
    0x74A5: "AMD Instinct MI325X",
    0x74A8: "AMD Instinct MI308X HF",
    0x74A9: "AMD Instinct MI300X HF",
    0x74B5: "AMD Instinct MI300X VF",
    0x74B6: "AMD Instinct MI308X",
    0x74BD: "AMD Instinct MI300X HF",
    0x75A0: "AMD Instinct MI350X",
    0x75A3: "AMD Instinct MI355X",
    0x75B0: "AMD Instinct MI350X VF",
    0x75B3: "AMD Instinct MI355X VF",
}
#: Likewise, those of one id that their PCI revision tells apart.
AMD_REVISIONS = {
    (0x744C, 0xC8): "AMD Radeon RX 7900 XTX",
    (0x744C, 0xCC): "AMD Radeon RX 7900 XT",
    (0x744C, 0xCE): "AMD Radeon RX 7900 GRE",
    (0x744C, 0xCF): "AMD Radeon RX 7900M",
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


def amd_name(card: Path) -> str:
    """The name of an AMD card by the PCI ids in its folder of the kernel's files; empty if it is none of `AMD_IDS`."""
    try:
        number, revision = (int(_text(card / name) or "0", 16) for name in ("device", "revision"))
    except ValueError:
        return ""
    return AMD_IDS.get(number, "") or AMD_REVISIONS.get((number, revision), "")


def amd_products(root: Path = Path("/sys/class/drm")) -> list[str]:
    """Product names of AMD cards (vendor 0x1002), from the kernel driver's ``product_name`` files or their PCI ids."""
    cards = [card for card in sorted(root.glob("card[0-9]*/device")) if _text(card / "vendor") == "0x1002"]
    return [name for card in cards if (name := _text(card / "product_name") or amd_name(card))]


def kfd_products(root: Path = Path("/sys/class/kfd/kfd/topology/nodes")) -> list[str]:
    """Product names by the PCI ids of the nodes that ROCm computes on, a die each; unknown ids are left out.

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
    return sum(_same_product(device, (product,)) for product in found())


def resolve(name: str | None, products: tuple[str, ...] | None = None, torch: str | None = None) -> Device:
    """The device to measure on: the one named, else the first accelerator that torch can use, else the CPU.

    An accelerator that the table does not know comes after those that it knows, and has measured roofs.

    Args:
        name: of the table, or the `slug` of a product that is here; None for the first accelerator.
        products: what is here, as vendors call it; None for what `found` says.
        torch: the version of torch that would compute; None where it is not known.

    Raises:
        UnknownDeviceError: no device has the name. DeviceNotPresentError: none such is here.
    """
    here = found() if products is None else products
    devices = [device for product in here if (device := device_of(product))]
    if name is None:
        usable = [device for device in devices if can_use(torch, device.kind)]
        listed = [device for device in usable if device.name in DEVICES]
        return next(iter([*listed, *usable]), DEVICES["cpu"])
    named = DEVICES.get(name.lower())
    if named is None:
        named = next((device_of(product) for product in here if slug(product) == name.lower()), None)
    if named is None:
        others = [slug(product) for product in here if device_of(product) and not device_for_product(product)]
        raise UnknownDeviceError(
            f"--llm-device={name}: unknown device; known: {', '.join(dict.fromkeys([*DEVICES, *others]))}"
        )
    if named.kind != "cpu" and not _same_product(named, here):
        seen = ", ".join(here) or "no accelerator"
        raise DeviceNotPresentError(
            f"--llm-device={named.name}: not present; found {seen}; leave the option out to use what is here"
        )
    return named


def _same_product(device: Device, products: tuple[str, ...]) -> bool:
    # "MI250X / MI250" is either: who names one of them is believed.
    return any(re.search(device.match, product, re.IGNORECASE) for product in products)
