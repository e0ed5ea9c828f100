"""The tables that reports share: what a cell shows, and the number behind it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pytest_llmperf.report import scaling, text
from pytest_llmperf.report.document import LoadRow, Row, advice
from pytest_llmperf.report.trend import Series


@dataclass(frozen=True)
class Cell:
    """What is shown, and what a column is sorted by where that is a number; None where it is missing."""

    shown: str
    key: float | None = None


CASES = ("metric", "workload", "backend", "median [q1, q3]", "speedup", "roof", "change [99 %]", "verdict", "parity")
#: What a reader of one backend's cost wants beside them, where there is room.
COSTS = ("tokens/s", "peak memory", "cold start", "of it compiling", "tokens/J")


def of_case(row: Row) -> list[Cell]:
    """The cells under `CASES`."""
    return [
        *_names(row),
        Cell(text.spread(row.median, row.q1, row.q3, row.metric), row.median),
        Cell(text.speedup(row.speedup), row.speedup),
        Cell(text.roof(row.roof, row.utilization), row.utilization),
        Cell(text.change(row.ratio, row.low, row.high), row.ratio),
        Cell(row.outcome),
        Cell(row.parity or "-"),
    ]


def _names(row: Row) -> list[Cell]:
    return [Cell(row.metric), Cell(row.workload), Cell(row.backend)]


def costs(row: Row) -> list[Cell]:
    """The cells under `COSTS`."""
    return [
        Cell("-" if row.throughput is None else f"{row.throughput:.1f}", row.throughput),
        Cell(text.memory(row.peak_memory), row.peak_memory),
        Cell("-" if row.cold_start is None else text.figure(row.cold_start, "cold-start"), row.cold_start),
        Cell("-" if row.compile_time is None else text.figure(row.compile_time, "cold-start"), row.compile_time),
        Cell("-" if row.tokens_per_joule is None else f"{row.tokens_per_joule:.3g}", row.tokens_per_joule),
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
            Cell(text.speedup(one.row.speedup), one.row.speedup),
            Cell(text.far(one.row.roof, one.row.utilization, one.row.limit), one.row.utilization),
            *costs(one.row),
            Cell("-" if one.unproven is None else one.unproven.backend),
        ]
        for one in advice(rows)
    ]


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


def of_load(rows: Iterable[LoadRow]) -> list[list[Cell]]:
    """Servers under load: the cells under `LOAD`."""
    return [
        [
            Cell(one.backend),
            Cell(one.workload),
            Cell(one.traffic),
            Cell(f"{one.failed} of {one.requests}", one.failed),
            *(Cell(text.percentiles(values), values[-1]) for values in (one.ttft, one.itl, one.latency)),
            Cell(f"{one.rate:.2f}", one.rate),
            Cell(f"{one.throughput:.1f}", one.throughput),
            Cell("-" if one.goodput is None else f"{one.goodput:.2f}/s", one.goodput),
            Cell(text.share(one.met), one.met),
        ]
        for one in rows
    ]


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
