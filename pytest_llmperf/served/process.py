"""A server that we start: on a free loopback port, in the worker's own process group, gone when the engine closes."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import IO

import psutil

from pytest_llmperf.served.client import ServerError, printable

#: Lines of its output that an error shows; bytes that are looked at for them.
LAST_LINES, LAST_BYTES = 8, 16384
#: Seconds that it has to end by itself; the parent waits 5 for the whole worker.
PATIENCE = 3.0
#: Seconds between two looks at whether it is up.
PAUSE = 0.25


def free_port() -> int:
    """A port of the loopback interface that nobody has now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def family(pid: int) -> list[psutil.Process]:
    """A process and those that it started, and they in turn; none if it is gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def listening(port: int) -> list[int]:
    """The processes of whoever listens on a port of this machine, as far as this user may see."""
    try:
        found = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return []
    pids = {one.pid for one in found if one.pid and one.status == psutil.CONN_LISTEN and one.laddr[1:] == (port,)}
    return sorted({member.pid for pid in pids for member in family(pid)})


def healthy(url: str) -> bool:
    """Whether a server of ours answers its ``/health``."""
    try:
        # Never by a proxy that the environment names: this is the loopback interface.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, http.client.HTTPException, OSError):
        return False


class ServerProcess:
    """A server that was started.

    Args:
        name: what errors call it.
        command: its command line.
        environment: variables added to (and overriding) this process's.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._name = name
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the server
        try:
            # No session of its own: whoever kills the worker's process group takes it along.
            self._process = subprocess.Popen(
                list(command),
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
            )
        except OSError as error:
            raise ServerError(f"cannot start {command[0]}: {error.strerror}") from None

    @property
    def pid(self) -> int:
        return self._process.pid

    def pids(self) -> list[int]:
        """Of it, and of the processes that it started."""
        return [member.pid for member in family(self._process.pid)]

    def until(self, up: Callable[[], bool], seconds: float) -> None:
        """Wait until it is up.

        Raises:
            ServerError: it ended before, or takes longer; the error has its last lines.
        """
        end = time.monotonic() + seconds
        while not up():
            if (status := self._process.poll()) is not None:
                how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
                raise ServerError(f"{self._name} {how} before it was up{self.tail()}")
            if time.monotonic() > end:
                raise ServerError(f"{self._name} was not up within {seconds:g} s{self.tail()}")
            time.sleep(PAUSE)

    def tail(self) -> str:
        """The last lines that it printed, as an error ends with them."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - LAST_BYTES))
        lines = [printable(line) for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return "; its last lines:\n" + "\n".join("  " + line for line in lines[-LAST_LINES:]) if lines else ""

    def stop(self) -> None:
        """Ask it to end, and after a while kill it and what it started."""
        members = family(self._process.pid)
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        for member in members:
            with contextlib.suppress(psutil.Error):
                member.kill()
        self._process.wait()
        self._log.close()
