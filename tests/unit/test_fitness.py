"""Fitness of the machine: what is read of it, what contaminates a sample, and what becomes of such a sample."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inner import Suite

from pytest_llmperf.machine import fitness, gpu, health
from pytest_llmperf.machine.fitness import Barrier, Fitness, culprit, culprits
from pytest_llmperf.machine.gpu import Reading, Stranger
from pytest_llmperf.worker import server, watch

#: The parent of a process that is not of this run: no process has that id, and this one's parent may have any other.
NOBODY = -1

# The kernel's files

PRESSURE = """\
some avg10=0.97 avg60=1.46 avg300=0.69 total=469921168
full avg10=0.00 avg60=0.00 avg300=0.00 total=250000
"""


def write(root: Path, **files: str) -> Path:
    """Files by path, with ``__`` for a slash."""
    for name, text in files.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_pressure_is_in_seconds_by_who_stalls_for_what() -> None:
    assert health.parse_pressure("memory", PRESSURE) == {"some memory": 469.921168, "full memory": 0.25}


@pytest.mark.parametrize("text", ["", "\n", "some avg10=0.00\n", "some total=many\n"])
def test_what_is_no_pressure_is_none(text: str) -> None:
    assert health.parse_pressure("io", text) == {}


def test_a_system_without_pressure_has_none_rather_than_zero(tmp_path: Path) -> None:
    assert health.stalled(tmp_path, tmp_path) is None


def test_the_pressure_of_one_s_own_control_group_comes_before_the_host_s(tmp_path: Path) -> None:
    host = write(tmp_path / "proc", self__cgroup="4:memory:/x\n0::/a/b\n")
    for resource in health.RESOURCES:
        write(host / "pressure", **{resource: "some total=9000000\n"})
    (own := tmp_path / "cgroup/a/b").mkdir(parents=True)
    (own / "memory.pressure").write_text("some total=1000000\n")
    assert health.stalled(host, tmp_path / "cgroup") == {"some cpu": 9.0, "some memory": 1.0, "some io": 9.0}


def test_clocks_and_throttling_are_of_the_usable_cpus(tmp_path: Path) -> None:
    for number, clock in enumerate(("2000000", "3000000", "1000000")):
        write(tmp_path / f"cpu{number}/cpufreq", scaling_cur_freq=f"{clock}\n")
        write(tmp_path / f"cpu{number}/thermal_throttle", core_throttle_count="2\n", package_throttle_count="3\n")
    write(tmp_path / "cpu1/thermal_throttle", core_power_limit_count="1000\n")
    assert health.megahertz([0, 1], tmp_path) == 2500.0
    assert health.throttled([0, 1], tmp_path) == 10


def test_a_virtual_machine_has_no_clock_and_no_throttling_rather_than_zero(tmp_path: Path) -> None:
    assert health.megahertz([0], tmp_path) is None
    assert health.throttled([0], tmp_path) is None


def at(wall: float, **stalled: float) -> health.Snapshot:
    seconds = {name.replace("_", " "): value for name, value in stalled.items()}
    return health.Snapshot(wall, 0.0, 0.0, 0.0, stalled=seconds or None)


def test_stalls_are_shares_of_the_time_between() -> None:
    assert health.stalls(at(10.0, some_io=4.0), at(12.0, some_io=4.5)) == {"some io": 0.25}


@pytest.mark.parametrize(
    ("before", "after"), [(at(1.0), at(2.0, some_io=1.0)), (at(1.0, some_io=0), at(1.0, some_io=0))]
)
def test_stalls_that_nobody_counted_are_none(before: health.Snapshot, after: health.Snapshot) -> None:
    assert health.stalls(before, after) is None


STAT = "4711 (a (strange) name) R 17 4711 4700 0 -1 4194304 1 2 3 4 250 50 7 8 20 0 1 0 99 1 1"


def test_a_process_is_read_past_any_name() -> None:
    assert health.parse_process(STAT) == health.Process("a (strange) name", 17, 4700, 300)


@pytest.mark.parametrize("text", ["", "4711", "4711 (x) R 1", STAT.replace("250", "many")])
def test_what_is_no_process_is_none(text: str) -> None:
    assert health.parse_process(text) is None


def test_the_busiest_process_is_named_and_never_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def line(pid: int, name: str, session: int, ticks: int) -> None:
        write(tmp_path / str(pid), stat=f"{pid} ({name}) R 1 {pid} {session} 0 -1 0 0 0 0 0 {ticks} 0 0 0 20\n")

    def look(seconds: float) -> None:
        assert seconds == 0.5
        line(10, "own", os.getsid(0), 90)
        line(11, "idle", 11, 5000)
        line(12, "busy", 12, 130)
        line(13, "new", 13, 70)

    line(10, "own", os.getsid(0), 10)
    line(11, "idle", 11, 5000)
    line(12, "busy", 12, 100)
    (tmp_path / "sys").mkdir()
    monkeypatch.setattr(health.time, "sleep", look)
    assert health.busiest((), 0.5, tmp_path) == "12 (busy)"


def test_where_nobody_works_nobody_is_the_busiest(tmp_path: Path) -> None:
    write(tmp_path / "12", stat="12 (x) R 1 12 12 0 -1 0 0 0 0 0 100 0 0 0 20\n")
    assert health.busiest((), 0.0, tmp_path) is None
    assert health.busiest((), 0.0, tmp_path / "missing") is None


# Accelerators


class NVMLError(Exception):
    pass


def nvml(**answers: Any) -> Any:
    """A fake ``pynvml`` of one device, whose answers may be exceptions."""

    def answer(name: str, value: Any) -> Any:
        def call(handle: str, *arguments: Any) -> Any:
            assert handle == "handle of 0000:3b:00.0"
            found = value[arguments] if isinstance(value, dict) else value
            if isinstance(found, Exception):
                raise found
            return found

        return call

    functions = {
        "nvmlDeviceGetCurrentClocksEventReasons": 0x1 | 0x4 | 0x40,
        "nvmlDeviceGetClockInfo": {(1,): 1980, (2,): 2619},
        "nvmlDeviceGetTemperature": {(0,): 61},
        "nvmlDeviceGetPowerUsage": 412_500,
        "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=os.getpid(), usedGpuMemory=2**30)],
    } | answers
    return SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByPciBusId=lambda address: f"handle of {address}",
        **{name: answer(name, value) for name, value in functions.items() if value is not None},
    )


@pytest.fixture
def of_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process leads its session, as a worker does."""
    own = health.Process("worker", os.getppid(), os.getpid(), 0)
    others = {os.getpid(): own, 12: health.Process("python", NOBODY, 12, 0)}
    monkeypatch.setattr(health, "process", others.get)


@pytest.mark.usefixtures("of_this_run")
def test_nvml_is_read_in_mhz_celsius_watts_and_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    probe = gpu.probe("0000:3b:00.0")
    assert probe is not None
    assert probe.read() == Reading(1980, 2619, 61, 412.5, ("SW power cap", "HW thermal slowdown"), {}, ())


@pytest.mark.usefixtures("of_this_run")
def test_strangers_on_an_nvidia_device_are_named_with_their_memory() -> None:
    there = [(os.getpid(), 2**30), (12, 3 * 2**30), (13, None)]
    processes = [SimpleNamespace(pid=pid, usedGpuMemory=memory) for pid, memory in there]
    found = gpu.Nvml(nvml(nvmlDeviceGetComputeRunningProcesses=processes), "0000:3b:00.0").read()
    assert found.strangers == (Stranger(12, "python", 3 * 2**30), Stranger(13, "not visible from here", None))


def test_what_nvml_cannot_tell_is_unknown_and_no_error() -> None:
    names = ["CurrentClocksEventReasons", "Temperature", "PowerUsage", "ComputeRunningProcesses"]
    broken: dict[str, Any] = {f"nvmlDeviceGet{name}": NVMLError() for name in names}
    clocks = {(1,): NVMLError(), (2,): NVMLError()}
    library = nvml(**broken, nvmlDeviceGetClockInfo=clocks)
    assert gpu.Nvml(library, "0000:3b:00.0").read() == Reading()


def test_the_reasons_have_another_name_before_driver_535() -> None:
    old = {"nvmlDeviceGetCurrentClocksEventReasons": NVMLError(), "nvmlDeviceGetCurrentClocksThrottleReasons": 0x8}
    assert gpu.Nvml(nvml(**old), "0000:3b:00.0").read().throttles == ("HW slowdown",)
    older = old | {"nvmlDeviceGetCurrentClocksEventReasons": None}
    assert gpu.Nvml(nvml(**older), "0000:3b:00.0").read().throttles == ("HW slowdown",)


class AmdSmiException(Exception):  # noqa: N818  its name
    pass


MI300X = {
    "current_gfxclks": [2100, 2000, "N/A", "N/A"],
    "current_gfxclk": "N/A",
    "average_gfxclk_frequency": "N/A",
    "current_uclk": 1300,
    "temperature_hotspot": 72,
    "temperature_edge": "N/A",
    "current_socket_power": 650,
    "average_socket_power": "N/A",
    "throttle_status": "N/A",
    "ppt_residency_acc": 1000,
    "prochot_residency_acc": 0,
    "socket_thm_residency_acc": 5,
    "vr_thm_residency_acc": 0,
    "hbm_thm_residency_acc": "N/A",
}
MI210 = {
    "current_gfxclks": ["N/A"] * 8,
    "current_gfxclk": 1700,
    "current_uclk": 1600,
    "temperature_hotspot": 55,
    "current_socket_power": "N/A",
    "average_socket_power": 280,
    "throttle_status": True,
    "ppt_residency_acc": "N/A",
}


def amd(metrics: Any, processes: Any = ()) -> Any:
    """A fake ``amdsmi`` of one device, whose answers may be exceptions."""

    def answer(value: Any) -> Any:
        def call(handle: str) -> Any:
            assert handle == "handle of 0000:c1:00.0"
            if isinstance(value, Exception):
                raise value
            return value

        return call

    return SimpleNamespace(
        AmdSmiException=AmdSmiException,
        amdsmi_init=lambda: None,
        amdsmi_get_processor_handle_from_bdf=lambda address: f"handle of {address}",
        amdsmi_get_gpu_metrics_info=answer(metrics),
        amdsmi_get_gpu_process_list=answer(processes),
    )


@pytest.mark.usefixtures("of_this_run")
def test_an_mi300x_is_read_with_its_counters_of_throttled_time(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = [(os.getpid(), 2**30), (12, 2**31)]
    processes = [{"pid": pid, "memory_usage": {"vram_mem": memory}} for pid, memory in usage]
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    monkeypatch.setitem(sys.modules, "amdsmi", amd(MI300X, processes))
    probe = gpu.probe("0000:c1:00.0")
    assert probe is not None
    counters = {
        "power limit": 1000,
        "processor hot": 0,
        "socket temperature": 5,
        "voltage regulator temperature": 0,
    }
    assert probe.read() == Reading(2050, 1300, 72, 650, None, counters, (Stranger(12, "python", 2**31),))


def test_an_mi210_has_a_status_instead() -> None:
    assert gpu.Amd(amd(MI210), "0000:c1:00.0").read() == Reading(1700, 1600, 55, 280, (gpu.UNNAMED,), {}, None)
    assert gpu.Amd(amd(MI210 | {"throttle_status": False}), "0000:c1:00.0").read().throttles == ()


def test_what_amdsmi_cannot_tell_is_unknown_and_no_error() -> None:
    assert gpu.Amd(amd(AmdSmiException(), AmdSmiException()), "0000:c1:00.0").read() == Reading()


@pytest.mark.parametrize("installed", [False, True])
def test_a_machine_without_a_library_or_a_driver_has_no_probe(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    def no_driver() -> None:
        raise NVMLError

    broken = SimpleNamespace(NVMLError=NVMLError, nvmlInit=no_driver)
    monkeypatch.setitem(sys.modules, "pynvml", broken if installed else None)
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    assert gpu.probe("0000:3b:00.0") is None


def test_an_error_of_ours_is_not_taken_for_the_library_s() -> None:
    with pytest.raises(ZeroDivisionError):
        gpu.Nvml(nvml(nvmlDeviceGetPowerUsage=ZeroDivisionError()), "0000:3b:00.0").read()


def test_engines_of_the_same_run_are_no_strangers() -> None:
    me = os.getppid()
    processes = {
        20: health.Process("worker", me, 20, 0),
        21: health.Process("compile pool", 20, 20, 0),
        30: health.Process("idle reference", me, 30, 0),
        31: health.Process("its rank", 30, 30, 0),
        40: health.Process("somebody", NOBODY, 40, 0),
    }
    assert gpu.strangers(dict.fromkeys(processes, 7), processes.get) == (Stranger(40, "somebody", 7),)


def test_process_ids_of_another_namespace_say_nothing() -> None:
    """The driver may count processes as the host does: then a worker does not find itself, and knows nobody."""
    processes = {40: health.Process("somebody", NOBODY, 40, 0)}
    assert gpu.strangers({40: 1, 41: 1}, processes.get) is None
    assert gpu.strangers(None, processes.get) is None


def test_what_is_throttled_meanwhile_is_what_counters_grew() -> None:
    before = Reading(300, throttled={"power limit": 5, "processor hot": 1}, strangers=(Stranger(1, "gone", None),))
    after = Reading(1900, throttled={"power limit": 6, "processor hot": 1, "new": 9}, strangers=(Stranger(2, "x", 1),))
    found = gpu.during(before, after)
    assert (found.clock, found.throttles) == (1900, ("power limit",))
    assert [one.name for one in found.strangers or ()] == ["gone", "x"]
    assert gpu.during(Reading(), Reading()) == Reading()
    assert gpu.during(Reading(throttles=("HW slowdown",)), Reading(throttles=())).throttles == ()


# The decision

CLOCKS = Reading(clock=1980, throttles=(), strangers=())
CASES = [
    (Fitness(others=0.8), "others used 0.8 cores"),
    (Fitness(others=0.8, busiest="4711 (python)"), "others used 0.8 cores, 4711 (python) most"),
    (Fitness(steal=0.4, others=0.1), "the hypervisor took 0.4 cores"),
    (Fitness(stalled={"some memory": 0.12}), "memory pressure: stalled 12% of the time"),
    (Fitness(stalled={"full io": 0.2}), "io pressure: stalled 20% of the time"),
    (Fitness(throttled=3), "the CPU was throttled for its temperature 3 times"),
    (Fitness(gpu=replace(CLOCKS, throttles=("HW slowdown", "SW power cap"))), "the GPU was throttled: HW slowdown"),
    (
        Fitness(gpu=replace(CLOCKS, clock=1400, throttles=("SW power cap",))),
        "the GPU was throttled: SW power cap",
    ),
    (Fitness(gpu=replace(CLOCKS, clock=1400)), "the SM clock fell from 1980 to 1400 MHz"),
    (
        Fitness(gpu=replace(CLOCKS, strangers=(Stranger(4711, "python", 3_328_599_654),))),
        "process 4711 (python) is on the GPU with 3.1 GiB",
    ),
    (Fitness(gpu=replace(CLOCKS, strangers=(Stranger(4711, "x", None),))), "process 4711 (x) is on the GPU"),
]
FIT = [
    Fitness(),
    Fitness(others=4.0, idle=1.0),
    Fitness(others=0.25),
    Fitness(stalled={"some memory": 0.05, "some cpu": 0.9, "full cpu": 0.9, "some io": 0.9}, throttled=0),
    Fitness(gpu=Reading()),
    Fitness(gpu=replace(CLOCKS, clock=1900, throttles=("SW power cap",))),
]


@pytest.mark.parametrize(("record", "clause"), CASES, ids=[clause for _, clause in CASES])
def test_the_culprit_is_named(record: Fitness, clause: str) -> None:
    assert culprit(record, canary=1.0, clock=1980) == clause


@pytest.mark.parametrize("record", FIT)
def test_what_is_within_bounds_or_unknown_contaminates_nothing(record: Fitness) -> None:
    assert culprit(record, canary=1.0, clock=1980) is None
    assert culprit(record) is None


def test_slow_canaries_on_both_sides_of_a_sample_contaminate_it() -> None:
    records = [Fitness(canaries=pair) for pair in ((1.0, 1.25), (1.25, 1.25), (1.6, 1.0), (9.0, 1.6), (1.6, 1.7))]
    slow = "the canary was 1.6 times slower"
    assert culprits(records) == [None, None, None, slow, slow]


def test_a_later_generation_can_show_what_was_wrong_with_an_earlier_one() -> None:
    slow = [Fitness(canaries=(0.003, 0.003), gpu=Reading(clock=1400))] * 2
    assert culprits(slow) == [None, None]
    fast = Fitness(canaries=(0.003, 0.003), gpu=Reading(clock=1980))
    assert culprits([*slow, fast])[:2] == ["the SM clock fell from 1980 to 1400 MHz"] * 2
    assert culprits([*slow, replace(fast, canaries=(0.001, 0.003))])[0] == "the canary was 3.0 times slower"


def test_threads_that_take_long_to_meet_on_both_sides_of_a_sample_contaminate_it() -> None:
    seconds = [(1.0, 1.3), (1.25, 1.25), (1.5, 1.0), (9.0, 1.5), (1.5, 1.6)]
    records = [Fitness(barriers=(Barrier(before, 2), Barrier(after, 2))) for before, after in seconds]
    long = "its threads took 1.5 times as long to meet"
    assert culprits(records) == [None, None, None, long, long]
    assert culprits(records[4:]) == [None], "compared with others of such CPUs"


def test_without_canaries_none_is_slow() -> None:
    assert culprits([Fitness(), Fitness(canaries=(1.0, 1.0)), Fitness()]) == [None, None, None]
    assert culprits([]) == []


positive = st.floats(1e-4, 1e4)
optional = st.none() | positive
strangers = st.builds(Stranger, st.integers(1), st.text(), st.none() | st.integers(0))
readings = st.builds(
    Reading,
    clock=optional,
    throttles=st.none() | st.lists(st.sampled_from([*gpu.NVML_REASONS.values(), gpu.UNNAMED])).map(tuple),
    strangers=st.none() | st.lists(strangers).map(tuple),
)
meetings = st.builds(Barrier, positive, st.integers(2, 64))
records = st.builds(
    Fitness,
    others=st.floats(0, 64),
    steal=st.floats(0, 64),
    idle=st.floats(0, 64),
    busiest=st.none() | st.text(),
    stalled=st.none() | st.dictionaries(st.sampled_from(["some memory", "full io", "some cpu"]), st.floats(0, 1)),
    megahertz=optional,
    throttled=st.none() | st.integers(0),
    canaries=st.none() | st.tuples(positive, positive),
    fastest=st.none() | positive,
    barriers=st.none() | st.tuples(meetings, meetings),
    gpu=st.none() | readings,
)


@given(records)
def test_a_record_survives_the_pipe(record: Fitness) -> None:
    assert fitness.parse(json.loads(json.dumps(asdict(record)))) == record


@given(meetings, meetings)
def test_cpus_are_moved_there_and_back(now: Barrier, usual: Barrier) -> None:
    assert fitness.moved(now, usual) == fitness.moved(usual, now)
    assert not fitness.moved(now, now)
    assert not fitness.moved(None, usual)
    assert not fitness.moved(now, None)


def test_a_worker_of_an_older_version_says_nothing_of_its_threads() -> None:
    older = asdict(Fitness(canaries=(0.002, 0.002)))
    del older["barriers"]
    assert fitness.parse(older) == Fitness(canaries=(0.002, 0.002))


@given(st.lists(records, max_size=8))
def test_every_generation_gets_an_answer_that_says_something(made: list[Fitness]) -> None:
    found = culprits(made)
    assert len(found) == len(made)
    assert all(one is None or one.strip() for one in found)


@given(st.lists(records, max_size=8), st.lists(records, max_size=3))
def test_what_is_contaminated_stays_so(made: list[Fitness], more: list[Fitness]) -> None:
    """A process's fastest canary gets faster and its highest clock higher, so no culprit is ever taken back."""
    before, after = culprits(made), culprits([*made, *more])
    assert not [one for one, other in zip(before, after, strict=False) if one is not None and other is None]


@given(records, positive)
def test_the_unit_of_a_canary_does_not_matter(record: Fitness, seconds: float) -> None:
    def found(scale: float) -> list[str | None]:
        pairs = [(seconds * scale, seconds * scale * 3), (seconds * scale * 2, seconds * scale * 2)]
        return culprits([replace(record, canaries=pair, fastest=None) for pair in pairs])

    assert found(1.0) == found(4.0)  # a power of two, so that no ratio is rounded


# The watch


def test_the_canary_takes_some_milliseconds_and_about_as_long_again() -> None:
    once, again = watch.canary(), watch.canary()
    assert 1e-4 < once < 1.0
    assert max(once, again) < 20 * min(once, again)


def test_a_watch_tells_what_was_seen_around_a_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots = iter(
        [
            health.Snapshot(0.0, 0.0, 0.0, 0.0, 2, {"some io": 1.0}, 4, 3000.0),
            health.Snapshot(2.0, 4.0, 0.0, 1.0, 2, {"some io": 1.5}, 6, 2800.0),
        ]
    )
    readings = iter([Reading(clock=300), Reading(clock=1980)])
    monkeypatch.setattr(health, "snapshot", lambda _processes: next(snapshots))
    monkeypatch.setattr(health, "busiest", lambda _processes: "12 (busy)")
    canaries = iter([0.002, 0.003])
    monkeypatch.setattr(watch, "canary", lambda: next(canaries))
    monkeypatch.setattr(watch, "pci_address", lambda: "0000:3b:00.0")
    monkeypatch.setattr(gpu, "probe", lambda address: SimpleNamespace(read=lambda: next(readings)))
    seen = watch.Watch()
    found = seen.end(seen.begin())
    assert 0 < found.cost < 1
    assert replace(found, cost=0.0) == Fitness(
        others=1.5,
        busiest="12 (busy)",
        stalled={"some io": 0.25},
        megahertz=2800.0,
        throttled=2,
        canaries=(0.002, 0.003),
        fastest=0.002,
        gpu=Reading(clock=1980),
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_torch_s_threads_meet_within_microseconds_if_there_are_any(threads: int) -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        met = watch.barrier()
    finally:
        torch.set_num_threads(before)
    if threads == 1:
        assert met is None
    else:
        assert met is not None
        assert met.threads == 2
        assert 1e-7 < met.seconds < 1e-2


MET = Barrier(3e-6, 2), Barrier(5e-6, 2)


@pytest.mark.parametrize(
    ("engine", "device", "ranks", "seen"),
    [
        ({"pausable": True}, "cpu", None, MET),
        ({"pausable": True}, "cuda", None, None),
        ({"pausable": True}, "cpu", [os.getpid(), 1], None),
        ({"pausable": False}, "cpu", None, None),
        ({}, "cpu", None, None),
    ],
    ids=["in this thread", "accelerator", "ranks", "another thread", "unknown"],
)
def test_threads_are_seen_to_meet_where_they_compute(
    monkeypatch: pytest.MonkeyPatch,
    engine: dict[str, bool],
    device: str,
    ranks: list[int] | None,
    seen: tuple[Barrier, Barrier] | None,
) -> None:
    barriers = iter(MET)
    monkeypatch.setattr(watch, "barrier", lambda: next(barriers))
    monkeypatch.setattr(server, "find", lambda backend: lambda spec: SimpleNamespace(**engine))
    worker = server.Worker()
    worker.load([{}], {"model": "", "config": None, "dtype": "float32", "device": device}, ranks)
    assert worker.watch is not None
    assert worker.watch.end(worker.watch.begin()).barriers == seen


def test_a_neighbour_who_stays_for_a_whole_workload_is_seen_by_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "snapshot", lambda _processes: health.Snapshot(0.0, 0.0, 0.0, 0.0))
    canaries = iter([0.002, 0.002, *[0.0036] * 6])
    monkeypatch.setattr(watch, "canary", lambda: next(canaries))
    seen = watch.Watch()
    first, *later = (seen.end(seen.begin()) for _ in range(4))
    assert culprits([first]) == [None]
    assert culprits(later) == ["the canary was 1.8 times slower"] * 3


def test_nobody_is_looked_for_where_nobody_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "snapshot", lambda _processes: health.Snapshot(0.0, 0.0, 0.0, 0.0))
    monkeypatch.setattr(health, "busiest", lambda _processes: pytest.fail("two looks at every process"))
    seen = watch.Watch()
    found = seen.end(seen.begin())
    assert (found.gpu, found.throttled, found.stalled, found.busiest) == (None, None, None, None)


def test_the_address_is_that_of_torch_s_device(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(pci_domain_id=0, pci_bus_id=0x3B, pci_device_id=0)
    cuda = SimpleNamespace(
        is_initialized=lambda: True, current_device=lambda: 1, get_device_properties={1: properties}.get
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert watch.pci_address() == "0000:3b:00.0"


def test_a_device_that_torch_does_not_use_here_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A context there takes memory, and would make this process one of those on the device."""
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: False)))
    assert watch.pci_address() is None
    monkeypatch.delitem(sys.modules, "torch")
    assert watch.pci_address() is None


# A run

BUSY = """
from pytest_llmperf.machine.fitness import Fitness

def busy(*numbers):
    return lambda number: Fitness(others=0.8) if number in numbers else Fitness()
"""
CLAUSE = "others used 0.8 cores"
SIM = "bfloat16/sim/b1-p16-n8"


def engine(disturbed: str, slow: float = 1.0, tpot: float = 0.005) -> str:
    """A simulated engine, some of whose generations are disturbed, and that much slower."""
    return f"Simulated(tpot=lambda n: {tpot} * ({slow} if n in {disturbed} else 1), fitness=busy(*{disturbed}))"


def test_disturbed_generations_are_discarded_and_others_taken_in_their_place(suite: Suite) -> None:
    suite.record({"sim/tpot": 0.005})
    suite.backends(sim=engine("(2, 3)", slow=3.0), extra=BUSY)
    result = suite.decode("--llm-results=results.json")
    assert result.ret == 0
    assert suite.loads["sim"] == 1, "nothing was flagged"
    result.stdout.fnmatch_lines(["*17%*2 discarded*", "*1 ok"])
    (measured,) = json.loads((suite.path / "results.json").read_text())["measurements"]
    assert len(measured["samples"]) == 10
    assert [one["culprit"] for one in measured["samples"]] == [None] * 10
    assert [one["culprit"] for one in measured["discarded"]] == [CLAUSE] * 2
    assert [one["fitness"]["others"] for one in measured["discarded"]] == [0.8] * 2
    assert measured["clean"] is True


def test_a_disturbed_generation_is_no_warm_up(suite: Suite) -> None:
    suite.backends(sim=engine("(1, 2)", slow=3.0), extra=BUSY)
    suite.decode("--llm-results=results.json")
    (measured,) = json.loads((suite.path / "results.json").read_text())["measurements"]
    assert (len(measured["warm_up"]), len(measured["samples"])) == (3, 10)


@pytest.mark.parametrize("fast", [False, True])
def test_nothing_is_discarded_for_its_figure(suite: Suite, fast: bool) -> None:
    """Disturbed samples go though they are as fast as the others; slow ones stay where nobody is to blame."""
    sim = engine("(4,)") if fast else "Simulated(tpot=lambda n: 0.005 * (3 if n == 4 else 1))"
    suite.backends(sim=sim, extra=BUSY)
    suite.decode("--llm-results=results.json")
    (measured,) = json.loads((suite.path / "results.json").read_text())["measurements"]
    assert len(measured["discarded"]) == fast


def test_a_process_without_enough_quiet_keeps_all_and_proves_nothing(suite: Suite) -> None:
    suite.record({"sim/tpot": 0.005})
    suite.backends(sim=engine("range(1, 99)", tpot=0.00575), extra=BUSY)
    result = suite.decode("--llm-results=results.json")
    assert result.ret == 0
    result.stdout.fnmatch_lines("*100%*all kept*")
    results = json.loads((suite.path / "results.json").read_text())
    (verdict,) = (one["verdict"] for one in results["results"])
    assert (verdict["outcome"], verdict["ratio"]) == ("inconclusive", pytest.approx(1.15))
    assert verdict["reason"].endswith(f"; too few samples of 3 of 3 processes were undisturbed: {CLAUSE}")
    measured = results["measurements"]
    found = [(one["clean"], len(one["samples"]), one["discarded"]) for one in measured]
    assert found == [(False, 10, [])] * (1 + 3)


def test_a_regression_in_the_undisturbed_samples_is_one(suite: Suite) -> None:
    """Some disturbance excuses nothing: the others are as slow."""
    suite.record({"sim/tpot": 0.005})
    suite.backends(sim=engine("(2, 3, 5)", tpot=0.0065), extra=BUSY)
    result = suite.decode()
    assert result.ret == 1
    result.stdout.fnmatch_lines("1 cases gated: 1 regression")


def test_what_is_faster_on_an_unfit_machine_is_a_question(suite: Suite) -> None:
    suite.record({"sim/tpot": 0.005})
    suite.backends(sim=engine("range(1, 99)", tpot=0.0035), extra=BUSY)
    assert suite.decode("--llm-results=results.json").ret == 0
    (verdict,) = (one["verdict"] for one in json.loads((suite.path / "results.json").read_text())["results"])
    assert verdict["outcome"] == "inconclusive"
    assert verdict["reason"] == (
        f"30.0% faster than the baseline in 1 process, but too few samples of the process were undisturbed: {CLAUSE}"
    )


def test_what_is_as_fast_as_ever_on_an_unfit_machine_is_ok(suite: Suite) -> None:
    suite.record({"sim/tpot": 0.005})
    suite.backends(sim=engine("range(1, 99)"), extra=BUSY)
    suite.decode().stdout.fnmatch_lines("1 cases gated: 1 ok")


def test_a_baseline_is_made_of_undisturbed_samples(suite: Suite) -> None:
    suite.backends(sim=engine("(2, 3)", slow=3.0), extra=BUSY)
    assert suite.decode("--llm-update-baselines", "--llm-invocations=3").ret == 0
    (record,) = suite.stored()["entries"][f"{SIM}/tpot"]
    assert record["processes"] == pytest.approx([0.005] * 3)
