"""What optimizations need of the machine, and compiling of dynamo."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_llmperf.backends.base import NotEngagedError

if TYPE_CHECKING:
    from pytest_llmperf.machine.table import Device


def cpp_compiler_missing(device: Device) -> str | None:
    """The reason why torch.compile cannot build CPU kernels here, or None."""
    compiler = os.environ.get("CXX", "g++").split()[0]
    if device.kind == "cpu" and not (shutil.which(compiler) or shutil.which("clang++")):
        return "torch.compile needs a C++ compiler (g++ or clang++) on the CPU, and none is on PATH"
    return None


def no_accelerator(device: Device) -> str | None:
    """The reason why kernels that exist for GPUs alone cannot run on the device, or None."""
    return "it has no CPU kernel; it needs a CUDA or ROCm device" if device.kind == "cpu" else None


@contextmanager
def no_fallback(part: str) -> Iterator[None]:
    """Turn dynamo's refusal to compile once more, beyond which it would run eager, into NotEngagedError.

    Args:
        part: what is compiled, as in ``every one of the 30 layers``.
    """
    import torch
    from torch._dynamo.exc import FailOnRecompileLimitHit

    try:
        yield
    except FailOnRecompileLimitHit as error:
        raise NotEngagedError(
            f"torch.compile fell back to eager: dynamo's recompile_limit of {torch._dynamo.config.recompile_limit} was "
            f"hit, so not {part} is compiled ({str(error).splitlines()[0]})"
        ) from error
