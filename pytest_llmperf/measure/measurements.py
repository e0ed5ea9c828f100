"""What a run has measured: each backend and workload by its first process, and by fresh ones if more are needed."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any

from pytest_llmperf.measure.process import Measurement, measure
from pytest_llmperf.measure.trace import TraceError
from pytest_llmperf.measure.worker_pool import hopeless, spoiled
from pytest_llmperf.measure.worker_process import WorkerError

if TYPE_CHECKING:
    from pytest_llmperf.cases import Workload
    from pytest_llmperf.measure.starts import Starts
    from pytest_llmperf.plan import Plan
    from pytest_llmperf.runtime import Runtime

#: A backend, a workload, and which start is measured: one of `STARTS`, or empty for what generations take.
Key = tuple[str, "Workload", str]


class Measurements:
    """Measures by running engines and by fresh processes, each once.

    If the workload that was asked for fails, its test gets the error. If another workload fails in the same process,
    later processes leave it out, and only its own test tries it again.

    Args:
        plan: which tests share an engine, and how samples are bounded.
        runtime: the engines and the prompts.
        starts: measures starts. A start has a process of its own, the first one too.
        progress: told what is being done.
    """

    def __init__(self, plan: Plan, runtime: Runtime, starts: Starts, progress: Callable[[str], None]) -> None:
        self._plan = plan
        self._runtime = runtime
        self._starts = starts
        self._progress = progress
        self._first: dict[Key, Measurement] = {}
        self._fresh: dict[Key, list[Measurement]] = {}  # whose process measured others too: it keeps more memory
        self._alone: dict[Key, list[Measurement]] = {}  # in turns with the reference
        self._references: dict[tuple[Workload, str], list[Measurement]] = {}
        self._hopeless: dict[Key, WorkerError] = {}
        self._failed: set[Key] = set()

    def __iter__(self) -> Any:
        """Every measurement: first those of the first processes, then those of the fresh ones."""
        further = (*self._fresh.values(), *self._alone.values(), *self._references.values())
        return iter([*self._first.values(), *chain.from_iterable(further)])

    def known(self, backend: str, workload: Workload, start: str = "") -> Measurement | None:
        """The first process's measurement; None if there is none yet."""
        return self._first.get((backend, workload, start))

    def of(self, backend: str, workload: Workload, start: str = "") -> list[Measurement]:
        """The measurements of one backend and workload so far, the first process's first."""
        key = (backend, workload, start)
        first = self.known(*key)
        return [] if first is None else [first, *self._fresh.get(key, ()), *self._alone.get(key, ())]

    def failed(self, backend: str, workload: Workload) -> bool:
        """Whether its generations were to be measured and could not."""
        return (backend, workload, "") in self._failed

    def first(self, backend: str, workload: Workload, start: str = "") -> Measurement:
        """The measurement by the backend's running engine, or of the first start.

        Raises:
            WorkerError, TraceError: it could not be measured.
        """
        key = (backend, workload, start)
        if key in self._hopeless:  # it costs a time-out, or an engine: once, not for each metric
            raise self._hopeless[key]
        if key not in self._first:
            try:
                measured = self._starts.measure(*key) if start else self._by_running_engine(backend, workload)
                self._first[key] = measured
            except (WorkerError, TraceError) as error:
                self._failed.add(key)
                if isinstance(error, WorkerError) and hopeless(error):
                    self._hopeless[key] = error
                raise
        return self._first[key]

    def as_sitting(self, backend: str, workload: Workload, count: int) -> list[Measurement]:
        """``count`` measurements, each by a fresh process that measures what other tests gate too, as in a sitting.

        A process that has done more keeps more memory. Earlier ones are used again.

        Raises:
            WorkerError, TraceError: it could not be measured.
        """
        made = self._fresh.setdefault((backend, workload, ""), [])
        while len(made) < count:
            self._progress(f"{backend} {workload}: fresh process {len(made) + 1}")
            self._in_fresh_process(backend, workload, self._gated(backend), "")
        return made[:count]

    def in_turns(
        self, backend: str, workload: Workload, reference: str | None, count: int, start: str = ""
    ) -> tuple[list[Measurement], list[Measurement]]:
        """Measure in fresh processes of a backend and of the reference, in turns; the reference begins.

        Args:
            backend: its name.
            workload: what is generated.
            reference: its name; None if the backend is measured alone.
            count: processes of each.
            start: one of `STARTS`, or empty.

        Returns:
            The backend's measurements, and the reference's.

        Raises:
            WorkerError, TraceError: one of them could not be measured.
        """
        made = self._alone.setdefault((backend, workload, start), [])
        beside = self._references.setdefault((workload, start), [])
        for number in range(1, count + 1):
            if reference is not None and len(beside) < number:
                self._progress(f"{reference} {workload}: fresh process {number} of {count}, in turns with {backend}")
                try:
                    beside.append(self._fresh_one(reference, workload, start))
                except (WorkerError, TraceError) as error:
                    raise WorkerError(f"the reference, {reference}, in turns with {backend}: {error}") from error
            if len(made) < number:
                self._progress(f"{backend} {workload}: fresh process {number}")
                made.append(self._fresh_one(backend, workload, start))
        return made[:count], [] if reference is None else beside[:count]

    def _fresh_one(self, backend: str, workload: Workload, start: str) -> Measurement:
        """A measurement of one workload alone, by a fresh process."""
        if start:
            return self._starts.measure(backend, workload, start)
        with self._runtime.engines.fresh(self._plan.registry[backend]) as (ask, load):
            return self._measure(ask, backend, workload, load)

    def sitting(self, backend: str, workload: Workload, start: str = "", whole: bool = False) -> list[Measurement]:
        """The measurements of a sitting, undisturbed, each by a process of its own; none if too few were undisturbed.

        A disturbed process would make the baseline slow, and a regression would pass. So another process replaces it,
        up to twice as many processes as a sitting needs. A fresh process also measures what other tests accept.
        Of a start the generations after the first one are watched, and its load is not.

        Args:
            backend: its name.
            workload: what is generated.
            start: one of `STARTS`, or empty.
            whole: whether a fresh process measures all that tests gate, whose memory depends on it.

        Raises:
            WorkerError, TraceError: this workload could not be measured.
        """
        wanted = self._plan.settings.invocations
        lacking = self._gated if whole else self._lacking
        made = [self.first(backend, workload, start)]
        # Fresh processes need the running engine's memory, so it measures first.
        if not (start or self._plan.fits_twice):
            for other in lacking(backend):
                with suppress(WorkerError, TraceError):  # its own test reports that
                    self.first(backend, other)
        while True:
            clean = [one for one in made if one.settled and one.clean]
            if len(clean) >= wanted:
                return clean[:wanted]
            if len(clean) + 2 * wanted - len(made) < wanted:
                return []
            fresh = self._fresh.setdefault((backend, workload, start), [])
            if len(fresh) < len(made):
                self._progress(f"{backend} {workload}: fresh process {len(fresh) + 1} of {wanted - 1}")
                self._in_fresh_process(backend, workload, () if start else lacking(backend), start)
            made = [made[0], *fresh[: len(made)]]

    def _gated(self, backend: str) -> list[Workload]:
        """The workloads that tests gate, without those that failed."""
        return [one for one in self._plan.gated(backend) if (backend, one, "") not in self._failed]

    def _lacking(self, backend: str) -> list[Workload]:
        """The workloads that tests accept and that have fewer fresh measurements than a sitting needs."""
        return [
            workload
            for workload in self._plan.accepted(backend)
            if (backend, workload, "") not in self._failed
            and len(self._fresh.get((backend, workload, ""), ())) < self._plan.settings.invocations - 1
        ]

    def _by_running_engine(self, backend: str, workload: Workload) -> Measurement:
        registered, engines = self._plan.registry[backend], self._runtime.engines
        loaded = engines.get(registered)

        def ask(operation: str, **arguments: Any) -> Any:
            return engines.ask(registered, operation, **arguments)

        return self._measure(ask, backend, workload, loaded.load_seconds)

    def _in_fresh_process(self, backend: str, asking: Workload, others: Collection[Workload], start: str) -> None:
        """Measure the workload that is asked for, and others, in one fresh process, in the order of the tests.

        The first process has the same order. So the warm-up of a workload pays for the same things in both. A start
        has no others.
        """
        if start:
            self._fresh[backend, asking, start].append(self._starts.measure(backend, asking, start))
            return
        ordered = dict.fromkeys([*self._plan.gated(backend), asking])
        with self._runtime.engines.fresh(self._plan.registry[backend]) as (ask, load):
            for workload in ordered:
                if workload != asking and workload not in others:
                    continue
                key = (backend, workload, "")
                try:
                    self._fresh.setdefault(key, []).append(self._measure(ask, backend, workload, load))
                except (WorkerError, TraceError) as error:
                    self._failed.add(key)  # so that the next process does not end there too
                    if workload == asking:
                        raise
                    if spoiled(error):
                        return

    def _measure(self, ask: Callable[..., Any], backend: str, workload: Workload, load: float) -> Measurement:
        return measure(
            ask,
            backend=backend,
            workload=workload,
            generations=self._runtime.generations(backend, workload),
            load=load,
            bounds=self._plan.defaults.samples,
            progress=self._progress,
        )
