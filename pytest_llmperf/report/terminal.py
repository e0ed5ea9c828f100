"""What the terminal shows: progress on long work, and the final table. Pure formatting but for `Progress`."""

from __future__ import annotations

import math
import shlex
import time
from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_llmperf.cases import METRICS, place
from pytest_llmperf.gate.verdict import LARGE, Outcome
from pytest_llmperf.report import cells
from pytest_llmperf.report.scaling import placed
from pytest_llmperf.report.text import change, figure, roof, speedup, spread
from pytest_llmperf.report.trend import same_machine

if TYPE_CHECKING:
    import pytest

    from pytest_llmperf.cases import Case
    from pytest_llmperf.gate.selftest import Assessment
    from pytest_llmperf.gate.update import Change
    from pytest_llmperf.parity.decision import Parity
    from pytest_llmperf.report.document import Document, LoadRow, Row
    from pytest_llmperf.result import ParityResult, Result


def label(case: Case) -> str:
    """A case in a table of one model and dtype."""
    return f"{case.metric} {case.workload} {case.backend}"


def verdict_line(result: Result) -> str:
    """One line for a person whose test failed: which case, how much, how sure, what to do."""
    case, found = result.case, result.verdict
    if math.isnan(found.ratio):
        return f"{case}: {found.outcome}: {found.reason}"
    what = METRICS[case.metric][0]
    processes = "1 process" if found.processes == 1 else f"{found.processes} fresh processes"
    against = "baseline"
    if found.basis == "base":
        against, processes = "base", f"{found.processes} pairs of fresh processes, {found.blocks} blocks"
    if found.basis == "speedup":
        compared = f"{what} {found.head:.3g} of the reference's, baseline {found.baseline:.3g}"
    else:
        compared = f"{what} {figure(found.head, case.metric)}, {against} {figure(found.baseline, case.metric)}"
    source = result.tolerance_source
    if found.threshold > result.tolerance:
        source = "what the baseline's own processes differ by"
    reason = f"; {found.reason}" if found.reason else ""
    remedy = "Measure the code before beside it with --llm-base=REVISION, or accept it with --llm-update-baselines"
    if found.basis == "base":
        remedy = "If it is intended, allow this case more, in llm_tolerances or by the marker"
    moved = change(found.ratio, found.low, found.high)
    if found.basis == "base":  # not the ratio of the two figures, between which the machine may have changed
        moved = f"in turns {moved}"
    return (
        f"{case}: {found.outcome}: {compared}, {moved} at 99 %, {processes}; "
        f"allowed {found.threshold:.0%} ({source}){reason}. {remedy}"
    )


def what_next(failed: Collection[Result], command: Sequence[str], commit: str | None) -> list[str]:
    """What to run where a gate failed.

    Args:
        failed: the cases, at least one.
        command: measures those alone, as this run did.
        commit: under test, with a plus sign where files differ from it; None outside a repository.
    """
    if any(one.verdict.basis == "base" for one in failed):
        return [f"to measure that alone again: {shlex.join([*command, '--llm-compare=always'])}"]
    lines = [f"to accept it: {shlex.join([*command, '--llm-update-baselines=slower'])}"]
    if commit is None:
        return [f"to measure that alone again: {shlex.join(command)}", *lines]
    before = "--llm-base=HEAD" if commit.endswith("+") else "--llm-base=HEAD~1"
    beside = shlex.join([*command, before, "--llm-compare=always"])
    return [f"to measure it in turns with the code before: {beside}", *lines]


def scaling(rows: Iterable[Row]) -> list[str]:
    """What more devices bring, a line per case of a tensor-parallel degree above 1."""
    shown = [[cell.shown for cell in line] for line in cells.of_scaling(rows)]
    return [*_aligned([cells.SCALING, *shown]), *placed(rows)] if shown else []


def loads(rows: Iterable[LoadRow]) -> list[str]:
    """Servers under load, a line each."""
    shown = [[cell.shown for cell in line] for line in cells.of_load(rows)]
    return _aligned([cells.LOAD, *shown]) if shown else []


#: Seconds beyond a settled generation from which on a first one is said to compile: caches alone take less.
COMPILES = 5.0
#: A resolution beyond so many tolerances is said, and of so many cases.
FAR, MENTIONED = 1.5, 4

HEADER = ("case", "median [q1, q3]", "speedup", "roof", "vs baseline [99 %]", "verdict")
#: The same where that is wider than the terminal: no spread, no roof, no interval, and what is common said once.
NARROW = ("  backend", "median", "speedup", "change", "verdict")


def table(results: Iterable[Result], accepted: Container[Case] = (), width: int | None = None) -> list[str]:
    """The summary, a line per case, grouped by metric and workload so that backends stand under each other.

    Args:
        results: the cases.
        accepted: those whose figures were written to the baseline.
        width: columns of the terminal; None where lines may have any length.
    """
    ranked = sorted(results, key=lambda result: place(result.case.metric, result.case.workload))
    rows: list[Sequence[str]] = []
    for result in ranked:
        use = result.utilization
        rows.append(
            (
                label(result.case),
                spread(result.spread.median, result.spread.q1, result.spread.q3, result.case.metric),
                speedup(result.speedup),
                roof(use.name, use.fraction) if use else "-",
                change(result.verdict.ratio, result.verdict.low, result.verdict.high),
                "accepted" if result.case in accepted else str(result.verdict.outcome),
            )
        )
    lines = _aligned([HEADER, *rows])
    if width is None or max(map(len, lines)) <= width:
        return lines
    narrow = [
        (f"  {result.case.backend}", median.partition(" [")[0], speed, moved.partition(" [")[0], verdict)
        for result, (_, median, speed, _, moved, verdict) in zip(ranked, rows, strict=True)
    ]
    head, *lines = _aligned([NARROW, *narrow])
    grouped = [head]
    for result, line in zip(ranked, lines, strict=True):
        group = f"{result.case.metric} {result.case.workload}"
        grouped += [line] if group in grouped else [group, line]
    return grouped


def compared(a: Document, b: Document) -> list[str]:
    """Two runs side by side, the case that got slower by most first; then what only one of them has."""
    known = {row.case: row for row in a.rows}
    both = sorted((row for row in b.rows if row.case in known), key=lambda row: known[row.case].median / row.median)
    rows = [
        (
            f"{row.metric} {row.workload} {row.backend}",
            spread(known[row.case].median, known[row.case].q1, known[row.case].q3, row.metric),
            spread(row.median, row.q1, row.q3, row.metric),
            f"{row.median / known[row.case].median - 1:+.1%}",
        )
        for row in both
    ]
    lines = [f"A: {_run(a)}", f"B: {_run(b)}"]
    lines += _aligned([("case", "A [q1, q3]", "B [q1, q3]", "change"), *rows]) if rows else ["no case is in both"]
    for name, one, other in (("A", a, b), ("B", b, a)):
        alone = sorted({row.case for row in one.rows} - {row.case for row in other.rows})
        lines += [f"only in {name}: {', '.join(alone)}"] if alone else []
    if not same_machine(a, b):
        lines.append("of two machines: the change may be theirs")
    return [*lines, "Two runs do not tell a change from noise; pytest --llm-base=REVISION measures both in turns."]


def _run(document: Document) -> str:
    return ", ".join(filter(None, (document.title, document.commit, document.when)))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _mentioned(cases: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(cases) - MENTIONED} more" if len(cases) > MENTIONED else ""
    return ", ".join(cases[:MENTIONED]) + more


def changes(accepted: Iterable[Change]) -> list[str]:
    """What an update did, a line per set: old, new, change, and what the gate can detect from now on."""
    taken = list(accepted)
    sets = Counter(one.case for one in taken)
    rows = [("accepted", "old", "new", "change", "resolution")]
    starred = False
    doubts: dict[str, None] = {}
    for one in taken:
        case = one.case
        moved = "new" if one.ratio is None else f"{one.ratio - 1:+.1%}{'*' * one.beyond_noise}"
        state = f", {1e6 * one.barrier.seconds:.1f} us to meet" if sets[case] > 1 and one.barrier else ""
        starred |= one.beyond_noise
        doubts |= dict.fromkeys(filter(None, [one.doubt]))
        rows.append(
            (
                label(case) + state,
                "-" if one.old is None else figure(one.old, case.metric),
                figure(one.new, case.metric),
                moved,
                "-" if one.resolution is None else f"{one.resolution:.1%}",
            )
        )
    if len(rows) == 1:
        return []
    legend = "resolution: the smallest slowdown that is detected now, the largest of tolerance, noise floor and 50 us"
    large = _mentioned([label(one.case) for one in taken if one.questionable])
    return [
        *_aligned(rows),
        legend + "; *: beyond the noise of the old baseline" * starred,
        *([f"faster by more than {LARGE:.0%}: {large}: is something not measured any more?"] if large else []),
        *(f"{doubt}: these figures would hide a slowdown once it is itself again; record then" for doubt in doubts),
    ]


def refusal(slower: Sequence[Change]) -> str:
    """One line for an update in CI that would have accepted slowdowns."""
    cases = ", ".join(f"{one.case.key} {one.ratio - 1:+.1%}" for one in slower if one.ratio is not None)
    return (
        f"slower than the gate allows, so not written in CI: {cases}; "
        "accept with --llm-update-baselines=slower if it is intended"
    )


def assessments(found: Mapping[Case, Assessment]) -> list[str]:
    """The self-test's table, a line per case, and what its columns mean."""

    def share(value: float | None) -> str:
        return "none" if value is None else f"{value:.0%}" if value in (0, 1) or value >= 0.1 else f"{value:.1%}"

    rows: list[Sequence[str]] = [
        (
            "case",
            "pairs",
            "tolerance",
            "false alarms",
            "inconclusive",
            "+5% caught",
            "resolution",
            "recommended",
            "stored",
        )
    ]
    rows += [
        (
            label(case),
            f"{one.pairs}",
            *map(share, (one.tolerance, one.false_alarms, one.undecided, one.power, one.resolution, one.recommended)),
            share(one.noise),
        )
        for case, one in found.items()
    ]
    return [
        *_aligned(rows),
        "false alarms, inconclusive: of unchanged code beside itself. +5% caught: beside itself slowed by 5 %.",
        "resolution: the smallest slowdown caught in 9 of 10 comparisons. recommended: the smallest tolerance at which "
        "unchanged code is ok in 9 of 10 and never fails.",
        "stored: what a stored baseline has to allow here, since processes of unchanged code differed by as much.",
    ]


def notes(results: Iterable[Result]) -> list[str]:
    """The reasons behind verdicts that have one, each said once."""
    said: dict[str, list[str]] = {}
    for result in results:
        if result.verdict.reason:
            said.setdefault(f"{result.verdict.outcome}: {result.verdict.reason}", []).append(label(result.case))
    return [
        f"{reason} ({cases[0]}{f' and {len(cases) - 1} more' if len(cases) > 1 else ''})"
        for reason, cases in said.items()
    ]


def blind(results: Iterable[Result]) -> str:
    """The cases whose comparison could not have seen a slowdown of their tolerance, worst first; empty if all could."""
    unseen = sorted(
        (result for result in results if result.verdict.resolution > FAR * result.tolerance),
        key=lambda result: -result.verdict.resolution,
    )
    cases = _mentioned([f"{result.verdict.resolution:.0%} ({label(result.case)})" for result in unseen])
    return f"this run could have missed slowdowns of up to {cases}" if cases else ""


def disturbed(results: Iterable[Result]) -> list[str]:
    """A line per workload some of whose generations something disturbed: what, and what became of them; worst first."""
    found = sorted((result for result in results if result.contamination), key=lambda result: -result.contamination)
    lines = {
        f"{result.case.backend} {result.case.workload}: {result.contamination:.0%} of the generations were disturbed, "
        + (f"{result.discarded} discarded" if result.discarded else "too many to discard them")
        + f": {result.culprit}": None
        for result in found
    }
    return list(lines)


def cold_starts(results: Iterable[Result]) -> list[str]:
    """Seconds until the first generation, per backend; how many of them it compiled, and what the baseline has."""
    first: dict[str, Result] = {}
    for result in results:
        first.setdefault(result.case.backend, result)
    said = []
    for name, result in first.items():
        about = [str(result.case.workload)]
        if (compiling := result.compile_time or 0.0) >= COMPILES:
            about.append(f"{compiling:.0f} s compiling")
        if result.baseline_cold_start is not None:
            about.append(f"baseline {figure(result.baseline_cold_start, 'cold-start')}")
        said.append(f"{name} {figure(result.cold_start, 'cold-start')} ({', '.join(about)})")
    return said


def parity_lines(found: Iterable[ParityResult]) -> list[str]:
    """A line per backend and workload."""
    lines = []
    for one in found:
        parity = one.parity
        if parity.by_text:
            lines.append(
                f"{one.backend} {one.workload}: {'in parity by text' if parity.passed else 'NOT IN PARITY'}, "
                f"{parity.exact_match:.1%} of the reference's characters (no token ids), "
                f"{parity.informative} of {parity.tokens} tokens informative"
            )
            continue
        error = "" if parity.error_ratio is None else f", logit error {parity.error_ratio:.2f} of the reference's"
        apart = "" if parity.first_divergence is None else f" (first apart at token {parity.first_divergence})"
        lines.append(
            f"{one.backend} {one.workload}: {_standing(parity)}, "
            f"{parity.exact_match:.1%} exact{apart}, largest regret {parity.largest_regret:.3g} "
            f"({'its bound is' if parity.bounded else 'rounding explains'} {parity.tolerance:.3g}){error}, "
            f"{parity.informative} of {parity.tokens} tokens informative"
        )
    return lines


def _standing(parity: Parity) -> str:
    if parity.bounded:
        return "not equal, but bounded" if parity.passed else "NOT WITHIN ITS BOUND"
    return "in parity" if parity.passed else "NOT IN PARITY"


def counts(results: Iterable[Result], skipped: int) -> str:
    """How many cases were gated, how they ended, and how many were skipped."""
    verdicts = [result.verdict for result in results]
    found = Counter(str(one.outcome) for one in verdicts)
    gated = sum(one.compared for one in verdicts)
    parts = [f"{found[str(outcome)]} {outcome}" for outcome in Outcome if found[str(outcome)]]
    parts += [f"{skipped} skipped"] if skipped else []
    return f"{gated} cases gated: " + (", ".join(parts) if parts else "nothing was measured")


def position(over: int, tests: int, elapsed: float) -> str:
    """Which test of how many, and after a minute how long the others take if they take as long as those before."""
    if not tests:
        return ""
    left = elapsed / over * (tests - over) if 0 < over < tests and elapsed >= 60 else None
    expected = "" if left is None else f", {left / 60:.0f} min to go" if left >= 90 else f", {left:.0f} s to go"
    return f"  {min(over + 1, tests)}/{tests}{expected}"


class Progress:
    """Says what is being done. On a terminal one line that is rewritten; in a log, a line per long step."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._started = time.monotonic()
        self._last = ""
        self._open = False
        #: Tests that are to run, and those that are over.
        self.tests = self.over = 0

    def __call__(self, text: str) -> None:
        reporter: Any = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is None or self._config.get_verbosity() < 0 or text == self._last:
            return
        self._last = text
        capture: Any = self._config.pluginmanager.get_plugin("capturemanager")
        with capture.global_and_fixture_disabled():
            elapsed = time.monotonic() - self._started
            line = f"llmperf {elapsed:5.0f} s{position(self.over, self.tests, elapsed)}  {text}"
            if reporter.isatty:
                # A line that wraps cannot be rewritten.
                reporter.rewrite(line[: reporter._tw.fullwidth - 1], erase=True)
                self._open = True
            elif ": generation " not in text or "(warm-up)" in text:
                reporter.ensure_newline()
                reporter.write_line(line)

    def finish(self) -> None:
        """Leave the rewritten line behind."""
        if self._open:
            reporter: Any = self._config.pluginmanager.get_plugin("terminalreporter")
            capture: Any = self._config.pluginmanager.get_plugin("capturemanager")
            with capture.global_and_fixture_disabled():
                reporter.rewrite("", erase=True)
            self._open = False
