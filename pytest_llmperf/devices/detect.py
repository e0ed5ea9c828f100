"""Which accelerators are here, found without torch: the parent process never imports it."""

from __future__ import annotations

import json
import re
import subprocess
from functools import cache
from pathlib import Path

from pytest_llmperf.devices.table import DEVICES, Device, device_for_product


class DeviceError(ValueError):
    """The device asked for cannot be measured on here."""


def nvidia_products(root: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """Product names from the driver's ``information`` files."""
    found = []
    for file in sorted(root.glob("*/information")):
        for line in file.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "Model":
                found.append(value.strip())
    return found


def amd_products(root: Path = Path("/sys/class/drm")) -> list[str]:
    """Product names from the kernel driver's ``product_name`` files of AMD cards (vendor 0x1002)."""
    found = []
    for card in sorted(root.glob("card[0-9]*/device")):
        vendor, product = card / "vendor", card / "product_name"
        if product.is_file() and vendor.is_file() and vendor.read_text().strip() == "0x1002":
            found.append(product.read_text().strip())
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


def _output(*command: str) -> str:
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
        for line in _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()
        if line.strip()
    ]
    amd = amd_products() or rocm_smi_products(_output("rocm-smi", "--showproductname", "--json"))
    return (*nvidia, *amd)


def resolve(name: str | None, products: tuple[str, ...] | None = None) -> Device:
    """The device to measure on: the one named, else the first accelerator that the table knows, else the CPU.

    Raises:
        DeviceError: the name is unknown, or no such device is here.
    """
    here = found() if products is None else products
    known = [device for product in here if (device := device_for_product(product))]
    if name is None:
        return known[0] if known else DEVICES["cpu"]
    device = DEVICES.get(name.lower())
    if device is None:
        raise DeviceError(f"--llm-device={name}: unknown device; known: {', '.join(DEVICES)}")
    if device.kind != "cpu" and device not in known and not _same_product(device, here):
        seen = ", ".join(here) or "no accelerator"
        raise DeviceError(
            f"--llm-device={device.name}: not present; found {seen}; leave the option out to use what is here"
        )
    return device


def _same_product(device: Device, products: tuple[str, ...]) -> bool:
    # "MI250X / MI250" is either: who names one of them is believed.
    return any(re.search(device.match, product, re.IGNORECASE) for product in products)
