"""A server that we start: on a free loopback port, in a scratch folder, gone when the engine closes."""

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
from ipaddress import ip_address
from pathlib import Path
from typing import IO

import psutil

from pytest_llmperf.output import end_of, last_lines
from pytest_llmperf.served.client import ServerError, printable
from pytest_llmperf.worker import reaper

#: How the names of variables end whose values are folders, or lists of them.
FOLDERS = ("PATH", "HOME", "CACHE", "DIR", "ROOT")
#: Seconds that a server which broke has to end and to say why.
DYING = 0.5
#: Seconds that it has to end by itself; the parent waits 5 for the whole worker.
PATIENCE = 3.0
#: Seconds between two looks at whether it is up.
PAUSE = 0.25
#: Programs that start others on their users' behalf, so that these have nothing in common.
SHELLS = {"ash", "bash", "csh", "dash", "fish", "ksh", "sh", "tcsh", "zsh"}


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


def on_this_machine(host: str) -> bool:
    """Whether a host's name or address is this machine's: the loopback interface, any interface, or one of its own."""
    try:
        found = {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    own = {one.address.partition("%")[0] for addresses in psutil.net_if_addrs().values() for one in addresses}
    return any(one in own or (at := ip_address(one)).is_loopback or at.is_unspecified for one in found)


def launcher(pid: int) -> int:
    """The process that started a server, of which a part listens: its highest ancestor that is the server's alone.

    TGI's router listens, and its launcher started the shards that compute beside it. An ancestor is the server's if it
    is of the same session, no shell, no ancestor of this process, and not the first one of the machine or container.
    """
    ours = {os.getpid(), *(one.pid for one in psutil.Process().parents())}
    with contextlib.suppress(psutil.Error, OSError):
        process, session = psutil.Process(pid), os.getsid(pid)
        while (
            (parent := process.parent()) is not None
            and parent.pid > 1
            and parent.pid not in ours
            and os.getsid(parent.pid) == session
            and parent.name() not in SHELLS
        ):
            process = parent
        return process.pid
    return pid


#: How often it is looked who listens. The kernel's list may lack a socket while others come and go.
LOOKS = 3


def listening(port: int) -> list[int]:
    """The processes of whoever listens on a port of this machine, as far as this user may see."""
    pids: set[int] = set()
    for _ in range(LOOKS):
        with contextlib.suppress(psutil.Error, OSError):
            found = psutil.net_connections("tcp")
            pids = {
                one.pid for one in found if one.pid and one.status == psutil.CONN_LISTEN and one.laddr[1:] == (port,)
            }
        if pids:
            break
    return sorted({member.pid for pid in map(launcher, pids) for member in family(pid)})


def healthy(url: str) -> bool:
    """Whether a server of ours answers its ``/health``."""
    try:
        # Never by a proxy that the environment names: this is the loopback interface.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, http.client.HTTPException, OSError):
        return False


def anchored(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The environment for a process in another folder: paths that exist relative to this one become absolute."""

    def absolute(path: str) -> str:
        return str(folder / path) if path and not os.path.isabs(path) and (folder / path).exists() else path

    return {
        name: os.pathsep.join(map(absolute, value.split(os.pathsep))) if name.upper().endswith(FOLDERS) else value
        for name, value in environment.items()
    }


class ServerProcess:
    """A server that was started in a folder of its own, which is removed with it.

    Args:
        name: what errors call it.
        command: its command line.
        environment: variables added to (and overriding) this process's.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._name = name
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the server
        self._folder = reaper.scratch()
        try:
            self._process = subprocess.Popen(
                list(command),
                env={**anchored({**os.environ, **environment}, Path.cwd()), reaper.MARK: self._folder},
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
            )
        except OSError as error:
            self._log.close()
            reaper.end(self._folder)
            raise ServerError(f"cannot start {command[0]}: {error.strerror}") from None

    @property
    def pid(self) -> int:
        return self._process.pid

    def pids(self) -> list[int]:
        """Of it, and of the processes that it started, whatever groups and sessions they are in."""
        return sorted(reaper.members(self._folder))

    def ended(self) -> str | None:
        """How it ended; None while it runs."""
        if (status := self._process.poll()) is None:
            return None
        return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"

    def until(self, up: Callable[[], bool], seconds: float) -> None:
        """Wait until it is up.

        Raises:
            ServerError: it ended before, or takes longer; the error has its last lines.
        """
        end = time.monotonic() + seconds
        while not up():
            if how := self.ended():
                raise ServerError(f"{self._name} {how} before it was up{self.tail()}")
            if time.monotonic() > end:
                raise ServerError(f"{self._name} was not up within {seconds:g} s{self.tail()}")
            time.sleep(PAUSE)

    def tail(self) -> str:
        """The last lines that it printed, as an error ends with them."""
        lines = [f"  {printable(line)}" for line in last_lines(end_of(self._log))]
        return "; its last lines:\n" + "\n".join(lines) if lines else ""

    def last_words(self) -> str:
        """What an error of a request ends with: how the server ended, if it did, and its last lines."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(DYING)
        how = self.ended()
        return (f"; {self._name} {how}" if how else "") + self.tail()

    def stop(self) -> None:
        """Ask it to end, and after a while kill it and what it started."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        self._process.kill()
        reaper.end(self._folder)
        self._process.wait()
        self._log.close()
