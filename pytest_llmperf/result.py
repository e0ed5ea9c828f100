"""What a run found out about a case: the one object that every report reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pytest_llmperf.backends.base import IN_PROCESS
from pytest_llmperf.cases import METRICS, Case
from pytest_llmperf.gate.verdict import Spread, Verdict
from pytest_llmperf.parity.decision import Parity
from pytest_llmperf.roofline import Utilization


@dataclass(frozen=True)
class Result:
    """A case's figures and verdict.

    Attributes:
        case: which.
        spread: median and spread of the samples, in the metric's unit.
        samples: the samples of the first process.
        invocations: samples of every process of this run, the first one's included; or those accepted.
        speedup: the reference's median over this one's, both measured in this run; None without a reference.
        utilization: None where it has no meaning (end-to-end latency, cold start).
        verdict: against the stored baseline.
        tolerance: the slowdown allowed.
        tolerance_source: where it was stated.
        contamination: fraction of the first process's generations that something disturbed.
        discarded: how many of them were replaced by others; 0 if there were too few others, so that all count.
        culprit: what disturbed most of them; None if nothing did.
        cold_start: seconds until the first generation was complete.
        baseline_cold_start: what it was when the baseline was recorded here; None where none was. It never fails.
        compile_time: the part of it that the first generation took beyond a settled one; None where not known.
        peak_memory: bytes.
        engagement: what was seen of the optimization.
        boundary: where the latency was seen: in process, or as the client of a server.
        throughput: output tokens per second, median over the samples.
        tp: how many devices share the model. devices: which, and why; empty where nobody chose.
    """

    case: Case
    spread: Spread
    samples: tuple[float, ...]
    invocations: tuple[tuple[float, ...], ...]
    speedup: float | None
    utilization: Utilization | None
    verdict: Verdict
    tolerance: float
    tolerance_source: str
    contamination: float
    discarded: int
    culprit: str | None
    cold_start: float
    peak_memory: int
    engagement: Mapping[str, Any]
    throughput: float
    tp: int = 1
    devices: str = ""
    compile_time: float | None = None
    baseline_cold_start: float | None = None
    boundary: str = IN_PROCESS

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {
            "case": self.case.key,
            "model": self.case.model,
            "unit": METRICS[self.case.metric][1],
            "verdict": asdict(self.verdict) | {"outcome": self.verdict.outcome.value},
        }


@dataclass(frozen=True)
class ParityResult:
    """A backend's parity on one workload."""

    backend: str
    workload: str
    parity: Parity

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"backend": self.backend, "workload": self.workload, **asdict(self.parity)}
