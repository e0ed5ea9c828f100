"""What optimizations need of the machine, and compiling of dynamo."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_llmperf.backends.base import NotEngagedError
from pytest_llmperf.folders import breaks_commands

if TYPE_CHECKING:
    from pytest_llmperf.machine.table import Device

#: Variables that make torch.compile leave everything eager, where they are 1.
DISABLING = ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE")


def why_not_compiled(device: Device, environ: Mapping[str, str], places: Iterable[str]) -> str | None:
    """The reason why torch.compile cannot compile here, or None.

    Args:
        device: where.
        environ: the worker's variables.
        places: folders that the C++ command names: those of torch and of Python's headers.
    """
    if disabled := next((name for name in DISABLING if environ.get(name) == "1"), None):
        return f"{disabled}=1 turns torch.compile off; unset it"
    if device.kind != "cpu":
        return None
    compiler = environ.get("CXX", "g++").split()[0]
    if not (shutil.which(compiler) or shutil.which("clang++")):
        return "torch.compile needs a C++ compiler (g++ or clang++) on the CPU, and none is on PATH"
    broken = "in whose path a blank, a quote or a backslash breaks inductor's C++ command"
    if place := next(filter(breaks_commands, places), None):
        return f"torch or Python lies in {place}, {broken}; install them elsewhere"
    kernels = environ.get("TORCHINDUCTOR_CACHE_DIR", "")
    if kernels and breaks_commands(kernels):
        return f"TORCHINDUCTOR_CACHE_DIR is {kernels}, {broken}; set it to another folder"
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
