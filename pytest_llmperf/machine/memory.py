"""What an engine takes of memory: when it is loaded, and at most during a generation.

On a CPU that is the resident set of its processes. The kernel keeps its highest value, and sets it back when a 5 is
written to ``/proc/PID/clear_refs``. The C library keeps memory that was freed, more of it after each generation. So it
gives that back first, which would make a timed generation slower: one generation is made for the memory alone. On a
device it is what torch's allocator has given out, caches, graphs and workspaces included, and what the free memory of
the device shrank by beyond that in this engine's generations: libraries, kernels, communicators.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pytest_llmperf.machine.cgroup import contents

#: Sets the highest value of a resident set back to the present one (proc_pid_clear_refs(5)).
RESET = "5"
#: madvise: read the pages of a mapping into memory now. Linux since 5.14.
POPULATE_READ = 22
#: Why nothing is known.
NO_PROC = "the peak of a generation cannot be read here: it takes Linux and a /proc/PID/clear_refs that can be written"


@dataclass(frozen=True)
class Memory:
    """Bytes in use.

    Attributes:
        loaded: when the engine was ready.
        peak: at most during a generation.
    """

    loaded: int
    peak: int

    @property
    def beyond(self) -> int:
        """What a generation takes beyond what is loaded; at least 1, since nothing has no ratio."""
        return max(1, self.peak - self.loaded)


class Meter(Protocol):
    """Reads the memory of one engine, from when it is loaded."""

    def begin(self) -> None:
        """A generation begins."""

    def end(self, alone: bool) -> None:
        """It has ended. ``alone``: whether no other process computed meanwhile."""

    def of(self, generate: Callable[[], None]) -> Memory | str:
        """What one more generation takes, if that can be read; else why not."""


class Unknown:
    """Of an engine whose memory cannot be read.

    Args:
        why: in a line.
    """

    def __init__(self, why: str) -> None:
        self._why = why

    def begin(self) -> None:
        """Nothing."""

    def end(self, alone: bool) -> None:
        """Nothing."""

    def of(self, generate: Callable[[], None]) -> str:
        """Why."""
        return self._why


class Resident:
    """The resident sets of processes.

    Args:
        pids: the processes, asked for at each generation.
        combine: ``sum``, or ``max`` where each has a device, or a place, of its own.
        proc: where the kernel tells of processes.
    """

    def __init__(
        self,
        pids: Callable[[], Collection[int]],
        combine: Callable[[Iterable[int]], int] = sum,
        proc: Path = Path("/proc"),
    ) -> None:
        self._pids, self._combine, self._proc = pids, combine, proc
        settle()
        self._loaded = self._read("VmRSS")

    def begin(self) -> None:
        """Nothing."""

    def end(self, alone: bool) -> None:
        """Nothing."""

    def of(self, generate: Callable[[], None]) -> Memory | str:
        """See `Meter.of`."""
        settle()
        cleared = [self._clear(pid) for pid in self._pids()]
        generate()
        peak = self._read("VmHWM")
        return Memory(self._loaded, peak) if all(cleared) and peak else NO_PROC

    def _read(self, field: str) -> int:
        sizes = [value for pid in self._pids() if (value := _status(self._proc / str(pid), field)) is not None]
        return self._combine(sizes) if sizes else 0

    def _clear(self, pid: int) -> bool:
        try:
            (self._proc / str(pid) / "clear_refs").write_text(RESET)
        except (ProcessLookupError, FileNotFoundError):
            return True  # it has ended, and takes nothing
        except OSError:
            return False
        return True


def _status(process: Path, field: str) -> int | None:
    """Bytes of a line of a process's status; None if it is gone."""
    lines = contents(process / "status").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


class Allocated:
    """The device's memory.

    Args:
        cuda: ``torch.cuda``, which is also what ROCm builds call it.
    """

    def __init__(self, cuda: Any) -> None:
        gc.collect()
        self._cuda = cuda
        self._loaded = int(cuda.memory_allocated())
        self._grown = self._before = 0

    def begin(self) -> None:
        """Note what is in use and not torch's."""
        self._before = self._outside()

    def end(self, alone: bool) -> None:
        """Note how it has grown. It is known of the whole device alone, so it tells nothing in company."""
        if alone:
            self._grown += max(0, self._outside() - self._before)

    def of(self, generate: Callable[[], None]) -> Memory:
        """See `Meter.of`."""
        gc.collect()
        self._cuda.reset_peak_memory_stats()
        generate()
        return Memory(self._loaded, int(self._cuda.max_memory_allocated()) + self._grown)

    def _outside(self) -> int:
        """Bytes of the device that are in use and not torch's in this process."""
        free, total = self._cuda.mem_get_info()
        return int(total - free - self._cuda.memory_reserved())


def meter(engine: Any, device: str, tp: int = 1) -> Meter:
    """What reads an engine's memory; called when it is loaded.

    What loading left behind is given back first, and the weights are read into memory: some loaders map a file and
    leave that to the first generation.

    Args:
        engine: the loaded engine. Its ``resident``, where it has that, names the processes whose memory is its own:
            none of a server that runs already, and None where it is this process alone.
        device: ``cpu``, or what torch calls it.
        tp: how many ranks it has.
    """

    def resident() -> Collection[int] | None:
        if hasattr(engine, "resident"):
            return engine.resident()  # type: ignore[no-any-return]
        return () if hasattr(engine, "serve") else None

    others = resident()
    if others is not None and not others:
        if not hasattr(engine, "resident"):
            return Unknown("the engine serves, and does not name its processes (resident)")
        return Unknown("the memory of a server that runs already cannot be read from here")
    if device != "cpu":
        if others is not None:
            return Unknown("on a device, the memory of other processes than the worker is not read")
        if "torch" not in sys.modules:
            return Unknown("the engine does not allocate by torch")
        return Allocated(sys.modules["torch"].cuda)
    if others is not None:
        return Resident(lambda: resident() or (), max if tp > 1 and not hasattr(engine, "serve") else sum)
    populate()
    own = (os.getpid(),)
    return Resident(lambda: own)


def settle() -> None:
    """Give memory of this process that is not in use back to the system, where the C library can."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def populate(suffixes: tuple[str, ...] = (".safetensors", ".bin", ".gguf", ".pt"), proc: Path = Path("/proc")) -> None:
    """Read the files of weights that this process has mapped into memory, as far as the kernel does that."""
    with suppress(OSError, AttributeError):
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        for line in contents(proc / "self" / "maps").splitlines():
            if line.endswith(suffixes):
                start, _, end = line.split(maxsplit=1)[0].partition("-")
                first, size = int(start, 16), int(end, 16) - int(start, 16)
                madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), POPULATE_READ)
