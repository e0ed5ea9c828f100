"""What optimizations need of the machine, and compiling of dynamo."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmperf.backends.base import NotEngagedError
from pytest_llmperf.folders import breaks_commands

if TYPE_CHECKING:
    from pytest_llmperf.machine.table import Device

#: Variables that make torch.compile leave everything eager, where they are 1.
DISABLING = ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE")
#: The end of the name of the folder that inductor's compiler works in, beside the file that it writes. The folder goes
#: once the file is whole. Then the ends of such files: a library, an object, a precompiled header.
WORKPLACE, WRITTEN = "_CxxBuild", (".so", ".o", ".gch")


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


def kernel_caches(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """The folders in which a worker of those variables keeps compiled C++ kernels and headers."""
    with suppress(KeyError, OSError):
        user = re.sub(r'[\\/:*?"<>|]', "_", getpass.getuser())
        default = Path(tempfile.gettempdir(), f"torchinductor_{user}")  # headers lie there whatever the variable says
        own = Path(environ.get("TORCHINDUCTOR_CACHE_DIR") or default)
        vllm = Path(os.path.expanduser(environ.get("VLLM_CACHE_ROOT") or "~/.cache/vllm"))
        return [*dict.fromkeys([own, default, vllm / "torch_compile_cache"])]
    return []


def drop_unfinished(caches: Iterable[Path]) -> list[Path]:
    """Remove the files whose compiler was killed while it wrote them, so that they are compiled anew.

    Inductor takes any file of the right name for whole. Half of one breaks each later run ("file too short").

    Args:
        caches: folders of compiled kernels; one need not be there.

    Returns:
        The removed files.
    """
    left = [place for folder in caches for place in folder.rglob(f"*{WORKPLACE}")]
    if not left:
        return []
    import psutil

    at_work = {one.info["cwd"] for one in psutil.process_iter(["cwd"])}
    removed = []
    for place in left:
        # A compiler that has ended since then has removed its folder, and its file is whole.
        if str(place.resolve()) not in at_work and place.exists():
            for ending in WRITTEN:
                with suppress(OSError):
                    (file := place.with_name(place.name.removesuffix(WORKPLACE) + ending)).unlink()
                    removed.append(file)
    return removed


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
