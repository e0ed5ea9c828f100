"""Documents to render, of as many rows as a test wants."""

from __future__ import annotations

from pytest_llmperf.report.document import Document, Row, ranked


def row(backend: str = "sim", metric: str = "tpot", median: float = 0.02, **other: object) -> Row:
    values = {
        "case": f"float32/{backend}/b1-p16-n8/{metric}",
        "model": "tiny",
        "dtype": "float32",
        "backend": backend,
        "batch_size": 1,
        "prompt_length": 16,
        "max_new_tokens": 8,
        "metric": metric,
        "unit": "s",
        "median": median,
        "q1": median * 0.9,
        "q3": median * 1.2,
        "minimum": median * 0.8,
        "maximum": median * 2,
        "samples": 5,
        "processes": 1,
        "outcome": "ok",
        "ratio": 1.01,
        "low": 0.97,
        "high": 1.04,
        "basis": "latency",
        "said": f"{backend} {metric}: as said",
    }
    return Row(**values | other)  # type: ignore[arg-type]


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
            batch_size=2**number,
            case=f"float32/{backend}/b{2**number}-p16-n8/{metric}",
            speedup=1.5,
            parity="reference" if backend == "ref" else "in parity",
            roof="MFU",
            utilization=0.3,
            limit="compute",
            flops=1e9,
            size=1e8,
            itl=(0.01, 0.015, 0.018, 0.02, 0.022, 0.03, 0.05) if metric == "tpot" else (),
            throughput=40.0,
            cold_start=3.0,
            peak_memory=2**30,
        )
        for number in range(rows)
        for backend in ("ref", "sim")
        for metric in ("ttft", "tpot", "latency")
    ]
    made += [
        row("sim+tp2", "tpot", 0.012, batch_size=1, case="float32/sim+tp2/b1-p16-n8/tpot", tp=2, collectives=0.3,
            devices="0,1: the best interconnect")
    ]  # fmt: skip
    return document(*made, environment={"peaks": {"flops": 1e12, "bandwidth": 1e10}, "versions": {"torch": "2"}})
