"""The run: what was asked for, what has been measured, and the verdicts; all between the fixtures and the engines."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from platformdirs import user_cache_path

from pytest_llmperf import models, roofline
from pytest_llmperf.backends.base import UNKNOWN, EngineSpec
from pytest_llmperf.backends.registry import Combination, Registry
from pytest_llmperf.cases import GATED, Case, Workload
from pytest_llmperf.gate import baseline as store
from pytest_llmperf.gate import verdict
from pytest_llmperf.gate.beside import Beside
from pytest_llmperf.gate.judge import CONFIRMATIONS, Gate
from pytest_llmperf.gate.update import Change
from pytest_llmperf.gate.verdict import Outcome, Verdict
from pytest_llmperf.interpreter import Interpreter
from pytest_llmperf.load import LoadRecord, LoadResult, Served, Traffic, arrivals, summarize
from pytest_llmperf.machine import facts, fingerprint
from pytest_llmperf.machine.doctor import Finding
from pytest_llmperf.measure.process import Measurement, by_state, measure, median_barrier
from pytest_llmperf.measure.trace import Trace, TraceError, checked
from pytest_llmperf.measure.worker_pool import Engines, hopeless, spoiled
from pytest_llmperf.measure.worker_process import Arm, WorkerError
from pytest_llmperf.parity.decision import error_margin
from pytest_llmperf.parity.scoring import Referee
from pytest_llmperf.plan import Scope, UnusableError
from pytest_llmperf.prompts import Prompts
from pytest_llmperf.result import ParityResult, Result
from pytest_llmperf.settings import Settings

#: Share of the time-out of a request to a worker in which the last request of a load has to be due.
WITHIN = 0.8


class ParityError(ValueError):
    """Parity cannot be shown; one line says why."""


class ImpossibleError(ValueError):
    """A figure that cannot be true; one line says why."""


class Run:
    """One pytest run's measurements. Nothing is loaded before the first one.

    Args:
        scope: what is measured.
        path: of the baseline file.
        stored: its content, or None where there is none.
        progress: told what is being done.
    """

    def __init__(
        self, scope: Scope, path: Path, stored: store.Baseline | None, progress: Callable[[str], None]
    ) -> None:
        self.scope = scope
        self.gate = Gate(
            path,
            stored,
            machine=fingerprint.take,
            reference=scope.settings.reference,
            measure_peaks=self.measure_peaks if scope.device.peak_flops is None else None,
        )
        self.progress = progress
        self.settings, self.device, self.model, self.dtype = scope.settings, scope.device, scope.model, scope.dtype
        self.results: dict[Case, Result] = {}
        self.parities: list[ParityResult] = []
        self.loads: list[LoadRecord] = []
        self._unready: WorkerError | None = None
        self._first: dict[tuple[str, Workload], Measurement] = {}
        self._hopeless: dict[tuple[str, Workload], WorkerError] = {}
        #: What could not be measured once; after that it is measured for a test of its own alone.
        self._failed: set[tuple[str, Workload]] = set()
        #: How many tests are still to gate a backend and workload, in the order of each one's first test.
        self._coming: Counter[tuple[str, Workload]] = Counter()
        #: Whose parity was asked for and not shown.
        self._unproven: set[tuple[str, Workload]] = set()
        self._fresh: dict[tuple[str, Workload], list[Measurement]] = {}
        #: The reference, measured right after that backend and workload were confirmed slow; None where it failed.
        self.witnesses: dict[tuple[str, Workload], list[Measurement | None]] = {}
        self.beside = Beside(
            scope, lambda: self.engines, lambda workload: self.prompts.batch(workload), self._compared, progress
        )

    # Engines

    @cached_property
    def engines(self) -> Engines:
        """The worker processes; made when the first one is needed, which is when an embedded model is converted."""
        if self._unready is not None:
            raise self._unready
        _ = self.findings  # before this run is itself what keeps the machine busy
        spec = EngineSpec(
            model=self.model.name if self.model.folder is None else str(self.model.folder),
            config=dict(self.model.config) if self.model.folder is None else None,
            dtype=self.dtype,
            device=self.device.torch_device,
            batch_size=self.scope.largest.batch_size,
            sequence_length=self.scope.largest.prompt_length + self.scope.largest.max_new_tokens,
            cache=str(self.scope.cache),
            timeout=self.settings.timeout,
            executor=self.settings.executor,
        )
        engines = Engines(
            spec,
            lambda backend: Arm(python=self._interpreter(backend).path),
            attached=self.scope.attached,
            devices=self.scope.device_variables,
            cache=str(self.scope.cache / "inductor"),
            timeout=self.settings.timeout,
            roomy=self._fits_twice(),
            reference="" if self.model.random_weights else self.settings.reference,
            progress=self.progress,
        )

        def convert(source: Path, target: Path) -> None:
            self.progress(f"{self.model.name}: converting {source.name}, once")
            with engines.any_worker() as ask:
                ask("convert", source=str(source), target=str(target))

        try:
            models.ready(self.model, convert)
        except WorkerError as error:
            self._unready = error
            raise
        return engines

    @cached_property
    def findings(self) -> list[Finding]:
        """Whether the machine was fit to measure on, as it was before the first engine."""
        return facts.findings(self.device, lambda: self.scope.need)

    def _fits_twice(self) -> bool:
        # The reference with its more exact twin (three times the weights), another engine, and as much again for
        # caches and activations.
        weights = self.model.architecture.weight_bytes(self.dtype)
        return self.environment_memory >= 5 * weights

    @cached_property
    def environment_memory(self) -> int:
        """Bytes that models may fill: the device's, or the machine's on a CPU."""
        if self.device.memory_bytes is not None:
            return self.device.memory_bytes
        import psutil

        return int(psutil.virtual_memory().total)

    @cached_property
    def prompts(self) -> Prompts:
        _ = self.engines  # the tokenizer is in the converted folder
        return Prompts(self.model.architecture.vocabulary, self.model.tokenizer_file)

    def _interpreter(self, backend: Combination | None) -> Interpreter:
        return Interpreter() if backend is None else self.scope.interpreter(backend)

    def environment(self, backend: str) -> store.Environment:
        """The machine, the versions and the peaks that a backend's figures belong to."""
        registered = self.scope.registry[backend]
        versions = fingerprint.versions(self._interpreter(registered))
        if (chosen := self.scope.devices(registered)) is not None:
            versions = versions | {"devices": str(chosen)}
        return store.Environment(fingerprint.take().as_dict(), versions, dict(self._first_peaks))

    @cached_property
    def _first_peaks(self) -> dict[str, float]:
        # As they are when the first figure is accepted: one machine, one environment, though they may be raised later.
        return dict(self.peaks)

    @cached_property
    def peaks(self) -> dict[str, float]:
        """FLOP/s and bytes/s: of the device's data sheet, or measured where it has none (a CPU)."""
        if self.device.peak_flops is not None and self.device.peak_bandwidth is not None:
            return {"flops": self.device.peak_flops, "bandwidth": self.device.peak_bandwidth}
        return self.measure_peaks()

    def measure_peaks(self) -> dict[str, float]:
        """Measure this machine's roofs now, in FLOP/s and bytes/s."""
        self.progress(f"{self.device.name}: measuring its peaks")
        with self.engines.any_worker() as ask:
            measured = ask(
                "peaks",
                dtype=self.dtype,
                buffer_bytes=self.model.architecture.weight_bytes(self.dtype),
                device=self.device.torch_device,
            )
        return {name: float(f"{value:.4g}") for name, value in measured.items()}

    # The tests to come

    def expect(self, backend: str, workload: Workload) -> None:
        """Say that a test is to gate a case of this backend and workload; of each such test, in their order.

        What one of them has to start may then serve the others: an engine takes seconds to start.
        """
        self._coming[self.scope.registry[backend].name, workload] += 1

    def over(self, backend: str, workload: Workload) -> None:
        """Say that a test that was expected is over, whatever became of it."""
        self._coming[self.scope.registry[backend].name, workload] -= 1

    def _to_come(self, backend: str) -> list[Workload]:
        """The workloads of a backend that tests to come gate and that have not failed, in the order of the tests."""
        return [
            workload
            for (name, workload), tests in self._coming.items()
            if name == backend and tests > 0 and (name, workload) not in self._failed
        ]

    def _cases(self, backend: str, workload: Workload) -> list[Case]:
        """Every case that a test may gate of a workload: its metric is known only when it does."""
        return [self.case(backend, workload, metric) for metric in GATED]

    def _lacking(self, backend: str) -> list[Workload]:
        """Those that tests to come will accept, with fewer fresh measurements than a baseline is made of."""
        return [
            workload
            for workload in self._to_come(backend)
            if all(map(self.updates, self._cases(backend, workload)))
            and len(self._fresh.get((backend, workload), ())) < self.settings.invocations - 1
        ]

    def _compared(self, backend: str) -> list[Workload]:
        """Those that tests to come measure side by side, whatever else is measured until then."""
        always = self.settings.self_test or self.settings.compare == "always"
        return [
            workload
            for workload in self._to_come(backend)
            if always or all(map(self.gate.is_new, self._cases(backend, workload)))
        ]

    # Measuring

    def first(self, backend: str, workload: Workload) -> Measurement:
        """The measurement by the backend's running engine; made once."""
        key = (backend, workload)
        if key in self._hopeless:  # it costs its time-out, or an engine, once, not once a metric
            raise self._hopeless[key]
        if key not in self._first:
            try:
                self._first[key] = self._measure_first(backend, workload)
            except (WorkerError, TraceError) as error:
                self._failed.add(key)
                if isinstance(error, WorkerError) and hopeless(error):
                    self._hopeless[key] = error
                raise
        return self._first[key]

    def _measure_first(self, backend: str, workload: Workload) -> Measurement:
        registered = self.scope.registry[backend]
        loaded = self.engines.get(registered)

        def ask(operation: str, **arguments: Any) -> Any:
            return self.engines.ask(registered, operation, **arguments)

        return self._measure(ask, backend, workload, loaded.load_seconds)

    def _measure(self, ask: Callable[..., Any], backend: str, workload: Workload, load: float) -> Measurement:
        return measure(
            ask,
            backend=backend,
            workload=workload,
            prompts=self.prompts.batch(workload),
            load=load,
            plan=self.scope.defaults.plan,
            progress=self.progress,
        )

    def fresh(self, backend: str, workload: Workload, count: int, accepting: bool = False) -> list[Measurement]:
        """``count`` measurements, each by another fresh process; shared by the metrics of the workload.

        Where they are to be accepted, such a process measures as well what the backend's tests to come will accept.

        Raises:
            WorkerError, TraceError: this workload could not be measured. Of another one its own test is told.
        """
        made = self._fresh.setdefault((backend, workload), [])
        while len(made) < count:
            self.progress(f"{backend} {workload}: fresh process {len(made) + 1} of {count}")
            self._measure_fresh(backend, workload, self._lacking(backend) if accepting else ())
        return made[:count]

    def _measure_fresh(self, backend: str, asking: Workload, others: Collection[Workload]) -> None:
        """Measure in one fresh process; not what is left when another workload has spoiled its engine."""
        # In the order of the tests, wherever the one that asks is in it: so the first process measured them, and a cold
        # start includes what no workload before it has paid for.
        ordered = dict.fromkeys([*(workload for name, workload in self._coming if name == backend), asking])
        with self.engines.fresh(self.scope.registry[backend]) as (ask, load):
            for workload in ordered:
                if workload != asking and workload not in others:
                    continue
                key = (backend, workload)
                try:
                    self._fresh.setdefault(key, []).append(self._measure(ask, backend, workload, load))
                except (WorkerError, TraceError) as error:
                    self._failed.add(key)  # so that the next process does not end there too
                    if workload == asking:
                        raise
                    if spoiled(error):
                        return

    def _witness(self, backend: str, workload: Workload, number: int) -> Measurement | None:
        """The reference in its first, second ... fresh process beside this backend, made when first asked for.

        Returns:
            None if that failed.
        """
        made, name = self.witnesses.setdefault((backend, workload), []), self.settings.reference
        while len(made) < number:
            self.progress(f"{backend} {workload}: fresh process of {name}, to tell what the machine does")
            try:
                with self.engines.fresh(self.scope.registry[name]) as (ask, load):
                    made.append(self._measure(ask, name, workload, load))
            except (WorkerError, TraceError):
                made.append(None)
        return made[number - 1]

    def quiet(self, backend: str, workload: Workload) -> list[list[Measurement]]:
        """As many undisturbed measurements as a baseline is made of, each by another process; else none.

        What others disturbed would be a slow baseline, under which a regression passes, so it is measured again; but
        no more than twice as many processes are started as are wanted. All are of one state of the CPUs
        (`Measurement.barrier`). Those of others that came up on the way follow, if they are as many as have to be slow
        before a regression is called.
        """
        wanted = self.settings.invocations
        first, fresh = self.first(backend, workload), wanted - 1
        if not self._fits_twice():  # the running engine makes room for fresh ones: what is measured by it is so now
            for other in self._lacking(backend):
                with suppress(WorkerError, TraceError):  # its own test will be told
                    self.first(backend, other)
        while True:
            made = [first, *self.fresh(backend, workload, fresh, accepting=True)]
            most, *others = by_state([one for one in made if one.settled and one.clean]) or [[]]
            if len(most) >= wanted:
                return [most[:wanted], *(one[:wanted] for one in others if len(one) > CONFIRMATIONS)]
            if len(most) + 2 * wanted - len(made) < wanted:
                return []
            fresh += 1

    def generate_once(self, backend: str, workload: Workload) -> Trace:
        """One generation that is not timed.

        Raises:
            WorkerError, TraceError: as in a measurement.
        """
        prompts = self.prompts.batch(workload)
        answer = self.engines.ask(
            self.scope.registry[backend], "generate", prompts=prompts, max_new_tokens=workload.max_new_tokens
        )
        return checked(answer["tokens"], answer["times"], requests=len(prompts), max_new_tokens=workload.max_new_tokens)

    def load(self, backend: str, workload: Workload, traffic: Traffic) -> LoadResult:
        """Put a server under load: a few requests to warm it up, then as many as were asked for, each of its own text.

        Raises:
            WorkerError: it cannot be asked at all. What fails single requests is in the result.
        """
        settings, registered = self.settings, self.scope.registry[backend]
        count = settings.requests
        due = None if traffic.rate is None else arrivals(traffic.rate, count)
        if due is not None and due[-1] > WITHIN * settings.timeout:
            raise WorkerError(
                f"{backend} {workload} {traffic}: the last of {count} requests is due after {due[-1]:.0f} s, and the "
                f"whole load has --llm-timeout={settings.timeout:g} s; raise it, or send fewer requests"
            )
        # Each load has prompts of its own, and so has its warm-up.
        series = 2 * len(self.loads)
        prompts = self.prompts.many(count, workload.prompt_length, series)
        self.progress(f"{backend} {workload} {traffic}: warming up")
        first = self.prompts.many(min(count, traffic.concurrency or 1), workload.prompt_length, series + 1)
        self.engines.ask(registered, "generate", prompts=first, max_new_tokens=workload.max_new_tokens)
        self.progress(f"{backend} {workload} {traffic}: {count} requests")
        answer = self.engines.ask(
            registered,
            "serve",
            prompts=prompts,
            max_new_tokens=workload.max_new_tokens,
            due=due,
            concurrency=traffic.concurrency,
        )
        objectives = dict(settings.slo)
        found = summarize([Served(**one) for one in answer], objectives, open_loop=traffic.rate is not None)
        self.loads.append(LoadRecord(backend, str(workload), str(traffic), objectives, found))
        return found

    # Verdicts

    def updates(self, case: Case) -> bool:
        """Whether this run accepts a case's figures instead of gating them; not what is slower than base."""
        which = self.settings.update_baselines
        slower = case in self.results and self.results[case].verdict.outcome is Outcome.REGRESSION
        return which is not None and (which != "new" or self.gate.is_new(case)) and not slower

    def case(self, backend: str, workload: Workload, metric: str) -> Case:
        """The case of this run's model and dtype."""
        return Case(self.model.name, self.dtype, backend, workload, metric)

    def judge(self, backend: str, workload: Workload, metric: str, stated_tolerance: float | None = None) -> Result:
        """Measure a case and compare it with its baseline; or accept it, with ``--llm-update-baselines``.

        Raises:
            WorkerError, TraceError: it could not be measured.
            ImpossibleError: the figure cannot be true.
        """
        case = self.case(backend, workload, metric)
        update = self.updates(case)
        first = self.first(backend, workload)
        reference = self._first.get((self.settings.reference, workload))
        without_base = self.scope.tolerance(case, stated_tolerance)
        tolerance, source = (
            without_base if self.scope.base is None else self.scope.tolerance(case, stated_tolerance, beside_base=True)
        )
        invocations = [first]

        def fresh(count: int) -> list[Measurement]:
            invocations[1:] = self.fresh(backend, workload, count)
            return invocations[1:]

        figures = first.figures(metric)
        spread = verdict.summarize(figures)
        utilization = self._utilization(case, spread.median)
        if case.metric == "latency":  # has no roof of its own, and is made of two that have
            for part in ("ttft", "tpot"):
                self._utilization(replace(case, metric=part), median(first.figures(part)))

        def by_baseline() -> Verdict:
            nonlocal tolerance, source
            tolerance, source = without_base
            witness = partial(self._witness, backend, workload)
            return self.gate.judge(case, first, reference, tolerance, None if update else fresh, witness)

        if self.scope.base is None:
            found = by_baseline()
        else:
            beside = partial(self.beside.base, case, tolerance)
            always = self.settings.compare == "always"
            found = self.gate.judge_beside(case, first, reference, tolerance, beside, by_baseline, always)
        slower = found.outcome is Outcome.REGRESSION  # than base: a new case is screened by no baseline
        quiet = self.quiet(backend, workload) if update and not slower else []
        if quiet:
            cold_start = replace(case, metric="cold-start")
            for accepted, allowed in ((case, without_base[0]), (cold_start, None)):
                if self.updates(accepted):
                    sets = [
                        ([one.figures(accepted.metric) for one in state], median_barrier(one.barrier for one in state))
                        for state in quiet
                    ]
                    self.gate.accept(accepted, self.environment(backend), sets, allowed)
        registered = self.scope.registry[backend]
        result = Result(
            case=case,
            spread=spread,
            samples=tuple(figures),
            invocations=tuple(tuple(one.figures(metric)) for one in (quiet[0] if quiet else invocations)),
            speedup=median(reference.figures(metric)) / spread.median if reference else None,
            utilization=utilization,
            verdict=found,
            tolerance=tolerance,
            tolerance_source=source,
            contamination=first.contamination,
            discarded=len(first.discarded),
            culprit=first.culprit,
            cold_start=first.cold_start,
            baseline_cold_start=self.gate.last_recorded(replace(case, metric="cold-start")),
            compile_time=first.compile_time,
            peak_memory=first.peak_memory,
            engagement=first.engagement,
            boundary=registered.boundary,
            throughput=median(sample.trace.throughput for sample in first.samples),
            tp=registered.tp,
            devices=str(self.scope.devices(registered) or ""),
        )
        self.results[case] = result
        return result

    def _utilization(self, case: Case, seconds: float) -> roofline.Utilization | None:
        """What the latency means on the device's roofs.

        Raises:
            ImpossibleError: it is faster than they allow. A roof that was measured is measured again before that is
                said, since a probe of half a second may have been disturbed.
        """
        backend = self.scope.registry[case.backend]
        if self.scope.attached(backend):
            return None  # nobody knows which device is behind a server that runs already
        measured = self.device.peak_flops is None
        dies = 1 if measured else backend.tp  # a CPU's ranks share the one that was measured
        for attempt in range(2 if measured else 1):
            if attempt:
                again = self.measure_peaks()
                self.peaks.update({name: max(rate, again.get(name, rate)) for name, rate in self.peaks.items()})
            found = roofline.utilization(
                self.model.architecture,
                case.workload,
                case.metric,
                seconds,
                self.dtype,
                {name: rate * dies for name, rate in self.peaks.items()},
                backend.weight_bytes,
            )
            reason = found and roofline.impossible(found, seconds, measured)
            if not reason:
                return found
        raise ImpossibleError(f"{case}: impossible figure {seconds * 1e3:.4g} ms: {reason}")

    # Parity

    @cached_property
    def referee(self) -> Referee:
        """Judges tokens by the reference."""

        def ask(backend: str, operation: str, **arguments: Any) -> Any:
            return self.engines.ask(self.scope.registry[backend], operation, **arguments)

        margin = error_margin(self.dtype)
        return Referee(ask, self.settings.reference, self.model.end_of_sequence, self.progress, margin)

    def parity_of(self, backend: str, workload: Workload) -> ParityResult:
        """Judge the tokens of the timed generations, and of an untimed one with unequal lengths, by the reference.

        Raises:
            UnusableError: the weights are random, which proves nothing.
            ParityError: there is no real text.
            WorkerError, TraceError: as in a measurement.
        """
        if self.model.random_weights:
            raise UnusableError("random weights emit one token over and over: they show speed, never parity")
        self._unproven.add((backend, workload))
        if not self.prompts.real_text:
            raise ParityError(f"{self.model.name} has no tokenizer.json, so there is no real text to show parity on")
        timed = self._timed_rows(backend, workload)
        given: dict[str, Any] = {
            "equal": self.prompts.batch(workload),
            "unequal": self.prompts.unequal_batch(workload),
            "reference_timed": self._timed_rows(self.settings.reference, workload),
        }
        if any(UNKNOWN in row for _, row in timed):
            texts = self._timed_texts(backend, workload)
            parity = self.referee.judge_by_text(
                backend, workload, timed=texts, decode=self.prompts.continuation, **given
            )
        else:
            other = self.scope.registry[backend].weight_bytes is not None
            parity = self.referee.judge(backend, workload, timed=timed, other_weights=other, **given)
        found = ParityResult(backend, str(workload), parity)
        self.parities.append(found)
        if parity.passed:
            self._unproven.discard((backend, workload))
        return found

    def _timed_rows(self, backend: str, workload: Workload) -> list[tuple[int, tuple[int, ...]]]:
        """Every distinct row of tokens that was timed; a batch generated now if nothing was."""
        if (measured := self._first.get((backend, workload))) is not None:
            fresh = self._fresh.get((backend, workload), [])
            return sorted(set().union(*(one.token_rows() for one in (measured, *fresh))))
        return list(enumerate(self.generate_once(backend, workload).tokens))

    def _timed_texts(self, backend: str, workload: Workload) -> list[tuple[int, str]]:
        """Every distinct text that was timed, of a backend whose token ids are not known."""
        measured = [self.first(backend, workload), *self._fresh.get((backend, workload), [])]
        return sorted(set().union(*(one.text_rows() for one in measured)))

    # The end

    def write_baselines(self) -> dict[Case, list[store.Entry]]:
        """Write the accepted figures, but not those of a backend not in parity, nor `slower`. Returns what was written.

        A latency counts only if it is the right computation.

        Raises:
            BaselineError: the file cannot be written; the old one is untouched.
        """
        return self.gate.write(self.device.name, self.model.name, self._refused())

    def update(self) -> dict[str, Any] | None:
        """What `write_baselines` would write now, and why not the rest, as JSON values; None if it is not to."""
        if self.settings.update_baselines is None:
            return None
        refused = self._refused()
        left = {
            case.key: refused.get(case, "it was disturbed" if self.updates(case) else "it was gated, not accepted")
            for case in self.results
            if case in refused or case not in self.gate.changes
        }
        return self.gate.as_update(self.device.name, self.model.name, refused) | {"refused": left}

    def _refused(self) -> dict[Case, str]:
        """Why figures that were accepted are not to be written."""
        wrong = {backend for backend, _ in self._unproven}
        unproven = {
            case: "its tokens were not shown to be right" for case in self.gate.changes if case.backend in wrong
        }
        return unproven | {one.case: "it is slower than the gate allows" for one in self.slower()}

    def slower(self) -> list[Change]:
        """Slowdowns beyond what the gate allows, which nobody who looks on accepts in CI unless that was asked for."""
        if not os.environ.get("CI") or self.settings.update_baselines == "slower":
            return []
        return [change for row in self.gate.changes.values() for change in row if change.slower]

    def prune_baselines(self, stale: Callable[[str], bool]) -> list[str]:
        """Remove this machine's baselines of the cases whose key is stale. Returns the keys.

        Raises:
            BaselineError: the file cannot be written; the old one is untouched.
        """
        return self.gate.prune(self.device.name, self.model.name, stale)

    def unused_baselines(self) -> list[str]:
        """Baseline entries that no test of this run compared with."""
        return [] if self.gate.stored is None else store.unused(self.gate.stored, self.keys)

    @property
    def keys(self) -> set[str]:
        """Of the baselines that this run's tests measured."""
        return {one.key for case in self.results for one in (case, replace(case, metric="cold-start"))}

    @property
    def measurements(self) -> list[Measurement]:
        """Of every process, the first one's of each backend and workload first."""
        return [*self._first.values(), *chain.from_iterable(self._fresh.values())]

    @property
    def known_peaks(self) -> dict[str, float] | None:
        """The peaks, if anything asked for them so far: nothing is measured now."""
        return self.__dict__.get("peaks")

    def close(self) -> None:
        """Stop every worker and remove the base's checkout. Safe to call more than once, and when there is neither."""
        if "engines" in self.__dict__:
            self.engines.close_all()
        self.beside.close()


def begin(settings: Settings, registry: Registry, root: Path, progress: Callable[[str], None]) -> Run:
    """A run of these settings in pytest's rootdir, once they and the baseline file are known to be usable.

    Raises:
        UnusableError: they are not.
    """
    scope = Scope(settings, registry, user_cache_path("pytest-llmperf"), root)
    if settings.results is not None and settings.results in settings.report:
        raise UnusableError(f"--llm-results and --llm-report are the same file, {settings.results}; choose two")
    path = store.path_for(settings.baseline_dir, scope.device.name, scope.model.name)
    try:
        stored = store.load(path, scope.device.name, scope.model.name)
        if settings.update_baselines:
            store.check_writable(path.parent)
        for file in (settings.results, *settings.report):
            if file is not None:
                store.check_writable(file.parent)
    except store.BaselineError as error:
        raise UnusableError(str(error)) from None
    return Run(scope, path, stored, progress)
