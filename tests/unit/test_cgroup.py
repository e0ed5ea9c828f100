"""What workers are given: CPU time by control groups of both versions, and the variables that say how CPUs compute."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_llmperf.machine import fingerprint, fitness
from pytest_llmperf.machine.cgroup import Group
from pytest_llmperf.machine.fitness import Barrier, Fitness
from pytest_llmperf.machine.rates import Machine, other_limits


def group(root: Path, own: str, files: Mapping[str, str]) -> Group:
    for name, text in {"proc/self/cgroup": own, **files}.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return Group(root)


def stat(stopped: int) -> str:
    return f"nr_periods 90\nnr_throttled {stopped}\nthrottled_usec 4\n"


@pytest.mark.parametrize(
    ("own", "files", "stopped"),
    [
        ("0::/a/b\n", {"a/b/cpu.stat": stat(3), "a/cpu.stat": stat(4), "cpu.stat": "usage_usec 1\n"}, 7),
        ("0::/docker/x\n", {"cpu.stat": stat(2)}, 2),  # in a container its own group is mounted at the root
        ("2:cpu,cpuacct:/d\n", {"cpu,cpuacct/d/cpu.stat": stat(5)}, 5),
        ("1:cpu:/\n0::/\n", {"cpu/cpu.stat": stat(6)}, 6),
        ("0::/a\n", {"a/cpu.stat": "usage_usec 1\n"}, None),
        ("", {}, None),
    ],
)
def test_how_often_a_quota_stopped_a_group(
    tmp_path: Path, own: str, files: Mapping[str, str], stopped: int | None
) -> None:
    assert group(tmp_path, own, {f"sys/fs/cgroup/{name}": text for name, text in files.items()}).stopped() == stopped


def test_a_group_that_is_mounted_under_two_names_counts_once(tmp_path: Path) -> None:
    found = group(tmp_path, "2:cpu,cpuacct:/\n", {"sys/fs/cgroup/cpu,cpuacct/cpu.stat": stat(5)})
    (tmp_path / "sys/fs/cgroup/cpu").symlink_to("cpu,cpuacct")
    assert found.stopped() == 5


def test_variables_that_no_worker_gets_are_not_said_to_have_changed() -> None:
    environ = {"CUDA_LAUNCH_BLOCKING": "1", "TORCH_LOGS": "", "NCCL_DEBUG": "INFO", "VLLM_USE_V1": "1"}
    assert fingerprint.libraries(environ) == {"NCCL_DEBUG": "INFO", "TORCH_LOGS": "", "VLLM_USE_V1": "1"}


def test_limits_are_cpu_time_and_the_variables_of_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "usable_cpus", lambda: {0, 1, 2, 3})
    environ = {"OMP_PROC_BIND": "true", "LD_PRELOAD": "/opt/a/libjemalloc.so.2:/b/libx.so", "MKL_VERBOSE": "1"}
    own = group(tmp_path, "0::/\n", {"sys/fs/cgroup/cpu.max": "150000 100000\n"})
    variables = {"LD_PRELOAD": "libjemalloc.so.2 libx.so", "OMP_PROC_BIND": "true"}
    found = fingerprint.limits(environ, own)
    assert found == {"quota": 1.5, "variables": variables}
    machine = Machine(fingerprint.Fingerprint("", (), 4, 1, "", "", ()), dict, found)
    assert machine.limited == [
        "1.5 CPUs' worth of time",
        "LD_PRELOAD=libjemalloc.so.2 libx.so",
        "OMP_PROC_BIND=true",
    ]
    for text in ("800000 100000\n", "max 100000\n", ""):  # more than there are, or none
        (tmp_path / "sys/fs/cgroup/cpu.max").write_text(text)
        assert fingerprint.limits({}, own) == {"quota": 4, "variables": {}}
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("1000000 300000")
    assert fingerprint.limits({}, own)["quota"] == 3.33333, "as a baseline keeps it"


@pytest.mark.parametrize(
    ("recorded", "now", "said"),
    [
        ({"threads": 2}, {"threads": 1}, "recorded with 2 threads, and this run has 1 thread"),
        ({"quota": 2}, {"quota": 0.5}, "recorded with 2 CPUs' worth of time, and this run has 0.5 CPUs' worth of time"),
        (
            {"variables": {}},
            {"variables": {"KMP_AFFINITY": "compact"}},
            "recorded with no KMP_AFFINITY, and this run has KMP_AFFINITY=compact",
        ),
        (
            {"variables": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"}},
            {"variables": {}},
            "recorded with MKL_ENABLE_INSTRUCTIONS=AVX2, and this run has no MKL_ENABLE_INSTRUCTIONS",
        ),
        ({}, {"threads": 1, "quota": 1, "variables": {"OMP_DYNAMIC": "true"}}, None),  # an old file does not say
        ({"threads": 2}, {"threads": None}, None),
        ({"variables": {"OMP_NUM_THREADS": "2"}}, {"variables": {}}, None),  # as many as there would be without it
    ],
)
def test_other_limits_are_named_where_both_are_known(
    recorded: dict[str, Any], now: dict[str, Any], said: str | None
) -> None:
    assert other_limits(now, recorded) == said


def test_a_stopped_sample_is_disturbed_by_its_quota_and_not_by_its_host() -> None:
    slow = (0.002, 0.003)
    late = (Barrier(9e-6, 2), Barrier(9e-6, 2))
    stopped = Fitness(canaries=slow, barriers=late, stopped=12)
    clean = Fitness(canaries=(0.001, 0.001), barriers=(Barrier(3e-6, 2),) * 2, stopped=0)
    said = "the CPU quota of its control group stopped it 12 times"
    assert fitness.culprits([stopped, clean]) == [said, None]
