"""The summary at the end of a run: one screen, the verdict first where something failed. Pure.

What does not fit is in the reports (``--llm-report``) and in the results file (``--llm-results``).
"""

from __future__ import annotations

import shlex
import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_llmperf.gate.rule import LARGE, Outcome
from pytest_llmperf.report import notes, reasons, tables
from pytest_llmperf.report.reasons import Reason
from pytest_llmperf.report.scaling import placed

if TYPE_CHECKING:
    from pytest_llmperf.cases import Case
    from pytest_llmperf.gate.selftest import Assessment
    from pytest_llmperf.gate.update import Change
    from pytest_llmperf.report.document import Document, Row

#: Lines of a screen, and columns where the terminal's are not known.
SCREEN, WIDTH = 50, 100
#: Lines that reasons have on a full screen, and that one may have.
FEWEST_REASONS, REASON = 4, 2
#: How a line is written, as `pytest.TerminalReporter.write_line` takes it.
PLAIN: Mapping[str, bool] = {}
BOLD = {"bold": True}
RED = {"red": True}
FAILED = {"red": True, "bold": True}
DOUBTED = {"yellow": True}
#: What fails a test under ``--llm-strict``, besides a regression and an improvement too large to be taken on trust.
STRICT_FAILURES = (Outcome.INCONCLUSIVE, Outcome.NEW, Outcome.NO_BASELINE)


@dataclass(frozen=True)
class Line:
    """A line, and how it is written."""

    text: str
    style: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Ending:
    """How a run ended, beside its figures.

    Attributes:
        skipped: how many tests that were to gate a case were skipped.
        skips: why, where nothing but skips came of the run.
        accepting: the cases whose figures were to be accepted, not gated.
        changes: what was written to the baseline.
        written: what else there is to say of that; empty where nothing was to be written.
        errors: what fails the run, whatever its tests say.
        doubts: what may not be as the user thinks.
        notes: what else there is to say, such as which files were written.
        commands: what to run next: for what, and its arguments.
        counted: whether cases were gated, so that how many is worth a line.
        strict: whether ``--llm-strict`` was given.
        verbose: whether every reason is to be said in full.
    """

    skipped: int = 0
    skips: Sequence[str] = ()
    accepting: Collection[Case] = ()
    changes: Sequence[Change] = ()
    written: str = ""
    errors: Sequence[str] = ()
    doubts: Sequence[str] = ()
    notes: Sequence[str] = ()
    commands: Mapping[str, Sequence[str]] = field(default_factory=dict)
    counted: bool = True
    strict: bool = False
    verbose: bool = False


def summary(document: Document, ending: Ending, width: int = WIDTH) -> list[Line]:
    """The lines of the summary.

    Args:
        document: what the run measured.
        ending: what else came of it.
        width: columns. A line is wider only where one word is, such as a path, or a command's argument.
    """
    gated = [row for row in document.rows if row.case not in ending.accepting]
    wrong = [one.against(document.reference) for one in document.wrong]
    failed = bool(wrong or ending.errors or any(_fails(row, ending.strict) for row in gated))
    verdict = counts(gated, ending.skipped) if ending.counted else ""

    head = _wrapped([verdict] if failed and verdict else [], width, FAILED)
    head += _wrapped(wrong[: tables.MENTIONED], width, RED, REASON)
    head += _wrapped((f"ERROR: {one}" for one in ending.errors), width, FAILED)
    head += _wrapped((f"skipped: {one}" for one in ending.skips), width)
    head += _wrapped([f"{document.title}; {document.boundary}; speedup over {document.reference}"], width)
    head += _wrapped(document.servers, width)
    head += _wrapped([*ending.doubts, *document.chunks], width, DOUBTED)
    head += _figures(document, ending, width)
    head += _wrapped(disturbed(document), width, PLAIN, 1)
    head += _wrapped(notes.of(document), width, PLAIN, REASON)

    tail = _wrapped([ending.written] if ending.written else [], width, BOLD)
    tail += _wrapped(ending.notes, width)
    tail += [Line(line) for what, argv in ending.commands.items() for line in command(what, argv, width)]
    tail += _wrapped([verdict] if verdict and not failed else [], width, BOLD)

    room = SCREEN - len(head) - len(tail)
    return [*head, *_reasons(gated, width, None if ending.verbose else max(room, FEWEST_REASONS)), *tail]


def self_test(found: Mapping[Case, Assessment], width: int = WIDTH) -> list[Line]:
    """The lines after ``--llm-self-test``."""
    return [*map(Line, tables.assessments(found)), *_wrapped(tables.ASSESSED, width)]


def _fails(row: Row, strict: bool) -> bool:
    """Whether a case fails its test."""
    questionable = row.outcome == Outcome.FASTER and row["verdict.ratio"] < 1 - LARGE
    doubtful = row.outcome in STRICT_FAILURES or questionable or row["kernels_changed"]
    return row.outcome == Outcome.REGRESSION or bool(strict and doubtful)


def _figures(document: Document, ending: Ending, width: int) -> list[Line]:
    """The tables: cases, what was accepted of them, tensor parallelism, loads, backends."""
    accepted = {one.case for one in ending.changes}
    rows = [row for row in document.rows if row.case not in accepted]
    lines: list[Line] = []
    if rows:
        lines += [Line(text, _style(row)) for text, row in tables.cases(rows, width)]
    lines += map(Line, tables.changes(ending.changes, {row.case: row.speedup for row in document.rows}))
    lines += _wrapped(tables.about_changes(ending.changes), width)
    lines += map(Line, tables.starts(document.rows, width))
    lines += map(Line, tables.scaling(document.rows, width))
    lines += _wrapped(placed(document.rows), width)
    lines += map(Line, tables.loads(document.loads, width))
    lines += [Line(text, RED if wrong else PLAIN) for text, wrong in tables.backends(document, width)]
    return lines


def _style(row: Row | None) -> Mapping[str, bool]:
    return RED if row is not None and row.outcome == Outcome.REGRESSION else PLAIN


def counts(rows: Iterable[Row], skipped: int) -> str:
    """How many cases were gated, how they ended, and how many were skipped."""
    gated = [(row, Outcome(row.outcome)) for row in rows]
    compared = sum(outcome.compared and row["verdict.ratio"] is not None for row, outcome in gated)
    order = list(Outcome)
    found = Counter((order.index(outcome), row.shown_outcome) for row, outcome in gated)
    parts = [f"{found[one]} {one[1]}" for one in sorted(found)]
    parts += [f"{skipped} skipped"] if skipped else []
    return f"{compared} cases gated: " + (", ".join(parts) if parts else "nothing was measured")


def disturbed(document: Document) -> list[str]:
    """One line for all that something else disturbed: the worst of it, what became of that, and how many more."""
    found = reasons.disturbances(document)
    if not found:
        return []
    worst = found[0]
    share = f"{'up to ' * (len(found) > 1)}{worst['contamination']:.0%}"
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    fate = f"{worst['discarded']} discarded" if worst["discarded"] else "all kept"
    return [f"disturbed: {share} of {worst.backend} {worst.workload}{more} ({fate}): {worst['culprit']}"]


def _reasons(rows: Iterable[Row], width: int, room: int | None) -> list[Line]:
    """Why verdicts are as they are, the worst first, and what would settle them.

    Args:
        rows: the cases.
        width: columns.
        room: lines; None where every reason is to be said in full.
    """
    found = reasons.of(rows)
    steps = _wrapped((f"to settle it: {one}" for one in reasons.remedies(found)), width)
    lines = [line for one in found for line in _wrapped([f"{one.outcome}: {one.said} ({one.cases})"], width)]
    if room is None or len(lines) + len(steps) <= room:
        return lines + steps
    lines = []
    for number, one in enumerate(found):
        shortened = _shortened(one, width)
        left = len(found) - number
        if number and len(lines) + len(shortened) + (left > 1) > room - len(steps):
            lines += _wrapped([f"and {left} more reasons: run with -v, or see a report (--llm-report)"], width)
            break
        lines += shortened
    return lines + steps


def _shortened(reason: Reason, width: int) -> list[Line]:
    """A reason in `REASON` lines, always with its cases."""
    for most in range(len(reason.said), 0, -4):
        said = textwrap.shorten(reason.said, most, placeholder=" ...")
        lines = _wrapped([f"{reason.outcome}: {said} ({reason.cases})"], width)
        if len(lines) <= REASON:
            break
    return lines


def command(what: str, argv: Sequence[str], width: int) -> list[str]:
    """What a command is for, and the command, in as many lines as it takes; a shell takes them as one."""
    lines = [f"{what}: {shlex.join(argv)}"]
    if len(lines[0]) <= width:
        return lines
    lines, current = [f"{what}:"], " "
    for word in map(shlex.quote, argv):
        if current.strip() and len(current) + len(word) + 3 > width:
            lines.append(f"{current} \\")
            current = "   "
        current += f" {word}"
    return [*lines, current]


def _wrapped(
    texts: Iterable[str], width: int, style: Mapping[str, bool] = PLAIN, most: int | None = None
) -> list[Line]:
    """Lines of at most so many columns; of each text the first few, where not all are wanted."""
    return [
        Line(line, style)
        for text in texts
        for line in textwrap.wrap(
            text,
            width,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
            max_lines=most,
            placeholder=" ...",
        )
    ]
