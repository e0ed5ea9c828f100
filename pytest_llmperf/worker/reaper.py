"""The reaper of a worker: a small process that ends what the worker started, when their parent lets go or is gone.

A started server may put its processes into groups and sessions of their own, and they may ignore SIGTERM. So each
process is found by a mark that it inherits: an environment variable with the worker's scratch folder. The reaper has a
session of its own and no mark, so it survives what kills pytest, the worker and their process groups.

Any Python runs this file as a script, so it needs only Python's library and imports little.
"""

from __future__ import annotations

import os
import signal
import sys
import time

#: The environment variable that marks a process. Its value is the scratch folder of a worker, or a folder in that.
MARK = "LLMPERF_SCRATCH"
#: Seconds between the first two looks for processes that are left, between two later looks, and in all.
PAUSE, LONGEST_PAUSE, PATIENCE = 0.02, 1.0, 60.0


def scratch() -> str:
    """A new folder, whose path is the mark of a worker or a server. It lies in the folder of whoever started this."""
    import tempfile

    return tempfile.mkdtemp(prefix="llmperf-", dir=os.environ.get(MARK))


def members(folder: str, proc: str = "/proc") -> set[int]:
    """The living processes that have a folder's mark, or that of a folder in it, and what they started.

    Empty on a system without ``/proc``.
    """
    own = f"{MARK}={folder}".encode()
    parents: dict[int, int] = {}
    found = set()
    for name in os.listdir(proc) if os.path.isdir(proc) else ():
        if not name.isdecimal():
            continue
        state, parent = _contents(f"{proc}/{name}/stat").rpartition(b")")[2].split()[:2] or (b"Z", b"0")
        if state in (b"Z", b"X"):  # it has ended, and waits to be reaped
            continue
        parents[int(name)] = int(parent)
        variables = _contents(f"{proc}/{name}/environ").split(b"\0")
        if any(one == own or one.startswith(own + b"/") for one in variables):
            found.add(int(name))
    while started := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= started
    return found


def _contents(path: str) -> bytes:
    """The content of one of the kernel's files; empty if the process is gone, or another user's."""
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError:
        return b""


def _killed(pid: int) -> bool:
    """Whether a process, or the group of a negative number, could be sent SIGKILL."""
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return False
    return True


def end(folder: str) -> None:
    """Kill the members of a scratch folder until none is left, and remove the folder."""
    limit, pause = time.monotonic() + PATIENCE, PAUSE
    # A process may have started another one after the look that found it.
    while [pid for pid in members(folder) if _killed(pid)] and time.monotonic() < limit:
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
    try:
        os.rmdir(folder)
    except OSError:  # it has files
        import shutil

        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Entry point. Arguments: the lifeline, the worker's process group, its scratch folder.

    The lifeline is a pipe that only the parent can write to and never does. Reading returns when the parent closes it,
    or dies.
    """
    lifeline, group, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.SIG_IGN)
    os.read(lifeline, 1)
    _killed(-group)  # the whole group: all that can be found on a system without /proc
    end(folder)


if __name__ == "__main__":
    main()
