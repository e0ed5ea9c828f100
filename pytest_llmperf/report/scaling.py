"""What more devices bring: a backend's latency by tensor-parallel degree, within one run. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pytest_llmperf.cases import LATENCIES
from pytest_llmperf.report.document import Row, ranked


@dataclass(frozen=True)
class Scaling:
    """A case whose model several devices share, beside the same on one.

    Attributes:
        row: the case.
        single: the same with one device; None where this run has not measured it.
    """

    row: Row
    single: Row | None

    @property
    def speedup(self) -> float | None:
        """How many times as fast as one device."""
        return None if self.single is None else self.single.median / self.row.median

    @property
    def efficiency(self) -> float | None:
        """The share of the devices' number that the speedup is: 1 where none is lost to collectives and waiting."""
        return None if self.speedup is None else self.speedup / self.row.tp


def alone(row: Row) -> str:
    """The backend's name without its degree."""
    return row.backend.removesuffix(f"+tp{row.tp}")


def of(rows: Iterable[Row]) -> list[Scaling]:
    """Every case of a degree above 1, by metric, workload, backend and degree."""
    known = {(row.metric, row.workload, row.backend): row for row in rows}
    shared = sorted((row for row in known.values() if row.tp > 1), key=lambda row: (alone(row), row.tp))
    return [
        Scaling(row, known.get((row.metric, row.workload, alone(row))))
        for row in ranked(shared)
        if row.metric in LATENCIES
    ]


def placed(rows: Iterable[Row]) -> list[str]:
    """Which devices each backend used and why, a line each, where somebody chose."""
    return list(dict.fromkeys(f"{row.backend} on devices {row['devices']}" for row in rows if row["devices"]))
