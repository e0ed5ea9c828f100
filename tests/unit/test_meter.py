"""What an engine takes of memory: read of processes, of a device, and of nobody."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_llmperf.machine import memory
from pytest_llmperf.machine.memory import NO_PROC, Allocated, Memory, Resident, Unknown, meter
from pytest_llmperf.measure.process import OLDER, MemoryUnknownError, bytes_of, memory_in

MIB = 2**20


def process(proc: Path, pid: int, now: int, highest: int) -> None:
    """What the kernel says of a process: MiB now, and at its highest."""
    (proc / str(pid)).mkdir(exist_ok=True)
    (proc / str(pid) / "status").write_text(f"Name:\tx\nVmHWM:\t {highest * 1024} kB\nVmRSS:\t {now * 1024} kB\n")


def generation(found: Any, work: Any = lambda: None) -> Any:
    return found.of(work)


def test_what_a_generation_takes_is_beyond_what_is_loaded_and_never_nothing() -> None:
    assert Memory(3 * MIB, 5 * MIB).beyond == 2 * MIB
    assert Memory(3 * MIB, 3 * MIB).beyond == Memory(3 * MIB, 2 * MIB).beyond == 1


# Processes


def test_the_highest_value_is_set_back_before_a_generation(tmp_path: Path) -> None:
    process(tmp_path, 7, 100, 900)
    found = Resident(lambda: [7], proc=tmp_path)
    assert generation(found, lambda: process(tmp_path, 7, 100, 160)) == Memory(100 * MIB, 160 * MIB)
    assert (tmp_path / "7" / "clear_refs").read_text() == "5"


@pytest.mark.parametrize(("combine", "expected"), [(sum, Memory(150, 210)), (max, Memory(100, 130))])
def test_of_several_processes_it_is_the_sum_or_the_largest(tmp_path: Path, combine: Any, expected: Memory) -> None:
    process(tmp_path, 7, 100, 100)
    process(tmp_path, 8, 50, 50)
    found = Resident(lambda: [7, 8], combine, tmp_path)
    process(tmp_path, 7, 100, 130)
    process(tmp_path, 8, 60, 80)
    assert generation(found) == Memory(expected.loaded * MIB, expected.peak * MIB)


def test_a_process_that_has_ended_takes_nothing(tmp_path: Path) -> None:
    process(tmp_path, 7, 100, 120)
    assert generation(Resident(lambda: [7, 9], proc=tmp_path)) == Memory(100 * MIB, 120 * MIB)
    assert generation(Resident(lambda: [9], proc=tmp_path)) == NO_PROC


def test_without_a_way_to_set_it_back_nothing_is_known(tmp_path: Path) -> None:
    process(tmp_path, 7, 100, 120)
    (tmp_path / "7" / "clear_refs").mkdir()
    assert generation(Resident(lambda: [7], proc=tmp_path)) == NO_PROC


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="not Linux, or a kernel without it")
def test_this_kernel_s_peak_is_that_of_a_generation() -> None:
    found = meter(SimpleNamespace(), "cpu")
    large, small = generation(found, lambda: bytearray(64 * MIB)), generation(found)
    assert isinstance(large, Memory)
    assert isinstance(small, Memory)
    assert 60 * MIB < large.beyond < 90 * MIB
    assert small.beyond < 20 * MIB


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="not Linux")
def test_weights_in_a_mapped_file_are_loaded(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\1" * 32 * MIB)
    before = Resident(lambda: [os.getpid()])
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        memory.populate()
        found = generation(before)
        assert mapped[0] == 1
    if not isinstance(found, Memory):
        pytest.skip(found)
    assert found.beyond > 28 * MIB or os.uname().release < "5.14"


# A device


class Cuda:
    """A device of 1,000 bytes; what torch has given out, holds, and did at most, and what others hold."""

    def __init__(self) -> None:
        self.allocated, self.reserved, self.highest, self.others = 300, 320, 800, 50

    def memory_allocated(self) -> int:
        return self.allocated

    def memory_reserved(self) -> int:
        return self.reserved

    def max_memory_allocated(self) -> int:
        return self.highest

    def reset_peak_memory_stats(self) -> None:
        self.highest = self.allocated

    def mem_get_info(self) -> tuple[int, int]:
        return 1000 - self.reserved - self.others, 1000


def test_on_a_device_it_is_what_torch_gave_out_at_most_in_this_generation() -> None:
    cuda = Cuda()
    found = Allocated(cuda)

    def work() -> None:
        cuda.highest, cuda.reserved = 450, 500

    assert generation(found, work) == Memory(300, 450)
    assert generation(found) == Memory(300, 300)


@pytest.mark.parametrize(("alone", "peak"), [(True, 325), (False, 300)])
def test_what_is_not_torch_s_adds_up_unless_others_compute_meanwhile(alone: bool, peak: int) -> None:
    cuda = Cuda()
    found = Allocated(cuda)
    for grown in (20, 5):
        found.begin()
        cuda.others += grown
        found.end(alone)
        cuda.others += 100  # by others, between generations
    assert generation(found) == Memory(300, peak)


# Whose


def test_an_engine_names_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = SimpleNamespace(resident=lambda: [os.getpid(), os.getpid()])
    server = SimpleNamespace(**vars(ranks), serve=lambda: None)
    loaded = {name: generation(meter(one, "cpu", tp=2)) for name, one in (("ranks", ranks), ("server", server))}
    if NO_PROC in loaded.values():
        pytest.skip(NO_PROC)
    assert loaded["server"].loaded > 1.8 * loaded["ranks"].loaded


@pytest.mark.parametrize(
    ("engine", "device", "said"),
    [
        (SimpleNamespace(resident=list), "cpu", "a server that runs already"),
        (SimpleNamespace(serve=lambda: None), "cpu", "does not name its processes"),
        (SimpleNamespace(resident=lambda: [1]), "cuda", "other processes than the worker is not read"),
    ],
    ids=["attached", "a server without names", "a server on a device"],
)
def test_what_cannot_be_read_says_why(engine: Any, device: str, said: str) -> None:
    found = meter(engine, device)
    assert isinstance(found, Unknown)
    assert said in generation(found)
    with pytest.raises(MemoryUnknownError, match=said):
        bytes_of(generation(found), "memory")


def test_an_engine_whose_memory_is_unknown_generates_nothing_for_it() -> None:
    def work() -> None:
        raise AssertionError("it was asked to generate")

    assert generation(Unknown("why"), work) == "why"


def test_both_figures_are_of_one_reading() -> None:
    assert (bytes_of(Memory(300, 450), "memory"), bytes_of(Memory(300, 450), "weights")) == (150.0, 300.0)


def test_an_older_worker_does_not_say() -> None:
    assert memory_in({}) == OLDER
    assert memory_in({"memory": "why"}) == "why"
    assert memory_in({"memory": {"loaded": 1, "peak": 2}}) == Memory(1, 2)
