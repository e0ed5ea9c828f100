"""Which processes are a server's: their CPU time is the engine's own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from pytest_llmperf.served.process import launcher, listening, on_this_machine

#: Starts one process that listens and one that computes, each in a process group of its own, as TGI's launcher does.
LAUNCHER = """
import os, subprocess, sys
child = "import socket, sys, time\\n" \
    "if sys.argv[1] != '-':\\n" \
    "    listener = socket.create_server((sys.argv[1], 0))\\n" \
    "    print(listener.getsockname()[1], flush=True)\\n" \
    "time.sleep(60)"
children = [
    subprocess.Popen([sys.executable, "-c", child, host], preexec_fn=os.setpgrp) for host in (sys.argv[1], "-")
]
print(*(one.pid for one in children), flush=True)
children[0].wait()
"""


@contextmanager
def server(*before: str, host: str = "127.0.0.1") -> Iterator[tuple[int, set[int], int]]:
    """A port, the processes of the server that listens there, and the process that was started."""
    started = subprocess.Popen(
        [*before, sys.executable, "-c", LAUNCHER, host], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert started.stdout is not None
    try:
        lines = sorted((started.stdout.readline().split() for _ in range(2)), key=len)
        children = {int(pid) for pid in lines[1]}
        (own,) = {psutil.Process(pid).ppid() for pid in children}
        yield int(lines[0][0]), children | {own}, started.pid
    finally:
        for one in (*psutil.Process(started.pid).children(recursive=True), started):
            one.kill()
        started.wait()
        started.stdout.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_process_that_computes_beside_the_one_that_listens_is_the_server_s(host: str) -> None:
    with server(host=host) as (port, processes, started):
        assert started in processes
        assert set(listening(port)) == processes


def test_a_shell_that_started_it_is_not() -> None:
    with server("bash", "-c", '"$@"; exit', "bash") as (port, processes, started):
        assert started not in processes
        assert set(listening(port)) == processes


def test_nothing_that_started_this_process_is() -> None:
    assert launcher(os.getpid()) == os.getpid()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = listening(listener.getsockname()[1])
    assert os.getpid() in found
    assert not {parent.pid for parent in psutil.Process().parents()} & set(found)


def test_a_child_of_this_process_is_without_its_siblings() -> None:
    sibling = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with server() as (port, processes, _):
            assert sibling.pid not in listening(port)
            assert set(listening(port)) == processes
    finally:
        sibling.kill()
        sibling.wait()


def test_nobody_listens() -> None:
    assert listening(1) == []
    assert launcher(2**22 + 1) == 2**22 + 1, "gone"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "::1", "0.0.0.0", "::", socket.gethostname()])
def test_this_machine_has_many_names(host: str) -> None:
    assert on_this_machine(host)


def test_each_address_of_an_interface_is_this_machine_s() -> None:
    families = (socket.AF_INET, socket.AF_INET6)
    own = [one.address for found in psutil.net_if_addrs().values() for one in found if one.family in families]
    assert own
    assert all(map(on_this_machine, own))


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "nowhere.invalid", "", "x" * 70])
def test_others_are_not(host: str) -> None:
    assert not on_this_machine(host)
