"""The report as one HTML file that loads nothing: verdict, what to run, figures, every case, the machine."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from pytest_llmperf.report import cells, figures, notes, scaling, trend
from pytest_llmperf.report.cells import Cell
from pytest_llmperf.report.document import Document


def render(document: Document) -> str:
    """The page. Every name in it is escaped; only the figures are markup."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    drawn = [
        # Its text is escaped by what draws it.
        (one, Markup(one.svg), [list(map(Cell, row)) for row in one.table])
        for one in figures.all_of(document)
    ]
    known = [document.environment.get(name) or {} for name in ("fingerprint", "versions")]
    return environment.get_template("page.html.jinja").render(
        document=document,
        notes=notes.of(document),
        advice=(cells.ADVICE, cells.of_advice(document.rows)),
        scaling=(cells.SCALING, cells.of_scaling(document.rows)),
        placed=scaling.placed(document.rows),
        loads=(cells.LOAD, cells.of_load(document.loads)),
        figures=drawn,
        trends=(cells.TREND, cells.of_trend(trend.series(document))),
        cases=((*cells.CASES, *cells.COSTS), [[*cells.of_case(row), *cells.costs(row)] for row in document.rows]),
        starts=(cells.STARTS, cells.of_starts(document.rows)),
        reasons=(cells.REASONS, cells.of_reasons(document.rows)),
        engines=(cells.ENGINES, cells.of_engines(document.rows)),
        parity=(cells.PARITY, cells.of_parity(document.parities)),
        disturbed=(cells.DISTURBED, cells.of_disturbed(document)),
        machine=[
            (name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else value)
            for part in known
            for name, value in part.items()
            if value not in (None, [], "")
        ],
    )
