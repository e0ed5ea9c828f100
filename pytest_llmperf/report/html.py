"""The report as one HTML file that loads nothing: verdict, what to run, figures, every case, the machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from pytest_llmperf.report import figures, markdown, text, trend
from pytest_llmperf.report.document import Document, Row


@dataclass(frozen=True)
class Cell:
    """What is shown, and what a column is sorted by where that is a number; a missing number comes last."""

    shown: str
    key: float | None = None
    tag: str = ""


#: Heading, and whether its cells are numbers.
COLUMNS = (
    ("metric", False),
    ("workload", False),
    ("backend", False),
    ("median [q1, q3]", True),
    ("speedup", True),
    ("roof", True),
    ("change [99 %]", True),
    ("verdict", False),
    ("parity", False),
    ("tokens/s", True),
    ("peak memory", True),
    ("cold start", True),
    ("tokens/J", True),
)


def _cells(row: Row) -> list[Cell]:
    shown = markdown.case_cells(row)
    keys = (row.median, row.speedup, row.utilization, row.ratio)
    cells = [Cell(one) for one in shown[:3]]
    cells += [Cell(one, key) for one, key in zip(shown[3:7], keys, strict=True)]
    cells += [Cell(row.outcome, tag=row.outcome.replace(" ", "-")), Cell(shown[8], tag=shown[8].replace(" ", "-"))]
    cold = "-" if row.cold_start is None else text.figure(row.cold_start, "cold-start")
    cells += [
        Cell("-" if row.throughput is None else f"{row.throughput:.1f}", row.throughput),
        Cell(text.memory(row.peak_memory), row.peak_memory),
        Cell(cold, row.cold_start),
        Cell("-" if row.tokens_per_joule is None else f"{row.tokens_per_joule:.3g}", row.tokens_per_joule),
    ]
    return cells


def render(document: Document) -> str:
    """The page. Every name in it is escaped; only the figures are markup."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    machine = document.environment.get("fingerprint") or {}
    versions = document.environment.get("versions") or {}
    return environment.get_template("page.html.jinja").render(
        document=document,
        columns=COLUMNS,
        rows=[_cells(row) for row in document.rows],
        advice_header=markdown.ADVICE_HEADER,
        advice=markdown.advice_cells(document.rows),
        trend_header=markdown.TREND_HEADER,
        trends=markdown.trend_cells(trend.series(document)),
        figures=[(one, Markup(one.svg)) for one in figures.all_of(document)],
        machine=[(name, value) for part in (machine, versions) for name, value in part.items() if value is not None],
    )
