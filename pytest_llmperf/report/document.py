"""What every report shows: a run's results as flat rows of plain values, live or from its results file. Pure.

The results file (`pytest_llmperf.report.results`) is the one source: whatever renders a report reads it through here,
so that a figure is the same in all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain
from statistics import fmean
from typing import Any

from pytest_llmperf.backends.base import CLIENT, IN_PROCESS, TIME_IN_COLLECTIVES
from pytest_llmperf.cases import METRICS, Case, Workload, place
from pytest_llmperf.gate.verdict import Outcome, quantile
from pytest_llmperf.load import attained
from pytest_llmperf.machine.doctor import Finding
from pytest_llmperf.measure.trace import Trace
from pytest_llmperf.report.text import boundaries

#: Of a JSON report, and of the results file that every report is made of.
SCHEMA, RESULTS_SCHEMA = 1, 2


class ReportError(ValueError):
    """A file that no report can be made of; one line says why."""


@dataclass(frozen=True)
class Row:
    """A case: its figures, its verdict, and what was seen of the backend. Times in seconds; None where there is none.

    Attributes:
        case: its key in the baseline file.
        median, q1, q3, minimum, maximum: of the samples of the first process.
        samples, processes: how many samples that process made; how many processes were measured.
        speedup: the reference's median over this one's.
        roof, utilization: MFU or MBU, and the fraction.
        bound, limit: the shortest latency that the roofs allow, and which of them says so.
        flops, size: FLOPs and bytes of the work.
        itl: the 1st, 10th, 25th, 50th, 75th, 90th and 99th percentile of the gaps between tokens.
        throughput: output tokens per second.
        cold_start: s. compile_time: s of it that the first generation took beyond a settled one.
        peak_memory: bytes. tokens_per_joule: output tokens.
        tp: how many devices share the model. devices: which, and why they were chosen. collectives: share of the time
            in which its ranks exchange data.
        parity: ``reference``, ``in parity``, ``in parity by text``, ``bounded``, ``not in parity``, or None where it
            was not checked.
        boundary: where the latency was seen: in process, or as the client of a server.
        outcome: the verdict's, or ``accepted`` where it was written to the baseline.
        ratio, low, high, threshold, resolution, basis, reason: the verdict's.
        tolerance, tolerance_source: the slowdown allowed, and where that was stated.
        said: the verdict as one sentence.
    """

    case: str
    model: str
    dtype: str
    backend: str
    batch_size: int
    prompt_length: int
    max_new_tokens: int
    metric: str
    unit: str
    median: float
    q1: float
    q3: float
    minimum: float
    maximum: float
    samples: int
    processes: int
    outcome: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    threshold: float | None = None
    resolution: float | None = None
    basis: str | None = None
    reason: str = ""
    tolerance: float | None = None
    tolerance_source: str = ""
    said: str = ""
    speedup: float | None = None
    roof: str | None = None
    utilization: float | None = None
    bound: float | None = None
    limit: str | None = None
    flops: float | None = None
    size: float | None = None
    throughput: float | None = None
    cold_start: float | None = None
    compile_time: float | None = None
    peak_memory: int | None = None
    tokens_per_joule: float | None = None
    tp: int = 1
    devices: str = ""
    collectives: float | None = None
    parity: str | None = None
    boundary: str = IN_PROCESS
    itl: tuple[float, ...] = ()

    @property
    def sizes(self) -> Workload:
        return Workload(self.batch_size, self.prompt_length, self.max_new_tokens)

    @property
    def workload(self) -> str:
        return str(self.sizes)

    @property
    def correct(self) -> bool:
        """Whether its tokens were shown to be the reference's, or as near as its weights allow."""
        return self.parity in ("reference", "in parity", "in parity by text", "bounded")


ITL_PERCENTILES = (0.01, 0.10, 0.25, 0.50, 0.75, 0.90, 0.99)


@dataclass(frozen=True)
class ParityRow:
    """What was found of a backend's tokens on a workload, in the words of `Row.parity`, and why."""

    backend: str
    workload: str
    standing: str
    reason: str

    def against(self, reference: str) -> str:
        """What is said of one that is not in parity."""
        return f"{self.backend} {self.workload}: not in parity with {reference}: {self.reason}"


@dataclass(frozen=True)
class LoadRow:
    """A server under load; what `LoadResult` has, flat. Times in seconds, percentiles as in `load.PERCENTILES`."""

    backend: str
    workload: str
    traffic: str
    objectives: Mapping[str, float]
    requests: int
    failed: int
    seconds: float
    ttft: tuple[float | None, ...]
    itl: tuple[float | None, ...]
    latency: tuple[float | None, ...]
    throughput: float
    rate: float
    goodput: float | None
    met: float | None
    lag: float
    errors: tuple[str, ...]


#: Every outcome that a report shows, the worst first.
OUTCOMES = (
    Outcome.REGRESSION.value,
    Outcome.INCONCLUSIVE.value,
    Outcome.NO_BASELINE.value,
    Outcome.NEW.value,
    Outcome.INCOMPARABLE.value,
    Outcome.FASTER.value,
    Outcome.OK.value,
    "accepted",
)


@dataclass(frozen=True)
class Document:
    """A run, or what was measured of it before it was interrupted.

    Attributes:
        device, model, dtype, reference: what was measured, and what speedup and parity refer to.
        environment: ``fingerprint``, ``versions`` and ``peaks`` as in the baselines, as far as known.
        rows: a case each, in the order of `ranked`.
        parities: a backend and workload each whose parity was checked.
        loads: servers under load.
        unmeasured: the tests that were to gate a case and have no figure.
        findings: what was not right about the machine, or could not be read.
        when, commit: ISO 8601 and the revision under test, where known.
        earlier: runs of the same on the same machine, oldest first, where a report is made of several.
    """

    device: str
    model: str
    dtype: str
    reference: str
    environment: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    parities: tuple[ParityRow, ...] = ()
    loads: tuple[LoadRow, ...] = ()
    unmeasured: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    when: str | None = None
    commit: str | None = None
    earlier: tuple[Document, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.model}, {self.dtype}, {self.device}"

    @property
    def boundary(self) -> str:
        """Where its latencies were seen."""
        seen = [(row.backend, row.boundary) for row in self.rows]
        return boundaries([*seen, *((one.backend, CLIENT) for one in self.loads)])

    @property
    def headline(self) -> str:
        """How it ended, in a few words: the counts of outcomes, the worst first."""
        found = Counter(row.outcome for row in self.rows)
        parts = [f"{found[name]} {name}" for name in OUTCOMES if found[name]]
        wrong = sorted({one.backend for one in self.wrong})
        parts += [f"not in parity: {', '.join(wrong)}"] if wrong else []
        parts += [f"{len(self.unmeasured)} not measured"] if self.unmeasured else []
        failed = sum(bool(one.failed) or not attained(one.met) for one in self.loads)
        parts += [f"{len(self.loads)} under load" + f" ({failed} failed)" * bool(failed)] if self.loads else []
        measured = "1 case" if len(self.rows) == 1 else f"{len(self.rows)} cases"
        return f"{measured}: {', '.join(parts)}" if parts else "nothing was measured"

    @property
    def wrong(self) -> list[ParityRow]:
        return [one for one in self.parities if one.standing == "not in parity"]

    @property
    def unfit(self) -> list[Finding]:
        """What was not right about the machine, the worst first."""
        found = [one for one in self.findings if one.level in ("bad", "warn")]
        return sorted(found, key=lambda one: one.level)

    @property
    def regressions(self) -> list[Row]:
        """The slowest first."""
        found = [row for row in self.rows if row.outcome == Outcome.REGRESSION]
        return sorted(found, key=lambda row: -(row.ratio or 0))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: the JSON report."""
        said = {"schema": SCHEMA, "kind": "report", "headline": self.headline}
        return said | asdict(replace(self, earlier=())) | {"earlier": [one.as_dict() for one in self.earlier]}


#: What a results file and a report say of a run in the same words.
ABOUT = ("device", "model", "dtype", "reference", "environment", "when", "commit")


def ranked(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: place(row.metric, row.sizes))


def of(results: Mapping[str, Any]) -> Document:
    """The document of a results file's content, or of a JSON report's.

    Raises:
        ReportError: it is neither, or of another schema.
    """
    try:
        report = results.get("kind") == "report"
        if results["schema"] != (SCHEMA if report else RESULTS_SCHEMA):
            raise ReportError(f"its schema is {results['schema']!r}, and this version reads others")
        found = _report(results) if report else _document(results)
        said = {word for row in found.rows for word in (row.outcome, row.metric)}
        if odd := said - {*OUTCOMES, *METRICS}:
            raise ReportError(f"it has outcomes or metrics that this version does not know: {', '.join(sorted(odd))}")
    except ReportError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ReportError(f"it is no results file of pytest-llmperf ({type(error).__name__}: {error})") from None
    return found


def _report(data: Mapping[str, Any]) -> Document:
    return Document(
        **{name: data[name] for name in ABOUT},
        rows=tuple(Row(**row | {"itl": tuple(row["itl"])}) for row in data["rows"]),
        parities=tuple(ParityRow(**one) for one in data["parities"]),
        loads=tuple(map(_load, data.get("loads", ()))),
        unmeasured=tuple(data["unmeasured"]),
        findings=_findings(data),
        earlier=tuple(map(_report, data["earlier"])),
    )


def _document(results: Mapping[str, Any]) -> Document:
    parities = tuple(
        ParityRow(one["backend"], one["workload"], _standing(one), one["reason"]) for one in results["parity"]
    )
    measured: dict[tuple[str, str], Mapping[str, Any]] = {}
    for one in results["measurements"]:  # the first process of each comes first
        measured.setdefault((one["backend"], str(Workload(**one["workload"]))), one)
    standing = {(one.backend, one.workload): one.standing for one in parities}
    rows = [_row(result, results, standing, measured) for result in results["results"]]
    return Document(
        **{name: results[name] for name in ABOUT},
        rows=tuple(ranked(rows)),
        parities=parities,
        loads=tuple(_load(one | one["result"] | one["result"]["percentiles"]) for one in results.get("load", ())),
        unmeasured=tuple(results["unmeasured"]),
        findings=_findings(results),
    )


def _load(data: Mapping[str, Any]) -> LoadRow:
    """A row of plain values: lists are what JSON has for tuples, and it may hold more than the row."""
    known = {one.name for one in fields(LoadRow)}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in data.items() if name in known
    }
    return LoadRow(**values)


def _findings(data: Mapping[str, Any]) -> tuple[Finding, ...]:
    """None in a file of before there were any."""
    return tuple(Finding(**one) for one in data.get("findings", ()))


def _standing(parity: Mapping[str, Any]) -> str:
    if not parity["passed"]:
        return "not in parity"
    if parity.get("by_text"):
        return "in parity by text"
    return "bounded" if parity["bounded"] else "in parity"


def _row(
    result: Mapping[str, Any],
    results: Mapping[str, Any],
    parity: Mapping[tuple[str, str], str],
    measured: Mapping[tuple[str, str], Mapping[str, Any]],
) -> Row:
    case = Case.parse(result["model"], result["case"])
    backend, workload, metric = case.backend, str(case.workload), case.metric
    roof = result["utilization"] or {}
    spread, found = result["spread"], result["verdict"]
    measurement = measured.get((backend, workload), {"samples": ()})
    standing = parity.get((backend, workload))
    if backend == results["reference"] and standing != "not in parity":
        standing = "reference"
    return Row(
        case=result["case"],
        model=result["model"],
        dtype=results["dtype"],
        backend=backend,
        **asdict(case.workload),
        metric=metric,
        unit=result["unit"],
        **{name: spread[name] for name in ("median", "q1", "q3", "minimum", "maximum")},
        samples=spread["n"],
        processes=found["processes"] if found["basis"] == "base" else len(result["invocations"]),
        outcome="accepted" if result["accepted"] else found["outcome"],
        **{name: found[name] for name in ("ratio", "low", "high", "threshold", "resolution", "basis")},
        **{name: result[name] for name in ("tolerance", "tolerance_source", "said", "speedup", "throughput")},
        **{name: result[name] for name in ("cold_start", "peak_memory")},
        reason=found["reason"],
        roof=roof.get("name"),
        utilization=roof.get("fraction"),
        bound=roof.get("bound"),
        limit=roof.get("limit"),
        flops=roof.get("flops"),
        size=roof.get("size"),
        # The power is one device's.
        tokens_per_joule=_tokens_per_joule(measurement["samples"], result["throughput"])
        if result.get("tp", 1) == 1
        else None,
        compile_time=result.get("compile_time"),
        tp=result.get("tp", 1),
        devices=result.get("devices", ""),
        collectives=result["engagement"].get("seen", {}).get(TIME_IN_COLLECTIVES),
        parity=standing,
        boundary=result["boundary"],
        itl=_itl(measurement["samples"]) if metric == "tpot" else (),
    )


def _itl(samples: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    gaps = list(chain.from_iterable(Trace(**sample["trace"]).itl for sample in samples))
    return tuple(quantile(gaps, at) for at in ITL_PERCENTILES) if gaps else ()


def _tokens_per_joule(samples: Sequence[Mapping[str, Any]], throughput: float | None) -> float | None:
    """Output tokens per second over the mean power (W) that the device gave; None where it gives none."""
    gpus = [sample["fitness"]["gpu"] for sample in samples]
    watts = [gpu["power"] for gpu in gpus if gpu is not None and gpu["power"]]
    return throughput / fmean(watts) if watts and throughput else None


@dataclass(frozen=True)
class Advice:
    """The fastest backend of a workload that is in parity, by one metric.

    Attributes:
        row: its case.
        unproven: the fastest of those that are faster and whose parity was not checked; None if there is none.
    """

    row: Row
    unproven: Row | None


def advice(rows: Iterable[Row]) -> list[Advice]:
    """What to run, for each metric and workload of which some backend is in parity. The reference needs no proof."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in ranked(rows):
        groups.setdefault((row.metric, row.workload), []).append(row)
    found = []
    for group in groups.values():
        best = min((row for row in group if row.correct), key=lambda row: row.median, default=None)
        if best is not None:
            unproven = [row for row in group if row.parity is None and row.median < best.median]
            found.append(Advice(best, min(unproven, key=lambda row: row.median, default=None)))
    return found
