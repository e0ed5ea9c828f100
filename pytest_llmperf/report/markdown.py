"""The report as a reviewer reads it in a pull request: the verdict, what got slower, then everything, folded. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pytest_llmperf.report import cells, notes, scaling, trend
from pytest_llmperf.report.cells import Cell
from pytest_llmperf.report.document import Document, Row

#: A comment on GitHub takes 65,536 characters. Each part of the report has its share, and says what it leaves out.
LINES, CASES, OTHERS = 20, 14_000, 6_000
#: The parts that say why.
REASONS = 3_000


def render(document: Document) -> str:
    """GitHub-flavoured Markdown."""
    moved = sorted(trend.series(document), key=lambda one: -one.ratio)
    worst = {"regression": 0, "inconclusive": 1}
    cases = sorted(document.rows, key=lambda row: worst.get(row.outcome, 2))  # what does not fit is what is fine
    parts = [
        f"### llmperf: {plain(document.headline)}",
        plain(f"{document.title}; {document.boundary}"),
        _lines([*document.servers, *document.chunks]),
        _regressions(document.regressions),
        _lines(one.against(document.reference) for one in document.wrong),
        _lines(notes.of(document)),
        _folded("What to run", _table(cells.ADVICE, cells.of_advice(document.rows))),
        _folded(
            "Tensor parallelism",
            "\n\n".join(
                filter(
                    None,
                    (
                        _table(cells.SCALING, cells.of_scaling(document.rows)),
                        _lines(scaling.placed(document.rows)),
                    ),
                )
            ),
        ),
        _folded("Under load", _table(cells.LOAD, cells.of_load(document.loads))),
        _folded(f"Over {len(document.earlier) + 1} runs", _table(cells.TREND, cells.of_trend(moved))),
        _folded(f"Every case ({len(cases)})", _table(cells.CASES, list(map(cells.of_case, cases)), CASES)),
        _folded("Why", _table(cells.REASONS, cells.of_reasons(document.rows), REASONS)),
        _folded("Starts", _table(cells.STARTS, cells.of_starts(document.rows), REASONS)),
        _folded("Loading", _table(cells.LOADING, cells.of_loading(document.rows), REASONS)),
        _folded("Engines", _table(cells.ENGINES, cells.of_engines(document.rows), REASONS)),
        _folded("Parity", _table(cells.PARITY, cells.of_parity(document.parities), REASONS)),
        _folded("Disturbed", _table(cells.DISTURBED, cells.of_disturbed(document), REASONS)),
        _folded(
            f"The machine: {len(document.unfit)} not as they should be",
            _lines(f"{one.level}: {one.said}" for one in document.unfit),
        ),
        _folded(f"{len(document.unmeasured)} not measured", _lines(document.unmeasured)),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def plain(said: str) -> str:
    """Text that Markdown and HTML leave as it is, on one line, in a table too; nobody is mentioned by it."""
    line = " ".join(said.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", line).replace("@", "&#64;")


def _folded(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{body}\n\n</details>" if body else ""


def _lines(said: Iterable[str]) -> str:
    lines = [f"- {plain(one)}" for one in said]
    more = [f"- and {len(lines) - LINES} more"] if len(lines) > LINES else []
    return "\n".join(lines[:LINES] + more)


def _regressions(rows: Iterable[Row]) -> str:
    """Each regression, and under it what got slower."""
    found = list(rows)
    lines = [f"- {plain(row['said'])}" + "".join(f"\n  - {plain(one)}" for one in row["slower"] or ()) for row in found]
    more = [f"- and {len(lines) - LINES} more"] if len(lines) > LINES else []
    return "\n".join(lines[:LINES] + more)


def _table(header: Sequence[str], rows: Sequence[Sequence[Cell]], room: int = OTHERS) -> str:
    lines: list[str] = []
    left = room
    for row in rows:
        line = "| " + " | ".join(plain(cell.shown) for cell in row) + " |"
        left -= len(line) + 1
        if left < 0:
            break
        lines.append(line)
    head = ["| " + " | ".join(map(plain, header)) + " |", "| --- " * len(header) + "|"]
    more = (
        ["", f"and {len(rows) - len(lines)} more, in the other forms of this report."] if len(lines) < len(rows) else []
    )
    return "\n".join([*head, *lines, *more]) if rows else ""
