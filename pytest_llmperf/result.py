"""What a run found out about a case: the one object that every report reads."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import chain
from statistics import fmean, median
from typing import Any

from pytest_llmperf.backends.base import SERVED_MODEL
from pytest_llmperf.backends.registry import Combination
from pytest_llmperf.cases import METRICS, Case
from pytest_llmperf.explain.families import families
from pytest_llmperf.explain.profiles import PHASES, plain
from pytest_llmperf.explain.starts import typical
from pytest_llmperf.gate.rule import Verdict
from pytest_llmperf.machine.memory import Memory
from pytest_llmperf.measure.process import Measurement
from pytest_llmperf.parity.decision import Parity
from pytest_llmperf.roofline import Utilization
from pytest_llmperf.spread import Spread, quantile, spread_of

#: The share of tokens that may come together by chance, as where the client was late, before a figure says so.
TOGETHER = 0.01
#: Of the gaps between tokens.
ITL_PERCENTILES = (0.01, 0.10, 0.25, 0.50, 0.75, 0.90, 0.99)
#: Seconds beyond a settled generation from which on a first one may be odd.
LONG = 5.0
#: How many times as long as a settled one a first generation may take without a reason. On an H200 those of backends
#: that compile nothing took up to 3.7 times as long, and up to 0.9 s longer.
MANY = 5.0
#: What a backend decides that compiles or tunes in its first generation.
COMPILING = ("compile", "gemm")

#: What is said of tokens that were not shown to be right, by whether there was enough to judge by.
UNPROVEN = {True: "not in parity", False: "parity not shown"}


def measured_model(engagement: Mapping[str, Any]) -> str:
    """Which model a server that runs already was asked for, and where, by its evidence; empty of any other engine."""
    seen = engagement.get("seen") or {}
    return f"{seen[SERVED_MODEL]} at {seen.get('server', '')}" if SERVED_MODEL in seen else ""


@dataclass(frozen=True)
class Arrivals:
    """How tokens came over a wire, where some came together.

    Attributes:
        tokens: how many.
        reads: how often some came.
        first: how many came with a request's first one, that one included, on average.
        untimed: how many of them had no event of their own, so that they were counted at the end.
    """

    tokens: int
    reads: int
    first: float
    untimed: int = 0

    @property
    def chunked(self) -> bool:
        """Whether gaps are between chunks (ICL), not between tokens."""
        return self.untimed > 0 or self.tokens - self.reads > TOGETHER * self.tokens

    @property
    def late(self) -> bool:
        """Whether the first token of a request came together with later ones."""
        return self.untimed > 0 or self.first > 1 + TOGETHER

    def mark(self, metric: str) -> str:
        """What stands beside a figure of that metric; empty where it is what it seems."""
        return " ICL" if {"ttft": self.late, "tpot": self.chunked, "itl": self.chunked}.get(metric) else ""

    @property
    def said(self) -> str:
        """What the mark means here; empty where no figure has it."""
        if not (self.chunked or self.late):
            return ""
        said = f"{self.tokens} tokens came in {self.reads} reads of the socket, so gaps are between chunks"
        if self.first > 1 + TOGETHER:
            said += f", and TTFT is when the first {self.first:.3g} tokens came"
        if self.untimed:
            said += f"; {self.untimed} tokens had no event of their own, so TTFT may be a later token's"
        return said


@dataclass(frozen=True)
class Result:
    """A case's measurements and verdict. What can be derived from them is a property.

    Attributes:
        case: which.
        first: what the running engine's process measured.
        processes: every process of this run, the first one's first; of accepted figures those of the sitting.
        reference: what the reference's running engine measured of the same workload; None without one.
        backend: what ran.
        verdict: against the stored baseline, or beside base.
        tolerance: the slowdown allowed.
        tolerance_source: where it was stated.
        utilization: None where it has no meaning (end-to-end latency).
        baseline_start: of a start, the seconds of its parts when the baseline was recorded here; empty of any other.
        devices: which were chosen, and why; empty where nobody chose.
        roofless: why there is no utilization where there could be one; empty otherwise.
        changed: the versions and variables that differ from those of the newest sitting; empty if none does.
        engine: what the figures depend on beside the code, as `Plan.engine` says it.
        slower: what got slower, a line each, the chief cause first; empty unless it is a regression.
        kernels_changed: the kernels that are gone and new though the case is no regression; empty if there are none.
    """

    case: Case
    first: Measurement
    processes: Sequence[Measurement]
    reference: Measurement | None
    backend: Combination
    verdict: Verdict
    tolerance: float
    tolerance_source: str
    utilization: Utilization | None = None
    baseline_start: Mapping[str, float] = field(default_factory=dict)
    devices: str = ""
    roofless: str = ""
    changed: str = ""
    engine: Mapping[str, Any] = field(default_factory=dict)
    slower: Sequence[str] = ()
    kernels_changed: str = ""

    @cached_property
    def samples(self) -> list[float]:
        """The samples of the first process, in the metric's unit; of a start, the figure of each process."""
        made = self.processes if self.case.start else [self.first]
        return [figure for one in made for figure in one.figures(self.case.metric)]

    @cached_property
    def spread(self) -> Spread:
        """Median and spread of the samples."""
        return spread_of(self.samples)

    @property
    def speedup(self) -> float | None:
        """The reference's median over this one's, both measured in this run; None without a reference, or of bytes."""
        if self.reference is None or not METRICS[self.case.metric].timed:
            return None
        return median(self.reference.figures(self.case.metric)) / self.spread.median

    @property
    def reference_disturbed(self) -> str | None:
        """What disturbed the reference throughout, so that the speedup over it tells little; None if nothing did."""
        if self.reference is None or self.reference is self.first or self.reference.clean:
            return None
        return self.reference.culprit

    @property
    def throughput(self) -> float:
        """Output tokens per second: the median over the samples."""
        return median(sample.trace.throughput for sample in self.first.samples)

    @property
    def peak_memory(self) -> int | None:
        """Bytes in use at most during a generation; None where nobody knows."""
        return self.first.memory.peak if isinstance(self.first.memory, Memory) else None

    @property
    def loaded_memory(self) -> int | None:
        """Those of them that were in use when the engine was ready."""
        return self.first.memory.loaded if isinstance(self.first.memory, Memory) else None

    @property
    def itl(self) -> list[float] | None:
        """The `ITL_PERCENTILES` of the gaps between tokens, in seconds; None but for TPOT."""
        gaps = list(chain.from_iterable(sample.trace.itl for sample in self.first.samples))
        return [quantile(gaps, at) for at in ITL_PERCENTILES] if gaps and self.case.metric == "tpot" else None

    @property
    def arrivals(self) -> Arrivals:
        """How the tokens of the samples came."""
        samples = self.first.samples
        return Arrivals(
            tokens=sum(sample.trace.output_tokens for sample in samples),
            reads=sum(sample.trace.arrivals for sample in samples),
            first=fmean(sample.trace.first for sample in samples),
            untimed=sum(one.untimed for sample in samples for one in sample.statistics),
        )

    @property
    def start(self) -> dict[str, float]:
        """The seconds of a start's parts, the median of each over the processes; empty of any other metric."""
        return typical(one.start for one in self.processes) if self.case.start else {}

    @property
    def compiles(self) -> bool:
        """Whether it is known to compile or tune something in its first generation."""
        return any(part.slot in COMPILING for part in self.backend.all) or bool(
            self.first.engagement.get("seen", {}).get("graphs")
        )

    @property
    def slow_start(self) -> str:
        """What is odd about a first generation that is many times slower than the others; empty if nothing is."""
        times = 1 + self.first.compile_time / median(self.first.figures("latency"))
        if self.compiles or self.first.compile_time < LONG or times < MANY:
            return ""
        return (
            f"the first generation took {times:.0f} times as long as the others, and nothing is known to be compiled: "
            "does the engine keep anything that makes the others fast?"
        )

    @property
    def tokens_per_joule(self) -> float | None:
        """Output tokens per second over the mean power (W) of the device; None where it gives none, or is not alone."""
        gpus = [sample.fitness.gpu for sample in self.first.samples]
        watts = [gpu.power for gpu in gpus if gpu is not None and gpu.power]
        return self.throughput / fmean(watts) if watts and self.backend.tp == 1 else None

    @property
    def implementations(self) -> dict[str, str]:
        """Whose attention, MoE and GEMM ran in the prefill and in a decode step, those with the most time first."""
        weights: Counter[str] = Counter()
        for phase in self.first.profile.values():
            weights.update({name: row.share for name, row in phase.rows.items()})
        return families(weights)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, under the names of the results file."""
        metric, first = self.case.metric, self.first
        return {
            "case": self.case.key,
            "model": self.case.model,
            "unit": METRICS[metric].unit,
            "spread": asdict(self.spread),
            "samples": self.samples,
            "invocations": [one.figures(metric) for one in self.processes],
            "processes": 2 * self.verdict.count if self.verdict.basis == "base" else len(self.processes),
            "speedup": self.speedup,
            "reference_disturbed": self.reference_disturbed,
            "utilization": self.utilization and asdict(self.utilization),
            "roofless": self.roofless,
            "verdict": asdict(self.verdict)
            | {"outcome": self.verdict.outcome.value, "not_excluded": self.not_excluded},
            "tolerance": self.tolerance,
            "tolerance_source": self.tolerance_source,
            "contamination": first.contamination,
            "discarded": len(first.discarded),
            "culprit": first.culprit,
            "load": first.load,
            "compile_time": first.compile_time,
            "compiles": self.compiles,
            "slow_start": self.slow_start,
            "peak_memory": self.peak_memory,
            "loaded_memory": self.loaded_memory,
            "start": self.start,
            "baseline_start": dict(self.baseline_start),
            "engagement": first.engagement,
            "implementations": self.implementations,
            "engine": {**self.engine, "threads": first.threads},
            "changed": self.changed,
            "slower": list(self.slower),
            "kernels_changed": self.kernels_changed,
            "profile": {
                phase: one for phase, one in plain(first.profile).items() if metric in ("latency", PHASES[phase])
            },
            "boundary": self.backend.boundary,
            "throughput": self.throughput,
            "tokens_per_joule": self.tokens_per_joule,
            "itl": self.itl,
            "arrivals": asdict(self.arrivals),
            "tp": self.backend.tp,
            "devices": self.devices,
        }

    @property
    def not_excluded(self) -> float | None:
        """The largest slowdown, as a fraction, that the comparison could not exclude; None where there was none."""
        return None if math.isnan(self.verdict.upper) else self.verdict.not_excluded


@dataclass(frozen=True)
class ParityResult:
    """A backend's parity on one workload."""

    backend: str
    workload: str
    parity: Parity

    @property
    def standing(self) -> str:
        """``in parity``, ``in parity by tokens`` or ``by text``, ``bounded``, or one of `UNPROVEN`."""
        if not self.parity.passed:
            return UNPROVEN[self.parity.judged]
        if self.parity.by_text:
            return "in parity by text"
        if self.parity.by_tokens:
            return "in parity by tokens"
        return "bounded" if self.parity.bounded else "in parity"

    def against(self, reference: str) -> str:
        """What is said of one that is not in parity, or not known to be."""
        wrong = "the reference contradicts itself" if self.backend == reference else f"not in parity with {reference}"
        said = wrong if self.parity.judged else self.standing
        return f"{self.backend} {self.workload}: {said}: {self.parity.reason}"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"backend": self.backend, "workload": self.workload, **asdict(self.parity)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ParityResult:
        """The inverse of `as_dict`. Raises KeyError or TypeError where it is not one."""
        values = dict(data)
        return cls(values.pop("backend"), values.pop("workload"), Parity(**values))
