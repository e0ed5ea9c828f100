"""The parent's handle on a worker process: start, ask, time out, stop. An arm says which interpreter and checkout."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest_llmperf
from pytest_llmperf.machine.fingerprint import tracing
from pytest_llmperf.output import LAST_LINES, end_of, last_lines
from pytest_llmperf.secret import pieces_in, scrubbed
from pytest_llmperf.settings import SECRET_VARIABLES
from pytest_llmperf.worker import protocol, reaper
from pytest_llmperf.worker.bootstrap import counterpart, own

#: Seconds that the reaper has to end what the worker started, before the run goes on without waiting for it.
REAPING = 10.0
#: Variables of every worker, and of the servers that it starts.
ENVIRONMENT = {
    "PYTHONFAULTHANDLER": "1",  # a crash in a library shows where it was called
    "SPT_NOENV": "1",  # setproctitle, of vLLM's processes, leaves the environment, in which the mark is
}
#: What to do where no temporary file can be made.
ROOM = "check the disk and TMPDIR"
#: Errors that a backend raises on purpose. Their message needs no traceback.
PLAIN = {
    "MemoryError",
    "ModelError",
    "NotEngagedError",
    "OutOfMemoryError",
    "PromptError",
    "ServerError",
    "TokenError",
}


class WorkerError(RuntimeError):
    """A worker failed at something; the message is for the person who reads the test report."""


class WorkerFailedError(WorkerError):
    """The worker answered that the call raised. ``kind`` is the exception's class name over there."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class WorkerLostError(WorkerError):
    """The worker died, hung or sent garbage; it and what it started have been killed."""


class WorkerHungError(WorkerLostError):
    """It did not answer in time."""


class BaseUnableError(WorkerError):
    """Base cannot run what head can, so head's figure is new."""


class SameCodeError(BaseUnableError):
    """Base imported nothing of its checkout, so it is the same code as head."""


class BaseLostError(BaseUnableError):
    """Base's worker died or hung, which may be the machine's doing: nothing is known of head's figure."""


def unable(error: Exception) -> BaseUnableError:
    """What an error of base means: that it was lost, or that it cannot run this."""
    return (BaseLostError if isinstance(error, WorkerLostError) else BaseUnableError)(str(error))


@dataclass(frozen=True)
class Checkout:
    """A copy of the repository under test at another revision.

    Attributes:
        revision: the commit.
        root: the tree under test.
        folder: the copy. Base imports from it what head imports from ``root``.
    """

    revision: str
    root: Path
    folder: Path

    def reference(self, reference: dict[str, str]) -> dict[str, str]:
        """What `Backend.reference` says, with the copy's file."""
        file = Path(reference["file"])
        if not reference["file"] or not own(file, self.root):
            return reference
        return reference | {"file": str(counterpart(file, self.root, self.folder))}


@dataclass(frozen=True)
class Arm:
    """What is measured: an interpreter, an environment and a checkout.

    Attributes:
        name: for reports; ``head`` is the tree under test.
        python: the interpreter that workers run in.
        environment: variables added to (and overriding) the parent's.
        checkout: the revision that is imported instead of the tree under test; None for that tree.
    """

    name: str = "head"
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)
    checkout: Checkout | None = None


def started_reaper(lifeline: int, group: int, folder: str) -> subprocess.Popen[bytes]:
    """The reaper of a worker that leads a process group and has a scratch folder.

    It is given its code as input, so that no name in its command line tells it from other Pythons: somebody who kills
    every pytest by name does not kill it.
    """
    with open(reaper.__file__, "rb") as code:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-", str(lifeline), str(group), folder],
            stdin=code,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(lifeline,),
            start_new_session=True,
        )


def _pipe(made: contextlib.ExitStack) -> tuple[int, int]:
    """The ends of a new pipe, both of which are closed with ``made``. Raises OSError."""
    ends = os.pipe()
    for end in ends:
        made.callback(os.close, end)
    return ends


class Host:
    """One worker process. Not thread-safe; one call at a time.

    Args:
        arm: which code it runs.
        environment: variables added to (and overriding) the arm's.
        search_path: what it has on ``sys.path``, as `Interpreter.search_path` says it; empty for its interpreter's own.
    """

    def __init__(
        self, arm: Arm, environment: Mapping[str, str] | None = None, search_path: Sequence[str | None] = ()
    ) -> None:
        with contextlib.ExitStack() as made:
            try:
                folder = reaper.scratch()
                made.callback(reaper.end, folder)
                self._log: IO[bytes] = made.enter_context(tempfile.TemporaryFile())
                (requests_read, self._requests), (self._replies, replies_write), (lifeline_read, self._lifeline) = (
                    _pipe(made) for _ in range(3)
                )
            except OSError as error:
                raise WorkerLostError(f"cannot start a worker: {error}; {ROOM}") from None
            made.pop_all()
        self._buffer = b""
        self._busy = False
        #: The answer that came instead of a step. `answer` returns it.
        self._early: dict[str, Any] | None = None
        #: Pieces of the secrets that this worker was told. A server may repeat them in its messages.
        self._secret: set[str] = set()
        # The lifeline is the reaper's. A worker of an older version, of a base, wants it too.
        passed = (requests_read, replies_write, lifeline_read)
        package = Path(pytest_llmperf.__file__).parent.parent
        unwanted = tracing()
        own = {name: value for name, value in os.environ.items() if name not in unwanted}
        inherited = {**ENVIRONMENT, **own, **arm.environment, **(environment or {}), reaper.MARK: folder}
        #: When the process was started, by `time.monotonic`.
        self.launched = time.monotonic()
        # Pydevd, the debugger of several editors, otherwise puts itself into the command line of each Python.
        undebugged = getattr(sys.modules.get("pydevd"), "skip_subprocess_arg_patch", contextlib.nullcontext)
        process = None
        try:
            with undebugged():
                self._process = process = subprocess.Popen(
                    [
                        arm.python,
                        str(package / "pytest_llmperf" / "worker" / "bootstrap.py"),
                        str(arm.checkout.root if arm.checkout else ""),
                        str(arm.checkout.folder if arm.checkout else ""),
                        str(package),
                        json.dumps(search_path),
                        *map(str, passed),
                    ],
                    env={name: value for name, value in inherited.items() if name not in SECRET_VARIABLES},
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                    pass_fds=passed,
                    start_new_session=True,  # Ctrl-C reaches pytest alone
                )
                self._reaper = started_reaper(lifeline_read, self._process.pid, folder)
        except BaseException as error:
            self._close_files()
            reaper.end(folder)
            if process is not None:
                process.wait()
            if not isinstance(error, OSError):
                raise
            raise WorkerLostError(f"cannot start a worker with {arm.python}: {error}") from error
        finally:
            for descriptor in passed:
                os.close(descriptor)

    @property
    def pids(self) -> list[int]:
        """The id of the process, and of the group that it leads."""
        return [self._process.pid]

    @property
    def replies(self) -> int:
        """The descriptor that becomes readable when it answers or dies."""
        return self._replies

    @property
    def idle(self) -> bool:
        """Whether it lives and has answered everything.

        A call that was interrupted leaves an answer that is still to come. The next request would get it.
        """
        return self._process.returncode is None and not self._busy

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def call(self, operation: str, timeout: float, **arguments: Any) -> Any:
        """Ask the worker for something and sleep in the kernel until it answers.

        Args:
            operation: a method of `pytest_llmperf.worker.server.Worker`.
            timeout: seconds.
            arguments: plain JSON values.

        Raises:
            WorkerFailedError: the operation raised in the worker, which lives on.
            WorkerLostError: the worker died, did not answer in time, or sent something that is no reply. It is gone.
        """
        self.ask(operation, **arguments)
        return self.answer(operation, timeout)

    def ask(self, operation: str, **arguments: Any) -> None:
        """The first half of `call`: another worker may be asked meanwhile."""
        assert self._early is None, "it has not been asked for its last answer"
        self._secret |= pieces_in(arguments)
        request = protocol.encoded({"call": operation, **arguments})
        self._busy = True
        try:
            protocol.write(self._requests, request)
        except OSError:
            raise self._lost(f"worker died before {operation}") from None

    def answer(self, operation: str, timeout: float) -> Any:
        """The second half of `call`."""
        message = self._early or self._reply(operation, timeout)
        self._early = None
        self._busy = False
        if "error" in message:
            error = message["error"]
            said = f"{error['kind']}: {error['message']}"
            if error["kind"] not in PLAIN:
                frames = str(error.get("traceback", "")).splitlines()[-LAST_LINES:]
                said += "\nlast lines of the worker's traceback:\n" + "\n".join("  " + line for line in frames)
            raise WorkerFailedError(scrubbed(said, self._secret), str(error["kind"]))
        return self._clean(message["result"]) if operation in ("evidence", "serve") else message["result"]

    def paused(self, operation: str, timeout: float) -> bool:
        """Wait until a step is computed. False if the worker answered instead; then `answer` returns that.

        Raises:
            WorkerLostError: as `call`.
        """
        message = self._reply(operation, timeout, "step")
        if "step" not in message:
            self._early = message
        return self._early is None

    def resume(self) -> None:
        """Let it compute the next step, or answer if there is none."""
        try:
            protocol.send(self._requests, {"call": "resume"})
        except OSError:
            raise self._lost("worker died between two steps") from None

    def _clean(self, value: Any) -> Any:
        """A worker's result, without the secrets in its texts."""
        if isinstance(value, dict):
            return {name: self._clean(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self._clean(item) for item in value]
        return scrubbed(value, self._secret) if isinstance(value, str) else value

    def _reply(self, operation: str, timeout: float, *kinds: str) -> dict[str, Any]:
        """The next message: a result, an error, or one of ``kinds``."""
        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._replies, select.POLLIN | select.POLLHUP)
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise self._lost(
                    f"worker hung: no answer to {operation} within {timeout:g} s, so it was killed; "
                    "a slower machine may need a larger --llm-timeout",
                    WorkerHungError,
                )
            chunk = os.read(self._replies, 2**20)
            if not chunk:
                raise self._lost(f"worker died during {operation}")
            self._buffer += chunk
            if len(self._buffer) > protocol.LONGEST_LINE:
                raise self._lost(f"worker sent garbage instead of an answer to {operation}, so it was killed")
        line, _, self._buffer = self._buffer.partition(b"\n")
        with contextlib.suppress(ValueError):
            message = protocol.parse(line)
            if message.keys() & {"result", "error", *kinds}:
                return message
        start = scrubbed(repr(line[:60]), self._secret)
        raise self._lost(f"worker sent garbage instead of an answer to {operation} ({start}), so it was killed")

    def _lost(self, what: str, kind: type[WorkerLostError] = WorkerLostError) -> WorkerLostError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5 if "died" in what else 0)
        code = self._process.returncode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = ", often the kernel's out-of-memory killer" if name == "SIGKILL" else ""
            what += f": killed by signal {-code} ({name}{hint})"
        elif code is not None:
            what += f": it exited with status {code}"
        tail = self.output()
        self.kill()
        return kind(f"{what}\nlast output of the worker:\n{tail}" if tail else what)

    def output(self) -> str:
        """What an error shows of the lines that the worker printed."""
        if self._log.closed:
            return ""
        lines = last_lines(scrubbed(end_of(self._log), self._secret))
        return "\n".join("  " + line for line in lines)

    def close(self, patience: float = 5.0) -> None:
        """Stop the worker: politely if it is idle, at once if it is in the middle of something."""
        if self.idle:
            with contextlib.suppress(WorkerError):
                self.call("close", patience)
            self.wait(patience)
        self.kill()

    def wait(self, patience: float) -> None:
        """Give it some seconds to end by itself, if it is idle."""
        if self.idle:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)

    def kill(self) -> None:
        """Kill the worker and everything that it started, wherever that is by now."""
        self._process.kill()
        self._close_files()  # on which the reaper kills the others
        self._process.wait()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._reaper.wait(REAPING)

    def _close_files(self) -> None:
        self._log.close()
        for name in ("_requests", "_replies", "_lifeline"):
            descriptor = getattr(self, name)
            if descriptor >= 0:
                os.close(descriptor)
                setattr(self, name, -1)
