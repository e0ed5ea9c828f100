"""``pytest-llmperf report`` and ``pytest-llmperf compare``: what was measured earlier, from its files."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pytest_llmperf.report import markdown, terminal, trend, write
from pytest_llmperf.report.document import Document, ReportError, of


def read(path: Path) -> Document:
    """The document of a results file or a JSON report.

    Raises:
        ReportError: it cannot be read, or is neither.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise ReportError(f"{path}: it is no results file of pytest-llmperf")
    try:
        return of(data)
    except ReportError as error:
        raise ReportError(f"{path}: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pytest-llmperf",
        description="Reports of what was measured earlier, from files of --llm-results or --llm-report=FILE.json.",
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


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script. Returns 0, or 2 with one line if a file cannot be read or written."""
    asked = _parser().parse_args(arguments)
    try:
        if asked.command == "report":
            _report(asked.results, asked.output)
        else:
            _compare(read(asked.a), read(asked.b))
    except (ReportError, OSError) as error:
        print(f"pytest-llmperf: {error}", file=sys.stderr)
        return 2
    return 0
