"""The run: measure a case, judge it, record what came of it. Everything between the fixtures and the engines.

A test asks for one case: ``llm_perf.gate("tpot")`` calls `Session.gate`, which is the whole path from an engine to a
verdict. ``llm_parity.check()`` calls `Session.check_parity`, ``llm_load.check()`` `Session.load`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import cached_property, partial
from itertools import count
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

from pytest_llmperf import folders, roofline
from pytest_llmperf.availability import UnusableError
from pytest_llmperf.backends.base import UNKNOWN
from pytest_llmperf.backends.registry import Combination, Registry
from pytest_llmperf.cases import LATENCIES, METRICS, Case, Workload
from pytest_llmperf.explain import profiles, starts
from pytest_llmperf.explain.difference import LINES, kernels_changed, lines
from pytest_llmperf.explain.profiles import PHASES, of_metric
from pytest_llmperf.explain.starts import PARTS, typical
from pytest_llmperf.gate import baseline as store
from pytest_llmperf.gate.baseline import Entry, Sitting
from pytest_llmperf.gate.beside import Beside
from pytest_llmperf.gate.checkout import naming
from pytest_llmperf.gate.judge import Judge
from pytest_llmperf.gate.rule import Outcome, Verdict
from pytest_llmperf.gate.update import Change, Update
from pytest_llmperf.load import LoadRecord, LoadResult, Served, Traffic, arrivals, summarize
from pytest_llmperf.machine import fingerprint
from pytest_llmperf.machine.doctor import Finding
from pytest_llmperf.machine.rates import Machine
from pytest_llmperf.measure.measurements import Measurements
from pytest_llmperf.measure.process import Measurement, MemoryUnknownError, Sample, generate, median_barrier
from pytest_llmperf.measure.starts import Starts
from pytest_llmperf.measure.trace import Trace, checked
from pytest_llmperf.measure.worker_pool import Engines
from pytest_llmperf.measure.worker_process import WorkerError
from pytest_llmperf.parity.decision import error_margin
from pytest_llmperf.parity.drawing import drawn
from pytest_llmperf.parity.scoring import Made, Referee
from pytest_llmperf.plan import Plan
from pytest_llmperf.prompts import Prompts
from pytest_llmperf.result import ParityResult, Result, measured_model
from pytest_llmperf.runtime import Runtime
from pytest_llmperf.settings import Settings, in_ci

#: Share of the time-out of a request to a worker in which the last request of a load has to be due.
WITHIN = 0.8


class ParityError(ValueError):
    """Parity cannot be shown; one line says why."""


class ImpossibleError(ValueError):
    """A figure that cannot be true; one line says why."""


class Session:
    """One pytest run's measurements. Nothing is loaded before the first one.

    Args:
        plan: what is measured, and what becomes of each case's figures.
        progress: told what is being done.
    """

    def __init__(self, plan: Plan, progress: Callable[[str], None]) -> None:
        self.plan, self.settings, self.progress = plan, plan.settings, progress
        self.device, self.model, self.dtype = plan.device, plan.model, plan.dtype
        self.results: dict[Case, Result] = {}
        self.loads: list[LoadRecord] = []
        #: What parity found, by backend and workload. A failure stays.
        self._parities: dict[tuple[str, Workload], ParityResult] = {}
        #: Backends and workloads of tests of parity that have not asked yet.
        self.unjudged: set[tuple[str, Workload]] = set()
        #: Those whose parity was asked for and not shown.
        self._unproven: set[tuple[str, Workload]] = set()
        #: Numbers of the timed generations that rows to judge were drawn from.
        self._looked_at: dict[tuple[str, Workload], set[int]] = {}
        #: Numbers of the series of prompts under load, so that none is sent twice.
        self._series = count()
        #: FLOP/s of the types that backends compute in, besides the run's dtype; None where nobody knows them.
        self._flops: dict[str, float | None] = {}
        self._began = datetime.now(timezone.utc)
        self.runtime = Runtime(plan, progress)
        self.machine = Machine(fingerprint.take(), self.runtime.measure_rates, fingerprint.limits())
        starting = Starts(plan, self.runtime, progress)
        self.measurements = Measurements(plan, self.runtime, starting, progress)
        self.beside = Beside(plan, self.runtime, starting, progress)
        self.judge = Judge(plan, self.machine, self.measurements, self.beside)
        self.updates = Update(plan.baseline_path, plan.stored, plan.device.name, plan.model.name)

    def check_out(self) -> None:
        """Check out the revisions that somebody named, before anything is measured.

        Raises:
            BaseError: git cannot; it names the option.
        """
        with naming(f"--llm-head={self.settings.head}"):
            self.runtime.check_out()
        with naming(f"--llm-base={self.settings.base}"):
            self.beside.check_out()

    # The main path

    def gate(self, backend: str, workload: Workload, metric: str, stated_tolerance: float | None = None) -> Result:
        """Measure a case, judge it against its baseline or accept it, and record what came of it.

        Args:
            backend: its name.
            workload: what is generated.
            metric: one of `METRICS`.
            stated_tolerance: by the test's marker; None without one.

        Raises:
            WorkerError, TraceError: it could not be measured.
            ImpossibleError: the figure cannot be true.
            UnusableError: it is of memory that cannot be read, or of the start of a server that runs already.
        """
        case = self.plan.case(backend, workload, metric)
        first = self._measured(case)
        utilization = self._possible(case, first)
        accepts, allowed = self.plan.accepts(case), self.plan.allowed(case, stated_tolerance)
        if accepts and self.plan.base is None:
            verdict = self.judge.screen(case, first, allowed.stored)
        else:
            verdict = self.judge.judge(case, first, allowed)
        processes = self.measurements.of(backend, workload, case.start)
        if accepts and verdict.outcome is not Outcome.REGRESSION:
            processes = self._record_sitting(case, allowed.stored) or processes
        registered = self.plan.registry[backend]
        slower, kernels_changed = self._explained(case, verdict, processes)
        result = Result(
            case,
            first,
            processes,
            self.measurements.known(self.settings.reference, workload, case.start),
            registered,
            verdict,
            *allowed.of(verdict),
            utilization=utilization,
            baseline_start=self._recorded_start(case),
            devices=str(self.plan.devices(registered) or ""),
            roofless=self._roofless(case),
            changed=self._changed(case),
            engine=self.plan.engine(registered),
            slower=slower,
            kernels_changed=kernels_changed,
        )
        self.results[case] = result
        if backend == self.settings.reference:  # others may have been measured before it
            for other, one in self.results.items():
                if (other.workload, other.start) == (workload, case.start) and one.reference is None:
                    self.results[other] = replace(one, reference=first)
        return result

    def _measured(self, case: Case) -> Measurement:
        """What the running engine, or the first start, measures of a case. Raises as `gate`, but no ImpossibleError."""
        if case.metric not in LATENCIES and self.plan.attached(self.plan.registry[case.backend]):
            what = "start of a server that runs already is over"
            if not case.start:
                what = "memory of a server that runs already cannot be read from here"
            raise UnusableError(f"{case}: the {what}")
        found = self.measurements.first(case.backend, case.workload, case.start)
        try:
            found.figures(case.metric)
        except MemoryUnknownError as error:
            raise UnusableError(f"{case}: {error}") from None
        return found

    def _changed(self, case: Case) -> str:
        """The versions and variables that are not those of this machine's newest sitting of a case; empty if none."""
        own = self.plan.own(case)
        return self.plan.changed(case.backend, self.plan.sitting(own[0])) if own else ""

    def _explained(self, case: Case, verdict: Verdict, processes: Sequence[Measurement]) -> tuple[list[str], str]:
        """What got slower in a regression, in a few lines; and in any other verdict which kernels changed."""
        beside = verdict.basis == "base"
        if not verdict.compared or self.plan.attached(self.plan.registry[case.backend]):
            return [], ""
        regression = verdict.outcome is Outcome.REGRESSION
        also = self._changed_too(case, beside) if regression else []
        if case.metric not in LATENCIES:
            parts = self._slower_parts(case, beside, processes) if regression and case.start else []
            return [*parts, *also], ""
        found = self.beside.profiles(case) if beside else {}
        base = found["base"] if beside else [self.plan.profile(case)]
        head = found["head"] if beside else [one.profile for one in processes]
        tokens = case.workload.max_new_tokens
        before, after = (profiles.typical([of_metric(one, case.metric, tokens) for one in row]) for row in (base, head))
        if not regression:
            accepted = beside and of_metric(self.plan.profile(case), case.metric, tokens)
            if before is None or after is None or (accepted and not kernels_changed(accepted, after)):
                return [], ""
            return [], kernels_changed(before, after)
        if before is None or after is None:
            whose = "this run" if after is None else "base" if beside else "the baseline"
            return [f"what got slower is not known: {whose} has no profile", *also], ""
        return [*lines(before, after, verdict.ratio, LINES - len(also)), *also], ""

    def _changed_too(self, case: Case, beside: bool) -> list[str]:
        """The versions, variables and drivers that are not those of base or of the baseline, in a line if any."""
        if beside:
            changed = self.plan.changed_from_base(case.backend)
        else:
            own = self.plan.own(case)
            changed = self.plan.changed_around(case.backend, self.plan.sitting(own[0])) if own else ""
        return [f"changed: {changed}"] if changed else []

    def _slower_parts(self, case: Case, beside: bool, processes: Sequence[Measurement]) -> list[str]:
        """What became of the parts of a start, in a line each."""
        if beside:
            before, after = self.beside.parts(case).values()
        else:
            before, after = self._recorded_start(case), typical(one.start for one in processes)
        return starts.lines(before, after)

    def accepts(self, case: Case) -> bool:
        """Whether this run accepts a case's figures instead of gating them; not what is slower than base."""
        slower = case in self.results and self.results[case].verdict.outcome is Outcome.REGRESSION
        return self.plan.accepts(case) and not slower

    def _record_sitting(self, case: Case, tolerance: float) -> list[Measurement]:
        """Record a sitting of a case for the baseline.

        Returns:
            Its measurements; none where too few processes were undisturbed.
        """
        whole = not METRICS[case.metric].timed
        made = self.measurements.sitting(case.backend, case.workload, case.start, whole)
        if not made:
            return []
        sitting = self.sitting(case.backend, made[0].threads)
        barrier = median_barrier(process.barrier for process in made)
        same_code = partial(store.same_code, sitting, self._has_tree_of)
        found = ((phase, profiles.typical([one.profile.get(phase) for one in made])) for phase in PHASES)
        phases = {} if case.start else {phase: one.stored() for phase, one in found if one}
        figures = [median(process.figures(case.metric)) for process in made]
        parts = tuple(typical(one.start for one in made).values()) if case.start else ()
        prior = self.plan.prior(case)
        self.updates.accept(case, sitting, figures, barrier, tolerance, prior, same_code, phases, parts)
        return made

    def _possible(self, case: Case, first: Measurement) -> roofline.Utilization | None:
        """What a case's latency means on the device's roofs.

        Raises:
            ImpossibleError: it, or a part of it, is faster than they allow.
        """
        found = self._utilization(case, median(first.figures(case.metric)))
        if case.metric == "latency":  # has no roof of its own, and is made of two that have
            for part in ("ttft", "tpot"):
                self._utilization(replace(case, metric=part), median(first.figures(part)))
        return found

    def _utilization(self, case: Case, seconds: float) -> roofline.Utilization | None:
        """What a latency means on the device's roofs; None where nobody knows its peak in a type.

        Raises:
            ImpossibleError: it is faster than they allow. A roof that was measured is measured again before that is
                said, since a probe of half a second may have been disturbed.
        """
        backend = self.plan.registry[case.backend]
        if case.metric not in LATENCIES or self.plan.attached(backend):
            return None
        measured = self.device.peak_flops is None
        dies = 1 if self.device.kind == "cpu" else backend.tp  # a CPU's ranks share the one that was measured
        for attempt in range(2 if measured else 1):
            if attempt:
                self._measure_roofs_again(backend)
            flops = self._peak(backend)
            peaks = {"flops": inf if flops is None else flops * dies, "bandwidth": self.peaks["bandwidth"] * dies}
            found = roofline.utilization(
                self.model.architecture,
                case.workload,
                case.metric,
                seconds,
                self.dtype,
                peaks,
                backend.weight_bytes,
            )
            reason = found and roofline.impossible(found, seconds, measured, self.device.strict)
            if not reason:
                return None if flops is None and case.metric == "ttft" else found
        raise ImpossibleError(f"{case}: impossible figure {seconds * 1e3:.4g} ms: {reason}")

    def _peak(self, backend: Combination) -> float | None:
        """FLOP/s of the type in which a backend computes; None where nobody knows them."""
        kind = backend.compute_dtype or self.dtype
        if kind == self.dtype:
            return self.peaks["flops"]
        if kind not in self._flops:
            listed = self.device.peak_flops is not None
            self._flops[kind] = self.device.peak(kind) if listed else self.runtime.measure_peak(kind)
        return self._flops[kind]

    def _roofless(self, case: Case) -> str:
        """Why a case has no roof, if nobody knows the sizes of the model, or the peak of the type of a prefill."""
        backend = self.plan.registry[case.backend]
        if case.metric not in LATENCIES or self.plan.attached(backend):
            return ""
        if (why := self.plan.uncounted) is not None:
            return f"no roof and no memory verdict: {why}"
        if case.metric != "ttft" or self._peak(backend) is not None:
            return ""
        kind = backend.compute_dtype
        return f"no MFU of {backend.name}: it computes in {kind}, whose peak on {self.device.name} is not known"

    def _measure_roofs_again(self, backend: Combination) -> None:
        """Keep the best of what was measured so far and what is measured now."""
        again = self.runtime.measure_rates()
        self.peaks.update({name: max(rate, again[name]) for name, rate in self.peaks.items()})
        if (kind := backend.compute_dtype or self.dtype) in self._flops:
            known = [rate for rate in (self._flops[kind], self.runtime.measure_peak(kind)) if rate is not None]
            self._flops[kind] = max(known, default=None)

    # Other questions

    def self_test(self, backend: str, workload: Workload, metric: str, stated_tolerance: float | None) -> list[float]:
        """Try the gate on a case, as `Beside.self_test`."""
        case = self.plan.case(backend, workload, metric)
        tolerance, _ = self.plan.allowed(case, stated_tolerance).beside_base
        return self.beside.self_test(case, tolerance)

    def generate(self, backend: str, prompts: list[list[int]], max_new_tokens: int) -> Trace:
        """One generation by a backend's engine that is not a sample.

        Raises:
            WorkerError, TraceError: it failed, or did not return what was asked for.
        """
        registered = self.plan.registry[backend]
        answer = self.engines.ask(registered, "generate", prompts=prompts, max_new_tokens=max_new_tokens)
        return checked(answer["tokens"], answer["times"], requests=len(prompts), max_new_tokens=max_new_tokens)

    def generate_once(self, backend: str, workload: Workload) -> Sample:
        """One generation of a workload that is not timed. Raises as `generate`."""
        ask = partial(self.engines.ask, self.plan.registry[backend])
        return generate(ask, workload, next(self.runtime.generations(backend, workload)))

    def check_parity(self, backend: str, workload: Workload) -> ParityResult:
        """Judge tokens of the timed generations, and of untimed ones with unequal lengths, by the reference.

        Raises:
            UnusableError: the weights are random, which proves nothing.
            ParityError: there is no real text.
            WorkerError, TraceError: as in a measurement.
        """
        if self.model.random_weights:
            raise UnusableError("random weights emit one token over and over: they show speed, never parity")
        key = (backend, workload)
        self.unjudged.discard(key)
        self._unproven.add(key)
        # A test that times them may come later. Its tokens are the ones to judge, so they are timed first.
        if workload in self.plan.gated(backend) and not self.measurements.failed(backend, workload):
            self.measurements.first(backend, workload)
        timed = self._timed(backend, workload)
        kind = "timed" if timed else "untimed"
        if not timed:
            one = self.generate_once(backend, workload)
            timed = {one.generation: one}
        return self._judge(backend, workload, timed, kind)

    def check_later(self, backend: str, workload: Workload) -> ParityResult | None:
        """Judge tokens of the generations that were timed after parity was shown.

        Another order of the tests, or a comparison, times some then.

        Returns:
            What was found; None if there are no such generations, or parity was not shown before.

        Raises:
            WorkerError, TraceError: as in a measurement.
        """
        key = (backend, workload)
        if key not in self._looked_at or key in self._unproven:
            return None
        timed = self._timed(backend, workload)
        later = {number: one for number, one in timed.items() if number not in self._looked_at[key]}
        return self._judge(backend, workload, later, "timed") if later else None

    def _timed(self, backend: str, workload: Workload) -> dict[int, Sample]:
        """The timed generations of a backend so far, by number, those beside base included."""
        samples = [sample for one in self.measurements.of(backend, workload) for sample in (*one.samples, *one.early)]
        return {one.generation: one for one in (*samples, *self.beside.samples(backend, workload))}

    def _judge(self, backend: str, workload: Workload, timed: Mapping[int, Sample], kind: str) -> ParityResult:
        """Judge rows of generations, by number, and untimed batches of unequal lengths. Raises as `check_parity`."""
        key = (backend, workload)
        self._unproven.add(key)
        rows = self._drawn(workload, timed, kind)
        if not self.prompts.real_text:
            raise ParityError(f"{self.model.name} has no tokenizer.json, so there is no real text to show parity on")
        untimed = partial(self.prompts.unequal_batch, workload)
        if any(UNKNOWN in one.tokens for one in rows):
            decode = self.prompts.continuation
            parity = self.referee.judge_by_text(backend, workload, timed=rows, untimed=untimed, decode=decode)
        else:
            other = self.plan.registry[backend].approximates(self.dtype)
            parity = self.referee.judge(backend, workload, timed=rows, untimed=untimed, other_weights=other)
        found = ParityResult(backend, str(workload), parity)
        if key not in self._parities or self._parities[key].parity.passed:
            self._parities[key] = found
        if self._parities[key].parity.passed:
            self._unproven.discard(key)
        self._looked_at.setdefault(key, set()).update(timed)
        return found

    @property
    def parities(self) -> list[ParityResult]:
        """What parity found of each backend and workload."""
        return list(self._parities.values())

    def _drawn(self, workload: Workload, timed: Mapping[int, Sample], kind: str) -> list[Made]:
        """Rows of generations, by number. ``kind`` says whether they were timed."""
        size, length = workload.batch_size, workload.prompt_length
        return [
            Made(
                f"request {request} of {size} of {kind} generation {number}, prompts of {length} tokens each",
                self.prompts.prompt(workload, number, request),
                timed[number].trace.tokens[request],
                "".join(timed[number].texts[request : request + 1]),
            )
            for number, request in drawn(timed, size, f"{self.runtime.seed} {workload}")
        ]

    @cached_property
    def referee(self) -> Referee:
        """Judges tokens by the reference."""

        def ask(backend: str, operation: str, **arguments: Any) -> Any:
            return self.engines.ask(self.plan.registry[backend], operation, **arguments)

        margin = error_margin(self.dtype)
        return Referee(ask, self.settings.reference, self.model.end_of_sequence, self.progress, margin)

    def load(self, backend: str, workload: Workload, traffic: Traffic) -> LoadResult:
        """Put a server under load: a few requests to warm it up, then as many as were asked for, each of its own text.

        Raises:
            WorkerError: it cannot be asked at all. What fails single requests is in the result.
        """
        settings, registered = self.settings, self.plan.registry[backend]
        requests = settings.requests
        # As many more replace those that end early.
        due = None if traffic.rate is None else arrivals(traffic.rate, 2 * requests)
        if due is not None and due[requests - 1] > WITHIN * settings.timeout:
            raise WorkerError(
                f"{backend} {workload} {traffic}: the last of {requests} requests is due after "
                f"{due[requests - 1]:.0f} s, and the whole load has --llm-timeout={settings.timeout:g} s; raise it, or "
                "send fewer requests"
            )
        # Each load has prompts of its own, and so has its warm-up.
        prompts, first = (
            self.prompts.many(size, workload.prompt_length, next(self._series))
            for size in (2 * requests, min(requests, traffic.concurrency or 1))
        )
        self.progress(f"{backend} {workload} {traffic}: warming up")
        self.engines.ask(registered, "generate", prompts=first, max_new_tokens=workload.max_new_tokens)
        self.progress(f"{backend} {workload} {traffic}: {requests} requests")
        answer = self.engines.ask(
            registered,
            "serve",
            prompts=prompts,
            max_new_tokens=workload.max_new_tokens,
            due=due,
            concurrency=traffic.concurrency,
            requests=requests,
        )
        early = sum(one["early"] for one in answer)
        if len(answer) - early < requests:
            raise WorkerError(
                f"{backend} {workload} {traffic}: {early} of {len(answer)} requests ended with an end-of-sequence "
                f"token before they had {workload.max_new_tokens} tokens; lower --llm-max-new-tokens"
            )
        objectives = dict(settings.slo)
        found = summarize([Served(**one) for one in answer], objectives, open_loop=traffic.rate is not None)
        served = measured_model(self.engines.ask(registered, "evidence"))
        self.loads.append(LoadRecord(backend, str(workload), str(traffic), objectives, found, served))
        return found

    # The machine

    @property
    def engines(self) -> Engines:
        """The worker processes. Raises WorkerError: the model could not be converted."""
        return self.runtime.engines

    @property
    def prompts(self) -> Prompts:
        """The token ids of every workload."""
        return self.runtime.prompts

    @property
    def findings(self) -> list[Finding]:
        """Whether the machine was fit to measure on, as it was before the first engine."""
        return self.runtime.findings

    @cached_property
    def peaks(self) -> dict[str, float]:
        """FLOP/s and bytes/s of a die: of its data sheet, or measured where there is none, as of a CPU."""
        if self.device.peak_flops is not None and self.device.peak_bandwidth is not None:
            return {"flops": self.device.peak_flops, "bandwidth": self.device.peak_bandwidth}
        return {name: self.machine.rates[name] for name in ("flops", "bandwidth")}

    @property
    def known_peaks(self) -> dict[str, float] | None:
        """The peaks, if anything asked for them so far: nothing is measured now."""
        return self.__dict__.get("peaks")

    # The baseline

    def sitting(self, backend: str, threads: int | None = None) -> Sitting:
        """What this run's figures of a backend are recorded with; ``threads`` are the engine's, where known."""
        registered = self.plan.registry[backend]
        chosen = self.plan.devices(registered)
        system: dict[str, Any] = {**fingerprint.system(), **self.machine.limits}
        system |= {"environment": registered.shown_environment, "libraries": fingerprint.libraries(os.environ)}
        system |= self.plan.cases_of(backend)
        if registered.variant is not None:
            system["variant"] = registered.variant.said
        system |= ({} if threads is None else {"threads": threads}) | (
            {} if chosen is None else {"devices": str(chosen)}
        )
        return Sitting(
            recorded=self._began.strftime("%Y-%m-%dT%H:%M:%SZ"),
            revision=self.plan.clean_revision,
            machine=self.machine.fingerprint.as_dict(),
            versions=self.plan.installed(backend),
            system=system,
            rates=dict(self.machine.rates),
        )

    def _has_tree_of(self, code: str | None) -> bool:
        """Whether the tree is that of an old sitting's code.

        With ``--llm-update-baselines=add`` the user says that the code is the same where git cannot tell.
        """
        return self.settings.update_baselines == "add" or (code is not None and self.plan.is_at(code))

    @property
    def unnamed(self) -> bool:
        """Whether figures were accepted whose sitting names no revision, so that no later run finds its code."""
        return bool(self.updates.changes) and self.plan.clean_revision is None

    def _recorded_start(self, case: Case) -> dict[str, float]:
        """The parts of a start, in seconds, as this machine recorded them last; empty where it has not."""
        own = self.plan.own(case) if case.start else ()
        return dict(zip(PARTS, own[0].parts, strict=True)) if own else {}

    def write_baselines(self) -> dict[Case, Entry]:
        """Write the accepted figures, but not those of a backend not in parity, nor `slower`. Returns what was written.

        A latency counts only if it is the right computation.

        Raises:
            BaselineError: the file cannot be written; the old one is untouched.
        """
        with store.locked(self.plan.baseline_path):
            return self.updates.write(self._refused())

    def update(self) -> dict[str, Any] | None:
        """What `write_baselines` would write now, and why not the rest, as JSON values; None if it is not to."""
        if self.settings.update_baselines is None:
            return None
        refused = self._refused()
        left = {
            case.key: refused.get(case, "it was disturbed" if self.accepts(case) else "it was gated, not accepted")
            for case in self.results
            if case in refused or case not in self.updates.changes
        }
        return self.updates.as_dict(refused) | {"refused": left}

    def _refused(self) -> dict[Case, str]:
        """Why figures that were accepted are not to be written."""
        wrong = {backend for backend, _ in self._unproven}
        refused = {
            case: "its tokens were not judged"
            for case in self.updates.changes
            if (case.backend, case.workload) in self.unjudged
        }
        refused |= {
            case: "its tokens were not shown to be right" for case in self.updates.changes if case.backend in wrong
        }
        slower = [one.case for one in self.slower()]
        return refused | {case: f"it is {METRICS[case.metric].more} than the gate allows" for case in slower}

    def slower(self) -> list[Change]:
        """Slowdowns beyond the tolerance, which an update does not write in CI unless that was asked for."""
        if not in_ci() or self.settings.update_baselines == "slower":
            return []
        return [change for change in self.updates.changes.values() if change.slower]

    @property
    def unused_baselines(self) -> list[str]:
        """Baseline entries that no test of this run compared with."""
        used = {key for case in self.results for key in case.kept}
        return store.unused(self.plan.stored, used) if self.plan.stored else []

    def close(self) -> None:
        """Stop every worker and remove base's checkouts. Safe to call more than once, and when there are none."""
        self.runtime.close()
        self.beside.close()


def begin(settings: Settings, registry: Registry, root: Path, progress: Callable[[str], None]) -> Session:
    """A run of these settings in pytest's rootdir, once they and the baseline file are known to be usable.

    Raises:
        UnusableError: they are not.
    """
    if settings.results is not None and settings.results in settings.report:
        raise UnusableError(f"--llm-results and --llm-report are the same file, {settings.results}; choose two")
    try:
        plan = Plan(settings, registry, folders.cache().folder, root)
    except folders.FolderError as error:
        raise UnusableError(str(error)) from None
    plan.read_baseline()
    return Session(plan, progress)
