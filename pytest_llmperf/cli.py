"""``pytest-llmperf report``, ``compare`` and ``accept``: what was measured earlier, from its files."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_llmperf import accept
from pytest_llmperf import baseline as store
from pytest_llmperf.devices.fingerprint import Fingerprint
from pytest_llmperf.gate import Gate
from pytest_llmperf.report import markdown, terminal, trend, write
from pytest_llmperf.report.document import Document, ReportError, of


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
        description="What was measured earlier, from files of --llm-results or --llm-report=FILE.json.",
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
    accepted.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="a file of --llm-results")
    accepted.add_argument(
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
    for line in terminal.compared(a, b):
        print(line)


def _accept(paths: Sequence[Path], folder: Path) -> bool:
    """Whether anything was written. Every file is read before."""
    read_all = [(path, _read(path)[0]) for path in paths]
    for path, results in read_all:
        if results.get("update") is None:
            what = "a report has no samples" if results.get("kind") == "report" else "it has no figures to accept"
            raise ReportError(f"{path}: {what}; give a file of --llm-results of a run with --llm-update-baselines")
    wrote = [_accept_one(*one, folder) for one in sorted(read_all, key=lambda one: one[1]["when"])]
    return any(wrote)


def _accept_one(path: Path, results: Mapping[str, Any], folder: Path) -> bool:
    try:
        device, model = results["device"], results["model"]
        file = store.path_for(folder, device, model)
        machine, peaks = Fingerprint.from_dict(results["environment"]["fingerprint"]), results["environment"]["peaks"]
        measured = (lambda: peaks) if device == "cpu" else None
        gate = Gate(file, store.load(file, device, model), lambda: machine, results["reference"], measured)
        left = accept.queue(results, gate)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, store.BaselineError):
            raise
        raise ReportError(f"{path}: it is no results file of pytest-llmperf ({error!r})") from None
    if gate.changes:
        store.check_writable(file.parent)
    written = gate.write(device, model, ())
    for line in terminal.changes([gate.changes[case] for case in written]):
        print(line)
    for key, why in left.items():
        print(f"left out: {key}: {why}")
    if missing := len(results["unmeasured"]):
        print(f"left out: {missing} tests of that run, which have no figure")
    print(f"{len(written)} entries of {path} written to {file}")
    return bool(written)


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script.

    Returns:
        0; 1 if there was nothing to accept; 2 with one line if a file cannot be read or written.
    """
    asked = _parser().parse_args(arguments)
    try:
        if asked.command == "report":
            _report(asked.results, asked.output)
        elif asked.command == "compare":
            _compare(read(asked.a), read(asked.b))
        else:
            return int(not _accept(asked.results, asked.baseline_dir))
    except (ReportError, store.BaselineError, OSError) as error:
        print(f"pytest-llmperf: {error}", file=sys.stderr)
        return 2
    return 0
