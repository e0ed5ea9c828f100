"""The tables that reports share: what a cell shows, and the number behind it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pytest_llmperf.explain.starts import PARTS
from pytest_llmperf.load import LoadRecord
from pytest_llmperf.report import reasons, scaling, text
from pytest_llmperf.report.document import Document, Row, advice, arrivals_of
from pytest_llmperf.report.trend import Series
from pytest_llmperf.result import ParityResult


@dataclass(frozen=True)
class Cell:
    """What is shown, and what a column is sorted by where that is a number; None where it is missing."""

    shown: str
    key: float | None = None


CASES = (
    "metric",
    "workload",
    "backend",
    "median [q1, q3]",
    "speedup",
    "roof",
    "change [99 %]",
    "at most",
    "verdict",
    "parity",
)
#: What a reader of one backend's cost wants beside them, where there is room.
COSTS = ("tokens/s", "peak memory", "loaded", "load", "warm-up", "tokens/J")


def of_case(row: Row) -> list[Cell]:
    """The cells under `CASES`."""
    return [
        *_names(row),
        Cell(text.spread(row.median, *row.quartiles, row.metric, row.mark), row.median),
        Cell(row.shown_speedup, row.speedup),
        Cell(text.roof(row["utilization.name"], row["utilization.fraction"]), row["utilization.fraction"]),
        Cell(text.change(*row.change), row.change[0]),
        at_most(row),
        Cell(row.shown_outcome),
        Cell(row.parity or "-"),
    ]


def _names(row: Row) -> list[Cell]:
    return [Cell(row.metric), Cell(row.workload), Cell(row.backend)]


def at_most(row: Row) -> Cell:
    """The largest slowdown that the comparison could not exclude."""
    found = row["verdict.not_excluded"]
    return Cell(text.slowdown(found), found)


def costs(row: Row) -> list[Cell]:
    """The cells under `COSTS`."""
    throughput, per_joule = row["throughput"], row["tokens_per_joule"]
    return [
        Cell("-" if throughput is None else f"{throughput:.1f}", throughput),
        *memory(row),
        *loading(row),
        Cell("-" if per_joule is None else f"{per_joule:.3g}", per_joule),
    ]


def memory(row: Row) -> list[Cell]:
    """Bytes in use at most during a generation, and those of them that were in use when the engine was ready."""
    return [Cell(text.memory(size), size) for size in (row["peak_memory"], row["loaded_memory"])]


def loading(row: Row) -> list[Cell]:
    """Seconds that loading took, imports included, and by how many the first generation exceeds a settled one."""
    return [Cell(text.seconds(found), found) for found in (row["load"], row["compile_time"])]


STARTS = ("start", "workload", "backend", *PARTS)


def of_starts(rows: Iterable[Row]) -> list[list[Cell]]:
    """The parts of each start, with those of the baseline in brackets: the cells under `STARTS`."""
    return [
        [*_names(row), *(_part(row["start"][name], (row["baseline_start"] or {}).get(name)) for name in PARTS)]
        for row in rows
        if row["start"]
    ]


def _part(now: float, recorded: float | None) -> Cell:
    return Cell(text.seconds(now) + ("" if recorded is None else f" ({recorded:.2f})"), now)


LOADING = ("backend", "workload", "load", "warm-up", "peak memory", "loaded")


def of_loading(rows: Iterable[Row]) -> list[list[Cell]]:
    """What was loaded of each backend and workload, but for starts: the cells under `LOADING`."""
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        if not row.case.start:
            first.setdefault((row.backend, row.workload), row)
    return [
        [
            Cell(row.backend),
            Cell(row.workload),
            *loading(row),
            *memory(row),
        ]
        for row in first.values()
    ]


ENGINES = ("backend", "threads", "computes in", "kernels", "versions", "variables", "variant")


def of_engines(rows: Iterable[Row]) -> list[list[Cell]]:
    """What the figures of each backend depend on beside the code: the cells under `ENGINES`."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.backend, row)
    return [
        [
            Cell(row.backend),
            Cell(str(row["engine.threads"] or "-"), row["engine.threads"]),
            Cell(row["engine.compute_dtype"] or "-"),
            Cell("; ".join(f"{kind}: {names}" for kind, names in (row["implementations"] or {}).items()) or "-"),
            Cell(", ".join(f"{name} {version}" for name, version in (row["engine.versions"] or {}).items()) or "-"),
            Cell(", ".join(f"{name}={value}" for name, value in (row["engine.environment"] or {}).items()) or "-"),
            Cell(row["engine.variant"] or "-"),
        ]
        for row in first.values()
        if row["engine"]
    ]


PARITY = (
    "backend",
    "workload",
    "parity",
    "exact",
    "first apart at",
    "largest regret",
    "allowed",
    "logit error",
    "informative",
    "reason",
)


def of_parity(found: Iterable[ParityResult]) -> list[list[Cell]]:
    """What was found of each backend's tokens: the cells under `PARITY`."""
    return [
        [
            Cell(one.backend),
            Cell(one.workload),
            Cell(one.standing),
            Cell(f"{one.parity.exact_match:.1%}", one.parity.exact_match),
            Cell(*_number(one.parity.first_divergence, "d")),
            Cell(*_number(None if one.parity.by_text else one.parity.largest_regret, ".3g")),
            Cell(*_number(None if one.parity.by_text else one.parity.tolerance, ".3g")),
            Cell(*_number(one.parity.error_ratio, ".2f")),
            Cell(f"{one.parity.informative} of {one.parity.tokens}", one.parity.informative),
            Cell(one.parity.reason or "-"),
        ]
        for one in found
    ]


def _number(value: float | None, form: str) -> tuple[str, float | None]:
    return ("-" if value is None else format(value, form)), value


REASONS = ("verdict", "reason", "to settle it", "cases")


def of_reasons(rows: Iterable[Row]) -> list[list[Cell]]:
    """Why verdicts are as they are: the cells under `REASONS`."""
    return [
        [
            Cell(one.outcome),
            Cell(one.said),
            Cell(one.remedy or "-"),
            Cell(", ".join(row.label for row in one.rows), len(one.rows)),
        ]
        for one in reasons.of(rows)
    ]


DISTURBED = ("backend", "workload", "disturbed", "discarded", "mostly by")


def of_disturbed(document: Document) -> list[list[Cell]]:
    """Workloads some of whose generations something disturbed: the cells under `DISTURBED`."""
    return [
        [
            Cell(row.backend),
            Cell(row.workload),
            Cell(text.share(row["contamination"]), row["contamination"]),
            Cell(str(row["discarded"] or "all kept"), row["discarded"]),
            Cell(row["culprit"] or "-"),
        ]
        for row in reasons.disturbances(document)
    ]


ADVICE = (
    "metric",
    "workload",
    "fastest in parity",
    "median",
    "speedup",
    "roof",
    *COSTS,
    "faster, parity not shown",
)


def of_advice(rows: Iterable[Row]) -> list[list[Cell]]:
    """What to run, a line for each metric and workload: the cells under `ADVICE`."""
    return [
        [
            *_names(one.row),
            Cell(text.figure(one.row.median, one.row.metric), one.row.median),
            Cell(one.row.shown_speedup, one.row.speedup),
            Cell(text.far(*roof(one.row)), one.row["utilization.fraction"]),
            *costs(one.row),
            Cell("-" if one.unproven is None else one.unproven.backend),
        ]
        for one in advice(rows)
    ]


def roof(row: Row) -> tuple[str | None, float | None, str | None]:
    """Which utilization, how much of the roof, and which roof binds."""
    return row["utilization.name"], row["utilization.fraction"], row["utilization.limit"]


SCALING = ("metric", "workload", "backend", "dies", "median", "of one die's speed", "efficiency", "in collectives")


def of_scaling(rows: Iterable[Row]) -> list[list[Cell]]:
    """What more devices bring: the cells under `SCALING`."""
    return [
        [
            *_names(one.row),
            Cell(str(one.row.tp), one.row.tp),
            Cell(text.figure(one.row.median, one.row.metric), one.row.median),
            Cell(text.speedup(one.speedup), one.speedup),
            Cell(text.share(one.efficiency), one.efficiency),
            Cell(text.share(one.row.collectives), one.row.collectives),
        ]
        for one in scaling.of(rows)
    ]


LOAD = (
    "backend",
    "workload",
    "traffic",
    "failed",
    *(f"{name} p50 / p90 / p99" for name in ("TTFT", "ITL", "latency")),
    "requests/s",
    "tokens/s",
    "goodput",
    "met",
)


def of_load(found: Iterable[LoadRecord]) -> list[list[Cell]]:
    """Servers under load: the cells under `LOAD`."""
    rows = []
    for one in found:
        result = one.result
        percentiles = ((name, result.percentiles[name]) for name in ("ttft", "itl", "latency"))
        came = arrivals_of(result)
        rows.append(
            [
                Cell(one.backend),
                Cell(one.workload),
                Cell(one.traffic),
                Cell(
                    f"{result.failed} of {result.requests}" + f" (+{result.early} ended early)" * bool(result.early),
                    result.failed,
                ),
                *(Cell(text.percentiles(values) + came.mark(name), values[-1]) for name, values in percentiles),
                Cell(f"{result.rate:.2f}", result.rate),
                Cell(f"{result.throughput:.1f}", result.throughput),
                Cell("-" if result.goodput is None else f"{result.goodput:.2f}/s", result.goodput),
                Cell(text.share(result.met), result.met),
            ]
        )
    return rows


TREND = ("metric", "workload", "backend", "runs", "first", "last", "change")


def of_trend(found: Iterable[Series]) -> list[list[Cell]]:
    """How each case moved, from the oldest run to the newest: the cells under `TREND`."""
    return [
        [
            *_names(one.row),
            Cell(str(len(one.points)), len(one.points)),
            *(Cell(text.figure(at.median, one.row.metric), at.median) for at in (one.points[0], one.points[-1])),
            Cell(f"{one.ratio - 1:+.1%}", one.ratio),
        ]
        for one in found
    ]
