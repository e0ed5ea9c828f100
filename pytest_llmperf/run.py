"""The run: what was asked for, what has been measured, and the verdicts. Everything between the fixtures and the engines."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from platformdirs import user_cache_path

from pytest_llmperf import baseline as store
from pytest_llmperf import models, parity, roofline, trace, verdict
from pytest_llmperf.backends.base import EngineSpec, Observation, Score
from pytest_llmperf.backends.registry import Registry
from pytest_llmperf.cases import METRICS, Case, Workload
from pytest_llmperf.devices import detect, fingerprint
from pytest_llmperf.devices.table import Device
from pytest_llmperf.engines import Engines
from pytest_llmperf.host import Arm, WorkerError
from pytest_llmperf.measurement import Measurement, measure
from pytest_llmperf.models import Model
from pytest_llmperf.prompts import Prompts
from pytest_llmperf.result import ParityResult, Result, Utilization
from pytest_llmperf.sampling import Plan
from pytest_llmperf.settings import Settings
from pytest_llmperf.verdict import Outcome, Verdict

#: Fresh processes that confirm a flagged case.
CONFIRMATIONS = 2
#: Differences below this many seconds are never a regression: a token's stamp costs microseconds.
ABSOLUTE_FLOOR = 50e-6
#: A machine whose own peaks are this fraction below those recorded with a baseline is not in the same state.
SAME_STATE = 0.85


class UnusableError(ValueError):
    """The run cannot begin; one line says what was asked, why it cannot be, and what to do."""


@dataclass(frozen=True)
class Defaults:
    """What a kind of device is measured with where the user does not say."""

    batch_sizes: tuple[int, ...]
    prompt_lengths: tuple[int, ...]
    max_new_tokens: int
    plan: Plan


DEFAULTS = {
    "cpu": Defaults((1, 4), (256,), 32, Plan(minimum=3, maximum=10, budget=6.0)),
    "accelerator": Defaults((1, 2, 4, 8, 16, 32), (2048,), 128, Plan(minimum=5, maximum=20, budget=6.0)),
}


class Run:
    """One pytest run's measurements. Made at collection, before any model is loaded.

    Args:
        settings: what the user asked for.
        registry: every backend known.
        progress: told what is being done.

    Raises:
        UnusableError: the device, model, dtype, a backend, a size or the baseline file rules the run out.
    """

    def __init__(self, settings: Settings, registry: Registry, progress: Callable[[str], None]) -> None:
        self.settings = settings
        self.registry = registry
        self.progress = progress
        self.cache = user_cache_path("pytest-llmperf")
        try:
            self.device: Device = detect.resolve(settings.device)
            self.model: Model = models.resolve(settings.model, settings.random_weights, self.cache)
            self.backends = self._backends()
            self.baseline_path = store.path_for(settings.baseline_dir, self.device.name, self.model.name)
            self.baseline = store.load(self.baseline_path, self.device.name, self.model.name)
            if settings.update_baselines:
                store.check_writable(self.baseline_path.parent)
        except (KeyError, ValueError) as error:
            raise UnusableError(str(error.args[0] if error.args else error)) from None
        self.defaults = DEFAULTS["cpu" if self.device.kind == "cpu" else "accelerator"]
        self.dtype = self._dtype()
        self.results: dict[Case, Result] = {}
        self.parities: list[ParityResult] = []
        self._unready: WorkerError | None = None
        self._first: dict[tuple[str, Workload], Measurement] = {}
        self._fresh: dict[tuple[str, Workload], list[Measurement]] = {}
        self._observed: dict[tuple[str, Workload], list[Observation]] = {}
        self._scores: dict[tuple[tuple[int, ...], tuple[int, ...]], Score] = {}
        self._accepted: dict[str, store.Entry] = {}

    # What was asked for

    def _backends(self) -> tuple[str, ...]:
        asked = self.registry.names() if self.settings.backends == ("all",) else self.settings.backends
        for name in (*asked, self.settings.reference):
            _ = self.registry[name]
        # The reference comes first: every speedup needs its figures.
        return tuple(sorted(asked, key=lambda name: name != self.settings.reference))

    def _dtype(self) -> str:
        dtype = self.settings.dtype or ("bfloat16" if self.device.kind == "cpu" else self.model.half_type)
        if dtype not in self.device.dtypes:
            raise UnusableError(
                f"--llm-dtype={dtype}: {self.device.name} has no fast {dtype}; it has {', '.join(self.device.dtypes)}"
            )
        return dtype

    def workloads(
        self,
        batch_sizes: Sequence[int] | None = None,
        prompt_lengths: Sequence[int] | None = None,
        max_new_tokens: int | None = None,
    ) -> list[Workload]:
        """Every combination of batch size and prompt length: the arguments, else the settings, else the device's.

        Raises:
            UnusableError: a prompt and its new tokens do not fit the model's context.
        """
        settings, defaults = self.settings, self.defaults
        tokens = max_new_tokens or settings.max_new_tokens or defaults.max_new_tokens
        found = [
            Workload(batch, length, tokens)
            for length in prompt_lengths or settings.prompt_lengths or defaults.prompt_lengths
            for batch in batch_sizes or settings.batch_sizes or defaults.batch_sizes
        ]
        context = self.model.architecture.context_length
        for workload in found:
            if workload.prompt_length + workload.max_new_tokens > context:
                raise UnusableError(
                    f"prompt of {workload.prompt_length} tokens + {workload.max_new_tokens} new ones do not fit the "
                    f"context of {self.model.name}, which is {context}; lower --llm-prompt-lengths or --llm-max-new-tokens"
                )
        return found

    def missing(self, backend: str) -> str | None:
        """Why the backend cannot run here, or None."""
        return self.registry[backend].requires(self.device)

    def tolerance(self, stated: float | None) -> tuple[float, str]:
        """The slowdown allowed and where that was stated; the strictest of the stated ones."""
        candidates = [
            (value, source)
            for value, source in (
                (stated, "marker"),
                (self.settings.max_regression, "--llm-max-regression"),
            )
            if value is not None
        ]
        return min(candidates, default=(self.device.max_regression, f"default of {self.device.name}"))

    # Engines

    @cached_property
    def engines(self) -> Engines:
        """The worker processes; made when the first one is needed, which is when an embedded model is converted."""
        if self._unready is not None:
            raise self._unready
        spec = EngineSpec(
            model=self.model.name if self.model.folder is None else str(self.model.folder),
            config=dict(self.model.config) if self.model.folder is None else None,
            dtype=self.dtype,
            device=self.device.torch_device,
        )
        engines = Engines(
            spec,
            Arm(),
            cache=str(self.cache / "inductor"),
            timeout=self.settings.timeout,
            keep_reference=self._fits_twice(),
            reference=self.settings.reference,
            progress=self.progress,
        )

        def convert(source: Path, target: Path) -> None:
            self.progress(f"{self.model.name}: converting {source.name}, once")
            with engines.bare() as ask:
                ask("convert", source=str(source), target=str(target))

        try:
            models.ready(self.model, convert)
        except WorkerError as error:
            self._unready = error
            raise
        return engines

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

    @cached_property
    def environment(self) -> store.Environment:
        """The machine, the versions and the peaks that this run's figures belong to."""
        return store.Environment(fingerprint.take().as_dict(), fingerprint.versions(), self.peaks)

    @cached_property
    def peaks(self) -> dict[str, float]:
        """FLOP/s and bytes/s: of the device's data sheet, or measured where it has none (a CPU)."""
        if self.device.peak_flops is not None and self.device.peak_bandwidth is not None:
            return {"flops": self.device.peak_flops, "bandwidth": self.device.peak_bandwidth}
        return self._measured_peaks()

    def _measured_peaks(self) -> dict[str, float]:
        self.progress(f"{self.device.name}: measuring its peaks")
        with self.engines.bare() as ask:
            measured = ask(
                "peaks",
                dtype=self.dtype,
                buffer_bytes=self.model.architecture.weight_bytes(self.dtype),
                device=self.device.torch_device,
            )
        return {name: float(f"{value:.4g}") for name, value in measured.items()}

    # Measuring

    def first(self, backend: str, workload: Workload) -> Measurement:
        """The measurement by the backend's running engine; made once."""
        key = (backend, workload)
        if key not in self._first:
            registered = self.registry[backend]
            loaded = self.engines.get(registered)
            self._first[key] = measure(
                lambda operation, **arguments: self.engines.ask(registered, operation, **arguments),
                backend=backend,
                workload=workload,
                prompts=self.prompts.batch(workload),
                load=loaded.load_seconds,
                plan=self.defaults.plan,
                progress=self.progress,
            )
        return self._first[key]

    def fresh(self, backend: str, workload: Workload, count: int) -> list[Measurement]:
        """``count`` measurements, each by a process of its own; shared by the metrics of the workload."""
        made = self._fresh.setdefault((backend, workload), [])
        while len(made) < count:
            self.progress(f"{backend} {workload}: fresh process {len(made) + 1} of {count}")
            with self.engines.fresh(self.registry[backend]) as (ask, load):
                made.append(
                    measure(
                        ask,
                        backend=backend,
                        workload=workload,
                        prompts=self.prompts.batch(workload),
                        load=load,
                        plan=self.defaults.plan,
                        progress=self.progress,
                    )
                )
        return made[:count]

    def generate_once(self, backend: str, workload: Workload) -> None:
        """One generation without figures, for ``--benchmark-disable``.

        Raises:
            WorkerError, TraceError: as in a measurement.
        """
        prompts = self.prompts.batch(workload)
        answer = self.engines.ask(
            self.registry[backend], "generate", prompts=prompts, max_new_tokens=workload.max_new_tokens
        )
        trace.checked(
            answer["tokens"], answer["times"], requests=len(prompts), max_new_tokens=workload.max_new_tokens
        )

    # Verdicts

    def judge(self, backend: str, workload: Workload, metric: str, stated_tolerance: float | None = None) -> Result:
        """Measure a case and compare it with its baseline; or accept it, with ``--llm-update-baselines``."""
        case = Case(self.model.name, self.dtype, backend, workload, metric)
        first = self.first(backend, workload)
        tolerance, source = self.tolerance(stated_tolerance)
        invocations = [first]
        if self.settings.update_baselines:
            invocations += self.fresh(backend, workload, self.settings.invocations - 1)
        figures = [one.figures(metric) for one in invocations]
        entry = self.baseline.entries.get(case.key) if self.baseline else None
        found = self._compare(case, entry, figures[:1], tolerance)
        if found.flagged and not self.settings.update_baselines:
            confirmations = self.fresh(backend, workload, CONFIRMATIONS)
            invocations += confirmations
            figures += [one.figures(metric) for one in confirmations]
            assert entry is not None
            found = self._confirm(case, entry, confirmations, tolerance)
        spread = verdict.summarize(figures[0])
        reference = self._first.get((self.settings.reference, workload))
        result = Result(
            case=case,
            spread=spread,
            samples=tuple(figures[0]),
            invocations=tuple(tuple(row) for row in figures),
            speedup=median(reference.figures(metric)) / spread.median if reference else None,
            utilization=self._utilization(workload, metric, spread.median),
            verdict=found,
            tolerance=tolerance,
            tolerance_source=source,
            contamination=first.contamination,
            cold_start=first.cold_start,
            peak_memory=first.peak_memory,
            engagement=first.engagement,
            throughput=median(sample.trace.throughput for sample in first.samples),
            updated=self.settings.update_baselines,
        )
        self.results[case] = result
        if self.settings.update_baselines:
            self._accept(case, figures)
            self._accept(replace(case, metric="cold-start"), [one.figures("cold-start") for one in invocations])
        return result

    def _compare(
        self, case: Case, entry: store.Entry | None, figures: list[list[float]], tolerance: float
    ) -> Verdict:
        if entry is None:
            why = "this case is new to it" if self.baseline else f"{self.baseline_path} does not exist"
            return self._no_baseline(f"{why}; accept the figures with --llm-update-baselines")
        difference = self._other_machine(entry)
        if not difference:
            return verdict.screen(entry.invocations, figures, tolerance, ABSOLUTE_FLOOR)
        relative = self._relative(case, entry, figures)
        if relative is None:
            return self._no_baseline(
                f"it was recorded on another machine ({difference[0]}), and there is no speedup over "
                f"{self.settings.reference} to compare instead"
            )
        compared = verdict.screen(*relative, tolerance, 0.0, "speedup over eager")
        return replace(compared, reason=compared.reason or f"baseline of another machine: {difference[0]}")

    def _confirm(
        self, case: Case, entry: store.Entry, confirmations: list[Measurement], tolerance: float
    ) -> Verdict:
        figures = [one.figures(case.metric) for one in confirmations]
        if self._other_machine(entry):
            relative = self._relative(case, entry, figures)
            assert relative is not None
            found = verdict.confirm(*relative, tolerance, 0.0, "speedup over eager")
        else:
            found = verdict.confirm(entry.invocations, figures, tolerance, ABSOLUTE_FLOOR)
        if found.outcome is not Outcome.REGRESSION:
            return found
        disturbed = sum(one.contamination > 0.5 for one in confirmations)
        if disturbed:
            return verdict.contaminated(
                found, f"other processes used the CPU during most samples of {disturbed} of {len(confirmations)} processes"
            )
        weaker = self._weaker(entry)
        return verdict.contaminated(found, weaker) if weaker else found

    def _other_machine(self, entry: store.Entry) -> list[str]:
        assert self.baseline is not None
        recorded = fingerprint.Fingerprint.from_dict(dict(self.baseline.environments[entry.environment].fingerprint))
        return fingerprint.take().difference(recorded)

    def _relative(
        self, case: Case, entry: store.Entry, figures: list[list[float]]
    ) -> tuple[list[list[float]], list[list[float]]] | None:
        """Baseline and head as latencies relative to the reference's, each by its own machine's reference."""
        assert self.baseline is not None
        reference = self.settings.reference
        then = self.baseline.entries.get(replace(case, backend=reference).key)
        now = self._first.get((reference, case.workload))
        if case.backend == reference or then is None or now is None or then.environment != entry.environment:
            return None
        return (
            verdict.speedup_invocations(then.invocations, entry.invocations),
            verdict.speedup_invocations([now.figures(case.metric)], figures),
        )

    def _weaker(self, entry: store.Entry) -> str | None:
        """Why this machine is not in the state that the baseline was recorded in. Measured now, when it matters."""
        if self.device.peak_flops is not None:
            return None
        assert self.baseline is not None
        recorded = self.baseline.environments[entry.environment].peaks
        now = self._measured_peaks()
        for name, title in (("flops", "GEMM rate"), ("bandwidth", "memory bandwidth")):
            before = float(recorded.get(name, 0.0))
            if now[name] < SAME_STATE * before:
                return f"this machine's {title} is {1 - now[name] / before:.0%} below what it was with the baseline"
        return None

    @staticmethod
    def _no_baseline(reason: str) -> Verdict:
        nothing = float("nan")
        return Verdict(Outcome.NO_BASELINE, nothing, nothing, nothing, nothing, nothing, 1, 0, reason=reason)

    def _utilization(self, workload: Workload, metric: str, seconds: float) -> Utilization | None:
        if metric not in ("ttft", "tpot"):
            return None
        compute, bandwidth = self.peaks["flops"], self.peaks["bandwidth"]
        sizes = (self.model.architecture, workload.batch_size, workload.prompt_length)
        if metric == "ttft":
            bound = roofline.prefill_bound(*sizes, self.dtype, compute, bandwidth)
            return Utilization("MFU", roofline.mfu(*sizes, seconds, compute), bound.seconds, bound.limit)
        bound = roofline.decode_bound(*sizes, workload.max_new_tokens, self.dtype, compute, bandwidth)
        fraction = roofline.mbu(*sizes, workload.max_new_tokens, self.dtype, seconds, bandwidth)
        return Utilization("MBU", fraction, bound.seconds, bound.limit)

    def impossible(self, result: Result) -> str | None:
        """Why a figure cannot be true, or None: faster than the device's roofs allow."""
        if result.utilization is None:
            return None
        measured = self.device.peak_flops is None
        fractions = {
            result.utilization.name: result.utilization.fraction,
            "the roofline's bound over the latency": result.utilization.bound / result.spread.median,
        }
        for name, fraction in fractions.items():
            if reason := roofline.impossible(fraction, measured):
                return f"{name}: {reason}"
        return None

    # Parity

    def parity_of(self, backend: str, workload: Workload) -> ParityResult:
        """Judge the tokens of the timed generations, and of an untimed one with unequal lengths, by the reference.

        Raises:
            UnusableError: the weights are random, which proves nothing.
        """
        if self.model.random_weights or not self.prompts.real_text:
            raise UnusableError("random weights emit one token over and over: they show speed, never parity")
        reference = self.settings.reference
        equal = self.prompts.batch(workload)
        unequal = self.prompts.unequal_batch(workload) if workload.batch_size > 1 else equal
        observed = self._observe(backend, workload, unequal)
        timed = self._timed_rows(backend, workload, equal)
        theirs = self._observe(reference, workload, unequal)
        their_timed = dict(self._timed_rows(reference, workload, equal))
        self.progress(f"{backend} {workload}: {reference} scores its tokens")
        rows = [
            parity.Row(tokens, their_timed[index], score)
            for (index, tokens), score in zip(
                timed, self._score([equal[index] for index, _ in timed], [list(row) for _, row in timed]), strict=True
            )
        ]
        shown = observed[0].candidates
        scores = self._ask_scores(
            unequal,
            [list(one.tokens) for one in observed],
            [[list(ids) for ids in one.candidates] for one in observed] if shown else None,
        )
        rows += [
            parity.Row(one.tokens, their.tokens, score, one if shown else None)
            for one, their, score in zip(observed, theirs, scores, strict=True)
        ]
        found = ParityResult(backend, str(workload), parity.decide(rows, self.model.end_of_sequence))
        self.parities.append(found)
        return found

    def _timed_rows(
        self, backend: str, workload: Workload, prompts: list[list[int]]
    ) -> list[tuple[int, tuple[int, ...]]]:
        """Every distinct row of tokens that was timed; a batch generated now if nothing was."""
        if (measured := self._first.get((backend, workload))) is not None:
            fresh = self._fresh.get((backend, workload), [])
            return sorted(set().union(*(one.token_rows() for one in (measured, *fresh))))
        answer = self.engines.ask(
            self.registry[backend], "generate", prompts=prompts, max_new_tokens=workload.max_new_tokens
        )
        return [(index, tuple(row)) for index, row in enumerate(answer["tokens"])]

    def _observe(self, backend: str, workload: Workload, prompts: list[list[int]]) -> list[Observation]:
        key = (backend, workload)
        if key not in self._observed:
            self.progress(f"{backend} {workload}: generating for parity")
            answer = self.engines.ask(
                self.registry[backend], "observe", prompts=prompts, max_new_tokens=workload.max_new_tokens
            )
            self._observed[key] = [Observation(**one) for one in answer]
        return self._observed[key]

    def _score(self, prompts: list[list[int]], continuations: list[list[int]]) -> list[Score]:
        """Scores without candidates, each (prompt, continuation) asked once: most backends say the same."""
        keys = [(tuple(p), tuple(c)) for p, c in zip(prompts, continuations, strict=True)]
        wanted = sorted({key for key in keys if key not in self._scores})
        if wanted:
            asked = self._ask_scores([list(p) for p, _ in wanted], [list(c) for _, c in wanted], None)
            self._scores.update(zip(wanted, asked, strict=True))
        return [self._scores[key] for key in keys]

    def _ask_scores(self, prompts: Any, continuations: Any, candidates: Any) -> list[Score]:
        answer = self.engines.ask(
            self.registry[self.settings.reference],
            "score",
            prompts=prompts,
            continuations=continuations,
            candidates=candidates,
        )
        return [Score(**one) for one in answer]

    # Baselines

    def _accept(self, case: Case, figures: list[list[float]]) -> None:
        self._accepted[case.key] = store.Entry(
            environment=self.environment.id,
            recorded=datetime.date.today().isoformat(),
            unit=METRICS[case.metric][1],
            invocations=tuple(tuple(row) for row in figures),
        )

    def write_baselines(self) -> list[str]:
        """Merge the accepted figures into the file, once, at the end. Returns the keys written.

        Figures of a backend whose tokens were found wrong are left out: a latency counts only if it is the right
        computation.

        Raises:
            BaselineError: the file cannot be written; the old one is untouched.
        """
        wrong = {found.backend for found in self.parities if not found.parity.passed}
        entries = {key: entry for key, entry in self._accepted.items() if key.split("/")[1] not in wrong}
        if not entries:
            return []
        new = store.Baseline(
            self.device.name, self.model.name, {self.environment.id: self.environment}, entries
        )
        store.write(self.baseline_path, store.merge(self.baseline, new))
        return sorted(entries)

    def unused_baselines(self) -> list[str]:
        """Baseline entries that no test of this run compared with."""
        if self.baseline is None:
            return []
        run = {case.key for case in self.results} | {
            replace(case, metric="cold-start").key for case in self.results
        }
        return store.unused(self.baseline, run)

    def as_dict(self) -> dict[str, Any]:
        """Everything measured so far, as plain JSON values."""
        return {
            "schema": 1,
            "device": self.device.name,
            "model": self.model.name,
            "dtype": self.dtype,
            "environment": asdict(self.environment) if self._first else None,
            "command_ci": bool(os.environ.get("CI")),
            "measurements": [asdict(one) for one in [*self._first.values(), *sum(self._fresh.values(), [])]],
            "results": [result.as_dict() for result in self.results.values()],
            "parity": [found.as_dict() for found in self.parities],
        }

    def close(self) -> None:
        """Stop every worker. Safe to call more than once, and when none was started."""
        if "engines" in self.__dict__:
            self.engines.close_all()
