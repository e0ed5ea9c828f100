"""What an accelerator says of itself around a sample: clocks, throttling, temperature, power, and who else is on it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pytest_llmperf.machine import health

#: NVML's bits for what slows the clocks down. The others are idleness, or clocks that somebody chose.
NVML_REASONS = {
    0x04: "SW power cap",
    0x08: "HW slowdown",
    0x20: "SW thermal slowdown",
    0x40: "HW thermal slowdown",
    0x80: "HW power brake slowdown",
}
#: amdsmi's counters of the time spent throttled, by the reason that they count.
AMD_REASONS = {
    "ppt_residency_acc": "power limit",
    "prochot_residency_acc": "processor hot",
    "socket_thm_residency_acc": "socket temperature",
    "vr_thm_residency_acc": "voltage regulator temperature",
    "hbm_thm_residency_acc": "memory temperature",
}
#: What is said of an MI200, whose status has no reason.
UNNAMED = "a limit without a name"


@dataclass(frozen=True)
class Stranger:
    """A process on the device that is not of this run; bytes of its memory there, or None."""

    pid: int
    name: str
    memory: int | None


@dataclass(frozen=True)
class Reading:
    """One look at the device. What it does not tell is None.

    Attributes:
        clock, memory_clock: MHz; ``clock`` is that of the SMs, or of the compute units, a mean over the dies.
        temperature: degrees Celsius; AMD's is the hottest spot's.
        power: W, of the board or the socket.
        throttles: why it runs slower than it could.
        throttled: counters of the time spent throttled, by reason; only differences have a meaning.
        strangers: the processes on it that are not of this run.
    """

    clock: float | None = None
    memory_clock: float | None = None
    temperature: float | None = None
    power: float | None = None
    throttles: tuple[str, ...] | None = None
    throttled: Mapping[str, int] = field(default_factory=dict)
    strangers: tuple[Stranger, ...] | None = None


class Probe(Protocol):
    """Looks at one device."""

    def read(self) -> Reading: ...


def during(before: Reading, after: Reading) -> Reading:
    """What two readings say of the time between them.

    The state is the second one's: before a generation the device may have been idle. A throttling whose counter grew
    belongs to the time between, and so does a process that was there at either end.
    """
    grown = {why for why, count in after.throttled.items() if count > before.throttled.get(why, count)}
    known = after.throttles is not None or grown
    seen = {one.pid: one for one in (*(before.strangers or ()), *(after.strangers or ()))}
    return replace(
        after,
        throttles=tuple(sorted({*(after.throttles or ()), *grown})) if known else None,
        strangers=None if before.strangers is None and after.strangers is None else tuple(seen.values()),
    )


def strangers(
    memory: Mapping[int, int | None] | None, process: Callable[[int], health.Process | None]
) -> tuple[Stranger, ...] | None:
    """Those of the processes on a device that are not of this run; None where that cannot be told.

    A run's workers lead sessions, and their parent is one. So an idle engine of the run is no stranger, nor is a server
    that a worker started, whose processes may have groups of their own. If none of the processes is of this run, though
    this worker is on the device, then the numbers are those of another PID namespace, as in many a container, and say
    nothing.

    Args:
        memory: bytes by process id, or None.
        process: looks one up.
    """

    def ours(found: health.Process | None) -> bool:
        leader = found and process(found.session)
        return leader is not None and leader.parent == os.getppid()

    found = {pid: process(pid) for pid in memory or ()}
    if not any(map(ours, found.values())):
        return None
    return tuple(
        Stranger(pid, one.name if one else "not visible from here", (memory or {})[pid])
        for pid, one in found.items()
        if not ours(one)
    )


class Nvml:
    """An NVIDIA device, by ``pynvml`` (the package nvidia-ml-py). Raises its ``NVMLError`` if there is none."""

    def __init__(self, library: Any, address: str) -> None:
        self._library = library
        library.nvmlInit()
        self._handle = library.nvmlDeviceGetHandleByPciBusId(address)

    def ask(self, function: str, *arguments: Any) -> Any:
        """The answer, or None where the library, the driver or the device has none."""
        call = getattr(self._library, function, None)
        if call is None:
            return None
        try:
            return call(self._handle, *arguments)
        except self._library.NVMLError:
            return None

    def read(self) -> Reading:
        reasons = self.ask("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:  # its name before driver 535, with the same bits
            reasons = self.ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        milliwatts = self.ask("nvmlDeviceGetPowerUsage")
        processes = self.ask("nvmlDeviceGetComputeRunningProcesses")
        return Reading(
            clock=self.ask("nvmlDeviceGetClockInfo", self._library.NVML_CLOCK_SM),
            memory_clock=self.ask("nvmlDeviceGetClockInfo", self._library.NVML_CLOCK_MEM),
            temperature=self.ask("nvmlDeviceGetTemperature", self._library.NVML_TEMPERATURE_GPU),
            power=None if milliwatts is None else milliwatts / 1e3,
            throttles=None if reasons is None else tuple(name for bit, name in NVML_REASONS.items() if reasons & bit),
            strangers=strangers(
                None if processes is None else {one.pid: one.usedGpuMemory for one in processes}, health.process
            ),
        )


class Amd:
    """An AMD device, by ``amdsmi``, which comes with ROCm. Raises its ``AmdSmiException`` if there is none.

    ``amdsmi_get_violation_status`` also knows the reasons, but sleeps between two looks of its own; the counters that
    it compares are among the metrics, and a sample lies between two looks anyway.
    """

    def __init__(self, library: Any, address: str) -> None:
        self._library = library
        library.amdsmi_init()
        self._handle = library.amdsmi_get_processor_handle_from_bdf(address)

    def ask(self, function: str, *arguments: Any) -> Any:
        """The answer, or None where the library, the driver or the device has none."""
        call = getattr(self._library, function, None)
        if call is None:
            return None
        try:
            return call(self._handle, *arguments)
        except self._library.AmdSmiException:
            return None

    def read(self) -> Reading:
        metrics = self.ask("amdsmi_get_gpu_metrics_info") or {}
        processes = self.ask("amdsmi_get_gpu_process_list")
        status = metrics.get("throttle_status", "N/A")
        dies = [clock for clock in metrics.get("current_gfxclks", ()) if clock != "N/A"]
        return Reading(
            clock=sum(dies) / len(dies) if dies else _number(metrics, "current_gfxclk", "average_gfxclk_frequency"),
            memory_clock=_number(metrics, "current_uclk", "average_uclk_frequency"),
            temperature=_number(metrics, "temperature_hotspot", "temperature_edge"),
            power=_number(metrics, "current_socket_power", "average_socket_power"),
            throttles=None if status == "N/A" else (UNNAMED,) * bool(status),
            throttled={
                why: int(count) for name, why in AMD_REASONS.items() if (count := _number(metrics, name)) is not None
            },
            strangers=strangers(
                None if processes is None else {one["pid"]: one["memory_usage"]["vram_mem"] for one in processes},
                health.process,
            ),
        )


def _number(metrics: Mapping[str, Any], *names: str) -> float | None:
    """The first of those metrics that the device has; amdsmi says ``N/A`` of the others."""
    return next((metrics[name] for name in names if isinstance(metrics.get(name), int | float)), None)


#: Module, what looks with it, and the class of its errors.
_KINDS: tuple[tuple[str, Callable[[Any, str], Probe], str], ...] = (
    ("pynvml", Nvml, "NVMLError"),
    ("amdsmi", Amd, "AmdSmiException"),
)


def probe(address: str) -> Probe | None:
    """Whatever can look at the device at a PCI address (``0000:3b:00.0``); None if nothing here can."""
    for module, kind, error in _KINDS:
        try:
            library = importlib.import_module(module)
        except (ImportError, OSError, KeyError, AttributeError):  # not installed, or without its driver's library
            continue
        try:
            return kind(library, address)
        except getattr(library, error):
            continue
    return None
