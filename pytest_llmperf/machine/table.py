"""The devices known by name: dense half-precision peaks, memory, and how their vendors' tools call them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

HALF = ("float32", "float16", "bfloat16")
GB = 10**9
_AMD = "AMD product data sheet"
_NVIDIA = "NVIDIA product data sheet, dense"


@dataclass(frozen=True)
class Device:
    """A device by its product name in lower case. Figures are per die: an MI250 is two.

    Attributes:
        kind: ``cpu``, ``cuda`` or ``rocm``.
        peak_flops: dense FP16/BF16 FLOP/s; None where it is measured at start (a CPU).
        peak_bandwidth: bytes/s, likewise.
        memory_bytes: bytes, or None for the machine's.
        match: a regular expression that the vendor's product name matches, case ignored.
        dtypes: types with fast kernels.
        max_regression: the slowdown allowed where nobody states one.
        dies: dies per product.
        source: where the peaks are from.
        narrow: dense FLOP/s of narrower types, by name.
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

    def peak(self, dtype: str) -> float | None:
        """FLOP/s of a type by the data sheet; None where it gives none."""
        return self.peak_flops if dtype in self.dtypes else self.narrow.get(dtype)

    @property
    def torch_device(self) -> str:
        """The name that torch has for it; ROCm builds say ``cuda`` too."""
        return "cpu" if self.kind == "cpu" else "cuda"


def _gpu(
    name: str,
    kind: Literal["cuda", "rocm"],
    tflops: float,
    tbytes: float,
    gigabytes: int,
    match: str,
    *,
    int8: float,
    fp8: float | None = None,
    dies: int = 1,
) -> Device:
    narrow = {name: peak * 1e12 for name, peak in (("int8", int8), ("fp8", fp8)) if peak is not None}
    source = _AMD if kind == "rocm" else _NVIDIA
    return Device(
        name, kind, tflops * 1e12, tbytes * 1e12, gigabytes * GB, match, dies=dies, source=source, narrow=narrow
    )


# Where int8 and fp8 are from: NVIDIA's data sheets of A100, H100 SXM, H200, L40S and B200, whose figures with sparsity
# are twice as high; NVIDIA's white paper on Hopper for H100 PCIe; AMD's data sheets of the MI200 and MI300 series.
# Patterns leave out the variants of other rows, so that a device is never measured against its sibling's roof. A
# variant without a row is held to one whose roof is higher than its own (A100 80GB PCIe, H200 NVL): an impossible
# figure may then pass. Where all are lower (H100 NVL, 3.9 TB/s) it is no device here: a right figure would be refused.
_TABLE = (
    _gpu("mi210", "rocm", 181.0, 1.6, 64, r"\bMI210\b", int8=181.0),
    # "MI250X / MI250" is what ROCm calls PCI id 740c, seen on MI250s (104 CUs a die); an MI250X has an id of its own.
    # The order makes it an MI250; who names the other is believed. Their peaks differ by 6 % of FLOP/s alone.
    _gpu("mi250", "rocm", 181.0, 1.6, 64, r"\bMI250\b", int8=181.0, dies=2),
    _gpu("mi250x", "rocm", 191.5, 1.6, 64, r"\bMI250X\b", int8=191.5, dies=2),
    _gpu("mi300x", "rocm", 1307.4, 5.3, 192, r"\bMI300X\b", int8=2614.9, fp8=2614.9),
    _gpu("mi325x", "rocm", 1307.4, 6.0, 256, r"\bMI325X\b", int8=2614.9, fp8=2614.9),
    _gpu("a100-40", "cuda", 312.0, 1.555, 40, r"\bA100\b.*\b40GB\b", int8=624.0),
    _gpu("a100", "cuda", 312.0, 2.039, 80, r"\bA100\b(?!.*\b40GB\b)", int8=624.0),
    _gpu("h100-pcie", "cuda", 756.0, 2.0, 80, r"\bH100\b.*\b(PCIe|HBM2e)\b", int8=1513.0, fp8=1513.0),
    _gpu("h100", "cuda", 989.0, 3.35, 80, r"\bH100\b(?!.*\b(PCIe|HBM2e|NVL)\b)", int8=1979.0, fp8=1979.0),
    _gpu("h200", "cuda", 989.0, 4.8, 141, r"\bH200\b", int8=1979.0, fp8=1979.0),
    _gpu("l40s", "cuda", 362.0, 0.864, 48, r"\bL40S\b", int8=733.0, fp8=733.0),
    _gpu("b200", "cuda", 2250.0, 8.0, 180, r"\bB200\b", int8=4500.0, fp8=4500.0),
    Device("cpu", "cpu", None, None, None, r"(?!)", ("float32", "bfloat16"), 0.10, source="measured at start"),
)
DEVICES: dict[str, Device] = {device.name: device for device in _TABLE}


def device_for_product(product: str) -> Device | None:
    """The device that a vendor's tool calls ``product``, or None if the table has no such."""
    return next((device for device in _TABLE if re.search(device.match, product, re.IGNORECASE)), None)
