"""A run as every report shows it, live or from its files. Pure.

A results file and a JSON report have the same rows, parities and loads. Whatever renders a report reads them through
here, so that a figure is the same in all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from pytest_llmperf.backends.base import CLIENT, TIME_IN_COLLECTIVES
from pytest_llmperf.cases import LATENCIES, METRICS, Case, place
from pytest_llmperf.gate.rule import Outcome
from pytest_llmperf.load import LoadRecord, LoadResult, attained
from pytest_llmperf.machine.doctor import Finding
from pytest_llmperf.report.text import boundaries, outcome, speedup
from pytest_llmperf.result import UNPROVEN, Arrivals, ParityResult, measured_model

#: Of a JSON report, and of the results file that every report is made of.
SCHEMA, RESULTS_SCHEMA = 2, 3


class ReportError(ValueError):
    """A file that no report can be made of; one line says why."""


@dataclass(frozen=True)
class Row:
    """A case.

    Attributes:
        result: as `pytest_llmperf.result.Result.as_dict` makes it, and the results file has it.
        parity: ``reference``, a standing of `ParityResult`, or None where it was not checked.
    """

    result: Mapping[str, Any]
    parity: str | None = None

    def __getitem__(self, path: str) -> Any:
        """A value of the result, such as ``throughput`` or ``verdict.ratio``; None where there is none."""
        found: Any = self.result
        for name in path.split("."):
            found = (found or {}).get(name)
        return found

    @cached_property
    def case(self) -> Case:
        return Case.parse(self.result.get("model", ""), self.result["case"])

    @property
    def metric(self) -> str:
        return self.case.metric

    @property
    def backend(self) -> str:
        return self.case.backend

    @property
    def workload(self) -> str:
        return str(self.case.workload)

    @property
    def label(self) -> str:
        """The case in a table of one model and dtype."""
        return f"{self.metric} {self.workload} {self.backend}"

    @property
    def median(self) -> float:
        return self.result["spread"]["median"]  # type: ignore[no-any-return]

    @property
    def quartiles(self) -> tuple[float, float]:
        spread = self.result["spread"]
        return spread["q1"], spread["q3"]

    @property
    def speedup(self) -> float | None:
        """The reference's median over this one's."""
        return self["speedup"]  # type: ignore[no-any-return]

    @property
    def shown_speedup(self) -> str:
        """The speedup, with a question mark where the reference was disturbed throughout."""
        return speedup(self.speedup) + "?" * bool(self.speedup and self["reference_disturbed"])

    @property
    def change(self) -> tuple[float | None, float | None, float | None]:
        """The ratio to the baseline or to base, and the ends of its 99 % interval."""
        return self["verdict.ratio"], self["verdict.low"], self["verdict.high"]

    @property
    def outcome(self) -> str:
        """The verdict's, or ``accepted`` where it was written to the baseline."""
        return "accepted" if self.result["accepted"] else self.result["verdict"]["outcome"]

    @property
    def shown_outcome(self) -> str:
        """The outcome in the words of its metric."""
        return outcome(self.outcome, self.metric)

    @property
    def tp(self) -> int:
        """How many devices share the model."""
        return self["tp"] or 1

    @property
    def collectives(self) -> float | None:
        """Share of the time in which its ranks exchange data."""
        return (self["engagement.seen"] or {}).get(TIME_IN_COLLECTIVES)

    @property
    def arrivals(self) -> Arrivals | None:
        """How its tokens came; None in files of older versions."""
        found = self["arrivals"]
        return None if found is None else Arrivals(**found)

    @property
    def mark(self) -> str:
        """What stands beside its figure where tokens came together."""
        return "" if self.arrivals is None else self.arrivals.mark(self.metric)

    @property
    def served(self) -> str:
        """Which model of a running server it is of, and where; empty where no server was running."""
        return measured_model(self["engagement"] or {})

    @property
    def correct(self) -> bool:
        """Whether its tokens were shown to be the reference's, or as near as its weights allow."""
        return self.parity not in (None, *UNPROVEN.values())


#: Every outcome that a report shows, the worst first.
OUTCOMES = (
    Outcome.REGRESSION.value,
    Outcome.INCONCLUSIVE.value,
    Outcome.NO_BASELINE.value,
    Outcome.NEW.value,
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
    parities: tuple[ParityResult, ...] = ()
    loads: tuple[LoadRecord, ...] = ()
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
        seen = [(row.backend, row["boundary"]) for row in self.rows]
        return boundaries([*seen, *((one.backend, CLIENT) for one in self.loads)])

    @property
    def servers(self) -> list[str]:
        """Which model each running server was asked for."""
        named = [*((row.backend, row.served) for row in self.rows), *((one.backend, one.served) for one in self.loads)]
        return [f"{backend}: model {served}" for backend, served in dict.fromkeys(named) if served]

    @property
    def chunks(self) -> list[str]:
        """Of which workloads tokens came together over the wire, and what their figures are then."""
        came = [(f"{row.backend} {row.workload}", row.arrivals) for row in self.rows if row.arrivals is not None]
        came += [(f"{one.backend} {one.workload} {one.traffic}", arrivals_of(one.result)) for one in self.loads]
        return [f"ICL: {name}: {found.said}" for name, found in dict(came).items() if found.said]

    @property
    def headline(self) -> str:
        """How it ended, in a few words: the counts of outcomes, the worst first."""
        parts = counted(self.rows)
        for standing in UNPROVEN.values():
            wrong = sorted({one.backend for one in self.wrong if one.standing == standing})
            parts += [f"{standing}: {', '.join(wrong)}"] if wrong else []
        parts += [f"{len(self.unmeasured)} not measured"] if self.unmeasured else []
        failed = sum(bool(one.result.failed) or not attained(one.result.met) for one in self.loads)
        parts += [f"{len(self.loads)} under load" + f" ({failed} failed)" * bool(failed)] if self.loads else []
        measured = "1 case" if len(self.rows) == 1 else f"{len(self.rows)} cases"
        return f"{measured}: {', '.join(parts)}" if parts else "nothing was measured"

    @property
    def wrong(self) -> list[ParityResult]:
        return [one for one in self.parities if not one.parity.passed]

    @property
    def unfit(self) -> list[Finding]:
        """What was not right about the machine, the worst first."""
        found = [one for one in self.findings if one.level in ("bad", "warn")]
        return sorted(found, key=lambda one: one.level)

    @property
    def regressions(self) -> list[Row]:
        """The slowest first."""
        found = [row for row in self.rows if row.outcome == Outcome.REGRESSION]
        return sorted(found, key=lambda row: -(row["verdict.ratio"] or 0))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: the JSON report, which has the same keys as a results file."""
        return {
            "schema": SCHEMA,
            "kind": "report",
            "headline": self.headline,
            **{name: getattr(self, name) for name in ABOUT},
            "unmeasured": list(self.unmeasured),
            "findings": [asdict(one) for one in self.findings],
            "results": [row.result for row in self.rows],
            "parity": [one.as_dict() for one in self.parities],
            "load": [asdict(one) for one in self.loads],
            "earlier": [one.as_dict() for one in self.earlier],
        }


#: What is said of a run as a whole.
ABOUT = ("device", "model", "dtype", "reference", "environment", "when", "commit")


def arrivals_of(result: LoadResult) -> Arrivals:
    """How the tokens of a load came."""
    return Arrivals(result.tokens, result.arrivals, result.first)


def counted(rows: Iterable[Row]) -> list[str]:
    """How many rows have each outcome, the worst first."""
    found = Counter((OUTCOMES.index(row.outcome), row.shown_outcome) for row in rows)
    return [f"{found[one]} {one[1]}" for one in sorted(found)]


def ranked(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: place(row.metric, row.case.workload))


def of(results: Mapping[str, Any]) -> Document:
    """The document of a results file's content, or of a JSON report's.

    Raises:
        ReportError: it is neither, or of another schema.
    """
    try:
        return _document(results)
    except ReportError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ReportError(f"it is no results file of pytest-llmperf ({type(error).__name__}: {error})") from None


def _document(data: Mapping[str, Any]) -> Document:
    """As `of`. Raises what content of another kind happens to raise."""
    if data["schema"] != (SCHEMA if data.get("kind") == "report" else RESULTS_SCHEMA):
        raise ReportError(f"its schema is {data['schema']!r}, and this version reads others")
    parities = tuple(map(ParityResult.from_dict, data["parity"]))
    standing = {(one.backend, one.workload): one.standing for one in parities}

    def row(result: Mapping[str, Any]) -> Row:
        found = Row(result)
        shown = standing.get((found.backend, found.workload))
        return Row(
            result, "reference" if found.backend == data["reference"] and shown not in UNPROVEN.values() else shown
        )

    rows = [row(result) for result in data["results"]]
    said = {word for one in rows for word in (one.outcome, one.metric)}
    if odd := said - {*OUTCOMES, *METRICS}:
        raise ReportError(f"it has outcomes or metrics that this version does not know: {', '.join(sorted(odd))}")
    _ = [(one.median, one.quartiles, one.arrivals) for one in rows]  # what no report can do without
    return Document(
        **{name: data[name] for name in ABOUT},
        rows=tuple(ranked(rows)),
        parities=parities,
        loads=tuple(map(_load, data["load"])),
        unmeasured=tuple(data["unmeasured"]),
        findings=tuple(Finding(**one) for one in data.get("findings", ())),  # not in older files
        earlier=tuple(map(_document, data.get("earlier", ()))),
    )


def _load(data: Mapping[str, Any]) -> LoadRecord:
    result = data["result"]
    percentiles = {name: tuple(values) for name, values in result["percentiles"].items()}
    kept = result | {"percentiles": percentiles, "errors": tuple(result["errors"])}
    return LoadRecord(**{**data, "result": LoadResult(**kept)})


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
        if row.metric in LATENCIES:
            groups.setdefault((row.metric, row.workload), []).append(row)
    found = []
    for group in groups.values():
        best = min((row for row in group if row.correct), key=lambda row: row.median, default=None)
        if best is not None:
            unproven = [row for row in group if row.parity is None and row.median < best.median]
            found.append(Advice(best, min(unproven, key=lambda row: row.median, default=None)))
    return found
