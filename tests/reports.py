"""Documents to render, of as many rows as a test wants."""

from __future__ import annotations

from typing import Any

from pytest_llmperf.backends.base import TIME_IN_COLLECTIVES
from pytest_llmperf.parity.decision import Parity
from pytest_llmperf.report.document import Document, Row, ranked
from pytest_llmperf.result import ParityResult

#: Where a result has a value that is not on its first level.
PLACES = {
    **dict.fromkeys(("median", "q1", "q3", "minimum", "maximum", "n"), "spread"),
    **dict.fromkeys(("outcome", "ratio", "low", "high", "not_excluded", "basis", "reason", "remedy"), "verdict"),
    **dict.fromkeys(("name", "fraction", "bound", "limit", "flops", "size"), "utilization"),
}


def row(
    backend: str = "sim",
    metric: str = "tpot",
    median: float = 0.02,
    workload: str = "b1-p16-n8",
    parity: str | None = None,
    **other: Any,
) -> Row:
    """A row; ``other`` by the names of the results file, those within a mapping too."""
    values = {
        "case": f"float32/{backend}/{workload}/{metric}",
        "model": "tiny",
        "unit": "s",
        "median": median,
        "q1": median * 0.9,
        "q3": median * 1.2,
        "minimum": median * 0.8,
        "maximum": median * 2,
        "n": 5,
        "processes": 1,
        "outcome": "ok",
        "ratio": 1.01,
        "low": 0.97,
        "high": 1.04,
        "not_excluded": 0.04,
        "basis": "stored",
        "reason": "",
        "remedy": "",
        "accepted": False,
        "boundary": "in process",
        "said": f"{backend} {metric}: as said",
    }
    result: dict[str, Any] = {}
    for name, value in (values | other).items():
        (result.setdefault(PLACES[name], {}) if name in PLACES else result)[name] = value
    return Row(result, parity)


def parity(backend: str = "sim", workload: str = "b1-p16-n8", reason: str = "", **other: Any) -> ParityResult:
    values = {
        "passed": not reason,
        "reason": reason,
        "tokens": 48,
        "informative": 40,
        "exact_match": 1.0,
        "first_divergence": None,
        "largest_regret": 0.0,
        "tolerance": 0.25,
        "error_ratio": 1.0,
    }
    return ParityResult(backend, workload, Parity(**values | other))


def document(*rows: Row, **other: object) -> Document:
    values = {"device": "cpu", "model": "tiny", "dtype": "float32", "reference": "ref"}
    return Document(**values | other, rows=tuple(ranked(rows)))  # type: ignore[arg-type]


def full(rows: int = 1) -> Document:
    """Everything that a figure is drawn of."""
    made = [
        row(
            backend,
            metric,
            0.02 * (1 + number),
            f"b{2**number}-p16-n8",
            "reference" if backend == "ref" else "in parity",
            speedup=1.5,
            name="MFU",
            fraction=0.3,
            limit="compute",
            flops=1e9,
            size=1e8,
            itl=[0.01, 0.015, 0.018, 0.02, 0.022, 0.03, 0.05] if metric == "tpot" else None,
            throughput=40.0,
            load=3.0,
            peak_memory=2**30,
        )
        for number in range(rows)
        for backend in ("ref", "sim")
        for metric in ("ttft", "tpot", "latency")
    ]
    made += [
        row(
            "sim+tp2",
            "tpot",
            0.012,
            tp=2,
            engagement={"seen": {TIME_IN_COLLECTIVES: 0.3}},
            devices="0,1: the best interconnect",
        )
    ]
    return document(*made, environment={"peaks": {"flops": 1e12, "bandwidth": 1e10}, "versions": {"torch": "2"}})
