"""``pytest-llmperf report``, ``compare``, ``accept``, ``prune``: earlier runs, from files. ``bisect``: new ones."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_llmperf.bisecting import BisectError, Environments, Revisions, bisect
from pytest_llmperf.cases import METRICS
from pytest_llmperf.gate import accept, prune
from pytest_llmperf.gate import baseline as store
from pytest_llmperf.gate.update import Update
from pytest_llmperf.report import markdown, tables, trend, write
from pytest_llmperf.report.document import Document, ReportError, of
from pytest_llmperf.settings import in_ci


def read(path: Path) -> Document:
    """The document of a results file or a JSON report.

    Raises:
        ReportError: it cannot be read, or is neither.
    """
    return _read(path)[1]


def _read(path: Path) -> tuple[dict[str, Any], Document]:
    """A file, and its document. Raises as `read`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise ReportError(f"{path}: it is no results file of pytest-llmperf")
    try:
        return data, of(data)
    except ReportError as error:
        raise ReportError(f"{path}: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pytest-llmperf",
        description="What was measured earlier, from files of --llm-results or --llm-report=FILE.json; and bisect.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser(
        "report",
        help="one report of one or more runs: the newest, and how it came about",
        epilog="Example: pytest-llmperf report results/*.json --output trend.html",
    )
    report.add_argument("results", nargs="+", type=Path, metavar="RESULTS")
    report.add_argument(
        "--output",
        action="append",
        type=_output,
        default=[],
        metavar="FILE",
        help=f"a file to write, by its suffix ({', '.join(write.FORMS)}); may be repeated. Default: Markdown, printed",
    )
    compare = commands.add_parser(
        "compare",
        help="two runs side by side: figures, no verdict",
        epilog="Two files do not tell a change from noise; pytest --llm-base=REVISION does.",
    )
    compare.add_argument("a", type=Path, metavar="A")
    compare.add_argument("b", type=Path, metavar="B")
    accepted = commands.add_parser(
        "accept",
        help="the figures of a run elsewhere, or of one that was stopped, as baselines",
        epilog="Example: pytest-llmperf accept results.json, which a job with --llm-update-baselines left behind",
    )
    pruned = commands.add_parser(
        "prune",
        help="remove the baselines that no test has any more",
        description="Remove the baselines that no test in the given results has. Of the baseline file of that device "
        "and model, only entries of the results' machine and dtype are removed. Each is listed.",
        epilog="Give a results file of every run whose baselines are to stay. Each run must be complete: every test "
        "that gates a case has a figure, and nothing hid tests (no -k, -m, --lf or single file). Example: "
        "pytest --llm-results=results.json, then pytest-llmperf prune results.json --dry-run",
    )
    pruned.add_argument("--dry-run", action="store_true", help="only list the entries")
    bisected = commands.add_parser(
        "bisect",
        help="the first revision, or environment, that is slower than a good one",
        description="Find the first revision that is slower than GOOD. Each one tried is measured beside GOOD in pairs "
        "of fresh processes, with the tests of the tree. The same command goes on where it was stopped.",
        epilog="Example: pytest-llmperf bisect v1.2 main -- suites/test_decode.py --llm-backends=sdpa",
    )
    bisected.add_argument("good", nargs="?", metavar="GOOD", help="a revision that is fast enough")
    bisected.add_argument("bad", nargs="?", metavar="BAD", help="a later one that is slower")
    bisected.add_argument(
        "--environments",
        nargs="+",
        metavar="PYTHON",
        help="instead of revisions: interpreters in order, the good one first",
    )
    bisected.add_argument("--again", action="store_true", help="forget what an earlier command found")
    for command in (accepted, pruned):
        command.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="a file of --llm-results")
        command.add_argument(
            "--baseline-dir",
            type=Path,
            default=Path("baselines"),
            metavar="DIR",
            help="folder of the baselines. Default: baselines",
        )
    return parser


def _output(text: str) -> Path:
    try:
        write.form_of(Path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(text)


def _report(paths: Sequence[Path], outputs: Sequence[Path]) -> None:
    document, others = trend.gather([read(path) for path in paths])
    if others:
        print(f"{others} of another machine, device, model or dtype than the newest left out", file=sys.stderr)
    for path in outputs:
        write.write(document, path)
        print(f"written to {path}")
    if not outputs:
        print(markdown.render(document), end="")


def _compare(a: Document, b: Document) -> None:
    for line in tables.compared(a, b):
        print(line)


def _accept(paths: Sequence[Path], folder: Path) -> bool:
    """Whether anything was written. Every file is understood before anything is."""
    updates = [(path, _update(path)) for path in paths]
    wrote = [_accept_one(*one, folder) for one in sorted(updates, key=lambda one: one[1].when)]
    return any(wrote)


def _update(path: Path) -> accept.Accepted:
    """What a results file has to accept.

    Raises:
        ReportError: it is none, or of a run without ``--llm-update-baselines``.
    """
    results, _ = _read(path)
    try:
        found = accept.parse(results)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ReportError(f"{path}: it has no update that can be accepted ({error!r})") from None
    if found is None:
        raise ReportError(f"{path}: it is not of a run with --llm-update-baselines, so there is nothing to accept")
    return found


def _accept_one(path: Path, accepted: accept.Accepted, folder: Path) -> bool:
    new = accepted.baseline
    file = store.path_for(folder, new.device, new.model)
    with store.locked(file):
        update = Update(file, store.load(file, new.device, new.model), new.device, new.model)
        left = accept.queue(accepted, update)
        changes = list(update.changes.values())
        refused = {change.case for change in changes if change.slower and in_ci()}
        written = update.write(refused)
    left |= {case.key: f"{METRICS[case.metric].more} than the gate allows, so not written in CI" for case in refused}
    taken = [change for change in changes if change.case in written]
    for line in (*tables.changes(taken), *tables.about_changes(taken)):
        print(line)
    for key, why in left.items():
        print(f"left out: {key}: {why}")
    if accepted.unmeasured:
        print(f"left out: {accepted.unmeasured} of that run's tests have no figure")
    print(f"{len(written)} entries of {path} written to {file}")
    return bool(written)


def _prune(paths: Sequence[Path], folder: Path, dry_run: bool) -> None:
    """Remove the baselines that no test in the results files has.

    Raises:
        ReportError: the files do not tell which these are.
    """
    try:
        runs = prune.together([_used(path) for path in paths])
        file = store.path_for(folder, runs.device, runs.model)
        if not file.exists():
            raise ReportError(f"{file}: there is no such file, so there is nothing to remove")
        with store.locked(file):
            held = store.load(file, runs.device, runs.model)
            unused = prune.unused(held, runs) if held else []
            if held and unused and not dry_run:
                store.write(file, store.without(held, runs.machine, unused))
    except (ReportError, store.BaselineError):
        raise
    except ValueError as error:
        raise ReportError(str(error)) from None
    for key in unused:
        print(f"{'unused' if dry_run else 'removed'}: {key}")
    print(f"{len(unused)} unused entries {'in' if dry_run else 'removed from'} {file}")


def _used(path: Path) -> prune.Used:
    """What the run of a results file measured.

    Raises:
        ReportError: it is none, or not of a complete run.
    """
    results, _ = _read(path)
    try:
        return prune.used(results)
    except (KeyError, TypeError, AttributeError) as error:
        raise ReportError(f"{path}: it is no results file ({error!r})") from None
    except ValueError as error:
        raise ReportError(f"{path}: {error}") from None


def _bisect(good: str | None, bad: str | None, environments: list[str] | None, tests: list[str], again: bool) -> int:
    """Raises BisectError: nothing can be bisected."""
    if not tests:
        raise BisectError("bisect: name the tests that are slower after --, as in: bisect v1.2 main -- suites")
    if environments is not None:
        if good is not None:
            raise BisectError("bisect: name revisions, or --environments, not both")
        return bisect(Environments(environments), tests, again)
    if good is None or bad is None:
        raise BisectError("bisect: name two revisions, as in: bisect v1.2 main -- suites")
    return bisect(Revisions(good, bad), tests, again)


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script.

    Returns:
        0; 1 if nothing was there to be accepted, or if a bisection leaves several candidates; 2 with one line if
        something cannot be read, written or bisected; 130 if a bisection was stopped.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    own, tests = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    parser = _parser()
    asked = parser.parse_args(own)
    if tests and asked.command != "bisect":
        parser.error("only bisect takes tests after --")
    try:
        if asked.command == "bisect":
            return _bisect(asked.good, asked.bad, asked.environments, tests, asked.again)
        if asked.command == "report":
            _report(asked.results, asked.output)
        elif asked.command == "compare":
            _compare(read(asked.a), read(asked.b))
        elif asked.command == "prune":
            _prune(asked.results, asked.baseline_dir, asked.dry_run)
        else:
            return int(not _accept(asked.results, asked.baseline_dir))
    except (ReportError, store.BaselineError, BisectError, OSError) as error:
        print(f"pytest-llmperf: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
