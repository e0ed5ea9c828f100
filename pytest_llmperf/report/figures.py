"""The figures of the HTML report, as SVG text that takes its colours from the page. Rows in, `Figure` out."""

from __future__ import annotations

import hashlib
import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas

from pytest_llmperf.cases import METRICS
from pytest_llmperf.gate.rule import Outcome
from pytest_llmperf.report import cells, scaling, text, trend
from pytest_llmperf.report.document import Document, Row
from pytest_llmperf.report.trend import Series

#: Colours that nobody sees: they become the page's own, light or dark.
INK, GRID = "#010203", "#040506"
#: Okabe and Ito (2008), told apart by colour-blind readers, but for its black and its yellow, which one of the two
#: backgrounds swallows. With as many markers, more backends than colours are told apart too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C8C8C", "#A6761D")
MARKERS = "osD^vPX*<>ph"
#: Each outcome's colour and marker: one is enough to tell them apart.
VERDICTS = {
    Outcome.REGRESSION.value: ("#D55E00", "^"),
    Outcome.INCONCLUSIVE.value: ("#8C8C8C", "s"),
    Outcome.OK.value: ("#009E73", "o"),
    Outcome.FASTER.value: ("#0072B2", "v"),
}
#: Figures of one kind, and lines or marks in one figure, that a reader can still take in.
PANELS, LINES, MARKS = 6, 12, 40
STYLE = {
    "svg.hashsalt": "llmperf",  # the same data, the same file
    "svg.fonttype": "none",  # text stays text: it is searched, read aloud and set in the page's own font
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Figure:
    """One picture.

    Attributes:
        title: what it shows.
        caption: workload, device, dtype and what the spread is.
        svg: its drawing.
        header, table: the data that it is drawn from, as text.
    """

    title: str
    caption: str
    svg: str
    header: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]


def all_of(document: Document) -> list[Figure]:
    """Every figure that the document has data for."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that is not in the font that text is measured with
        return [
            *_by_batch(document, "ttft", _latency),
            *_by_batch(document, "tpot", _latency),
            *_by_batch(document, "ttft", _speedup),
            *_by_batch(document, "tpot", _speedup),
            *_by_degree(document),
            *_distributions(document),
            *_roofline(document),
            *_forest(document),
            *_trends(document),
        ]


def _title(said: str) -> str:
    return said[0].upper() + said[1:]


def _where(document: Document, shape: str = "") -> str:
    return ", ".join(filter(None, (shape, document.model, document.dtype, document.device)))


def _canvas(height: float = 2.9) -> tuple[Canvas, Any]:
    # As wide as a telephone, so that nothing is scaled down there, text least of all.
    canvas = Canvas(figsize=(3.6, height), layout="constrained")
    return canvas, canvas.subplots()


def _svg(canvas: Canvas, name: str) -> str:
    stream = io.StringIO()
    canvas.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = stream.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(INK, "currentColor").replace(GRID, "var(--line)")
    # What XML does not allow, and a fixed size: the page gives it one.
    drawn = re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", drawn)
    drawn = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", drawn, count=1)
    drawn = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", drawn, count=1)
    # Ids of two figures in one page must differ, and most are referred to by nobody.
    own, used = hashlib.sha256(name.encode()).hexdigest()[:8], set(re.findall(r"#(\w+)", drawn))
    drawn = re.sub(r'\bid="([^"]*)"', lambda found: f'id="{own}-{found[1]}"' if found[1] in used else "", drawn)
    return re.sub(r'(href="|url\()#(\w+)', rf"\1#{own}-\2", drawn)


def _label(name: str) -> str:
    """A legend leaves out what begins with an underscore."""
    shown = " ".join(name.split())
    shown = shown if len(shown) <= 32 else shown[:31] + "…"
    return "\u200b" + shown if shown.startswith("_") else shown


def _style(index: int, name: str) -> dict[str, Any]:
    """How a backend looks among others."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "label": _label(name),
    }


def _legend(canvas: Canvas, axes: Any) -> None:
    canvas.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)


def _panels(rows: Iterable[Row]) -> list[tuple[str, dict[str, list[Row]]]]:
    """Rows of one prompt length and number of new tokens, by backend, each by batch size."""
    panels: dict[tuple[int, int], dict[str, list[Row]]] = {}
    for row in rows:
        sizes = row.case.workload
        shape = panels.setdefault((sizes.prompt_length, sizes.max_new_tokens), {})
        shape.setdefault(row.backend, []).append(row)
    return [
        (
            f"prompt {prompt}, {new} new tokens",
            {name: sorted(found, key=_batch) for name, found in backends.items()},
        )
        for (prompt, new), backends in sorted(panels.items())
    ]


def _batch(row: Row) -> int:
    return row.case.workload.batch_size


def _cut(what: str, shown: int, there: int) -> str:
    return f" The first {shown} of {there} {what}." if there > shown else ""


Draw = Callable[[Any, Sequence[Row], Mapping[str, Any]], str]


def _by_batch(document: Document, metric: str, draw: Draw) -> list[Figure]:
    """A figure per prompt length: a line per backend over the batch sizes."""
    rows = [row for row in document.rows if row.metric == metric]
    if draw is _speedup:
        rows = [row for row in rows if row.speedup is not None]
    panels = _panels(rows)
    figures = []
    for shape, backends in panels[:PANELS]:
        canvas, axes = _canvas()
        said = ""
        for index, (name, found) in enumerate(list(backends.items())[:LINES]):
            said = draw(axes, found, _style(index, name) | {"markersize": 4, "linewidth": 1.2})
        sizes = sorted({_batch(row) for found in backends.values() for row in found})
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("batch size (requests)")
        _legend(canvas, axes)
        title = f"{'speedup over ' + document.reference + ', ' if draw is _speedup else ''}{METRICS[metric].title}"
        shown = [row for found in backends.values() for row in found]
        figures.append(
            Figure(
                _title(title),
                f"{_where(document, shape)}. {said}"
                + _cut("backends", LINES, len(backends))
                + _cut("prompt lengths", PANELS, len(panels)),
                _svg(canvas, f"{title} {shape}"),
                ("backend", "batch size", "median [q1, q3]", "speedup"),
                tuple(
                    (
                        row.backend,
                        str(_batch(row)),
                        text.spread(row.median, *row.quartiles, metric),
                        row.shown_speedup,
                    )
                    for row in shown
                ),
            )
        )
    return figures


def _latency(axes: Any, rows: Sequence[Row], style: Mapping[str, Any]) -> str:
    medians = [row.median * 1e3 for row in rows]
    below = [max(0.0, (row.median - row.quartiles[0]) * 1e3) for row in rows]
    above = [max(0.0, (row.quartiles[1] - row.median) * 1e3) for row in rows]
    axes.errorbar([_batch(row) for row in rows], medians, [below, above], capsize=2, **style)
    axes.set_ylabel("ms" if rows[0].metric == "ttft" else "ms per token")
    return "Median of one process's samples, bars from the lower to the upper quartile."


def _speedup(axes: Any, rows: Sequence[Row], style: Mapping[str, Any]) -> str:
    axes.axhline(1, color=GRID, linewidth=1)
    axes.plot([_batch(row) for row in rows], [row.speedup for row in rows], **style)
    axes.set_ylabel("times as fast")
    return "Ratio of medians, both measured in this run."


def _by_degree(document: Document) -> list[Figure]:
    """A figure per metric and workload that several devices shared: a line per backend over the degrees."""
    groups: dict[tuple[str, str], dict[str, dict[int, Row]]] = {}
    for one in scaling.of(document.rows):
        group = groups.setdefault((one.row.metric, one.row.workload), {})
        line = group.setdefault(scaling.alone(one.row), {} if one.single is None else {1: one.single})
        line[one.row.tp] = one.row
    figures = []
    for (metric, workload), lines in list(groups.items())[:PANELS]:
        canvas, axes = _canvas()
        degrees = sorted({degree for line in lines.values() for degree in line})
        for index, (name, line) in enumerate(list(lines.items())[:LINES]):
            medians = [row.median * 1e3 for row in line.values()]
            axes.plot(list(line), medians, **_style(index, name), markersize=4, linewidth=1.2)
        axes.set_xscale("log", base=2)
        axes.set_xticks(degrees, [str(degree) for degree in degrees])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("dies that share the model")
        axes.set_ylabel("ms")
        _legend(canvas, axes)
        figures.append(
            Figure(
                _title(f"{METRICS[metric].title} by tensor-parallel degree"),
                f"{_where(document, workload)}. Medians of one process's samples, in this run."
                + _cut("backends", LINES, len(lines))
                + _cut("figures of this kind", PANELS, len(groups)),
                _svg(canvas, f"degree {metric} {workload}"),
                ("backend", "dies", "median [q1, q3]"),
                tuple(
                    (name, str(degree), text.spread(row.median, *row.quartiles, metric))
                    for name, line in lines.items()
                    for degree, row in line.items()
                ),
            )
        )
    return figures


def _distributions(document: Document) -> list[Figure]:
    """A figure per workload: the gaps between tokens, a box per backend."""
    workloads: dict[str, list[Row]] = {}
    for row in document.rows:
        if row["itl"]:
            workloads.setdefault(row.workload, []).append(row)
    figures = []
    for workload, rows in list(workloads.items())[:PANELS]:
        shown = rows[:LINES]
        canvas, axes = _canvas(0.9 + 0.32 * len(shown))
        boxes = [
            dict(
                zip(("whislo", "p10", "q1", "med", "q3", "p90", "whishi"), (ms * 1e3 for ms in row["itl"]), strict=True)
            )
            | {"label": _label(row.backend), "fliers": []}
            for row in shown
        ]
        axes.bxp(
            boxes,
            orientation="horizontal",
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": COLOURS[0], "edgecolor": INK, "alpha": 0.6},
            medianprops={"color": INK},
            whiskerprops={"color": INK},
            capprops={"color": INK},
        )
        axes.invert_yaxis()
        axes.set_xlabel("gap between two tokens of a request (ms)")
        axes.set_xlim(left=0)
        figures.append(
            Figure(
                "Inter-token latency",
                f"{_where(document, workload)}. Every gap of one process's samples: the box from the lower to the "
                "upper quartile, the line the median, the whiskers the 1st and 99th percentile."
                + _cut("backends", LINES, len(rows))
                + _cut("workloads", PANELS, len(workloads)),
                _svg(canvas, f"itl {workload}"),
                ("backend", "p1", "p10", "p25", "median", "p75", "p90", "p99"),
                tuple((row.backend, *(text.figure(gap, "tpot") for gap in row["itl"])) for row in rows),
            )
        )
    return figures


def _roofline(document: Document) -> list[Figure]:
    """Every prefill and decode under the device's two roofs."""
    peaks = document.environment.get("peaks")
    rows = [row for row in document.rows if row["utilization.flops"] and row["utilization.size"]]
    if not peaks or not rows:
        return []
    flops, bandwidth = float(peaks["flops"]), float(peaks["bandwidth"])
    points = []
    for row in rows:
        work = row["utilization"]
        points.append((row, work["flops"] / work["size"], work["flops"] / row.median))
    canvas, axes = _canvas(3.2)
    corner = flops / bandwidth
    reached = [corner, *(intensity for _, intensity, _ in points)]
    low, high = min(reached) / 3, max(reached) * 3
    axes.plot([low, corner, high], [low * bandwidth / 1e9, flops / 1e9, flops / 1e9], color=INK, linewidth=1.4)
    names = list(dict.fromkeys(row.backend for row in rows))
    for index, name in enumerate(names[:LINES]):
        own = [(intensity, rate / 1e9) for row, intensity, rate in points if row.backend == name]
        axes.scatter(
            [intensity for intensity, _ in own],
            [rate for _, rate in own],
            s=16,
            **_style(index, name),
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")  # a power of ten would be set as mathematics
        axis.set_minor_formatter("")
    axes.set_xlabel("arithmetic intensity (FLOP/byte)")
    axes.set_ylabel("GFLOP/s")
    _legend(canvas, axes)
    # What has a data sheet has no such rate.
    source = "measured here" if "flops" in (document.environment.get("rates") or {}) else "of the data sheet"
    caption = (
        f"{_where(document)}. The line is the roof, {source}: {flops / 1e12:.3g} TFLOP/s, "
        f"{bandwidth / 1e9:.3g} GB/s. Prefill lies to the right, under the compute roof; decode to the left, under the "
        "bandwidth roof."
    )
    return [
        Figure(
            "Roofline",
            caption + _cut("backends", LINES, len(names)),
            _svg(canvas, "roofline"),
            ("metric", "workload", "backend", "FLOP/byte", "GFLOP/s", "of the roof"),
            tuple(
                (
                    row.metric,
                    row.workload,
                    row.backend,
                    f"{intensity:.3g}",
                    f"{rate / 1e9:.4g}",
                    text.far(*cells.roof(row)),
                )
                for row, intensity, rate in points
            ),
        )
    ]


def _forest(document: Document) -> list[Figure]:
    """The change of every compared case with its interval, the largest first."""
    compared = [row for row in document.rows if None not in row.change]
    if not compared:
        return []
    rows = sorted(compared, key=lambda row: -abs(math.log(row.change[0] or 1)))
    shown = rows[:MARKS]
    canvas, axes = _canvas(1.0 + 0.34 * len(shown))
    axes.axvline(0, color=INK, linewidth=0.8)
    for at, row in enumerate(shown):
        colour, marker = VERDICTS.get(row.outcome, (INK, "x"))
        middle, low, high = (((value or 1) - 1) * 100 for value in row.change)
        reach = [[max(0.0, middle - low)], [max(0.0, high - middle)]]
        axes.errorbar([middle], [at], xerr=reach, color=colour, marker=marker, markersize=5, capsize=2, linewidth=1.2)
    axes.set_yticks(
        range(len(shown)), [f"{_label(row.backend)}\n{row.metric} {row.workload}" for row in shown], fontsize=8
    )
    axes.invert_yaxis()
    axes.set_xlabel("change (%): slower, or more memory, to the right")
    widest = max(abs(edge) for edge in axes.get_xlim())
    # An interval may be wide without end; what is known lies within.
    furthest = max(100.0, *(1.2 * abs((row.change[0] or 1) - 1) * 100 for row in shown))
    axes.set_xlim(-min(widest, furthest), min(widest, furthest))
    said = (
        "Median ratio with its 99 % interval. Triangle up: regression; circle: ok; triangle down: faster, or less "
        "memory; square: inconclusive."
    )
    return [
        Figure(
            "Change against the baseline",
            f"{_where(document)}. {said}" + _cut("cases, by size of the change", MARKS, len(rows)),
            _svg(canvas, "forest"),
            ("metric", "workload", "backend", "change [99 %]", "verdict"),
            tuple((row.metric, row.workload, row.backend, text.change(*row.change), row.shown_outcome) for row in rows),
        )
    ]


def _trends(document: Document) -> list[Figure]:
    """A figure per metric and workload, of cases that several runs measured: a line per backend over the runs."""
    groups: dict[tuple[str, str], list[Series]] = {}
    for one in trend.series(document):
        groups.setdefault((one.row.metric, one.row.workload), []).append(one)
    figures = []
    for (metric, workload), found in list(groups.items())[:PANELS]:
        canvas, axes = _canvas()
        seen = {point.run for one in found for point in one.points}
        at = {run: number for number, run in enumerate(run for run in trend.run_names(document) if run in seen)}
        scale, unit = (1e3, "ms") if METRICS[metric].timed else (2**-20, "MiB")
        for index, one in enumerate(found[:LINES]):
            axes.plot(
                [at[point.run] for point in one.points],
                [point.median * scale for point in one.points],
                **_style(index, one.row.backend),
                markersize=4,
                linewidth=1.2,
            )
        every = -(-len(at) // 8)  # labels that stand beside each other
        axes.set_xticks(list(at.values())[::every], [_label(name) for name in at][::every], rotation=45, ha="right")
        axes.set_ylim(bottom=0)
        axes.set_ylabel(unit)
        _legend(canvas, axes)
        figures.append(
            Figure(
                _title(f"{METRICS[metric].title} over runs"),
                f"{_where(document, workload)}. Medians of one process's samples in each run, oldest first; processes "
                "of one code differ, so a step is a question and no verdict."
                + _cut("backends", LINES, len(found))
                + _cut("figures of this kind", PANELS, len(groups)),
                _svg(canvas, f"trend {metric} {workload}"),
                ("backend", "run", "median [q1, q3]"),
                tuple(
                    (one.row.backend, point.run, text.spread(point.median, point.q1, point.q3, metric))
                    for one in found
                    for point in one.points
                ),
            )
        )
    return figures
