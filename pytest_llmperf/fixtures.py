"""The objects behind the fixtures: an engine to generate with, a case to gate, tokens to check."""

from __future__ import annotations

import os
from dataclasses import asdict
from itertools import chain, repeat
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmperf import load
from pytest_llmperf.availability import UnusableError
from pytest_llmperf.cases import LATENCIES, METRICS
from pytest_llmperf.gate.beside import DisturbedError
from pytest_llmperf.gate.rule import Outcome
from pytest_llmperf.measure import trace
from pytest_llmperf.measure.worker_process import WorkerError
from pytest_llmperf.prompts import PromptError
from pytest_llmperf.report.terminal import STRICT_FAILURES
from pytest_llmperf.report.text import kernels_line, verdict_line
from pytest_llmperf.session import ImpossibleError, ParityError, Session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from pytest_llmperf.backends.registry import Combination
    from pytest_llmperf.cases import Case, Workload
    from pytest_llmperf.load import LoadResult, Traffic
    from pytest_llmperf.measure.trace import Trace
    from pytest_llmperf.result import ParityResult, Result

    T = TypeVar("T")


class VirtualClock:
    """A timer for pytest-benchmark that shows the worker's durations: 0 in ``setup``, the duration in the target."""

    __name__ = "worker"

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


#: What a test fails with by its message alone.
PLAINLY = (WorkerError, trace.TraceError, DisturbedError, ImpossibleError, ParityError, PromptError)


def failing_plainly(work: Callable[[], T]) -> T:
    """Run something on a worker; what goes wrong there fails this test with its message, not with our traceback.

    An engine that cannot be loaded is told once: each later test that needs it gets the same error again.
    """
    try:
        return work()
    except PLAINLY as error:
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        first = vars(error).setdefault("first", test)
        message = str(error) if first == test else f"not run, for the reason that {first} shows"
    pytest.fail(message, pytrace=False)


class Engine:
    """``llm_engine``: the backend under test, loaded in its worker at first use.

    Attributes:
        backend: its name.
    """

    def __init__(self, run: Session, backend: str) -> None:
        self._run = run
        self.backend = backend

    def generate(self, prompts: list[list[int]], max_new_tokens: int) -> Trace:
        """Greedy generation of a batch: token ids in, tokens and their times out.

        The test fails if the worker dies, hangs or returns anything but ``max_new_tokens`` per prompt.
        """
        return failing_plainly(lambda: self._run.generate(self.backend, prompts, max_new_tokens))

    def evidence(self) -> dict[str, Any]:
        """What was seen of the optimization in the last shape generated. The test fails if it did not engage."""
        return failing_plainly(lambda: self._run.engines.ask(self._run.plan.registry[self.backend], "evidence"))


class Perf:
    """``llm_perf``: measures the test's backend on the test's workload.

    Attributes:
        workload: batch size, prompt length and new tokens of this test.
        used: whether the test has asked for its case.
    """

    def __init__(
        self,
        run: Session,
        backend: Combination,
        workload: Workload,
        benchmark: Any,
        clock: VirtualClock,
        stated: float | None,
    ) -> None:
        self._run = run
        self._backend = backend
        self._benchmark = benchmark
        self._clock = clock
        self._stated = stated
        self.used = False
        #: What was measured and judged, or None so far.
        self.result: Result | None = None
        #: The case whose figure cannot be read, and why, if the test is skipped for that.
        self.unreadable: tuple[Case, str] | None = None
        self.workload = workload

    def gate(self, metric: str) -> Result | None:
        """Measure a metric and compare it with the baseline; once a test.

        ``ttft``, ``tpot`` and ``latency`` are times. ``memory`` is the peak of a generation in bytes, beyond
        ``weights``, which is what was in use when the engine was ready. ``cold-start`` and ``warm-start`` are the time
        that a process takes from its launch to a first token, with the caches of compiled kernels emptied or filled.

        The test fails on a confirmed regression, an impossible figure, an engine that failed or did not engage, wrong
        tokens that were timed after the test of parity; with ``--llm-strict`` also where the comparison is inconclusive
        or missing, other kernels ran than before, or the memory cannot be read, for which the test is skipped
        otherwise. Figures go to pytest-benchmark, but for bytes.

        Returns:
            The result, or None with ``--benchmark-disable``, where one generation is made and nothing is judged.
        """
        if metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")
        if self.used:
            pytest.fail(
                "llm_perf.gate was called twice; call it once per test, since pytest-benchmark has one row per test",
                pytrace=False,
            )
        self.used = True
        run, name = self._run, self._backend.name
        if not self._benchmark.enabled:
            self._benchmark.pedantic(lambda: None)
            failing_plainly(lambda: run.generate_once(name, self.workload))
            return None
        if run.settings.self_test:
            if metric not in LATENCIES:
                pytest.skip("--llm-self-test slows the steps of a generation down: it tries the gate on latencies")
            figures = failing_plainly(lambda: run.self_test(name, self.workload, metric, self._stated))
            self._play(figures)
            return None
        try:
            result = failing_plainly(lambda: run.gate(name, self.workload, metric, self._stated))
        except UnusableError as error:
            if run.settings.strict:
                pytest.fail(f"{error} (--llm-strict)", pytrace=False)
            self.unreadable = run.plan.case(name, self.workload, metric), str(error)
            pytest.skip(str(error))
        self.result = result
        self._hand_over(result)
        later = failing_plainly(lambda: run.check_later(name, self.workload))
        if later is not None:
            _require(later, run)
        outcome = result.verdict.outcome
        if run.accepts(result.case):
            return result
        doubtful = outcome in STRICT_FAILURES or result.verdict.questionable
        if outcome is Outcome.REGRESSION or (run.settings.strict and doubtful):
            pytest.fail("\n  ".join([verdict_line(result), *result.slower]), pytrace=False)
        if run.settings.strict and result.kernels_changed:
            pytest.fail(kernels_line(result), pytrace=False)
        return result

    def _hand_over(self, result: Result) -> None:
        """Give the figures to pytest-benchmark, which counts seconds: bytes are none of its figures."""
        if not METRICS[result.case.metric].timed:
            self._benchmark.disabled = True
            self._benchmark.pedantic(lambda: None)
            return
        self._benchmark.group = f"{METRICS[result.case.metric].title}, {result.case.workload}"
        self._benchmark.extra_info.update(
            case=str(result.case),
            speedup=result.speedup,
            utilization=result.utilization and asdict(result.utilization),
            throughput=result.throughput,
            load=result.first.load,
            start=result.start,
            peak_memory=result.peak_memory,
            loaded_memory=result.loaded_memory,
            verdict=result.verdict.outcome.value,
        )
        self._play(result.samples)

    def _play(self, samples: Sequence[float]) -> None:
        # One more generation may be asked for, by --benchmark-cprofile.
        durations = chain(samples, repeat(median(samples)))

        def setup() -> None:
            self._clock.now = 0.0

        def play() -> None:
            self._clock.now = next(durations)

        self._benchmark.pedantic(play, setup=setup, rounds=len(samples))


class Load:
    """``llm_load``: puts the test's server under load.

    Attributes:
        workload: prompt length and new tokens of each request.
        traffic: how they arrive.
    """

    def __init__(self, run: Session, backend: Combination, workload: Workload, traffic: Traffic) -> None:
        self._run = run
        self._backend = backend
        self.workload = workload
        self.traffic = traffic

    def measure(self) -> LoadResult:
        """Send every request and wait for the last answer. The test fails if the server cannot be asked at all."""
        return failing_plainly(lambda: self._run.load(self._backend.name, self.workload, self.traffic))

    def check(self) -> LoadResult:
        """Measure; the test fails if a request failed, or if too few met the objectives of ``--llm-slo``."""
        found = self.measure()
        if wrong := load.missed(found, dict(self._run.settings.slo)):
            pytest.fail(f"{self._backend.name} {self.workload} {self.traffic}: {'; '.join(wrong)}", pytrace=False)
        return found


class ParityCheck:
    """``llm_parity``: checks the tokens of the test's backend against the reference's judgement."""

    def __init__(self, run: Session, backend: Combination, workload: Workload) -> None:
        self._run = run
        self._backend = backend
        self.workload = workload

    def check(self) -> ParityResult:
        """Judge the timed tokens and batches of unequal lengths; the test fails unless they are in parity.

        Skips where the weights are random.
        """
        try:
            found = failing_plainly(lambda: self._run.check_parity(self._backend.name, self.workload))
        except UnusableError as error:
            pytest.skip(str(error))
        _require(found, self._run)
        return found


def _require(found: ParityResult, run: Session) -> None:
    """The test fails unless the tokens are in parity."""
    if not found.parity.passed:
        said = f"{found.against(run.settings.reference)}; --llm-seed={run.runtime.seed} repeats the prompts"
        pytest.fail(said, pytrace=False)
