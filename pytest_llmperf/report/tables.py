"""Tables of plain text, as wide as the terminal lets them be. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_llmperf.cases import METRICS, place
from pytest_llmperf.gate.rule import LARGE
from pytest_llmperf.report import cells
from pytest_llmperf.report.document import Document, Row
from pytest_llmperf.report.text import change, figure, roof, speedup, spread
from pytest_llmperf.report.trend import same_machine
from pytest_llmperf.result import ParityResult

if TYPE_CHECKING:
    from pytest_llmperf.cases import Case
    from pytest_llmperf.gate.selftest import Assessment
    from pytest_llmperf.gate.update import Change
    from pytest_llmperf.load import LoadRecord

#: Seconds beyond a settled generation from which on a first one's warm-up is worth a figure.
WARM_UP = 5.0
#: Of more cases the first so many are named.
MENTIONED = 4


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line per row, the header first."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _dense(rows: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """The rows without columns in which there is nothing."""
    return list(zip(*(column for column in zip(*rows, strict=True) if set(column[1:]) - {"", "-"}), strict=True))


def fits(lines: Iterable[str], width: int) -> bool:
    """Whether no line is wider."""
    return all(len(line) <= width for line in lines)


def fitted(rows: Sequence[Sequence[str]], width: int, spared: Sequence[str]) -> list[str]:
    """As `aligned`, without as many of the spared columns, by their names and in their order, as it takes to fit."""
    lines = aligned(rows)
    for count in range(1, len(spared) + 1):
        if fits(lines, width):
            break
        kept = [index for index, name in enumerate(rows[0]) if name not in spared[:count]]
        lines = aligned([[row[index] for index in kept] for row in rows])
    return lines


def cases(rows: Sequence[Row], width: int) -> list[tuple[str, Row | None]]:
    """A line per case, each with its row.

    Where the terminal is too narrow, quartiles go first, then the interval of the change, the roof, and at last the
    repeated names of metric and workload.
    """
    for short in range(4):
        lines = aligned(_dense([_header(short), *(_case(row, short) for row in rows)]))
        if fits(lines, width):
            return list(zip(lines, (None, *rows), strict=True))
    head, *lines = aligned(_dense([_header(4), *(_case(row, 4) for row in rows)]))
    grouped: list[tuple[str, Row | None]] = [(head, None)]
    for row, line in zip(rows, lines, strict=True):
        group = f"{row.metric} {row.workload}"
        grouped += [(line, row)] if any(one == group for one, _ in grouped) else [(group, None), (line, row)]
    return grouped


def _header(short: int) -> list[str]:
    return [
        "case" if short < 4 else "  backend",
        "median [q1, q3]" if short < 1 else "median",
        "speedup",
        "roof" if short < 3 else "",
        "vs baseline [99 %]" if short < 2 else "change",
        "at most",
        "verdict",
    ]


def _case(row: Row, short: int) -> list[str]:
    whole, moved = spread(row.median, *row.quartiles, row.metric, row.mark), change(*row.change)
    return [
        row.label if short < 4 else f"  {row.backend}",
        whole if short < 1 else whole.partition(" [")[0],
        row.shown_speedup,
        roof(row["utilization.name"], row["utilization.fraction"]) if short < 3 else "",
        moved if short < 2 else moved.partition(" [")[0],
        cells.at_most(row).shown,
        row.shown_outcome,
    ]


BACKENDS = ("backend", "load", "warm-up", "parity", "exact", "regret", "error", "informative")


def backends(document: Document, width: int) -> list[tuple[str, bool]]:
    """A line per backend, and whether it is not in parity: its first load, and the worst that parity found."""
    first: dict[str, Row] = {}
    for row in document.rows:
        if not row.case.start:
            first.setdefault(row.backend, row)
    found: dict[str, list[ParityResult]] = {}
    for one in document.parities:
        found.setdefault(one.backend, []).append(one)
    rows, wrong = [], []
    for name in dict.fromkeys((*first, *found)):
        worst = max(found.get(name, ()), key=_wrong, default=None)
        wrong.append(worst is not None and not worst.parity.passed)
        said = [cell.shown for cell in cells.of_parity([worst])[0]] if worst else ["-"] * len(cells.PARITY)
        _, workload, standing, exact, _, regret, allowed, error, informative, _ = said
        if name == document.reference and not wrong[-1] and (worst or first[name].parity):
            standing = "reference"
        loading = [cell.shown for cell in cells.loading(first[name])] if name in first else ["-"] * 2
        if name in first and (first[name]["compile_time"] or 0) < WARM_UP:
            loading[1] = "-"
        shown = f"{standing.upper()} ({workload})" if wrong[-1] else standing
        regrets = "-" if regret == "-" else f"{regret} of {allowed}"
        rows.append([name, *loading, shown, exact, regrets, error, informative])
    filled = _dense([BACKENDS, *rows])
    if not filled or len(filled[0]) == 1:
        return []
    lines = fitted(filled, width, ("informative", "error", "warm-up", "regret"))
    return list(zip(lines, (False, *wrong), strict=True))


def _wrong(one: ParityResult) -> tuple[bool, float, float]:
    """The greater, the worse."""
    parity = one.parity
    regret = (parity.largest_regret or 0) / parity.tolerance if parity.tolerance else 0
    return not parity.passed, regret, -parity.exact_match


def starts(rows: Iterable[Row], width: int) -> list[str]:
    """The parts of each start, a line each."""
    shown = [[cell.shown for cell in line] for line in cells.of_starts(rows)]
    return fitted([cells.STARTS, *shown], width, ("workload",)) if shown else []


def scaling(rows: Iterable[Row], width: int) -> list[str]:
    """What more devices bring, a line per case of a tensor-parallel degree above 1."""
    shown = [[cell.shown for cell in line] for line in cells.of_scaling(rows)]
    return fitted([cells.SCALING, *shown], width, ("of one die's speed", "workload")) if shown else []


def loads(found: Iterable[LoadRecord], width: int) -> list[str]:
    """Servers under load, a line each."""
    shown = [[cell.shown for cell in line] for line in cells.of_load(found)]
    spared = ("latency p50 / p90 / p99", "requests/s", "goodput", "tokens/s")
    return fitted([cells.LOAD, *shown], width, spared) if shown else []


def changes(accepted: Sequence[Change], speedups: Mapping[Case, float | None] | None = None) -> list[str]:
    """What an update did, a line per case: old, new, change, and what the baseline can exclude from now on.

    Args:
        accepted: what was written.
        speedups: over the reference, where that is known.
    """
    ranked = sorted(accepted, key=lambda one: place(one.case.metric, one.case.workload)) if speedups else accepted
    columns = ["accepted", "old", "new", "change", "sittings", "not excluded", "speedup"]
    rows = [
        [
            f"{one.case.metric} {one.case.workload} {one.case.backend}",
            "-" if one.old is None else figure(one.old, one.case.metric),
            figure(one.new, one.case.metric),
            "new" if one.ratio is None else f"{one.ratio - 1:+.1%}{'*' * one.beyond_noise}",
            str(one.sittings),
            f"{one.not_excluded:.1%}",
            speedup((speedups or {}).get(one.case)),
        ]
        for one in ranked
    ]
    known = any(row[-1] != "-" for row in rows)
    return aligned([row[: None if known else -1] for row in (columns, *rows)]) if rows else []


def about_changes(accepted: Iterable[Change]) -> list[str]:
    """What the columns of `changes` mean, and what is odd about the figures."""
    taken = list(accepted)
    if not taken:
        return []
    growth = "slowdown" if any(METRICS[one.case.metric].timed for one in taken) else "increase"
    legend = f"not excluded: the {growth} that an unchanged process could not exclude against this baseline"
    starred = any(one.beyond_noise for one in taken)
    large = [f"{one.case.metric} {one.case.workload} {one.case.backend}" for one in taken if one.questionable]
    doubts = dict.fromkeys(one.doubt for one in taken if one.doubt)
    less = " or ".join(dict.fromkeys(METRICS[one.case.metric].less for one in taken if one.questionable))
    asked = f"{less} by more than {LARGE:.0%}: {mentioned(large)}: is something not measured any more?"
    return [
        legend,
        *(["*: the change is more than sittings of one code differ"] if starred else []),
        *([asked] if large else []),
        *(f"the machine was in another state when the old figures were recorded: {doubt}" for doubt in doubts),
    ]


def mentioned(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(names) - MENTIONED} more" if len(names) > MENTIONED else ""
    return ", ".join(names[:MENTIONED]) + more


#: What the columns of `assessments` mean.
ASSESSED = (
    "false alarms, inconclusive: of unchanged code beside itself. +5% caught: beside itself slowed by 5 %.",
    "resolution: the smallest slowdown caught in 9 of 10 comparisons. recommended: the smallest tolerance at which "
    "unchanged code is ok in 9 of 10 and never fails.",
    "stored: the slowdown that a baseline of one sitting could not exclude here.",
)


def assessments(found: Mapping[Case, Assessment]) -> list[str]:
    """The self-test's table, a line per case."""

    def share(value: float | None) -> str:
        return "none" if value is None else f"{value:.0%}" if value in (0, 1) or value >= 0.1 else f"{value:.1%}"

    columns = "case", "pairs", "tolerance", "false alarms", "inconclusive", "+5% caught", "resolution"
    rows: list[Sequence[str]] = [(*columns, "recommended", "stored")]
    for case, one in found.items():
        shares = one.tolerance, one.false_alarms, one.undecided, one.power, one.resolution, one.recommended, one.stored
        label = f"{case.metric} {case.workload} {case.backend}"
        rows.append((label, f"{one.pairs}", *map(share, shares)))
    return aligned(rows)


def compared(a: Document, b: Document) -> list[str]:
    """Two runs side by side, the case that got slower by most first; then what only one of them has."""
    known = {row.case.key: row for row in a.rows}
    both = [(known[row.case.key], row) for row in b.rows if row.case.key in known]
    both.sort(key=lambda pair: pair[0].median / pair[1].median)
    rows = [
        (
            new.label,
            spread(old.median, *old.quartiles, old.metric),
            spread(new.median, *new.quartiles, new.metric),
            f"{new.median / old.median - 1:+.1%}",
        )
        for old, new in both
    ]
    lines = [f"A: {_run(a)}", f"B: {_run(b)}"]
    lines += aligned([("case", "A [q1, q3]", "B [q1, q3]", "change"), *rows]) if rows else ["no case is in both"]
    for name, one, other in (("A", a, b), ("B", b, a)):
        alone = sorted({row.case.key for row in one.rows} - {row.case.key for row in other.rows})
        lines += [f"only in {name}: {', '.join(alone)}"] if alone else []
    if not same_machine(a, b):
        lines.append("of two machines: the change may be theirs")
    return [*lines, "Two runs do not tell a change from noise; pytest --llm-base=REVISION measures both in turns."]


def _run(document: Document) -> str:
    return ", ".join(filter(None, (document.title, document.commit, document.when)))
