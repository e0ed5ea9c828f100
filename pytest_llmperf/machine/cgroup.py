"""The control group of this process: the CPU time and the memory that it may use. Only the kernel's files are read."""

from __future__ import annotations

import math
import os
from pathlib import Path


def contents(file: Path) -> str:
    """The text of one of the kernel's files; empty if it is not there or may not be read."""
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def integer(text: str) -> int | None:
    """The integer that a text is; None if it is none."""
    return int(text) if text.strip().removeprefix("-").isdecimal() else None


class Group:
    """The control group of this process and those above it, version 2 or 1, whose strictest limit holds.

    In a container the path is the host's and its own group is mounted at the root, so that the root is looked at too.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        base = root / "sys/fs/cgroup"
        lines = [line.split(":", 2) for line in contents(root / "proc/self/cgroup").splitlines() if line.count(":") > 1]
        paths = {name: path for _, names, path in lines for name in names.split(",")}
        self._v2 = self._above(base, paths.get("", "/"))
        self._cpu = [
            folder for name in ("cpu", "cpu,cpuacct") for folder in self._above(base / name, paths.get("cpu", "/"))
        ]
        self._memory = self._above(base / "memory", paths.get("memory", "/"))

    @staticmethod
    def _above(base: Path, path: str) -> list[Path]:
        folder = base / path.strip("/")
        return [one for one in (folder, *folder.parents) if one == base or base in one.parents]

    def quota(self) -> float | None:
        """CPUs' worth of time; infinite without a quota, None where no control group is to be seen."""
        found = []
        for folder in self._v2:  # "max 100000" or "150000 100000"
            words = contents(folder / "cpu.max").split()
            if len(words) == 2 and words[1].isdecimal():
                found.append(int(words[0]) / int(words[1]) if words[0].isdecimal() else math.inf)
        for folder in self._cpu:
            quota, period = (integer(contents(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
            if quota is not None and period:
                found.append(quota / period if quota > 0 else math.inf)
        if not found and any(folder.is_dir() for folder in (*self._v2, *self._cpu)):
            return math.inf  # the root of all groups has no file for it
        return min(found, default=None)

    def stopped(self) -> int | None:
        """How often a quota has stopped its tasks until the next period; None where nobody counts."""
        folders = {os.path.realpath(folder): folder for folder in (*self._v2, *self._cpu)}
        lines = [line.split() for one in folders.values() for line in contents(one / "cpu.stat").splitlines()]
        counts = [int(line[1]) for line in lines if line[0] == "nr_throttled" and line[1].isdecimal()]
        return sum(counts) if counts else None

    def _limits(self) -> list[tuple[int, int]]:
        """Limit and what is used of it that cannot be dropped, in bytes."""
        found = []
        v2 = ("memory.max", "memory.current", "inactive_file ")
        v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
        for folders, (most, used, cached) in ((self._v2, v2), (self._memory, v1)):
            for folder in folders:
                limit, usage = integer(contents(folder / most)), integer(contents(folder / used))
                if limit is not None and usage is not None:
                    lines = contents(folder / "memory.stat").splitlines()
                    files = next((integer(line.split()[1]) for line in lines if line.startswith(cached)), None)
                    found.append((limit, max(0, usage - (files or 0))))
        return found

    def left(self) -> int | None:
        """Bytes that its limits leave; None without one."""
        return min((limit - used for limit, used in self._limits()), default=None)

    def limit(self, total: int | None) -> int | None:
        """The strictest limit in bytes that is below the machine's memory; None without one."""
        below = [limit for limit, _ in self._limits() if total is None or limit < total]
        return min(below, default=None)
