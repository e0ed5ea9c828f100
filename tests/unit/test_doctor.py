"""Whether a machine is fit to measure on: hosts as documented, bad ones, this one; and no result is lost for it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inner import Suite, usage_error

from pytest_llmperf.architecture import Architecture
from pytest_llmperf.cases import Workload
from pytest_llmperf.machine import cards, facts
from pytest_llmperf.machine.doctor import GIB, LEVELS, MIB, Facts, Finding, Gpu, Need, examine
from pytest_llmperf.machine.facts import Asked, Busy
from pytest_llmperf.machine.table import DEVICES, device_of
from pytest_llmperf.models import CONFIGS
from pytest_llmperf.report import checkup, write
from pytest_llmperf.report.document import Document, of

DATA = Path(__file__).parent.parent / "data"
HOSTS = {"mi210": "mi210-host.json", "mi250": "mi250-x4-host.json", "h100": "h100-x8-host.json"}
SEVEN_B = facts.need(Architecture.from_config(CONFIGS["llama-2-7b"]), "float16", Workload(8, 2048, 128), "llama-2-7b")


class NVMLError(Exception):
    pass


class AmdSmiException(Exception):  # noqa: N818  its name
    pass


def nvml(recorded: list[dict[str, Any]]) -> Any:
    """A fake ``pynvml`` of values written down; what it does not support is an error, as there."""
    addressed = {one["busId"]: one for one in recorded}

    def link(one: dict[str, Any], number: int) -> int:
        if number >= len(one["links"]):
            raise NVMLError
        return int(one["links"][number])

    return SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        NVML_MEMORY_ERROR_TYPE_UNCORRECTED=1,
        NVML_VOLATILE_ECC=0,
        NVML_NVLINK_MAX_LINKS=18,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(recorded),
        nvmlDeviceGetHandleByIndex=lambda index: recorded[index],
        nvmlDeviceGetHandleByPciBusId=lambda address: addressed[address],
        nvmlDeviceGetPciInfo=lambda one: SimpleNamespace(busId=one["busId"].encode()),
        nvmlDeviceGetName=lambda one: one["name"].encode(),
        nvmlDeviceGetClockInfo=lambda one, kind: one["clock" if kind == 1 else "memory_clock"],
        nvmlDeviceGetMaxClockInfo=lambda one, _: one["max_clock"],
        nvmlDeviceGetTemperature=lambda one, _: one["temperature"],
        nvmlDeviceGetPowerUsage=lambda one: one["power"],
        nvmlDeviceGetCurrentClocksEventReasons=lambda one: one["reasons"],
        nvmlDeviceGetEnforcedPowerLimit=lambda one: one["cap"],
        nvmlDeviceGetPowerManagementDefaultLimit=lambda one: one["default_cap"],
        nvmlDeviceGetPersistenceMode=lambda one: one["persistence"],
        nvmlDeviceGetEccMode=lambda one: one["ecc"],
        nvmlDeviceGetTotalEccErrors=lambda one, error, counter: one["uncorrected"],
        nvmlDeviceGetMemoryInfo=lambda one: SimpleNamespace(total=one["total"], used=one["used"]),
        nvmlDeviceGetNvLinkState=link,
        nvmlDeviceGetComputeRunningProcesses=lambda one: [],
    )


def amdsmi(recorded: list[dict[str, Any]]) -> Any:
    """A fake ``amdsmi`` of values written down."""
    addressed = {one["bdf"]: one for one in recorded}
    return SimpleNamespace(
        AmdSmiException=AmdSmiException,
        AmdSmiClkType=SimpleNamespace(GFX=1),
        amdsmi_init=lambda: None,
        amdsmi_get_processor_handles=lambda: recorded,
        amdsmi_get_gpu_device_bdf=lambda one: one["bdf"],
        amdsmi_get_processor_handle_from_bdf=lambda address: addressed[address],
        amdsmi_get_gpu_metrics_info=lambda one: one["metrics"],
        amdsmi_get_gpu_process_list=lambda one: [],
        amdsmi_get_gpu_asic_info=lambda one: one["asic"],
        amdsmi_get_clock_info=lambda one, _: one["clock"],
        amdsmi_get_power_cap_info=lambda one: one["power"],
        amdsmi_get_gpu_vram_usage=lambda one: one["memory"],
        amdsmi_get_gpu_total_ecc_count=lambda one: one["ecc"],
    )


class Host:
    """A host of ``tests/data`` in a folder; without ``libraries`` only its files and tools are there."""

    def __init__(self, name: str, root: Path, libraries: bool = True) -> None:
        self.device = DEVICES[name]
        self.root = root
        self.recorded = json.loads((DATA / HOSTS[name]).read_text())
        self.libraries = libraries
        for path, text in self.recorded["files"].items():
            self.write(path, text)

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def ask(self, *command: str) -> str:
        said = " ".join(command)
        return next((text for tool, text in self.recorded["tools"].items() if said.startswith(tool)), "")

    def load(self, name: str) -> Any:
        made = {"pynvml": ("nvml", nvml), "amdsmi": ("amdsmi", amdsmi)}
        key, make = made[name]
        if not self.libraries or key not in self.recorded:
            raise ImportError(name)
        return make(self.recorded[key])

    def facts(self, need: Need | None = SEVEN_B, environ: Mapping[str, str] | None = None) -> Facts:
        asked = Asked(
            root=self.root,
            ask=self.ask,
            load=self.load,
            busy=lambda: Busy(0.1, 12.0, None),
            versions=lambda: self.recorded["versions"],
            shm=lambda _: self.recorded["shm"],
            environ=environ or {},
        )
        return facts.read(self.device, need, asked)


def levels(found: list[Finding]) -> dict[str, str]:
    return {one.subject: one.level for one in found}


def worse_than_ok(read: Facts) -> dict[str, str]:
    return {one.subject: one.level for one in examine(read) if one.level != "ok"}


def the(subject: str, read: Facts) -> Finding:
    (found,) = (one for one in examine(read) if one.subject == subject)
    return found


# Hosts


@pytest.mark.parametrize("libraries", [True, False])
@pytest.mark.parametrize("name", HOSTS)
def test_a_device_s_memory_is_what_its_driver_says(name: str, libraries: bool, tmp_path: Path) -> None:
    host = Host(name, tmp_path, libraries)
    found, listed = cards.memory(host.device, host.root, host.ask, host.load), host.device.memory_bytes
    assert found is not None
    assert listed is not None
    assert 0.95 < found / listed < 1.1
    assert cards.memory(DEVICES["cpu"], host.root, host.ask, host.load) is None
    other = device_of({"cuda": "NVIDIA RTX A6000", "rocm": "AMD Instinct MI100"}[host.device.kind])
    assert other is not None
    assert cards.memory(other, host.root, host.ask, host.load) is None, "of the cards of this name there is none"


def test_an_mi210_host_with_amdsmi_is_fit(tmp_path: Path) -> None:
    read = Host("mi210", tmp_path).facts()
    assert worse_than_ok(read) == {}
    (gpu,) = read.gpus
    assert gpu == Gpu("AMD Instinct MI210", 800, 1700, (), 300, 300, None, None, 0, 65520 * MIB, 270 * MIB)


def test_an_mi210_host_without_amdsmi_is_read_from_the_kernel_s_files(tmp_path: Path) -> None:
    read = Host("mi210", tmp_path, libraries=False).facts()
    (gpu,) = read.gpus  # and not the display adapter beside it
    assert gpu == Gpu("AMD Instinct MI210", 800, 1700, None, 300, 300, None, None, 0, 68702699520, 283000000)
    assert levels(examine(read))["GPU clocks"] == "unknown"


def test_an_mi210_host_without_its_files_is_read_by_rocm_smi(tmp_path: Path) -> None:
    host = Host("mi210", tmp_path, libraries=False)
    (found,) = cards.read("rocm", tmp_path / "none", host.ask, host.load)
    assert found == Gpu("AMD Instinct MI210", power_cap=300, memory=68702699520, used=283000000)


def test_four_mi250s_are_eight_dies(tmp_path: Path) -> None:
    read = Host("mi250", tmp_path).facts()
    assert worse_than_ok(read) == {"GPU clocks": "unknown"}
    assert len(read.gpus) == 8
    assert the("GPU", read).seen == "8 x AMD Instinct MI250X / MI250 (4 packages of 2 dies)"
    assert the("XGMI", read).seen == "7 other dies reached"
    assert "560 of 560 W (GPU 0, 2, 4, 6)" in the("GPU power cap", read).seen  # the first die of each has it
    assert "63.7 GiB free on the device" in the("memory", read).seen  # of one die


def test_eight_h100s_by_nvml_and_by_nvidia_smi_are_the_same(tmp_path: Path) -> None:
    read = Host("h100", tmp_path / "a").facts()
    assert worse_than_ok(read) == {}
    assert the("NVLink", read).seen == "18 links up"
    by_tool = Host("h100", tmp_path / "b", libraries=False).facts()
    rounded = replace(by_tool.gpus[0], memory=read.gpus[0].memory, used=read.gpus[0].used)
    assert rounded == read.gpus[0]
    assert abs(by_tool.gpus[0].memory - read.gpus[0].memory) < MIB  # type: ignore[operator]
    assert worse_than_ok(by_tool) == {}


def test_only_what_the_user_left_visible_counts(tmp_path: Path) -> None:
    host = Host("h100", tmp_path)
    host.recorded["nvml"][3]["uncorrected"] = 5
    assert "GPU 3" in the("ECC", host.facts()).seen
    assert worse_than_ok(host.facts(environ={"CUDA_VISIBLE_DEVICES": "4,5"})) == {}
    assert len(host.facts(environ={"CUDA_VISIBLE_DEVICES": "4,5"}).gpus) == 2


# Bad machines


def change(path: str, text: str) -> Callable[[Host], None]:
    return lambda host: host.write(path, text)


def value(key: str, new: Any, cards: tuple[int, ...] = (0,), of: str = "nvml") -> Callable[[Host], None]:
    def apply(host: Host) -> None:
        for card in cards:
            host.recorded[of][card][key] = new

    return apply


CGROUP = "sys/fs/cgroup/user.slice/user-1000.slice"
DRM = "sys/class/drm/card1/device"
THP = "sys/kernel/mm/transparent_hugepage/enabled"
CPU3 = "sys/devices/system/cpu/cpu3/cpufreq/scaling_governor"
BAD: list[tuple[str, Callable[[Host], None], str, str, str, str]] = [
    ("h100", change("proc/sys/kernel/numa_balancing", "1\n"), "NUMA balancing", "bad", "on, 2 nodes",
     "sudo sysctl kernel.numa_balancing=0"),
    ("mi210", change(CPU3, "powersave\n"), "CPU governor", "bad",
     "performance, powersave (acpi-cpufreq)", "performance"),
    ("h100", change(CPU3, "powersave\n"), "CPU governor", "warn",
     "performance, powersave (intel_pstate)", "performance"),
    ("h100", value("cap", 500_000, (0, 2)),
     "GPU power cap", "bad", "500 of 700 W (GPU 0, 2)", "nvidia-smi -pl"),
    ("mi210", change(f"{DRM}/hwmon/hwmon5/power1_cap", "200000000\n"),
     "GPU power cap", "bad", "200 of 300 W", "amd-smi"),
    ("h100", value("uncorrected", 2), "ECC", "bad", "2 uncorrected errors (GPU 0)", "another card"),
    ("mi210", change(f"{DRM}/ras/umc_err_count", "ue: 1\nce: 3\n"), "ECC", "bad", "1 uncorrected errors", "card"),
    ("h100", value("ecc", [0, 1]), "ECC", "warn", "off (GPU 0)", "switch it on"),
    ("h100", value("reasons", 0x40 | 0x4), "GPU clocks", "bad", "throttled: HW thermal slowdown (GPU 0)", "cool it"),
    ("h100", value("reasons", 0x4), "GPU clocks", "warn", "throttled: SW power cap (GPU 0)", "cool it"),
    ("h100", value("persistence", 0, tuple(range(8))), "persistence mode", "warn", "off", "sudo nvidia-smi -pm 1"),
    ("h100", value("links", [1] * 17 + [0], (5,)), "NVLink", "bad", "1 of 18 links down (GPU 5)", "nvlink -s"),
    ("h100", value("links", [1] * 12, (5,)), "NVLink", "bad", "12 links, where others have 18 (GPU 5)", "nvlink -s"),
    ("mi210", change(f"{CGROUP}/cpu.max", "150000 100000\n"),
     "CPU limit", "bad", "a quota of 1.5 CPUs", "whole CPUs"),
    ("mi210", change(f"{CGROUP}/cpu.max", "800000 100000\n"),
     "CPU limit", "warn", "a quota of 8 CPUs", "whole CPUs"),
    ("h100", value("used", 75 * 2**30), "memory", "bad", "4.6 GiB free on the device", "--llm-batch-sizes"),
    ("h100", change(THP, "[always] madvise never\n"), "transparent huge pages",
     "ok", "always", ""),
    ("h100", change("proc/pressure/io", "some avg10=12.50 avg60=0 avg300=0 total=1\n"),
     "pressure", "warn", "io 12%", "memory"),
    ("h100", lambda host: host.recorded.update(shm=64 * MIB), "/dev/shm", "bad", "64 MiB", "--shm-size"),
    ("mi210", lambda host: host.recorded.update(shm=64 * MIB), "/dev/shm", "warn", "64 MiB", "--shm-size"),
    ("mi210", lambda host: host.recorded["versions"].update(torch="2.9.0+cpu"), "versions", "bad",
     "torch 2.9.0+cpu cannot use this device", "install"),
    ("mi210", lambda host: host.recorded["versions"].update(torch="2.9.0+cu128"),
     "versions", "bad", "cannot use", "install"),
    ("h100", lambda host: host.recorded["versions"].pop("torch"),
     "versions", "bad", "torch is not installed", "install"),
    ("h100", lambda host: host.recorded["versions"].pop("nvidia driver"),
     "versions", "warn", "driver's version", ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "spoil", "subject", "level", "seen", "remedy"), BAD, ids=[f"{b[0]}: {b[4]}" for b in BAD]
)
def test_what_is_wrong_is_found_with_what_to_do(
    name: str, spoil: Callable[[Host], None], subject: str, level: str, seen: str, remedy: str, tmp_path: Path
) -> None:
    host = Host(name, tmp_path, libraries=name == "h100")
    before = levels(examine(host.facts()))
    spoil(host)
    found = the(subject, host.facts())
    assert (found.level, found.why != "") == (level, True)
    assert seen in found.seen
    assert remedy in found.remedy
    assert bool(found.remedy) == bool(remedy)
    after = levels(examine(host.facts()))
    assert {one for one in after if after[one] != before[one]} == ({subject} if level != "ok" else set())


def test_a_quota_of_a_version_1_group_counts_too(tmp_path: Path) -> None:
    host = Host("h100", tmp_path)
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n")
    host.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "150000\n")  # mounted at the root in the container
    host.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    host.write("sys/fs/cgroup/memory/memory.limit_in_bytes", f"{8 * GIB}\n")
    host.write("sys/fs/cgroup/memory/memory.usage_in_bytes", f"{5 * GIB}\n")
    host.write("sys/fs/cgroup/memory/memory.stat", f"cache {GIB}\ninactive_file 7\ntotal_inactive_file {GIB}\n")
    read = host.facts()
    assert (read.quota, read.limit, read.available) == (1.5, 8 * GIB, 4 * GIB)
    host.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    assert host.facts().quota == math.inf


def test_on_a_cpu_the_host_s_memory_and_its_limit_count(tmp_path: Path) -> None:
    host = Host("h100", tmp_path)
    host.device = DEVICES["cpu"]
    assert not {"GPU", "ECC", "NVLink"} & levels(examine(host.facts())).keys()
    host.write(f"{CGROUP}/memory.max", f"{10 * GIB}\n")
    host.write(f"{CGROUP}/memory.current", f"{6 * GIB}\n")
    found = the("memory", host.facts())
    assert found.level == "bad"
    assert "4.0 GiB free on the host (limit 10.0 GiB)" in found.seen
    host.write("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n")
    assert the("transparent huge pages", host.facts()).level == "warn"


def test_a_numa_setting_does_nothing_on_one_node(tmp_path: Path) -> None:
    host = Host("h100", tmp_path)
    host.write("proc/sys/kernel/numa_balancing", "1\n")
    host.write("sys/devices/system/node/has_memory", "0\n")
    assert the("NUMA balancing", host.facts()).level == "ok"


def test_others_are_bad_where_no_core_is_left(tmp_path: Path) -> None:
    read = replace(Host("h100", tmp_path).facts(), others=3.0, idle=0.2, busiest="4711 (python)")
    found = the("other load", read)
    assert (found.level, found.seen) == (
        "bad", "others use 3.0 cores, 4711 (python) most, 0.2 idle, load average 0.31"
    )  # fmt: skip
    assert the("other load", replace(read, idle=5.0)).level == "warn"


def test_an_mi250_die_that_xgmi_does_not_reach_is_bad(tmp_path: Path) -> None:
    read = Host("mi250", tmp_path).facts()
    dies = tuple(replace(gpu, links=0) if index == 5 else gpu for index, gpu in enumerate(read.gpus))
    assert the("XGMI", replace(read, gpus=dies)).seen == "0 links, where others have 7 (GPU 5)"


def test_a_machine_that_tells_nothing_is_unknown_with_a_reason_and_never_bad() -> None:
    for kind in ("cpu", "cuda", "rocm"):
        found = examine(Facts(kind=kind, versions={"torch": "2.9.0", "nvidia driver": "570"}, need=SEVEN_B))
        assert {one.level for one in found if one.subject != "versions"} == {"unknown"}
        assert all(one.seen and one.why for one in found)


def test_a_model_of_unknown_size_is_neither_fit_nor_unfit() -> None:
    arch = Architecture.from_config({**CONFIGS["llama-2-7b"], "model_type": "a type that nobody has seen"})
    unknown = facts.need(arch, "float16", Workload(8, 2048, 128), "mine")
    found = the("memory", Facts(available=1, need=unknown))
    assert found.level == "unknown"
    assert "the size of mine in float16 at b8-p2048-n128 is not known" in found.seen


def test_what_parity_needs_besides_is_a_warning() -> None:
    arch = Architecture.from_config(CONFIGS["llama-2-7b"])
    assert SEVEN_B.weights == arch.parameters * 2
    assert SEVEN_B.parity == arch.parameters * 4  # one precision up
    assert SEVEN_B.cache == 8 * 2176 * 2 * 32 * 32 * 128 * 2
    halved = facts.need(arch, "float16", Workload(8, 2048, 128), "llama-2-7b", devices=2)
    assert (halved.weights, halved.cache) == (SEVEN_B.weights // 2, SEVEN_B.cache // 2)
    room = SEVEN_B.weights + SEVEN_B.cache
    grades = [the("memory", Facts(available=room + more, need=SEVEN_B)).level for more in (-1, 0, SEVEN_B.parity)]
    assert grades == ["bad", "warn", "ok"]


numbers = st.none() | st.integers(0, 2**40)
gpus = st.builds(
    Gpu,
    name=st.text(max_size=5),
    clock=numbers,
    throttles=st.none() | st.lists(st.sampled_from(["SW power cap", "HW slowdown"])).map(tuple),
    power_cap=numbers,
    default_cap=numbers,
    persistent=st.none() | st.booleans(),
    ecc=st.none() | st.booleans(),
    uncorrected=numbers,
    memory=numbers,
    used=numbers,
    links=st.none() | st.integers(0, 18),
    down=st.none() | st.integers(0, 18),
    siblings=st.integers(1, 2),
)
machines = st.builds(
    Facts,
    kind=st.sampled_from(["cpu", "cuda", "rocm"]),
    numa_balancing=st.none() | st.integers(0, 2),
    numa_nodes=st.none() | st.integers(1, 8),
    governors=st.lists(st.sampled_from(["performance", "powersave", "schedutil"]), unique=True).map(tuple),
    driver=st.sampled_from(["", "acpi-cpufreq", "intel_pstate"]),
    boost=st.none() | st.booleans(),
    cpus=st.none() | st.integers(1, 512),
    quota=st.none() | st.floats(0.1, 600) | st.just(math.inf),
    others=st.none() | st.floats(0, 100),
    idle=st.none() | st.floats(0, 100),
    pressure=st.dictionaries(st.sampled_from(["cpu", "memory", "io"]), st.floats(0, 1)),
    available=numbers,
    swap=numbers,
    shm=numbers,
    huge_pages=st.none() | st.sampled_from(["always", "never"]),
    gpus=st.lists(gpus, max_size=4).map(tuple),
    versions=st.dictionaries(st.sampled_from(["torch", "nvidia driver"]), st.sampled_from(["2.9.0", "2.9.0+cpu"])),
    need=st.none() | st.builds(Need, st.just("m"), *[st.integers(0, 2**40)] * 3),
)


@given(machines)
def test_of_every_machine_each_subject_is_said_once_with_a_reason_and_a_remedy_if_it_is_wrong(read: Facts) -> None:
    found = examine(read)
    subjects = [one.subject for one in found]
    assert len(set(subjects)) == len(subjects)
    assert all(one.level in LEVELS and one.seen and one.why for one in found)
    assert all(one.remedy for one in found if one.level == "bad")
    assert examine(read) == found
    # Nothing that is not known makes a machine bad.
    blank = replace(read, **{one.name: one.default for one in fields(Facts) if one.name in ("others", "swap", "shm")})
    assert sum(one.level == "bad" for one in examine(blank)) <= sum(one.level == "bad" for one in found)


# Readers that fail


@pytest.mark.parametrize("text", ["", "\n", "garbage", "[", "max", "-", "0-", "a-b", "\x00\xff", "9" * 400])
def test_files_of_no_known_form_are_unknown_and_no_error(text: str, tmp_path: Path) -> None:
    host = Host("mi250", tmp_path, libraries=False)
    for path in host.recorded["files"]:
        host.write(path, text)
    assert all(one.seen for one in examine(host.facts()))


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"card0": 1}', "No devices were found", "a, b\n" * 3, "GPU 0:\n"]
)
def test_tools_that_say_something_else_tell_no_card(text: str, tmp_path: Path) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    for kind in ("cuda", "rocm"):
        with pytest.raises(cards.UnreadableError):
            cards.read(kind, tmp_path, lambda *_: text, absent)


def test_a_library_that_breaks_costs_its_own_findings_only(tmp_path: Path) -> None:
    host = Host("h100", tmp_path)
    host.recorded["nvml"][0]["cap"] = "seven"
    read = host.facts()
    assert read.gpus == ()
    assert the("GPU", read).seen.startswith("TypeError: ")
    assert the("NUMA balancing", read).level == "ok"


def test_whatever_a_reader_does_there_is_a_finding() -> None:
    def broken() -> Busy:
        raise RuntimeError("no")

    (found,) = facts.findings(DEVICES["cpu"], lambda: None, Asked(busy=broken))
    assert (found.subject, found.level) == ("machine", "unknown")
    assert "RuntimeError: no" in found.seen


# The doctor, and the findings of a result


def test_the_doctor_looks_at_this_machine_without_anything_heavy(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pytest", "--llm-doctor", "--llm-device=cpu",
         "--llm-model=llama-2-7b", "--llm-random-weights", "--llm-prompt-lengths=16"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "COLUMNS": "4000"},
    )  # fmt: skip
    words = done.stdout.splitlines()[-1].replace(",", "").split()
    counted = {level: int(count) for count, level in zip(words[::2], words[1::2], strict=True)}
    assert done.returncode == int("bad" in counted), done.stdout + done.stderr
    assert sum(counted.values()) == 12
    assert "llama-2-7b-random in" in " ".join(done.stdout.split())
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time:" in line}
    assert not imported & {"torch", "transformers", "vllm", "numpy"}


FOUND = [
    Finding("swap", "ok", "0 MiB in use", "why"),
    Finding("CPU boost", "unknown", "the kernel does not say", "why"),
    Finding("ECC", "warn", "off", "because", "switch it on"),
    Finding("NUMA balancing", "bad", "on, <2> nodes", "faults", "sudo sysctl kernel.numa_balancing=0"),
]


def test_the_table_has_the_worst_first_and_the_counts_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # so that no line is wrapped
    said = checkup.lines(FOUND)
    assert [line.split()[0] for line in said[1:5]] == ["bad", "warn", "unknown", "ok"]
    assert said[-1] == "1 bad, 1 warn, 1 unknown, 1 ok"
    assert checkup.bad(FOUND)
    assert not checkup.bad(FOUND[:3])


@pytest.mark.parametrize(("model", "status"), [("tiny", 0), ("llama-2-70b", 1)])
def test_the_exit_status_says_whether_something_is_bad(
    suite: Suite, model: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(device: object, need: Need | None, asked: object = None) -> Facts:
        return Facts(available=2 * GIB, need=need, versions={"torch": "2.9.0"})

    monkeypatch.setattr(facts, "read", read)
    result = suite.run("--llm-doctor", f"--llm-model={model}", "--llm-random-weights")
    assert result.ret == status
    assert suite.loads == {"ref": 0, "sim": 0}


def test_a_run_that_could_not_begin_is_refused_in_one_line(suite: Suite) -> None:
    assert "unknown device" in usage_error(suite.run("--llm-doctor", "--llm-device=mi999"))
    assert "unknown model" in usage_error(suite.run("--llm-doctor", "--llm-model=nothing"))


def test_findings_travel_with_the_results_and_their_reports(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "findings", lambda *_: FOUND)
    suite.run("suites", "--llm-results=r.json", "--llm-report=r.md,r.json.json,r.html", "-k", "ttft or latency")
    results = json.loads((suite.path / "r.json").read_text())
    assert [one["subject"] for one in results["findings"]] == ["CPU boost", "ECC", "NUMA balancing"]
    made = of(results)
    assert made.findings == tuple(FOUND[1:])
    assert of(json.loads((suite.path / "r.json.json").read_text())).findings == made.findings
    said = (suite.path / "r.md").read_text()
    assert "The machine: 2 not as they should be" in said
    assert said.index("bad: NUMA balancing: on, &lt;2&gt; nodes") < said.index("warn: ECC")
    assert "CPU boost" not in said
    page = (suite.path / "r.html").read_text()
    assert "bad: NUMA balancing: on, &lt;2&gt; nodes; faults. sudo sysctl" in page


def test_a_results_file_of_before_there_were_findings_is_read(suite: Suite) -> None:
    suite.run("suites", "--llm-results=r.json", "-k", "latency")
    results = json.loads((suite.path / "r.json").read_text())
    assert all(one["level"] != "ok" for one in results.pop("findings"))
    assert of(results).findings == ()


def test_a_fit_machine_has_no_word_in_a_report() -> None:
    plain = Document("cpu", "tiny", "float32", "ref", findings=tuple(FOUND[:2]))
    assert "The machine:" not in write.FORMS[".md"](plain)
    assert "not as they should be" not in write.FORMS[".html"](plain)


def test_looking_takes_less_than_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the look at others' CPU time, `LOOK` long, and versions, which the fingerprint asks for anyway."""
    slept: list[float] = []
    monkeypatch.setattr("pytest_llmperf.machine.health.time.sleep", slept.append)
    assert facts.findings(DEVICES["cpu"], lambda: SEVEN_B)
    assert sum(slept) == facts.LOOK == 0.1
