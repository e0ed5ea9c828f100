"""The report as a reviewer reads it in a pull request: the verdict, what got slower, then everything, folded. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pytest_llmperf.report import text, trend
from pytest_llmperf.report.document import Document, Row, advice
from pytest_llmperf.report.trend import Series

#: Regressions that are spelled out; the others are in the table.
SPELLED = 20
#: Workloads and metrics that advice is given of, and cases whose change over the runs is shown, slowest first.
ADVISED = 60
#: Characters of the table of all cases: a comment on GitHub takes 65,536 in all.
LONGEST = 40_000


def render(document: Document) -> str:
    """GitHub-flavoured Markdown."""
    slower = document.regressions
    parts = [f"### llmperf: {plain(document.headline)}", plain(document.title)]
    parts += ["\n".join(f"- {plain(row.said)}" for row in slower[:SPELLED])] if slower else []
    parts += [f"and {len(slower) - SPELLED} more in the table."] if len(slower) > SPELLED else []
    wrong = sorted({f"{row.backend} {row.workload}" for row in document.rows if row.parity == "not in parity"})
    parts += (
        ["\n".join(f"- not in parity with {plain(document.reference)}: {plain(one)}" for one in wrong)] if wrong else []
    )
    parts += [_folded("What to run", _advice(document.rows))] if advice(document.rows) else []
    parts += (
        [_folded(f"Over {len(document.earlier) + 1} runs", _trends(moved))] if (moved := trend.series(document)) else []
    )
    parts += [_folded(f"All {len(document.rows)} cases", _cases(document.rows))] if document.rows else []
    if document.unmeasured:
        left = "\n".join(f"- {plain(name)}" for name in document.unmeasured)
        parts.append(_folded(f"{len(document.unmeasured)} not measured", left))
    return "\n\n".join(parts) + "\n"


def plain(said: str) -> str:
    """Text that Markdown and HTML leave as it is, on one line, in a table too; nobody is mentioned by it."""
    line = " ".join(said.split())
    entities = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "&#64;")
    return re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", entities).replace("&\\#64;", "&#64;")


def _folded(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{body}\n\n</details>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(map(plain, cells)) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], "| --- " * len(header) + "|", *lines[1:]])


CASE_HEADER = (
    "metric",
    "workload",
    "backend",
    "median [q1, q3]",
    "speedup",
    "roof",
    "change [99 %]",
    "verdict",
    "parity",
)


def case_cells(row: Row) -> tuple[str, ...]:
    """A case as the tables of reports have it."""
    return (
        row.metric,
        row.workload,
        row.backend,
        text.spread(row.median, row.q1, row.q3, row.metric),
        text.speedup(row.speedup),
        text.roof(row.roof, row.utilization),
        text.change(row.ratio, row.low, row.high),
        row.outcome,
        row.parity or "-",
    )


def _cases(rows: Sequence[Row]) -> str:
    worst = {"regression": 0, "inconclusive": 1}
    kept, size = [], 0
    for row in sorted(rows, key=lambda row: worst.get(row.outcome, 2)):  # what does not fit is what is fine
        cells = case_cells(row)
        size += sum(map(len, cells)) + 3 * len(cells)
        if size > LONGEST:
            break
        kept.append(cells)
    more = f"\n\n{len(rows) - len(kept)} more, in the other forms of this report." if len(kept) < len(rows) else ""
    return _table(CASE_HEADER, kept) + more


ADVICE_HEADER = (
    "metric",
    "workload",
    "fastest in parity",
    "median",
    "speedup",
    "roof",
    "peak memory",
    "cold start",
    "tokens/J",
    "faster, parity not shown",
)


def advice_cells(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """What to run, a line for each metric and workload."""
    return [
        (
            one.row.metric,
            one.row.workload,
            one.row.backend,
            text.figure(one.row.median, one.row.metric),
            text.speedup(one.row.speedup),
            text.far(one.row.roof, one.row.utilization, one.row.limit),
            text.memory(one.row.peak_memory),
            "-" if one.row.cold_start is None else text.figure(one.row.cold_start, "cold-start"),
            "-" if one.row.tokens_per_joule is None else f"{one.row.tokens_per_joule:.3g}",
            "-" if one.unproven is None else one.unproven.backend,
        )
        for one in advice(rows)
    ]


TREND_HEADER = ("metric", "workload", "backend", "runs", "first", "last", "change")


def trend_cells(found: Iterable[Series]) -> list[tuple[str, ...]]:
    """How each case moved, from the oldest run to the newest."""
    return [
        (
            one.row.metric,
            one.row.workload,
            one.row.backend,
            str(len(one.points)),
            *(text.figure(point.median, one.row.metric) for point in (one.points[0], one.points[-1])),
            f"{one.ratio - 1:+.1%}",
        )
        for one in found
    ]


def _trends(found: Sequence[Series]) -> str:
    furthest = sorted(found, key=lambda one: -one.ratio)[:ADVISED]
    more = f"\n\nand {len(found) - ADVISED} more." if len(found) > ADVISED else ""
    return _table(TREND_HEADER, trend_cells(furthest)) + more


def _advice(rows: Iterable[Row]) -> str:
    cells = advice_cells(rows)
    more = f"\n\nand {len(cells) - ADVISED} more." if len(cells) > ADVISED else ""
    return _table(ADVICE_HEADER, cells[:ADVISED]) + more
