"""The end of a run: baselines and reports are written, and the terminal says what came of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmperf import files
from pytest_llmperf import settings as options
from pytest_llmperf.cases import METRICS
from pytest_llmperf.gate import baseline
from pytest_llmperf.gate.baseline import BaselineError
from pytest_llmperf.gate.rule import Outcome
from pytest_llmperf.machine.fingerprint import tracing
from pytest_llmperf.report import document, markdown, results, terminal, write
from pytest_llmperf.report.document import Document
from pytest_llmperf.report.tables import MENTIONED
from pytest_llmperf.report.terminal import Ending
from pytest_llmperf.settings import in_ci

if TYPE_CHECKING:
    from pytest_llmperf.cases import Case
    from pytest_llmperf.gate.baseline import Entry
    from pytest_llmperf.gate.update import Change
    from pytest_llmperf.plugin import State
    from pytest_llmperf.session import Session


def keep(state: State, run: Session) -> None:
    """Write everything that was measured so far into the results file, if there is to be one.

    What cannot be written now is tried again at the end, and said then. A device or a pipe gets the results once, at
    the end.
    """
    path = run.settings.results
    if path is not None and not (state.parallel or state.dry or files.stream(path)):
        _failure(lambda: results.write(path, _results(state, run)))


def finish(state: State, run: Session, exitstatus: int) -> bool:
    """Write what is to be written at the end. Returns whether the run has failed, whatever its tests say.

    What cannot be written costs a line of the summary, and none of the other files.
    """
    if run.settings.update_baselines and run.results:
        state.written = _write_baselines(run, exitstatus)
    found = cache(partial(_results, state, run))
    if state.reports or run.beside.assessments:
        _write_results(state, found)
    if state.reports:
        _write_reports(state, found)
    unwritten = any(map(run.accepts, run.results)) and (not state.written or isinstance(state.written, str))
    return bool(unwritten or state.unreported or run.slower() or _gated_nothing(state, run))


def part(state: State, run: Session) -> str:
    """What a process of xdist has measured, for the one that started it."""
    return json.dumps(_results(state, run))


def finish_parallel(state: State) -> bool:
    """As `finish`, for what all processes of xdist have measured: one results file, and one of each report."""
    found = cache(partial(results.merged, state.parts))
    _write_results(state, found)
    _write_reports(state, found)
    return bool(state.unreported)


def _results(state: State, run: Session) -> dict[str, Any]:
    """Everything that was measured so far."""
    return results.of(run, state.left, state.narrowing.reasons, state.accepted)


def _write_baselines(run: Session, exitstatus: int) -> dict[Case, Entry] | str:
    """The baselines written, or why none were."""
    if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return "interrupted: no baseline was written"
    try:
        return run.write_baselines()
    except BaselineError as error:
        return f"ERROR: {error}"
    except Exception as error:  # the other files and the summary are to follow
        return f"ERROR: no baseline was written: {type(error).__name__}: {error}"


def _write_results(state: State, found: Callable[[], dict[str, Any]]) -> None:
    """Write the results file again: what was accepted is known only now."""
    path = state.settings.results
    if path is not None and (error := _failure(lambda: results.write(path, found()))) is not None:
        state.unreported.append(f"{path} was not written: {error}")


def _write_reports(state: State, found: Callable[[], dict[str, Any]]) -> None:
    """Write the reports, and in GitHub Actions the step's summary; what cannot be written is said."""
    summary = os.environ.get("GITHUB_STEP_SUMMARY") if os.environ.get("GITHUB_ACTIONS") else None

    @cache
    def shown() -> Document:
        return document.of(found())

    def summarize(path: str) -> None:
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write("\n" + markdown.render(shown()))

    for path in state.settings.report:
        if (error := _failure(lambda path=path: write.write(shown(), path))) is None:  # type: ignore[misc]
            state.reported.append(f"report written to {path}")
        else:
            state.unreported.append(f"{path} was not written: {error}")
    if summary and (error := _failure(partial(summarize, summary))) is not None:
        state.reported.append(f"the step summary was not written: {error}")  # nobody asked for it


def _failure(write: Callable[[], None]) -> str | None:
    """Why something could not be written; None if it was. Whatever it is, the terminal's own summary is to follow."""
    try:
        write()
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None


def _gated_nothing(state: State, run: Session) -> bool:
    """A gate that compared nothing is not a pass: in CI, or where a base, a tolerance or strictness was asked for."""
    stated = run.settings.strict or run.plan.base is not None or "max_regression" in run.settings.stated
    asked = in_ci() or stated
    config = state.config
    measures = not (config.getoption("benchmark_skip", False) or config.getoption("benchmark_disable", False))
    compared = any(result.verdict.compared or run.accepts(case) for case, result in run.results.items())
    otherwise = run.settings.accepts_all or run.settings.self_test
    gates = state.gating and measures and not state.dry and not otherwise
    return bool(asked and gates and not compared)


# The summary


def show(reporter: Any, state: State, run: Session) -> None:
    """Write the summary on the terminal, if there is anything to say."""
    measured = bool(run.results or run.parities or run.loads or run.beside.assessments)
    skips = () if measured or state.dry else tuple(state.skips.values())
    if not (measured or skips or state.unreported or _gated_nothing(state, run)):
        return
    if run.settings.self_test:
        lines = terminal.self_test(run.beside.assessments, _width(reporter))
    else:
        lines = terminal.summary(_document(state, run, measured), _ending(state, run, skips), _width(reporter))
    _print(reporter, lines)


def show_parallel(reporter: Any, state: State) -> None:
    """As `show`, for what all processes of xdist have measured."""
    found = results.merged(state.parts)
    if found["parity"] or state.reported or state.unreported:
        ending = Ending(errors=state.unreported, notes=[*_tracing(), *state.reported], counted=False)
        _print(reporter, terminal.summary(document.of(found), ending, _width(reporter)))


def _width(reporter: Any) -> int:
    """Columns. In a log, whose width nobody knows, COLUMNS says how wide a line may be."""
    known = reporter._tw.fullwidth if reporter.isatty else shutil.get_terminal_size((terminal.WIDTH, 0)).columns
    return int(known)


def _print(reporter: Any, lines: Sequence[terminal.Line]) -> None:
    reporter.ensure_newline()
    reporter.section("llmperf")
    for line in lines:
        reporter.write_line(line.text, **line.style)


def _document(state: State, run: Session, measured: bool) -> Document:
    if not measured:  # and the machine was not looked at either
        return Document(run.device.name, run.model.name, run.dtype, run.settings.reference)
    return document.of(results.shown(run, state.left, state.accepted))


def _ending(state: State, run: Session, skips: Sequence[str]) -> Ending:
    """What there is to say beside the figures."""
    accepting = [case for case in run.results if run.accepts(case)]
    written = state.written if accepting else {}
    slower = run.slower() if accepting else []
    errors = list(state.unreported)
    if isinstance(written, str):
        said, error = ("", written.removeprefix("ERROR: ")) if written.startswith("ERROR: ") else (written, "")
        errors += [error] if error else []
    else:
        said = _written(run, written, accepting, slower) if accepting else ""
        errors += [refusal(slower)] if slower else []
    if _gated_nothing(state, run):
        errors.append("nothing was compared with a baseline, so this gate has passed nothing")
    verbose = state.config.get_verbosity() > 0
    gated = len(accepting) < len(run.results)
    counted = gated or not (run.settings.update_baselines or run.loads)
    return Ending(
        skipped=state.skipped,
        skips=tuple(dict.fromkeys(skips)),
        accepting=frozenset(accepting),
        changes=[] if isinstance(written, str) else [run.updates.changes[case] for case in written],
        written=said,
        errors=errors,
        doubts=_doubts(run),
        notes=[*_notes(state, run, verbose and counted), *_tracing(), *state.reported],
        commands=_commands(state, run),
        counted=counted,
        strict=run.settings.strict,
        verbose=verbose,
    )


def _doubts(run: Session) -> list[str]:
    """What may not be as the user thinks."""
    doubts = []
    if passed_over := run.plan.passed_over:
        doubts.append(f"the CPU was measured: {passed_over}")
    if run.plan.base_is_head:
        doubts.append(f"base, {run.plan.base}, is the code under test, so nothing is compared with it")
    return doubts


def _written(run: Session, written: dict[Case, Entry], accepting: Sequence[Case], slower: Sequence[Change]) -> str:
    """How many entries an update wrote, and how many cases it did not accept."""
    refused = {change.case for change in slower}
    left = sum(case not in written and case not in refused for case in accepting)
    held = f"; {left} cases, disturbed, not judged or not in parity, were not accepted" if left else ""
    return f"{len(written)} entries written to {run.plan.shown_path}{held}"


def refusal(slower: Sequence[Change]) -> str:
    """What is said of an update in CI that would have accepted slowdowns."""
    cases = ", ".join(f"{one.case.key} {one.ratio - 1:+.1%}" for one in slower if one.ratio is not None)
    more = " or ".join(dict.fromkeys(METRICS[one.case.metric].more for one in slower))
    return (
        f"{more} than the gate allows, so not written in CI: {cases}; "
        "accept with --llm-update-baselines=slower if it is intended"
    )


def _notes(state: State, run: Session, verbose: bool) -> list[str]:
    """What else there is to say of the baselines."""
    notes = []
    if verbose and (unused := run.unused_baselines):
        notes.append(f"baselines that this run did not use: {', '.join(unused)}")
    if verbose and (idle := run.plan.idle(run.results)):
        notes.append(f"llm_tolerances that matched no case of this run: {', '.join(idle)}")
    if run.plan.stored and run.plan.stored.migrated and not state.accepted:
        held = f"{run.plan.shown_path} has schema {run.plan.stored.migrated}"
        notes.append(f"{held}: its newest figures are used, and the next update writes schema {baseline.SCHEMA}")
    if state.accepted and (limited := ", ".join(run.machine.limited)):
        notes.append(f"recorded with {limited}: the baseline decides nothing about runs with other limits")
    if run.unnamed:
        why = run.plan.commit[1] or "files differ from the commit"
        notes.append(f"the baseline names no revision ({why}): no later run can compare beside this code")
    return notes


def _tracing() -> list[str]:
    """What workers did not get of pytest's environment."""
    names = ", ".join(tracing())
    return [f"workers ran without {names}: tracing and debugging would slow them"] if names else []


def _commands(state: State, run: Session) -> dict[str, list[str]]:
    """What to run where the gate failed: the tests that did, or pytest's own list of many, with our options."""
    config = state.config
    failed = [
        _from_here(config, name)
        for name, result in state.judged.items()
        if result.verdict.outcome is Outcome.REGRESSION and not run.accepts(result.case)
    ]
    if not failed:
        return {}
    listed = len(failed) <= MENTIONED or not config.pluginmanager.hasplugin("cacheprovider")
    tests = failed if listed else [*config.option.file_or_dir, "--lf", "--lfnf=none"]
    given = options.repeated([str(one) for one in config.invocation_params.args])
    command = ["pytest", *tests, *given]
    found = {"to measure that alone again": [*command, "--llm-compare=always"]}
    if run.plan.base is None:
        found["to accept it"] = [*command, "--llm-update-baselines=slower"]
    return found


def _from_here(config: pytest.Config, node_id: str) -> str:
    """A test, as it is called in the folder that pytest was started in."""
    path, mark, name = node_id.partition("::")
    return os.path.relpath(config.rootpath / path, config.invocation_params.dir) + mark + name
