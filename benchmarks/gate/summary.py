"""Writes what the data say into the table in README.md.

python -m benchmarks.gate.summary
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from benchmarks.gate.repository import shown, untold

DATA = Path(__file__).parent / "data"
README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- table -->", "<!-- end -->"
#: What a slowdown of the decode steps shows in, and what it does not.
METRICS = (("tpot", "latency"), ("ttft",))
TITLES = {"tpot": "TPOT", "latency": "latency", "ttft": "TTFT"}
HEAD = (
    "| command | on | metrics | decisions | regression | ok | faster | inconclusive | of these by the machine "
    "| furthest from 0 | pytest-benchmark fails | asv | nvbench |"
)


def rows(path: Path) -> list[str]:
    """A row for each group of metrics."""
    held = json.loads(path.read_text())
    made = [one for run in held["runs"] for one in run.values()]
    found = []
    for group in METRICS:
        metrics = [metric for metric in group if any(metric in one["verdicts"] for one in made)]
        verdicts = [one["verdicts"][metric] for one in made for metric in metrics]
        if not verdicts:
            continue
        outcomes = Counter(one["outcome"] for one in verdicts)
        failed = Counter(
            rule for one in made for metric in metrics for rule, fails in one["others"][metric].items() if fails
        )
        ratios = [one["ratio"] for one in verdicts if one["ratio"] is not None]
        furthest = max(ratios, key=lambda ratio: abs(ratio - 1), default=None)
        counts = [outcomes[name] for name in ("regression", "ok", "faster", "inconclusive")]
        counts.append(untold(verdicts))
        others = [failed[rule] for rule in ("pytest-benchmark", "asv", "nvbench")]
        command = f"[`{held['command'].removeprefix('python -m benchmarks.')}`](data/{path.name})"
        title = ", ".join(TITLES[metric] for metric in metrics)
        cells = [command, held["machine"]["cpu"].split("(")[0].strip(), title, len(verdicts), *counts]
        found.append(f"| {' | '.join(map(str, [*cells, shown(furthest), *others]))} |")
    return found


def table() -> str:
    """Markdown."""
    files = [path for path in sorted(DATA.glob("*.json")) if "runs" in json.loads(path.read_text())]
    return "\n".join([HEAD, "| --- " * (HEAD.count("|") - 1) + "|", *(row for path in files for row in rows(path))])


def page() -> str:
    """README.md with the table as the data have it."""
    before, _, rest = README.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    README.write_text(page())
