"""Hooks and fixtures. Imports nothing heavier than pytest: whatever a run needs is imported when it is needed."""

from __future__ import annotations

import json
import signal
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from zlib import crc32

import pytest

from pytest_llmperf import settings as options
from pytest_llmperf.narrowing import Narrowing

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from pytest_llmperf.backends.registry import Registry
    from pytest_llmperf.cases import Case, Workload
    from pytest_llmperf.fixtures import Engine, Load, ParityCheck, Perf, VirtualClock
    from pytest_llmperf.gate.baseline import Entry
    from pytest_llmperf.load import Traffic
    from pytest_llmperf.machine.table import Device
    from pytest_llmperf.models import Model
    from pytest_llmperf.report.progress import Progress
    from pytest_llmperf.result import Result
    from pytest_llmperf.session import Session

MARKER = (
    "llm(backends=None, batch_sizes=None, prompt_lengths=None, max_new_tokens=None, devices=None, max_regression=None):"
    " "
    "what a test of LLM performance needs. backends, batch_sizes, prompt_lengths, max_new_tokens: the test runs with "
    "these instead of the command line's. devices: names, or 'cpu', 'cuda', 'rocm'; on another device the test is "
    "skipped. max_regression: the slowdown that the test allows, as a fraction; the strictest of this, llm_tolerances "
    "and --llm-max-regression counts."
)


def _size(value: object) -> bool:
    return type(value) is int and value > 0


def _list(of: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list | tuple) and bool(value) and all(map(of, value))


#: Each argument of the marker: whether a value will do, and what will.
MARKER_ARGUMENTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "backends": (_list(lambda name: isinstance(name, str)), "a list of names"),
    "batch_sizes": (_list(_size), "a list of positive whole numbers"),
    "prompt_lengths": (_list(_size), "a list of positive whole numbers"),
    "max_new_tokens": (lambda value: _size(value) and value > 1, "a whole number above 1"),
    "devices": (_list(lambda name: isinstance(name, str)), "a list of names"),
    "max_regression": (lambda value: isinstance(value, float) and 0 < value < 1, "a fraction such as 0.05"),
}
#: What is said of a test whose fixtures have no parameters.
UNNAMED = (
    "llm_ fixtures have no values here: pytest parametrizes no unittest.TestCase, doctest or getfixturevalue; name "
    "them as arguments of a plain test function"
)
#: What is said of a test that has parameters of its own for our fixtures, with their names.
OWN = "the plugin gives {} its values; choose others with @pytest.mark.llm(backends=[...], batch_sizes=[...], ...)"
#: ``timeout`` and CI stop a job by SIGTERM. A terminal that closes, or a lost connection to it, sends SIGHUP.
STOPPING = (signal.SIGTERM, signal.SIGHUP)
#: The fixtures that have a value for each test.
PARAMETERS = {"llm_backend", "llm_workload", "llm_traffic"}
#: What a test of ``llm_perf`` fails with where it cannot have the fixture of pytest-benchmark.
NO_BENCHMARK = "llm_perf needs pytest-benchmark, which is not loaded; leave out -p no:benchmark, or add -p benchmark"
REPLACED = "llm_perf needs the fixture `benchmark` of pytest-benchmark, which {0} has replaced; run without {0}"
FIXTURES = {
    *PARAMETERS,
    "llm_device",
    "llm_model",
    "llm_engine",
    "llm_perf",
    "llm_parity",
    "llm_load",
}


class State:
    """The plugin's state, kept in ``config.stash``."""

    def __init__(self, config: pytest.Config) -> None:
        self.settings = options.read(config)
        #: Whether this is one of several processes of xdist, of which each has a part of the tests.
        self.parallel = hasattr(config, "workerinput")
        if self.parallel and self.settings.seed is None:  # all of them have the same prompts
            uid: str = config.workerinput["testrunuid"]  # type: ignore[attr-defined]
            self.settings = replace(self.settings, seed=crc32(uid.encode()))
        #: Whether no test is to run: what is measured, written and gated is nothing.
        self.dry = bool(config.getoption("collectonly", False) or config.getoption("setuponly", False))
        #: What each process of xdist has measured, in the one that started them.
        self.parts: list[dict[str, Any]] = []
        self.config = config
        self.unusable: str | None = None
        #: The baselines written, or why there are none.
        self.written: dict[Case, Entry] | str = {}
        #: Tests that were to gate a case.
        self.gating = 0
        #: Node ids of the tests that are to gate a case and have not measured it, in order.
        self.unmeasured: dict[str, None] = {}
        #: What each test measured, by node id.
        self.judged: dict[str, Result] = {}
        #: Why tests are skipped, by node id.
        self.skips: dict[str, str] = {}
        #: Of these, tests of memory that cannot be read and that no baseline has: nothing is lost without a figure.
        self.unreadable: set[str] = set()
        #: Why tests fail before they begin, by node id.
        self.misused: dict[str, str] = {}
        #: What is to be said of the reports, and of those that could not be written.
        self.reported: list[str] = []
        self.unreported: list[str] = []
        self.narrowing = Narrowing(config)
        self._run: Session | None = None
        self._registry: Registry | None = None
        self._clock: VirtualClock | None = None
        self._progress: Progress | None = None

    @property
    def left(self) -> list[str]:
        """The tests that were to gate a case and have not, each with the reason where that is known."""
        known = self.skips | self.misused
        return [
            f"{name}: {known[name]}" if name in known else name
            for name in self.unmeasured
            if name not in self.unreadable
        ]

    @property
    def skipped(self) -> int:
        """How many tests that were to gate a case were skipped."""
        return len(self.skips.keys() & self.unmeasured.keys())

    @property
    def accepted(self) -> Collection[Case]:
        """The cases whose figures were written to the baseline."""
        return () if isinstance(self.written, str) else self.written

    @property
    def reports(self) -> bool:
        """Whether this process has results of its own to report, at the end."""
        return not (self.parallel or self.dry or self.settings.self_test)

    @property
    def started(self) -> Session | None:
        """The run, if any test asked for one."""
        return self._run

    @property
    def progress(self) -> Progress:
        if self._progress is None:
            from pytest_llmperf.report.progress import Progress

            self._progress = Progress(self.config)
        return self._progress

    @property
    def clock(self) -> VirtualClock:
        if self._clock is None:
            from pytest_llmperf.fixtures import VirtualClock

            self._clock = VirtualClock()
        return self._clock

    @property
    def registry(self) -> Registry:
        """The built-in backends, those that conftest.py files register, and the variants of both.

        Raises:
            KeyError, ValueError: one of them cannot be registered.
        """
        if self._registry is None:
            from pytest_llmperf.backends.registry import BUILT_IN, Registry

            registry = Registry(BUILT_IN)
            for backends in self.config.hook.pytest_llmperf_backends():
                for backend in backends:
                    registry.add(backend)
            own = {one.name for one in self.settings.variant}
            of_suite = [one for found in self.config.hook.pytest_llmperf_variants() for one in found]
            for variant in (*(one for one in of_suite if one.name not in own), *self.settings.variant):
                registry.add_variant(variant)
            self._registry = registry
        return self._registry

    @property
    def run(self) -> Session:
        """The run, made when the first test that needs one is collected.

        Raises:
            ValueError: the settings rule it out.
        """
        if self._run is None:
            from pytest_llmperf.session import begin

            self._run = begin(self.settings, self.registry, self.config.rootpath, self.progress)
        return self._run


KEY = pytest.StashKey[State]()


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    from pytest_llmperf import hookspec

    pluginmanager.add_hookspecs(hookspec)


@pytest.hookimpl
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """With ``--llm-list`` or ``--llm-doctor``, say what can run here or whether the machine is fit, and stop."""
    if not (config.getoption("--llm-list") or config.getoption("--llm-doctor")):
        return None
    config._do_configure()
    bad = False
    try:
        session = config.stash[KEY]
        if config.getoption("--llm-list"):
            from pytest_llmperf.report.listing import listing

            lines = listing(session.settings, session.registry)
        else:
            from pytest_llmperf.report import checkup

            found = checkup.take(session.settings, session.registry, config.rootpath)
            lines, bad = checkup.lines(found), checkup.bad(found)
        for line in lines:
            print(line)
    except (KeyError, ValueError) as error:
        raise pytest.UsageError(f"llmperf: {error.args[0]}") from None
    finally:
        config._ensure_unconfigure()
    return int(bad)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)
    config.stash[KEY] = state = State(config)
    config.pluginmanager.register(state.narrowing, "llmperf-narrowing")


# Collection: parametrize, validate, order


def _marker_arguments(node: pytest.Item) -> dict[str, Any]:
    """The marker's arguments; the closest one wins, name by name, and of tolerances the strictest.

    Raises:
        ValueError: an argument that the marker does not have, or of the wrong kind.
    """
    found: dict[str, Any] = {}
    for marker in reversed(list(node.iter_markers("llm"))):
        unknown = set(marker.kwargs) - MARKER_ARGUMENTS.keys()
        if unknown or marker.args:
            what = ", ".join(sorted(unknown)) or "positional arguments"
            raise ValueError(f"{node.nodeid}: the llm marker does not take {what}; {MARKER.partition(':')[0]}")
        for name, value in marker.kwargs.items():
            fits, wanted = MARKER_ARGUMENTS[name]
            if value is not None and not fits(value):
                raise ValueError(f"{node.nodeid}: the llm marker's {name} is {value!r}; it takes {wanted}")
        tolerances = [one["max_regression"] for one in (found, marker.kwargs) if one.get("max_regression") is not None]
        found.update(marker.kwargs)
        if tolerances:
            found["max_regression"] = min(tolerances)
    return found


def _own(item: pytest.Item) -> list[str]:
    """The fixtures of ours that a test's own marks parametrize."""
    given = [
        mark.args[0] if mark.args else mark.kwargs.get("argnames", "") for mark in item.iter_markers("parametrize")
    ]
    names = [one.split(",") if isinstance(one, str) else one for one in given]
    return sorted(PARAMETERS.intersection(name.strip() for row in names for name in row))


def _misuse(item: pytest.Item) -> str | None:
    """Why a test cannot get its fixtures; None if it can."""
    if own := _own(item):
        return OWN.format(" and ".join(own))
    if "llm_perf" in item.fixturenames and not hasattr(item.config, "_benchmarksession"):  # type: ignore[attr-defined]
        return NO_BENCHMARK
    asked = PARAMETERS.intersection(item.fixturenames)  # type: ignore[attr-defined]
    return UNNAMED if asked and asked.isdisjoint(_parameters(item)) else None


def _parameters(item: pytest.Item) -> dict[str, Any]:
    """A test's parameters; none of what is no function of pytest's."""
    return item.callspec.params if hasattr(item, "callspec") else {}


@pytest.hookimpl
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = FIXTURES.intersection(metafunc.fixturenames)
    if not names or _own(metafunc.definition):
        return
    session = metafunc.config.stash[KEY]
    if session.unusable is not None:
        return
    try:
        run = session.run
        stated = _marker_arguments(metafunc.definition)
        if "llm_backend" in names:
            backends = run.plan.backends
            if stated.get("backends"):
                backends = tuple(dict.fromkeys(map(run.plan.named, stated["backends"])))
            if "llm_load" in names:  # what answers one batch at a time has no load
                backends = tuple(name for name in backends if run.plan.registry[name].served)
                if not backends:
                    skip = pytest.mark.skip(reason="none of --llm-backends is a server, and load is for servers")
                    metafunc.parametrize("llm_backend", [pytest.param("", marks=skip, id="none")])
                    return
            # Session scope makes pytest itself group the tests by backend, so that an engine is loaded once.
            metafunc.parametrize("llm_backend", backends, indirect=True, scope="session")
        if "llm_workload" in names:
            workloads = run.plan.workloads(
                [1] if "llm_load" in names else stated.get("batch_sizes"),
                stated.get("prompt_lengths"),
                stated.get("max_new_tokens"),
            )
            metafunc.parametrize("llm_workload", workloads, ids=str, indirect=True, scope="function")
        if "llm_traffic" in names:
            metafunc.parametrize("llm_traffic", run.plan.traffic, ids=str, indirect=True, scope="function")
    except (ValueError, KeyError) as error:
        session.unusable = str(error.args[0] if error.args else error)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Last, so that a test that was deselected cannot stop the others."""
    session = config.stash[KEY]
    ours = [item for item in items if FIXTURES.intersection(getattr(item, "fixturenames", ()))]
    if ours and session.unusable is not None:
        raise pytest.UsageError(f"llmperf: {session.unusable}")
    run = session.started
    if run is None:
        return
    # Engines need room for the tests that are left, not for those that were deselected.
    session.misused = {item.nodeid: why for item in ours if (why := _misuse(item)) is not None}
    parameters = [_parameters(item) for item in ours if item.nodeid not in session.misused]
    run.plan.cover([_largest(one, run) for one in parameters if "llm_workload" in one])
    for item in ours:
        gates = "llm_perf" in item.fixturenames  # type: ignore[attr-defined]
        if gates:
            session.unmeasured[item.nodeid] = None
            if session.misused.get(item.nodeid) != NO_BENCHMARK:  # whose marker it is
                item.add_marker(pytest.mark.benchmark(timer=session.clock))
        reason = None if item.nodeid in session.misused else _reason_to_skip(item, session, run)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
            session.skips[item.nodeid] = reason
        session.gating += gates
    session.progress.tests = len(items) - len(session.skips)


@pytest.hookimpl
def pytest_collection_finish(session: pytest.Session) -> None:
    """Complete the plan. Only now are the tests and their order final: ``--lf`` and ``--ff`` come after every other."""
    state = session.config.stash[KEY]
    run = state.started
    if run is None or state.unusable is not None:
        return
    _heed_signals(session.config)
    if session.config.getoption("benchmark_disable", False):
        return  # nothing is timed
    left_out = state.skips.keys() | state.misused.keys()
    chosen: dict[str, list[tuple[str, Workload]]] = {"llm_perf": [], "llm_parity": []}
    for item in session.items:
        if item.nodeid not in left_out and not _skips(item):
            for name in chosen.keys() & {*getattr(item, "fixturenames", ())}:
                values = _parameters(item)
                chosen[name].append((values["llm_backend"], values["llm_workload"]))
    run.plan.complete(chosen["llm_perf"])
    if not run.model.random_weights:  # of which nothing is judged
        run.unjudged.update(chosen["llm_parity"])
    if state.dry:
        return
    ours = (item for item in session.items if FIXTURES.intersection(getattr(item, "fixturenames", ())))
    try:
        if run.plan.model.gguf is None and any(item.nodeid not in state.skips for item in ours):
            _ = run.prompts  # a tokenizer that cannot be used is told before anything is loaded
        run.check_out()
    except ValueError as error:
        state.unusable = str(error)
        raise pytest.UsageError(f"llmperf: {state.unusable}") from None


def _heed_signals(config: pytest.Config) -> None:
    """Have the signals of `STOPPING` end the run as Ctrl-C does: what was measured is kept."""
    if threading.current_thread() is not threading.main_thread():
        return
    # A handler of somebody else's is left in place, and so is nohup's wish to ignore SIGHUP.
    heeded = [one for one in STOPPING if signal.getsignal(one) == signal.SIG_DFL]

    def stopping(*_: object) -> None:
        """``timeout`` sends its signal twice. Whoever cannot wait has SIGKILL, and Ctrl-C."""

    def stop(number: int, _: object) -> None:
        for one in heeded:
            signal.signal(one, stopping)
        raise KeyboardInterrupt(f"stopped by {signal.Signals(number).name}")

    def restore() -> None:
        for one in heeded:
            if signal.getsignal(one) in (stop, stopping):
                signal.signal(one, signal.SIG_DFL)

    for one in heeded:
        signal.signal(one, stop)
    config.add_cleanup(restore)


def _skips(item: pytest.Item) -> bool:
    """Whether pytest's own marks skip a test, or may: it is pytest that evaluates conditions in strings."""
    conditions = [
        condition
        for mark in item.iter_markers("skipif")
        for condition in (*mark.args, mark.kwargs.get("condition", False))
    ]
    never = (mark.kwargs.get("run", True) is False for mark in item.iter_markers("xfail"))
    return item.get_closest_marker("skip") is not None or any(conditions) or any(never)


def _largest(parameters: dict[str, Any], run: Session) -> Workload:
    """What a test submits together: of a load, the requests that may be with the server at a time."""
    workload: Workload = parameters["llm_workload"]
    if "llm_traffic" not in parameters:
        return workload
    return replace(workload, batch_size=parameters["llm_traffic"].concurrency or run.settings.requests)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if (why := item.config.stash[KEY].misused.get(item.nodeid)) is not None:
        pytest.fail(why, pytrace=False)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    session = item.config.stash[KEY]
    if session.started is not None and item.nodeid not in session.skips:
        session.progress.over += 1


def _reason_to_skip(item: pytest.Item, session: State, run: Session) -> str | None:
    """Why a test cannot run here, or None.

    Raises:
        pytest.UsageError: its marker is wrong, or it was asked for with --llm-strict.
    """
    from pytest_llmperf.machine.table import DEVICES, kind_of

    try:
        devices = _marker_arguments(item).get("devices")
    except ValueError as error:
        raise pytest.UsageError(f"llmperf: {error}") from None
    known = {*DEVICES, *(device.kind for device in DEVICES.values())}
    # One without a row is its product's name, as in nvidia-rtx-a6000: a vendor's word alone is none.
    others = {name for name in set(devices or ()) - known if kind_of(name) is None or "-" not in name}
    if unknown := others:
        raise pytest.UsageError(
            f"llmperf: {item.nodeid}: the llm marker's devices name {', '.join(sorted(unknown))}; "
            f"known: {', '.join(sorted(known))}"
        )
    if devices and not {run.device.name, run.device.kind}.intersection(devices):
        return f"needs {' or '.join(devices)}, and this is {run.device.name}"
    if session.settings.self_test and "llm_perf" not in item.fixturenames:  # type: ignore[attr-defined]
        return "--llm-self-test tries the gate alone"
    chosen = _parameters(item)
    backend = chosen.get("llm_backend")
    missing = backend and run.plan.missing(backend)
    if missing and session.settings.strict:
        raise pytest.UsageError(f"llmperf: backend {backend} cannot run here (--llm-strict): {missing}")
    if missing:
        return f"{backend}: {missing}"
    if not backend or "llm_workload" not in chosen:
        return None
    judges = "llm_parity" in item.fixturenames  # type: ignore[attr-defined]
    generating = [backend, run.settings.reference] if judges else [backend]
    reasons = ((name, run.plan.registry[name].beyond(chosen["llm_workload"])) for name in generating)
    return next((f"{name}: {reason}" for name, reason in reasons if reason), None)


# Fixtures


def _run(request: pytest.FixtureRequest) -> Session:
    """The run. The test fails if the settings rule it out, and no test that was collected has said so."""
    try:
        return request.config.stash[KEY].run
    except (KeyError, ValueError) as error:
        why = str(error.args[0])
    pytest.fail(f"llmperf: {why}", pytrace=False)


def _value(request: pytest.FixtureRequest) -> Any:
    """A fixture's value for the test. The test fails if it has none, as by ``request.getfixturevalue``."""
    if not hasattr(request, "param"):
        pytest.fail(UNNAMED, pytrace=False)
    return request.param


@pytest.fixture(scope="session")
def llm_device(request: pytest.FixtureRequest) -> Device:
    """The device that is measured: name, peaks (FLOP/s, bytes/s), memory (bytes), dtypes."""
    return _run(request).device


@pytest.fixture(scope="session")
def llm_model(request: pytest.FixtureRequest) -> Model:
    """The model that is measured: name, architecture, folder of its weights."""
    return _run(request).model


@pytest.fixture(scope="session")
def llm_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The backend's name. A test that asks for it runs once per backend of ``--llm-backends``."""
    name = _value(request)
    yield name
    if (run := request.config.stash[KEY].started) is not None:
        run.runtime.release(name)


@pytest.fixture
def llm_workload(request: pytest.FixtureRequest) -> Workload:
    """Batch size, prompt length and new tokens. A test that asks for it runs once per combination."""
    return _value(request)  # type: ignore[no-any-return]


@pytest.fixture
def llm_engine(request: pytest.FixtureRequest, llm_backend: str) -> Engine:
    """The backend's engine, in its own process, loaded at first use: ``generate`` and ``evidence``."""
    from pytest_llmperf.fixtures import Engine

    return Engine(_run(request), llm_backend)


def _refuse_xdist(config: pytest.Config) -> None:
    if config.stash[KEY].parallel:
        pytest.fail(
            "latency cannot be measured under xdist, since parallel tests disturb each other; run with -n 0",
            pytrace=False,
        )


@pytest.fixture
def llm_perf(
    request: pytest.FixtureRequest, llm_backend: str, llm_workload: Workload, benchmark: Any
) -> Iterator[Perf]:
    """Measures the backend on the workload: ``llm_perf.gate("tpot")``."""
    from pytest_llmperf.fixtures import Perf

    session = request.config.stash[KEY]
    _refuse_xdist(request.config)
    if not hasattr(benchmark, "enabled"):  # as codspeed's, which stands in for it
        pytest.fail(REPLACED.format(type(benchmark).__module__.partition(".")[0]), pytrace=False)
    stated = _marker_arguments(request.node).get("max_regression")
    run = session.run
    perf = Perf(run, run.plan.registry[llm_backend], llm_workload, benchmark, session.clock, stated)
    yield perf
    benchmark.skipped |= perf.used or session.dry  # it would warn that a case which failed has no figures
    if perf.result is not None:
        session.unmeasured.pop(request.node.nodeid, None)
        session.judged[request.node.nodeid] = perf.result
    if perf.unreadable:
        case, why = perf.unreadable
        session.skips[request.node.nodeid] = why
        if not run.plan.own(case):
            session.unreadable.add(request.node.nodeid)
    _keep(session, run)


def _keep(state: State, run: Session) -> None:
    """After everything that measures: what was measured survives whatever happens to the next test."""
    from pytest_llmperf import ending

    state.progress.finish()
    ending.keep(state, run)


@pytest.fixture
def llm_parity(request: pytest.FixtureRequest, llm_backend: str, llm_workload: Workload) -> Iterator[ParityCheck]:
    """Checks the backend's tokens against the reference's judgement: ``llm_parity.check()``."""
    from pytest_llmperf.fixtures import ParityCheck

    session = request.config.stash[KEY]
    run = session.run
    yield ParityCheck(run, run.plan.registry[llm_backend], llm_workload)
    _keep(session, run)


@pytest.fixture
def llm_traffic(request: pytest.FixtureRequest) -> Traffic:
    """How requests arrive under load. A test that asks for it runs once per concurrency and per rate."""
    return _value(request)  # type: ignore[no-any-return]


@pytest.fixture
def llm_load(
    request: pytest.FixtureRequest, llm_backend: str, llm_workload: Workload, llm_traffic: Traffic
) -> Iterator[Load]:
    """Puts the test's server under load: ``llm_load.check()``."""
    from pytest_llmperf.fixtures import Load

    session = request.config.stash[KEY]
    _refuse_xdist(request.config)
    yield Load(session.run, session.run.plan.registry[llm_backend], llm_workload, llm_traffic)
    _keep(session, session.run)


# The end of a run


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Keep what a process of xdist has measured; one that died has said nothing."""
    state = node.config.stash[KEY]
    if not hasattr(node, "workeroutput"):
        state.unreported.append(f"xdist's process {node.gateway.id} died, so what it measured is lost; run with -n 0")
    elif (part := node.workeroutput.get("llmperf")) is not None:
        state.parts.append(json.loads(part))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    state = session.config.stash[KEY]
    run = state.started
    if run is None and not state.parts:
        return
    from pytest_llmperf import ending

    if run is None:
        if ending.finish_parallel(state) and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return
    failed = False
    try:
        failed = state.unusable is None and ending.finish(state, run, exitstatus)
        if state.parallel and state.unusable is None and not state.dry:
            session.config.workeroutput["llmperf"] = ending.part(state, run)  # type: ignore[attr-defined]
    finally:  # what was measured is safe before anything that may hang or fail
        run.close()
        state.progress.finish()
    if failed and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    state = config.stash[KEY]
    if state.started is not None and state.unusable is None:
        from pytest_llmperf import ending

        ending.show(terminalreporter, state, state.started)
    elif state.parts:
        from pytest_llmperf import ending

        ending.show_parallel(terminalreporter, state)


def pytest_unconfigure(config: pytest.Config) -> None:
    state = config.stash.get(KEY, None)
    if state is not None and state.started is not None:
        state.started.close()
