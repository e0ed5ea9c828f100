"""One case over many runs: which points belong to one line, and how it moved. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from pytest_llmperf.machine.fingerprint import Fingerprint
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
    runs: list[Document] = []
    for one in chain.from_iterable((*document.earlier, document) for document in documents):
        alone = replace(one, earlier=())
        if alone.when is None or all(_identity(alone) != _identity(other) for other in runs):
            runs.append(alone)  # else a results file and a report of the same run
    *older, newest = sorted(runs, key=lambda one: one.when or "")
    earlier = tuple(one for one in older if _subject(one) == _subject(newest) and same_machine(one, newest))
    return replace(newest, earlier=earlier), len(older) - len(earlier)


def _identity(document: Document) -> tuple[str | None, ...]:
    return *_subject(document), document.when, document.commit


def _subject(document: Document) -> tuple[str, ...]:
    return document.device, document.model, document.dtype


def same_machine(one: Document, other: Document) -> bool:
    """Whether two runs' latencies may be compared, as the gate sees it."""
    found = [Fingerprint.from_dict(run.environment.get("fingerprint") or {}) for run in (one, other)]
    return not found[0].difference(found[1])


def series(document: Document) -> list[Series]:
    """Every case of the newest run that an earlier one measured too, in the newest's order."""
    runs = [*document.earlier, document]
    names = run_names(document)
    found = [{row.case.key: row for row in run.rows} for run in runs]
    made = [
        Series(
            row,
            tuple(
                _point(name, rows[row.case.key])
                for name, rows in zip(names, found, strict=True)
                if row.case.key in rows
            ),
        )
        for row in document.rows
    ]
    return [one for one in made if len(one.points) > 1]


def _point(run: str, row: Row) -> Point:
    return Point(run, row.median, *row.quartiles)


def run_names(document: Document) -> list[str]:
    """Of its runs, oldest first, each another: by commit, else by date, with a number where it repeats."""
    names: list[str] = []
    for number, run in enumerate((*document.earlier, document), 1):
        commit = f"{run.commit[:9]}{'+' * run.commit.endswith('+')}" if run.commit else ""
        name = commit or run.when or f"run {number}"
        names.append(name if name not in names else f"{name} ({number})")
    return names
