"""Several worker processes that run one engine together, handled like one: the ranks of tensor parallelism."""

from __future__ import annotations

import contextlib
import os
import select
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_llmperf.machine.health import usable_cpus
from pytest_llmperf.measure.worker_process import (
    ROOM,
    Arm,
    Host,
    WorkerError,
    WorkerFailedError,
    WorkerHungError,
    WorkerLostError,
)

#: Seconds that the other ranks have to answer once one has failed: they may wait for it in a collective for ever.
GRACE = 3.0


class Ranks:
    """One process per rank. All are asked the same, and rank 0's answer counts. Not thread-safe; one call at a time.

    If one rank raises an error, all have to. A rank that fails alone, dies or hangs leaves the others waiting in a
    collective, so all ranks are ended.

    Args:
        degree: how many.
        arm, environment, search_path: of each, as of a `Host`.
    """

    def __init__(
        self, degree: int, arm: Arm, environment: Mapping[str, str], search_path: Sequence[str | None] = ()
    ) -> None:
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="llmperf-ranks-")
        except OSError as error:
            raise WorkerLostError(f"cannot start ranks: {error}; {ROOM}") from None
        self._hosts: list[Host] = []
        try:
            for rank in range(degree):
                own = rank_environment(rank, degree, Path(self._folder.name) / "rendezvous")
                self._hosts.append(Host(arm, {**environment, **own}, search_path))
        except BaseException:
            self.kill()
            raise

    @property
    def pids(self) -> list[int]:
        """The ids of the processes, rank 0's first."""
        return [host.pids[0] for host in self._hosts]

    @property
    def launched(self) -> float:
        """See `Host.launched`: when the first of them was started."""
        return self._hosts[0].launched

    @property
    def alive(self) -> bool:
        """Whether all of them are alive."""
        return all(host.alive for host in self._hosts)

    @property
    def idle(self) -> bool:
        """Whether all of them are, as `Host.idle`."""
        return all(host.idle for host in self._hosts)

    def call(self, operation: str, timeout: float, **arguments: Any) -> Any:
        """See `Host.call`."""
        self.ask(operation, **arguments)
        return self.answer(operation, timeout)

    def ask(self, operation: str, **arguments: Any) -> None:
        """See `Host.ask`. Rank 0, by whose clock latencies are taken, comes last: it waits for nobody to start."""
        for rank in reversed(range(len(self._hosts))):
            with self._ending_all(rank):
                self._hosts[rank].ask(operation, **arguments)

    def answer(self, operation: str, timeout: float) -> Any:
        """Rank 0's answer, once all have answered; its memory is that of the rank that took most.

        Raises:
            WorkerFailedError: the operation raised, in all of them.
            WorkerLostError: one died, hung or failed alone. All are gone.
        """
        results: dict[int, Any] = {}
        failed: dict[int, WorkerFailedError] = {}
        deadline = time.monotonic() + timeout
        while len(results) + len(failed) < len(self._hosts):
            missing = [rank for rank in range(len(self._hosts)) if rank not in results and rank not in failed]
            rank = self._next(missing, deadline)
            if rank is None:
                self.kill()
                raise self._silent(operation, missing, failed, timeout)
            with self._ending_all(rank):
                try:
                    results[rank] = self._hosts[rank].answer(operation, max(1.0, deadline - time.monotonic()))
                except WorkerFailedError as error:
                    failed[rank] = error
                    deadline = min(deadline, time.monotonic() + GRACE)
        if failed:
            rank, first_failure = next(iter(failed.items()))
            said = f"{self._name(rank)} failed alone, so all were ended: {first_failure}"
            if len(failed) < len(self._hosts):
                self.kill()
                raise WorkerLostError(said) from first_failure
            raise WorkerFailedError(f"{self._name(rank)}: {first_failure}", first_failure.kind) from first_failure
        first = results[0]
        if isinstance(first, dict) and "memory" in first:
            took = [one["memory"] for one in results.values()]
            unknown = next((one for one in took if isinstance(one, str)), None)
            first["memory"] = unknown or max(took, key=lambda one: one["peak"])
        return first

    def _next(self, ranks: list[int], deadline: float) -> int | None:
        """The first of the ranks to say something, or to die; None if none does in time. Sleeps in the kernel."""
        poll = select.poll()
        descriptors = {self._hosts[rank].replies: rank for rank in ranks}
        for descriptor in descriptors:
            poll.register(descriptor, select.POLLIN | select.POLLHUP)
        ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        return descriptors[ready[0][0]] if ready else None

    def _silent(
        self, operation: str, missing: list[int], failed: Mapping[int, WorkerFailedError], timeout: float
    ) -> WorkerLostError:
        """What it means that some ranks did not answer."""
        who = ", ".join(map(str, missing))
        for rank, error in failed.items():
            return WorkerLostError(
                f"{self._name(rank)} failed and {who} did not come back from {operation}, so all were ended: {error}"
            )
        return WorkerHungError(
            f"ranks hung: no answer from {who} of {len(self._hosts)} to {operation} within {timeout:g} s, so all were "
            "killed; a slower machine may need a larger --llm-timeout"
        )

    def _name(self, rank: int) -> str:
        return f"rank {rank} of {len(self._hosts)}"

    @contextlib.contextmanager
    def _ending_all(self, rank: int) -> Any:
        """End all ranks if this one is lost: the others wait for it in a collective."""
        try:
            yield
        except WorkerLostError as error:
            self.kill()
            raise type(error)(f"{self._name(rank)}: {error}") from error

    def close(self, patience: float = 5.0) -> None:
        """See `Host.close`. All are asked before one is waited for, since they may have to leave together."""
        with contextlib.suppress(WorkerError):
            if self.idle:
                self.ask("close")
                self.answer("close", patience)
        for host in self._hosts:
            host.wait(patience)
        self.kill()

    def kill(self) -> None:
        """Kill and reap them all."""
        for host in self._hosts:
            host.kill()
        self._folder.cleanup()


def rank_environment(rank: int, degree: int, rendezvous: Path) -> dict[str, str]:
    """Variables of a rank: torch's own names, and a file to meet at, which no other program can take like a port.

    A CPU's ranks share its cores: with all threads each, they would wait for one another at every barrier. A number
    of threads that the user has set stays.
    """
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(degree),
        "LLMPERF_RENDEZVOUS": str(rendezvous),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, len(usable_cpus()) // degree))),
    }
