"""One case over many runs: which points belong to one line, and how it moved. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pytest_llmperf.report.document import Document, Row


@dataclass(frozen=True)
class Point:
    """A case's figures in one run: the run's name (a commit or a date), and median and quartiles (s)."""

    run: str
    median: float
    q1: float
    q3: float


@dataclass(frozen=True)
class Series:
    """A case over the runs that measured it, oldest first; at least two."""

    row: Row
    points: tuple[Point, ...]

    @property
    def ratio(self) -> float:
        """The newest median over the oldest: above 1 is slower."""
        return self.points[-1].median / self.points[0].median


def gather(documents: Sequence[Document]) -> tuple[Document, int]:
    """The newest document with the others of its device, model, dtype and machine as what came before it.

    Args:
        documents: at least one; those without a date count as older, in the order given.

    Returns:
        The document, and how many were left out as of something else: latencies of two machines make no line.
    """
    ordered = sorted(documents, key=lambda one: one.when or "")
    newest = ordered[-1]
    earlier = [one for one in ordered[:-1] if _subject(one) == _subject(newest)]
    return replace(newest, earlier=tuple(replace(one, earlier=()) for one in earlier)), len(ordered) - 1 - len(earlier)


def _subject(document: Document) -> tuple[object, ...]:
    return document.device, document.model, document.dtype, dict(document.environment.get("fingerprint") or {})


def series(document: Document) -> list[Series]:
    """Every case of the newest run that an earlier one measured too, in the newest's order."""
    runs = [*document.earlier, document]
    names = _names(runs)
    found = [{row.case: row for row in run.rows} for run in runs]
    made = [
        Series(
            row,
            tuple(_point(name, rows[row.case]) for name, rows in zip(names, found, strict=True) if row.case in rows),
        )
        for row in document.rows
    ]
    return [one for one in made if len(one.points) > 1]


def _point(run: str, row: Row) -> Point:
    return Point(run, row.median, row.q1, row.q3)


def _names(runs: Iterable[Document]) -> list[str]:
    """By commit; by date too where two have the same, or none."""
    names: list[str] = []
    for number, run in enumerate(runs, 1):
        commit = f"{run.commit[:9]}{'+' * run.commit.endswith('+')}" if run.commit else ""
        name = commit or run.when or f"run {number}"
        names.append(name if name not in names else f"{name}, {run.when or number}")
    return names
