"""What a reader of the figures has to know beside them, each said once with its cases. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pytest_llmperf.report.document import Document, Row


def of(document: Document) -> list[str]:
    """The notes of a run, a line each."""
    return [
        *_each(document.rows, lambda row: row["engine.variant"] and f"{row.backend} is {row['engine.variant']}"),
        *_each(document.rows, lambda row: row["roofless"]),
        *_each(
            document.rows,
            lambda row: row["speedup"] and row["reference_disturbed"],
            f"?: {document.reference} was disturbed throughout, so a speedup over it tells little: ",
        ),
        *_each(document.rows, lambda row: row["slow_start"]),
        *_each(document.rows, lambda row: row["changed"], "changed since the baseline was recorded: "),
        *_each(document.rows, lambda row: row["kernels_changed"], "kernels changed: "),
    ]


def _each(rows: Iterable[Row], said: Callable[[Row], str | None], start: str = "") -> list[str]:
    """A line for each thing that is said of rows, with the first of them and how many others there are."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if what := said(row):
            found.setdefault(what, []).append(row)
    return [f"{start}{what} ({_cases(group)})" for what, group in found.items()]


def _cases(rows: list[Row]) -> str:
    return rows[0].label + (f" and {len(rows) - 1} more" if len(rows) > 1 else "")
