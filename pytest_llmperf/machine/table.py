"""The devices known by name: dense half-precision peaks, memory, and how their vendors' tools call them.

Another accelerator is a device too: `device_of` makes its row, and its roofs are measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

HALF = ("float32", "float16", "bfloat16")
GB = 10**9
MEASURED = "measured at start"
#: What a vendor's names of products have in them, by the kind of device.
VENDORS: Mapping[Literal["cuda", "rocm"], str] = {
    "rocm": r"\b(AMD|Radeon|Instinct|Navi|Vega)\b",
    "cuda": r"\b(NVIDIA|Tesla|GeForce|Quadro|TITAN|GRID)\b",
}
#: Builds of torch that cannot use a kind of device, by what the local part of their version begins with.
OTHER_BUILDS: Mapping[str, tuple[str, ...]] = {"cuda": ("cpu", "rocm"), "rocm": ("cpu", "cu")}


@dataclass(frozen=True)
class Device:
    """A device by its product name in lower case. Figures are per die: an MI250 is two.

    Attributes:
        kind: ``cpu``, ``cuda`` or ``rocm``.
        peak_flops: dense FP16/BF16 FLOP/s, accumulated in FP32; None where it is measured at start (a CPU, and an
            accelerator whose figures nobody publishes).
        peak_bandwidth: bytes/s; None where that is None.
        memory_bytes: bytes; None for a CPU, and where an accelerator's driver does not say it.
        match: a regular expression that the vendor's product name matches, case ignored.
        dtypes: types with fast kernels.
        max_regression: the slowdown allowed where nobody states one.
        dies: dies per product.
        source: where the peaks are from.
        narrow: dense FLOP/s of narrower types, by name.
        strict: whether nothing passes the peaks. Where cards may clock higher than their data sheet says, as a GeForce
            does, or where no data sheet is public, the peaks have the margin of measured roofs.
    """

    name: str
    kind: Literal["cpu", "cuda", "rocm"]
    peak_flops: float | None
    peak_bandwidth: float | None
    memory_bytes: int | None
    match: str
    dtypes: tuple[str, ...] = HALF
    max_regression: float = 0.05
    dies: int = 1
    source: str = ""
    narrow: Mapping[str, float] = field(default_factory=dict)
    strict: bool = True

    def peak(self, dtype: str) -> float | None:
        """FLOP/s of a type by the data sheet; None where it gives none."""
        return self.peak_flops if dtype in self.dtypes else self.narrow.get(dtype)

    @property
    def torch_device(self) -> str:
        """The name that torch has for it; ROCm builds say ``cuda`` too."""
        return "cpu" if self.kind == "cpu" else "cuda"


def _gpu(
    name: str,
    match: str,
    tflops: tuple[float | None, float | None, float | None],
    memory: tuple[float | None, int],
    source: str,
    *,
    dies: int = 1,
    strict: bool = True,
) -> Device:
    """A row of an accelerator, of one die: TFLOP/s in half precision, int8 and fp8; TB/s and GB of its memory."""
    half, bandwidth = (None if one is None else one * 1e12 for one in (tflops[0], memory[0]))
    narrow = {name: one * 1e12 for name, one in zip(("int8", "fp8"), tflops[1:], strict=True) if one is not None}
    kind: Literal["cuda", "rocm"] = "rocm" if source.startswith("AMD") else "cuda"
    return Device(
        name,
        kind,
        half,
        bandwidth,
        memory[1] * GB,
        match,
        dies=dies,
        source=source if half else f"{MEASURED} ({source})",
        narrow=narrow,
        strict=strict,
    )


# docs/reference/devices.md shows these rows and says where the figures were looked up. NVIDIA prints most figures with
# sparsity, which are twice as high.
# Patterns leave out the variants of other rows, so that a device is never measured against its sibling's lower roof. A
# variant without a row is held to a higher roof (A100 80GB PCIe, H200 NVL), and an impossible figure may then pass, or
# is a device of its own with measured roofs (A10G, RTX 4090 D).
_TABLE = (
    _gpu("mi210", r"\bMI210\b", (181.0, 181.0, None), (1.6, 64), "AMD Instinct MI210 data sheet"),
    # "MI250X / MI250" is what ROCm calls PCI id 740c, seen on MI250s (104 CUs a die); an MI250X has an id of its own.
    # The order makes it an MI250; who names the other is believed. Their peaks differ by 6 % of FLOP/s alone.
    _gpu("mi250", r"\bMI250\b", (181.0, 181.0, None), (1.6, 64), "AMD Instinct MI250 data sheet", dies=2),
    _gpu("mi250x", r"\bMI250X\b", (191.5, 191.5, None), (1.6, 64), "AMD Instinct MI250X data sheet", dies=2),
    _gpu("mi300a", r"\bMI300A\b", (980.6, 1961.2, 1961.2), (5.3, 128), "AMD Instinct MI300A data sheet"),
    # Of the products named HF nothing is published.
    _gpu("mi300x", r"\bMI300X\b(?! HF)", (1307.4, 2614.9, 2614.9), (5.3, 192), "AMD Instinct MI300X data sheet"),
    _gpu("mi308x", r"\bMI308X\b(?! HF)", (None, None, None), (None, 192), "AMD publishes no peaks"),
    _gpu("mi325x", r"\bMI325X\b", (1307.4, 2614.9, 2614.9), (6.0, 256), "AMD Instinct MI325X data sheet"),
    _gpu("mi350x", r"\bMI350X\b", (2309.6, 4614.0, 4614.0), (8.0, 288), "AMD Instinct MI350X brochure"),
    # AMD rounds to 2.5 and 5.0 PFLOP/s; these are those of its 256 CUs at 2.4 GHz.
    _gpu("mi355x", r"\bMI355X\b", (2516.6, 5033.2, 5033.2), (8.0, 288), "AMD Instinct MI350 series documentation"),
    _gpu(
        "rx-7900-xtx",
        r"\bRX 7900 XTX\b",
        (122.8, None, None),
        (0.96, 24),
        "AMD Radeon RX 7900 XTX product page",
        strict=False,
    ),
    _gpu("a10", r"^(NVIDIA )?A10\b", (125.0, 250.0, None), (0.6, 24), "NVIDIA A10 data sheet"),
    _gpu("a100-40", r"\bA100\b.*\b40GB\b", (312.0, 624.0, None), (1.555, 40), "NVIDIA A100 data sheet"),
    _gpu("a100", r"\bA100\b(?!.*\b40GB\b)", (312.0, 624.0, None), (2.039, 80), "NVIDIA A100 data sheet"),
    _gpu("h100-pcie", r"\bH100\b.*\b(PCIe|HBM2e)\b", (756.5, 1513.0, 1513.0), (2.0, 80), "NVIDIA H100 data sheet"),
    _gpu("h100-nvl", r"\bH100\b.*\bNVL\b", (835.5, 1670.5, 1670.5), (3.9, 94), "NVIDIA H100 data sheet"),
    _gpu(
        "h100",
        r"\bH100\b(?!.*\b(PCIe|HBM2e|NVL)\b)",
        (989.0, 1979.0, 1979.0),
        (3.35, 80),
        "NVIDIA H100 data sheet",
    ),
    _gpu("h200", r"\bH200\b", (989.0, 1979.0, 1979.0), (4.8, 141), "NVIDIA H200 data sheet"),
    # An H20-3e has faster memory. NVIDIA has no public data sheet of either.
    _gpu("h20", r"\bH20\b(?!-)", (148.0, 296.0, 296.0), (4.0, 96), "NVIDIA's figures in the press", strict=False),
    _gpu("l4", r"\bL4\b", (121.0, 242.5, 242.5), (0.3, 24), "NVIDIA L4 data sheet"),
    _gpu("l40", r"\bL40\b", (181.05, 362.0, 362.0), (0.864, 48), "NVIDIA L40 data sheet"),
    _gpu("l40s", r"\bL40S\b", (362.05, 733.0, 733.0), (0.864, 48), "NVIDIA L40S data sheet"),
    # HGX systems have 62 TB/s for eight GPUs, which is 7.75 each; a GPU's 8 is the higher of NVIDIA's two figures.
    _gpu("b200", r"\bB200\b", (2250.0, 4500.0, 4500.0), (8.0, 180), "NVIDIA Blackwell data sheet"),
    _gpu("gb200", r"\bGB200\b", (2500.0, 5000.0, 5000.0), (8.0, 186), "NVIDIA Blackwell data sheet"),
    # Sources differ by 29 times in its int8.
    _gpu("b300", r"\bB300\b", (2250.0, None, 4500.0), (8.0, 288), "NVIDIA Blackwell Ultra data sheet"),
    # In fp8 a GeForce has two rates, by what it accumulates in. Which one a kernel takes is not known here.
    _gpu(
        "rtx-4090",
        r"\bRTX 4090$",
        (165.2, 660.6, None),
        (1.008, 24),
        "NVIDIA Ada GPU architecture white paper",
        strict=False,
    ),
    _gpu(
        "rtx-5090",
        r"\bRTX 5090$",
        (209.5, 838.0, None),
        (1.792, 32),
        "NVIDIA RTX Blackwell GPU architecture white paper",
        strict=False,
    ),
    _gpu(
        "rtx-pro-6000",
        r"\bRTX PRO 6000 Blackwell Workstation\b",
        (503.8, 1007.6, 1007.6),
        (1.792, 96),
        "NVIDIA RTX Blackwell PRO GPU architecture white paper",
        strict=False,
    ),
    Device("cpu", "cpu", None, None, None, r"(?!)", ("float32", "bfloat16"), 0.10, source=MEASURED),
)
DEVICES: dict[str, Device] = {device.name: device for device in _TABLE}


def device_for_product(product: str) -> Device | None:
    """The device that a vendor's tool calls ``product``, or None if the table has no such."""
    return next((device for device in _TABLE if re.search(device.match, product, re.IGNORECASE)), None)


def kind_of(product: str) -> Literal["cpu", "cuda", "rocm"] | None:
    """The kind of a device by its name, or by its product's; None if it is neither a listed one, NVIDIA's nor AMD's."""
    if product in DEVICES:
        return DEVICES[product].kind
    return next((kind for kind, names in VENDORS.items() if re.search(names, product, re.IGNORECASE)), None)


def slug(product: str) -> str:
    """A product's name as the name of a device and of its folder: lower case, with hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", product.lower()).strip("-")


def device_of(product: str) -> Device | None:
    """The device that a vendor's tool calls ``product``: the table's, else one with measured roofs.

    None if it is no product of NVIDIA or AMD, whose GPUs torch can use. Its memory is not known here.
    """
    kind = kind_of(product)
    if (listed := device_for_product(product)) is not None or kind is None:
        return listed
    return Device(slug(product), kind, None, None, None, rf"^{re.escape(product)}$", source=MEASURED)


def can_use(torch: str | None, kind: str) -> bool:
    """Whether a version of torch, such as ``2.13.0+cpu``, may be a build for a kind of device; None is not known."""
    build = (torch or "").partition("+")[2]
    return not build.startswith(OTHER_BUILDS.get(kind, ()))
