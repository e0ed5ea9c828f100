"""The worker processes of a run: one per engine, loaded at first use, closed when its memory is needed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from pytest_llmperf import folders
from pytest_llmperf.backends.base import EngineSpec
from pytest_llmperf.backends.registry import Combination
from pytest_llmperf.interpreter import Interpreter
from pytest_llmperf.measure.ranks import Ranks
from pytest_llmperf.measure.worker_process import (
    Arm,
    BaseLostError,
    Checkout,
    Host,
    SameCodeError,
    WorkerError,
    WorkerFailedError,
    WorkerHungError,
    WorkerLostError,
    unable,
)
from pytest_llmperf.worker.protocol import BACKEND_VARIABLE

OUT_OF_MEMORY = {"MemoryError", "OutOfMemoryError"}
#: After one of these an engine's state cannot be relied on, though its process still answers.
FATAL = {*OUT_OF_MEMORY, "AcceleratorError", "NotEngagedError"}


def hopeless(error: BaseException) -> bool:
    """Whether the same request would fail again and cost another engine: a hang, no memory, no engagement."""
    return isinstance(error, WorkerHungError) or (isinstance(error, WorkerFailedError) and error.kind in FATAL)


def no_room_for_both(error: Exception) -> BaseLostError | None:
    """The error if one of two processes side by side had no memory, which says nothing of the code; else None."""
    if isinstance(error, WorkerFailedError) and error.kind in OUT_OF_MEMORY:
        return BaseLostError(f"no memory for two processes at once: {error}")
    return None


def spoiled(error: BaseException) -> bool:
    """Whether the engine that raised this can be asked nothing more."""
    return isinstance(error, WorkerLostError) or hopeless(error)


def told(spec: EngineSpec) -> dict[str, Any]:
    """A spec as plain values, without those that have their default: base may be of a version without such a field."""
    plain = asdict(spec)
    empty = {one.name: one.default_factory() for one in fields(spec) if callable(one.default_factory)}
    return {one.name: plain[one.name] for one in fields(spec) if plain[one.name] != empty.get(one.name, one.default)}


@dataclass
class Loaded:
    """A worker, or its ranks, with an engine."""

    host: Host | Ranks
    arm: Arm
    load_seconds: float


@dataclass(frozen=True)
class Loading:
    """How a process that was started for its own sake came to be ready. All are seconds.

    Attributes:
        ready: from its launch until its engine was loaded.
        load: of these, from the request to load on; imports included.
        imports: of ``load``, importing.
        compiled: of ``load``, compiling, by the engine's own account.
    """

    ready: float
    load: float
    imports: float
    compiled: float


@dataclass(frozen=True)
class Side:
    """One of two processes that are measured side by side, and how to ask it.

    Attributes:
        pausable: whether it can wait between steps.
        slowdown: the share that each of its steps takes longer.
        checkout: the copy that it has to import from; None for the tree under test.
    """

    host: Host | Ranks
    timeout: float
    pausable: bool
    slowdown: float = 0.0
    checkout: Checkout | None = None

    def __call__(self, operation: str, **arguments: Any) -> Any:
        """Call an operation of its worker. Raises WorkerError."""
        return self.host.call(operation, self.timeout, **self._slowed(operation), **arguments)

    def prove(self) -> dict[str, Any]:
        """Check that the optimization ran in what this process has generated. Returns the evidence.

        Raises:
            WorkerError: the optimization did not run.
        """
        return self("evidence")  # type: ignore[no-any-return]

    def check_code(self) -> None:
        """Check that this process has imported code of its checkout, if it has one.

        Raises:
            SameCodeError: it ran code that the other arm runs too.
        """
        if self.checkout is not None and not self("imported", folder=str(self.checkout.folder)):
            raise SameCodeError(
                f"it imported nothing from {self.checkout.root} at that revision, so both arms ran the same code; "
                "is what you test installed from elsewhere?"
            )

    def begin(self, operation: str, beside: Side, **arguments: Any) -> bool:
        """Ask, and wait for the first step, as `paused` does. The other process computes no step meanwhile."""
        self.host.ask(operation, **self._slowed(operation), **arguments, beside=beside.host.pids)
        return self.paused(operation)

    def resume(self, operation: str) -> bool:
        """Let it compute the next step, as `paused`."""
        assert isinstance(self.host, Host)
        self.host.resume()
        return self.paused(operation)

    def paused(self, operation: str) -> bool:
        """Whether it computed a step; if not, it has answered."""
        assert isinstance(self.host, Host)
        return self.host.paused(operation, self.timeout)

    def answer(self, operation: str) -> Any:
        """The answer to what was asked. Raises WorkerError."""
        return self.host.answer(operation, self.timeout)

    def _slowed(self, operation: str) -> dict[str, float]:
        return {"slowdown": self.slowdown} if self.slowdown and operation == "generate" else {}


class Engines:
    """Starts, keeps and stops the engines of a run.

    Args:
        spec: what every engine is asked to load.
        arm: where a backend's worker runs; for None, where other work runs.
        attached: the part of the spec that differs by backend: its server, and the headers for it.
        devices: the variables that tell a backend's worker which devices it may use.
        environment: variables of every worker.
        timeout: seconds for one request.
        roomy: whether the device's memory holds the reference, idle, beside another engine.
        reference: its name; empty if nothing is judged by it, so it need not stay loaded.
        progress: told what is being done.
    """

    def __init__(
        self,
        spec: EngineSpec,
        arm: Callable[[Combination | None], Arm],
        *,
        attached: Callable[[Combination], dict[str, Any]] = lambda backend: {},
        devices: Callable[[Combination], dict[str, str]] = lambda backend: {},
        environment: Mapping[str, str],
        timeout: float,
        roomy: bool,
        reference: str,
        progress: Callable[[str], None],
    ) -> None:
        self._spec = spec
        self._arm = arm
        self._attached = attached
        self._devices = devices
        self._timeout = timeout
        self._roomy = roomy
        self._reference = reference
        self._progress = progress
        self._loaded: dict[str, Loaded] = {}
        self._unloadable: dict[str, WorkerError] = {}
        self._environment = {
            "TOKENIZERS_PARALLELISM": "false",
            "TRANSFORMERS_VERBOSITY": "error",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),  # nothing is downloaded while something is timed
            **environment,
        }

    @contextlib.contextmanager
    def _started(
        self,
        backend: Combination,
        arm: Arm,
        own_cache: Path | None = None,
        caches: Mapping[str, str] | None = None,
        **asked: bool,
    ) -> Iterator[Host | Ranks]:
        """A new process that was asked to load the backend and has not answered yet; it is closed if anything fails.

        Args:
            backend: what it loads.
            arm: where it runs.
            own_cache: a new folder for what it compiles; None for the usual one.
            caches: the variables that say where its libraries keep what they compile; None for the usual places.
            asked: what else it is asked.
        """
        environment = {**self._environment, **backend.environment, **self._devices(backend)}
        environment |= caches or {}
        environment[BACKEND_VARIABLE] = backend.name
        search_path = [] if backend.built_in else Interpreter(arm.python).search_path()
        how = arm, environment, search_path
        host = Host(*how) if backend.ranks == 1 else Ranks(backend.ranks, *how)
        try:
            own = backend.reference()
            parts = [arm.checkout.reference(part) for part in own] if arm.checkout else own
            cache = self._spec.cache
            # Code that may be the repository's: base may not use what head compiled.
            if arm.checkout and not (backend.built_in and parts == own):
                cache = str(arm.checkout.folder.parent / "cache")
            cache = str(own_cache or cache)
            room = {name: min(most, getattr(self._spec, name)) for name, most in backend.limits.items()}
            own_spec = replace(self._spec, tp=backend.tp, cache=cache)
            if (variant := backend.variant) is not None:
                own_spec = replace(own_spec, arguments=variant.arguments, proofs=variant.proofs)
            spec = told(own_spec) | room | self._attached(backend)
            host.ask("load", backend=parts, spec=spec, ranks=host.pids, **asked)
            yield host
        except BaseException:
            host.close()
            raise

    def _load(self, backend: Combination) -> Loaded:
        self._progress(f"{backend.name}: loading")
        arm = self._arm(backend)
        with self._started(backend, arm) as host:
            return Loaded(host, arm, float(host.answer("load", self._timeout)["seconds"]))

    def get(self, backend: Combination) -> Loaded:
        """The backend's engine, loaded now if it is not. A backend that failed to load is not tried again."""
        if backend.name in self._unloadable:
            raise self._unloadable[backend.name]
        held = self._loaded.get(backend.name)
        if held is not None and not held.host.idle:  # a thread that an earlier test left behind waits for its answer
            self.close(backend.name)
        if backend.name not in self._loaded:
            self._make_room(backend.name)
            try:
                self._loaded[backend.name] = self._load(backend)
            except WorkerError as error:
                self._unloadable[backend.name] = error
                raise
        return self._loaded[backend.name]

    def _make_room(self, name: str) -> None:
        for other in list(self._loaded):
            if other != name and not (self._roomy and self._reference in (other, name)):
                self.close(other)
        if self._spec.device == "cpu":
            return
        for idle in list(self._loaded):
            # A device's allocator keeps what a generation used: 87 GiB of an H200 after 32 prompts of 2,048 tokens.
            with contextlib.suppress(WorkerError), self._dropping(idle):
                self._loaded[idle].host.call("rest", self._timeout)

    def ask(self, backend: Combination, operation: str, **arguments: Any) -> Any:
        """Call an operation of the backend's engine. After a loss or an interruption the next call starts a new one."""
        loaded = self.get(backend)
        with self._dropping(backend.name):
            return loaded.host.call(operation, self._timeout, **arguments)

    @contextlib.contextmanager
    def _dropping(self, name: str) -> Iterator[None]:
        """Close an engine that can be asked nothing more: it failed so, or something interrupted the call."""
        loaded = self._loaded[name]
        try:
            yield
        except BaseException as error:
            if spoiled(error) or not loaded.host.idle:
                self.close(name)
            raise

    @contextlib.contextmanager
    def fresh(self, backend: Combination) -> Iterator[tuple[Callable[..., Any], float]]:
        """A new process of the backend, closed afterwards: how to ask it, and the seconds it took to load."""
        if not self._roomy:
            self.close(backend.name)
        self._make_room(backend.name)
        loaded = self._load(backend)
        try:
            yield partial(self._call, loaded.host), loaded.load_seconds
        finally:
            loaded.host.close()

    @contextlib.contextmanager
    def starting(self, backend: Combination, arm: Arm | None, cold: bool) -> Iterator[tuple[Side, Loading]]:
        """A new process that is started for its own sake, closed afterwards: how to ask it, and how it became ready.

        Args:
            backend: what it loads.
            arm: where it runs; None for head.
            cold: whether nothing of earlier processes is in its caches.
        """
        if not self._roomy:
            self.close(backend.name)
        self._make_room(backend.name)
        arm = arm or self._arm(backend)
        with contextlib.ExitStack() as stack:
            caches = stack.enter_context(folders.emptied(Path(self._spec.cache))) if cold else ()
            host = stack.enter_context(self._started(backend, arm, *caches, timed=True))
            stack.callback(host.close)
            answer = host.answer("load", self._timeout)
            ready = time.monotonic() - host.launched
            loading = Loading(ready, answer["seconds"], answer["imports"], answer["compiled"])
            yield Side(host, self._timeout, pausable=False, checkout=arm.checkout), loading

    @contextlib.contextmanager
    def pair(self, backend: Combination, base: Arm) -> Iterator[dict[str, Side]]:
        """A new process of the base arm and one of head, by the names ``base`` and ``head``; closed afterwards.

        Raises:
            BaseUnableError: base cannot load the backend, or there is no memory for both.
            WorkerError: head cannot.
        """
        if not self._roomy:
            self.close(backend.name)
        self._make_room(backend.name)
        self._progress(f"{backend.name}: loading a pair of processes, base and head")
        with contextlib.ExitStack() as stack:
            # Side by side: loading is not timed.
            arms = base, self._arm(backend)
            hosts = [stack.enter_context(self._started(backend, arm)) for arm in arms]
            for host in hosts:
                stack.callback(host.close)
            try:
                loaded = [hosts[0].answer("load", self._timeout)]
            except WorkerError as error:
                raise no_room_for_both(error) or unable(error) from error
            try:
                loaded.append(hosts[1].answer("load", self._timeout))
            except WorkerError as error:
                if lost := no_room_for_both(error):
                    raise lost from error
                raise
            # An old base does not say whether it is pausable.
            pausable = [one.get("pausable", False) for one in loaded]
            yield {
                name: Side(host, self._timeout, able, checkout=arm.checkout)
                for name, host, able, arm in zip(("base", "head"), hosts, pausable, arms, strict=True)
            }

    def _call(self, host: Host | Ranks, operation: str, **arguments: Any) -> Any:
        return host.call(operation, self._timeout, **arguments)

    @contextlib.contextmanager
    def any_worker(self) -> Iterator[Callable[..., Any]]:
        """Any worker, loaded or new, for work that needs torch but no engine: conversions, the machine's peaks."""
        for name, loaded in list(self._loaded.items()):
            if not loaded.host.alive:  # an idle one may have been killed for its memory
                self.close(name)
        own = self._arm(None)
        at_hand = self._loaded.get(self._reference)  # others bind threads, or are one of several ranks
        if at_hand is not None and at_hand.arm == own and isinstance(at_hand.host, Host):
            with self._dropping(self._reference):
                yield partial(self._call, at_hand.host)
            return
        host = Host(own, self._environment)
        try:
            yield partial(self._call, host)
        finally:
            host.close()

    def release(self, name: str) -> None:
        """The backend's tests are over: close its engine, unless it is the reference and may stay."""
        if not (self._roomy and name == self._reference):
            self.close(name)

    def close(self, name: str) -> None:
        if name in self._loaded:
            self._loaded.pop(name).host.close()

    def close_all(self) -> None:
        for name in list(self._loaded):
            self.close(name)
