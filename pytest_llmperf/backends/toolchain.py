"""What optimizations need of the machine."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_llmperf.devices.table import Device


def cpp_compiler_missing(device: Device) -> str | None:
    """The reason why torch.compile cannot build CPU kernels here, or None."""
    compiler = os.environ.get("CXX", "g++").split()[0]
    if device.kind == "cpu" and not (shutil.which(compiler) or shutil.which("clang++")):
        return "torch.compile needs a C++ compiler (g++ or clang++) on the CPU, and none is on PATH"
    return None


def no_accelerator(device: Device) -> str | None:
    """The reason why kernels that exist for GPUs alone cannot run on the device, or None."""
    return "it has no CPU kernel; it needs a CUDA or ROCm device" if device.kind == "cpu" else None
