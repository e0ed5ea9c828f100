"""Whether a machine is fit to measure on: facts in, findings out. Pure; `pytest_llmperf.machine.facts` reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import mode
from typing import Literal

from pytest_llmperf.folders import REMEDY, Cache
from pytest_llmperf.machine.fitness import CONTAMINATED, NORMAL_UNDER_LOAD, STALLED
from pytest_llmperf.machine.table import can_use

Level = Literal["ok", "warn", "bad", "unknown"]
#: The worst first.
LEVELS: tuple[Level, ...] = ("bad", "warn", "unknown", "ok")
GIB, MIB = 2**30, 2**20
#: A cap this far below the default is more than how tools round.
CAP_LOWERED = 0.98
#: Docker's default for /dev/shm; beyond `SHM_ROOMY` nothing here needs more.
SHM_DEFAULT, SHM_ROOMY = 64 * MIB, GIB
#: What a host thread and the driver's own need beside a GPU.
HOST_CPUS = 2.0
#: Swap in use that is more than what a kernel puts away at leisure.
SWAP_USED = 64 * MIB


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what.
        level: ``ok``, ``warn``, ``bad``; ``unknown`` where it could not be read.
        seen: what was seen; why it could not be read, where it is unknown.
        why: why it matters for latency.
        remedy: what to do about it; empty if nothing.
    """

    subject: str
    level: Level
    seen: str
    why: str
    remedy: str = ""

    @property
    def said(self) -> str:
        """One line of it."""
        return f"{self.subject}: {self.seen}; {self.why}" + (f". {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Gpu:
    """One die, as its vendor's library or tool tells of it; an MI250 is two. What is not told is None.

    Attributes:
        clock, highest_clock: MHz, of the SMs or the compute units.
        throttles: why it runs slower than it could, now; see `pytest_llmperf.machine.gpu`.
        power_cap, default_cap: W; None on the second die of a package, whose first one has the package's.
        persistent: NVIDIA's persistence mode.
        ecc: whether it is on. uncorrected: errors since the driver was loaded.
        memory, used: bytes.
        links: NVLinks that are up, or dies that XGMI reaches. down: NVLinks that are not.
        siblings: dies that share its product.
    """

    name: str
    clock: float | None = None
    highest_clock: float | None = None
    throttles: tuple[str, ...] | None = None
    power_cap: float | None = None
    default_cap: float | None = None
    persistent: bool | None = None
    ecc: bool | None = None
    uncorrected: int | None = None
    memory: int | None = None
    used: int | None = None
    links: int | None = None
    down: int | None = None
    siblings: int = 1


@dataclass(frozen=True)
class Need:
    """Bytes that the chosen model needs on each device.

    Attributes:
        what: model, type and the largest workload, in words.
        weights, cache: of the model, and of the keys and values of the largest workload. weights is None where nobody
            knows how many parameters the model has, or how many bytes.
        parity: what parity holds besides, a copy of the reference one precision up.
        devices: how many hold the model, the first ones that are visible.
    """

    what: str
    weights: int | None
    cache: int
    parity: int = 0
    devices: int = 1


@dataclass(frozen=True)
class Facts:
    """What was read of a machine. What could not be read is None, or empty, and ``unread`` says why.

    Attributes:
        kind: of the device measured on: ``cpu``, ``cuda`` or ``rocm``.
        numa_balancing: the kernel's setting: 0 is off, 1 on, 2 tiering.
        numa_nodes: with memory.
        governors: of the usable CPUs, each once; ``driver`` sets their clock.
        boost: whether clocks above the nominal one are allowed.
        cpus, of: CPUs that this process may use, and that the machine has.
        quota: CPUs' worth of time that the control group may use; infinite where it may use all.
        others, idle: cores that other processes and the hypervisor use now, and that nobody does.
        busiest: who uses most of them. load: mean number of runnable tasks over the last minute.
        pressure: share of the last 10 s in which some task waited, by resource.
        available: bytes of memory that a worker can have. limit: of the control group, or None.
        swap: bytes in use. shm: bytes that /dev/shm can hold. huge_pages: the mode of transparent huge pages.
        gpus: the dies that a worker can see. versions: of drivers and libraries. need: of the chosen model.
        cache: the folder for what outlives a run.
    """

    kind: str = "cpu"
    numa_balancing: int | None = None
    numa_nodes: int | None = None
    governors: tuple[str, ...] = ()
    driver: str = ""
    boost: bool | None = None
    cpus: int | None = None
    of: int | None = None
    quota: float | None = None
    others: float | None = None
    idle: float | None = None
    busiest: str | None = None
    load: float | None = None
    pressure: Mapping[str, float] = field(default_factory=dict)
    available: int | None = None
    limit: int | None = None
    swap: int | None = None
    shm: int | None = None
    huge_pages: str | None = None
    gpus: tuple[Gpu, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    need: Need | None = None
    cache: Cache | None = None
    unread: Mapping[str, str] = field(default_factory=dict)


def examine(facts: Facts) -> list[Finding]:
    """What there is to say of a machine, in a fixed order; what only concerns accelerators is left out on a CPU."""
    checks = (*_HOST, *(_ACCELERATOR if facts.kind != "cpu" else ()), *_MODEL)
    return [finding for check in checks for finding in check(facts)]


def _unknown(subject: str, why: str, facts: Facts, reason: str, key: str = "") -> Finding:
    return Finding(subject, "unknown", facts.unread.get(key or subject, reason), why)


# The host


def _numa(facts: Facts) -> Iterator[Finding]:
    subject = "NUMA balancing"
    why = "the kernel unmaps pages to see who uses them, and moves them: faults and stalls at random moments"
    if facts.numa_balancing is None:
        yield _unknown(subject, why, facts, "the kernel has no such setting here")
    elif facts.numa_balancing and facts.numa_nodes != 1:
        nodes = "an unknown number of" if facts.numa_nodes is None else facts.numa_nodes
        yield Finding(subject, "bad", f"on, {nodes} nodes", why, "sudo sysctl kernel.numa_balancing=0")
    else:
        seen = "off" if not facts.numa_balancing else "on, but there is one node, so that it does nothing"
        yield Finding(subject, "ok", seen, why)


def _governor(facts: Facts) -> Iterator[Finding]:
    subject, why = "CPU governor", "a clock that follows the load is low when a short step begins"
    remedy = "sudo cpupower frequency-set -g performance"
    slow = sorted(set(facts.governors) - {"performance"})
    seen = ", ".join(facts.governors) + (f" ({facts.driver})" if facts.driver else "")
    if not facts.governors:
        yield _unknown(subject, why, facts, "no cpufreq, as in most virtual machines: the host decides")
    elif not slow:
        yield Finding(subject, "ok", seen, why)
    elif "powersave" in slow and not facts.driver.startswith(("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")):
        yield Finding(subject, "bad", seen, "the CPU stays at its lowest clock", remedy)
    else:
        yield Finding(subject, "warn", seen, why, remedy)


def _boost(facts: Facts) -> Iterator[Finding]:
    subject = "CPU boost"
    why = "above the nominal clock, the clock depends on temperature and on how many cores work"
    if facts.boost is None:
        yield _unknown(subject, why, facts, "the kernel does not say")
    else:
        yield Finding(subject, "ok", "on" if facts.boost else "off", f"{why}; baselines of one setting compare")


def _load(facts: Facts) -> Iterator[Finding]:
    subject, why = "other load", "whoever waits for a core makes the threads at its barrier wait"
    remedy = "stop it, or measure when it is over"
    if facts.others is None or facts.idle is None:
        yield _unknown(subject, why, facts, "the kernel does not count CPU time here")
    else:
        whose = f", {facts.busiest} most" if facts.busiest else ""
        load = "" if facts.load is None else f", load average {facts.load:.2f}"
        busy = facts.others > CONTAMINATED
        level: Level = "bad" if busy and facts.idle < 1 else "warn" if busy else "ok"
        seen = f"others use {facts.others:.1f} cores{whose if busy else ''}, {facts.idle:.1f} idle{load}"
        yield Finding(subject, level, seen, why, remedy if busy else "")
    why = "tasks wait for memory that is being reclaimed, or for a disk"
    if not facts.pressure:
        yield _unknown("pressure", why, facts, "the kernel does not account it (PSI)")
    else:
        seen = ", ".join(f"{name} {share:.0%}" for name, share in sorted(facts.pressure.items()))
        high = any(share > STALLED for name, share in facts.pressure.items() if name != "cpu")
        remedy = "give the machine more memory, or stop who uses it or the disk"
        yield Finding("pressure", "warn" if high else "ok", f"{seen} of the last 10 s", why, remedy if high else "")


def _limits(facts: Facts) -> Iterator[Finding]:
    subject, why = "CPU limit", "beyond its quota a container stands still for the rest of each period, 100 ms mostly"
    if facts.quota is None or facts.cpus is None:
        yield _unknown(subject, why, facts, "no control group can be read")
    else:
        usable = f"{facts.cpus} of {facts.of or facts.cpus} CPUs"
        least = facts.cpus if facts.kind == "cpu" else min(HOST_CPUS, facts.cpus)
        if facts.quota >= facts.cpus:
            yield Finding(subject, "ok", f"{usable}, no quota below that", why)
        else:
            level: Level = "bad" if facts.quota < least else "warn"
            remedy = (
                "give it whole CPUs (docker --cpuset-cpus; Kubernetes: equal requests and limits, static CPU policy), "
                "or set OMP_NUM_THREADS to what the quota allows"
            )
            yield Finding(subject, level, f"{usable}, a quota of {facts.quota:g} CPUs", why, remedy)
    subject, why = "/dev/shm", "ranks and vLLM's processes exchange data there, and fail or fall back where it is small"
    if facts.shm is None:
        yield _unknown(subject, why, facts, "it is not there")
    elif facts.shm < SHM_ROOMY:
        level = "bad" if facts.shm <= SHM_DEFAULT and len(facts.gpus) > 1 else "warn"
        yield Finding(subject, level, _size(facts.shm), why, "docker --shm-size=8g, or --ipc=host")
    else:
        yield Finding(subject, "ok", _size(facts.shm), why)


def _pages(facts: Facts) -> Iterator[Finding]:
    subject, why = "transparent huge pages", "with pages of 4 KiB, reading the weights of a model misses the TLB"
    if facts.huge_pages is None:
        yield _unknown(subject, why, facts, "the kernel has none")
    elif facts.huge_pages == "never" and facts.kind == "cpu":
        remedy = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
        yield Finding(subject, "warn", facts.huge_pages, why, remedy)
    else:
        yield Finding(subject, "ok", facts.huge_pages, why)
    subject, why = "swap", "a page that was put on a disk is read back in the middle of a sample"
    if facts.swap is None:
        yield _unknown(subject, why, facts, "/proc/meminfo does not say")
    elif facts.swap > SWAP_USED:
        yield Finding(subject, "warn", f"{_size(facts.swap)} in use", why, "sudo swapoff -a, if memory suffices")
    else:
        yield Finding(subject, "ok", f"{_size(facts.swap)} in use", why)


def _cache(facts: Facts) -> Iterator[Finding]:
    if facts.cache is not None:
        level: Level = "warn" if facts.cache.instead else "ok"
        why = "models are converted and kernels compiled once, and kept there"
        yield Finding(
            "cache", level, facts.cache.instead or str(facts.cache.folder), why, REMEDY * bool(facts.cache.instead)
        )


# Accelerators


def _each(
    facts: Facts, subject: str, why: str, judge: Callable[[Gpu], tuple[Level, str] | None], remedy: str
) -> Finding:
    """One finding of all dies: the worst level, and which of them have it. None is a die that does not tell."""
    told = [(index, found) for index, gpu in enumerate(facts.gpus) if (found := judge(gpu)) is not None]
    if not told:
        return _unknown(subject, why, facts, "no GPU of this machine tells", "GPU")
    worst = min((level for _, (level, _) in told), key=LEVELS.index)
    groups: dict[str, list[int]] = {}
    for index, (level, seen) in told:
        if level == worst:
            groups.setdefault(seen, []).append(index)
    shown = "; ".join(
        seen if len(which) == len(facts.gpus) else f"{seen} ({'GPU ' + ', '.join(map(str, which))})"
        for seen, which in groups.items()
    )
    return Finding(subject, worst, shown, why, "" if worst == "ok" else remedy)


def _clocks(facts: Facts) -> Iterator[Finding]:
    def judge(gpu: Gpu) -> tuple[Level, str] | None:
        if gpu.throttles is None:
            return None
        if hard := [why for why in gpu.throttles if why not in NORMAL_UNDER_LOAD]:
            return "bad", f"throttled: {', '.join(hard)}"
        if gpu.throttles:
            return "warn", f"throttled: {', '.join(gpu.throttles)}"
        top = "" if gpu.highest_clock is None else f", up to {gpu.highest_clock:.0f} MHz"
        return "ok", f"not throttled{top}"

    why = "a card that is too hot, or short of power, runs below its clocks"
    yield _each(facts, "GPU clocks", why, judge, "cool it: airflow, other cards' load; nvidia-smi -q -d PERFORMANCE")


def _power(facts: Facts) -> Iterator[Finding]:
    def judge(gpu: Gpu) -> tuple[Level, str] | None:
        if not gpu.power_cap or not gpu.default_cap:
            return None
        lowered = gpu.power_cap < CAP_LOWERED * gpu.default_cap
        return "bad" if lowered else "ok", f"{gpu.power_cap:.0f} of {gpu.default_cap:.0f} W"

    why = "under a lower cap the clocks fall in a prefill, and figures are not the product's"
    remedy = "sudo nvidia-smi -pl WATTS" if facts.kind == "cuda" else "sudo amd-smi reset --power-cap"
    yield _each(facts, "GPU power cap", why, judge, remedy)


def _persistence(facts: Facts) -> Iterator[Finding]:
    def judge(gpu: Gpu) -> tuple[Level, str] | None:
        return None if gpu.persistent is None else ("ok", "on") if gpu.persistent else ("warn", "off")

    if facts.kind == "cuda":
        why = "without it the driver is unloaded between processes: slow starts, and clocks that were set are lost"
        yield _each(facts, "persistence mode", why, judge, "sudo nvidia-smi -pm 1")


def _ecc(facts: Facts) -> Iterator[Finding]:
    def judge(gpu: Gpu) -> tuple[Level, str] | None:
        if gpu.uncorrected:
            return "bad", f"{gpu.uncorrected} uncorrected errors"
        if gpu.ecc is False:
            return "warn", "off"
        return None if gpu.ecc is None and gpu.uncorrected is None else ("ok", "no uncorrected errors")

    why = "a card with failing memory computes wrong tokens; pages are retired while it runs"
    yield _each(facts, "ECC", why, judge, "switch it on where it is off; where there are errors, use another card")


def _links(facts: Facts) -> Iterator[Finding]:
    if len(facts.gpus) == 1 and facts.gpus[0].links is None:
        return  # a card by itself
    usual = mode([gpu.links for gpu in facts.gpus if gpu.links is not None] or [0])
    name = "NVLink" if facts.kind == "cuda" else "XGMI"

    def judge(gpu: Gpu) -> tuple[Level, str] | None:
        if gpu.links is None:
            return None
        if gpu.down:
            return "bad", f"{gpu.down} of {gpu.links + gpu.down} links down"
        if gpu.links < usual or (gpu.siblings > 1 and not gpu.links):
            return "bad", f"{gpu.links} links, where others have {usual or 'one at least'}"
        return "ok", f"{gpu.links} links up" if name == "NVLink" else f"{gpu.links} other dies reached"

    why = "ranks of a model that is spread over devices wait for each other's sums at every layer"
    remedy = "nvidia-smi nvlink -s" if name == "NVLink" else "rocm-smi --showtopo"
    yield _each(facts, name, why, judge, f"see {remedy}; reseat or replace, or leave the device out")


def _count(facts: Facts) -> Iterator[Finding]:
    why = "what is measured on"
    if not facts.gpus:
        remedy = "install nvidia-ml-py" if facts.kind == "cuda" else "install ROCm's amdsmi"
        finding = _unknown("GPU", why, facts, "no library or tool of its vendor is here")
        yield Finding(finding.subject, finding.level, finding.seen, why, remedy)
    else:
        names = list(dict.fromkeys(gpu.name for gpu in facts.gpus))
        packages = sum(1 / gpu.siblings for gpu in facts.gpus)
        dies = f" ({packages:g} packages of {facts.gpus[0].siblings} dies)" if packages < len(facts.gpus) else ""
        yield Finding("GPU", "ok", f"{len(facts.gpus)} x {', '.join(names)}{dies}", why)


# The chosen model


def _versions(facts: Facts) -> Iterator[Finding]:
    subject, why = "versions", "a kernel's speed is its version's; torch computes only on what it was built for"
    torch = facts.versions.get("torch")
    seen = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    if torch is None:
        yield Finding(subject, "bad", f"torch is not installed; {seen}", why, "install it in the workers' interpreter")
    elif not can_use(torch, facts.kind):
        yield Finding(
            subject, "bad", f"torch {torch} cannot use this device; {seen}", why, "install its build of torch"
        )
    elif facts.kind != "cpu" and not any(name.endswith("driver") for name in facts.versions):
        yield Finding(subject, "warn", f"the driver's version cannot be read; {seen}", why)
    else:
        yield Finding(subject, "ok", seen, why)


def _memory(facts: Facts) -> Iterator[Finding]:
    subject, why = "memory", "a model that does not fit fails, or is moved in and out while it runs"
    need = facts.need
    if need is None:
        return
    if need.weights is None:
        reason = f"the size of {need.what} is not known: its model type is not counted, or its weights are quantized"
        yield _unknown(subject, why, facts, reason, "size")
        return
    free, where = facts.available, "the host"
    if facts.kind != "cpu":
        used = facts.gpus[: need.devices]
        room = [gpu.memory - gpu.used for gpu in used if gpu.memory is not None and gpu.used is not None]
        free, where = min(room, default=None), "the device" if need.devices == 1 else "the fullest device"
    if free is None:
        yield _unknown(subject, why, facts, f"free memory of {where} cannot be read", "memory" if facts.gpus else "GPU")
        return
    limit = f" (limit {_size(facts.limit)})" if facts.kind == "cpu" and facts.limit is not None else ""
    seen = (
        f"{_size(free)} free on {where}{limit}; {need.what} needs {_size(need.weights)} of weights and "
        f"{_size(need.cache)} of keys and values"
    )
    remedy = "free it, or lower --llm-batch-sizes or --llm-prompt-lengths, or take a smaller model"
    if need.weights + need.cache > free:
        yield Finding(subject, "bad", seen, why, remedy)
    elif need.weights + need.cache + need.parity > free:
        more = f"{seen}, and parity {_size(need.parity)} more"
        yield Finding(subject, "warn", more, why, f"{remedy}; parity may fail")
    else:
        yield Finding(subject, "ok", seen, why)


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"


_Check = Callable[[Facts], Iterator[Finding]]
_HOST: tuple[_Check, ...] = (_numa, _governor, _boost, _load, _limits, _pages, _cache)
_ACCELERATOR: tuple[_Check, ...] = (_count, _clocks, _power, _persistence, _ecc, _links)
_MODEL: tuple[_Check, ...] = (_versions, _memory)
