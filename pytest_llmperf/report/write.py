"""Reports in files, each in the form that its suffix names."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import astuple, fields
from importlib.util import find_spec
from pathlib import Path

from pytest_llmperf import files
from pytest_llmperf.cases import Workload
from pytest_llmperf.explain.starts import PARTS
from pytest_llmperf.report import markdown
from pytest_llmperf.report.document import Document
from pytest_llmperf.result import ITL_PERCENTILES


def render_json(document: Document) -> str:
    return json.dumps(document.as_dict(), indent=1) + "\n"


#: The columns of a CSV report after those of the case, and where a row has each.
COLUMNS = {
    "unit": "unit",
    **{name: f"spread.{name}" for name in ("median", "q1", "q3", "minimum", "maximum")},
    "samples": "spread.n",
    "processes": "processes",
    **{name: f"verdict.{name}" for name in ("ratio", "low", "high", "not_excluded", "basis", "reason", "remedy")},
    **{name: name for name in ("tolerance", "tolerance_source", "said", "speedup")},
    "roof": "utilization.name",
    "utilization": "utilization.fraction",
    **{name: f"utilization.{name}" for name in ("bound", "limit", "flops", "size")},
    **{
        name: name
        for name in (
            "throughput",
            "load",
            "compile_time",
            "peak_memory",
            "loaded_memory",
            "tokens_per_joule",
            "contamination",
            "discarded",
            "culprit",
            "tp",
            "devices",
            "boundary",
        )
    },
    **{f"start_{name.replace(' ', '_')}": f"start.{name}" for name in PARTS},
    "threads": "engine.threads",
    "variant": "engine.variant",
    "changed": "changed",
    **{f"arrivals_{name}": f"arrivals.{name}" for name in ("tokens", "reads", "first", "untimed")},
}


def render_csv(document: Document) -> str:
    """A line per case and run, every number in full, in seconds and bytes; the first line names the columns."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    case = ["case", "model", "dtype", "backend", *(field.name for field in fields(Workload)), "metric"]
    percentiles = [f"itl_p{at * 100:.0f}" for at in ITL_PERCENTILES]
    columns = [*COLUMNS, "collectives", "served", "parity", *percentiles]
    writer.writerow(["device", "when", "commit", *case, "outcome", *columns])
    for run in (*document.earlier, document):
        for row in run.rows:
            one = row.case
            named = [one.key, one.model, one.dtype, one.backend, *astuple(one.workload), one.metric]
            values = [row[path] for path in COLUMNS.values()]
            itl = row["itl"] or [None] * len(percentiles)
            values += [row.collectives, row.served, row.parity, *itl]
            writer.writerow([run.device, run.when, run.commit, *named, row.outcome, *values])
    return stream.getvalue()


def render_html(document: Document) -> str:
    from pytest_llmperf.report import html  # what it draws with takes a second to import, and is an extra

    return html.render(document)


FORMS: dict[str, Callable[[Document], str]] = {
    ".html": render_html,
    ".md": markdown.render,
    ".json": render_json,
    ".csv": render_csv,
}


def form_of(path: Path) -> str:
    """The suffix of a report that can be written here.

    Raises:
        ValueError: no report has that suffix, or what draws it is not installed.
    """
    if path.suffix not in FORMS:
        raise ValueError(f"{path.name!r} has none of the suffixes of a report: {', '.join(FORMS)}")
    if path.suffix == ".html":
        missing = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
        if missing:
            raise ValueError(f"a report in HTML needs {' and '.join(missing)}: pip install 'pytest-llmperf[report]'")
    return path.suffix


def write(document: Document, path: Path) -> None:
    """Write the report, replacing the file as a whole.

    Raises:
        ValueError: as `form_of`.
        OSError: the file cannot be written.
    """
    files.replace(path, FORMS[form_of(path)](document))
