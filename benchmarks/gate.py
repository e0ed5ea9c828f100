"""How often does the base arm fail unchanged code, and how often does it catch a slowdown that head alone has?

    python -m benchmarks.gate [--kind same] [--runs 10] [--budget 150] [--load] [--output FILE]

A repository of its own: sdpa behind a backend of its conftest.py, which does something more at every token but the
first. Base does nothing more; head, by ``--kind``, nothing (``same``), sleeps 5 or 10 % of sdpa's TPOT (``sleep-5``,
``sleep-10``), or multiplies matrices for as long (``work-5``, ``work-10``). Every run compares prefill, decode and
end-to-end latency beside base at the default tolerance. ``--load`` adds a process that uses a core half of the time.
The criterion: of unchanged code no decision is a regression, with a load too; of the decode and latency decisions of
slowed code 90 % (5 %) or 99 % (10 %) are. Side by side, what other rules say of the samples of each run's first pair:
pytest-benchmark's ``--benchmark-compare-fail=median:5%``; asv's, 5 % and a Mann-Whitney test with p < 0.002; nvbench's,
a difference of means above the smaller of the two relative standard deviations.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import NormalDist, fmean, median, stdev
from typing import Any

from benchmarks import script
from pytest_llmperf.trace import Trace

ROOT = Path(__file__).parent.parent
KINDS = {"same": 0.0, "sleep-5": 0.05, "sleep-10": 0.10, "work-5": 0.05, "work-10": 0.10}
METRICS = ("ttft", "tpot", "latency")
NOTHING = "def do():\n    pass\n"
SLEEP = "import time\n\n\ndef do():\n    time.sleep({seconds})\n"
WORK = """\
import torch

LEFT = torch.ones(64, 64)


def do():
    for _ in range({rounds}):
        LEFT @ LEFT
"""
#: Uses a core half of the time, in turns of a second.
LOAD = "import time\nwhile True:\n    end = time.time() + 1\n    while time.time() < end: pass\n    time.sleep(1)\n"


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=gate", "-c", "user.email=gate@localhost", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def measure(folder: Path, *arguments: str) -> dict[str, Any]:
    """One run of the suites in the folder: its raw results."""
    options = ["--llm-batch-sizes=1", "--llm-prompt-lengths=64", "--llm-max-new-tokens=16", "--llm-results=raw.json"]
    command = [sys.executable, "-m", "pytest", "-q", "suites", "--llm-backends=slowed", *options, *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not (folder / "raw.json").exists():
        raise SystemExit(done.stdout + done.stderr)
    raw: dict[str, Any] = json.loads((folder / "raw.json").read_text())
    return raw


def slowed(kind: str, tpot: float) -> str:
    """Head's ``extra.py``."""
    seconds = KINDS[kind] * tpot
    if kind == "same":
        return NOTHING
    if kind.startswith("sleep"):
        return SLEEP.format(seconds=seconds)
    code = f"import time, torch\n{WORK.format(rounds=1000)}\ndo()\nstart = time.perf_counter()\ndo()\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "print(time.perf_counter() - start)"], capture_output=True, text=True, check=True
    )
    return WORK.format(rounds=max(1, round(1000 * seconds / float(done.stdout))))


def figures(pair: dict[str, Any], arm: str, metric: str) -> list[float]:
    """Seconds: the samples of one arm of a pair, every turn."""
    samples = [sample for turn in pair["turns"] for sample in turn["samples"][arm]]
    return [Trace(**sample["trace"]).metric(metric) for sample in samples]


def mann_whitney(base: Sequence[float], head: Sequence[float]) -> float:
    """The one-sided p-value that head is slower, by the normal approximation (Mann and Whitney, 1947)."""
    wins = sum((one < other) + (one == other) / 2 for one in base for other in head)
    count = len(base) * len(head)
    spread = math.sqrt(count * (len(base) + len(head) + 1) / 12)
    return 1 - NormalDist().cdf((wins - count / 2) / spread)


def others(pair: dict[str, Any], metric: str) -> dict[str, bool]:
    """Whether other rules fail on these samples."""
    base, head = figures(pair, "base", metric), figures(pair, "head", metric)
    slower = median(head) > 1.05 * median(base)
    noise = min(stdev(arm) / fmean(arm) for arm in (base, head))
    return {
        "pytest-benchmark": slower,
        "asv": slower and mann_whitney(base, head) < 0.002,
        "nvbench": fmean(head) / fmean(base) - 1 > noise,
    }


@contextmanager
def competitor(wanted: bool) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", LOAD]) if wanted else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()


def one_run(folder: Path, budget: float) -> dict[str, Any]:
    """Outcomes by metric, with what they rest on, and the other rules' on the first pair."""
    raw = measure(folder, "--llm-base=base", "--llm-compare=always", f"--llm-budget={budget:g}")
    verdicts = {result["case"].rpartition("/")[2]: result["verdict"] for result in raw["results"]}
    pairs = raw["comparisons"][0]["pairs"]
    return {
        "verdicts": {
            metric: {
                name: verdicts[metric][name] for name in ("outcome", "ratio", "low", "high", "processes", "reason")
            }
            for metric in METRICS
        },
        "others": {metric: others(pairs[0], metric) for metric in METRICS},
        "samples": [
            {arm: {metric: figures(pair, arm, metric) for metric in METRICS} for arm in ("base", "head")}
            for pair in pairs
        ],
        "culprits": [[turn["culprit"] for turn in pair["turns"]] for pair in pairs],
    }


def main() -> int:
    """Measure, print, write the data; 1 if the criterion does not hold."""
    parser = script.parser(__doc__, "runs", 10, "runs of three decisions")
    parser.add_argument("--kind", choices=KINDS, default="same", help="what head does more (default: same)")
    parser.add_argument("--load", action="store_true", help="beside a process that uses a core half of the time")
    parser.add_argument("--budget", type=float, default=150.0, help="--llm-budget, seconds a run (default: 150)")
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, competitor(options.load):
        folder = Path(name)
        (folder / "pytest.ini").write_text("[pytest]\n")
        (folder / ".gitignore").write_text("raw.json\n__pycache__\n.pytest_cache\n")
        (folder / "conftest.py").write_text(script.SLOWED)
        (folder / "extra.py").write_text(NOTHING)
        (folder / "suites").mkdir()
        for suite in ("test_prefill.py", "test_decode.py", "test_latency.py"):
            shutil.copy(ROOT / "suites" / suite, folder / "suites")
        git(folder, "init", "--quiet")
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message", "base")
        git(folder, "tag", "base")
        first = measure(folder)
        tpot = next(one["spread"]["median"] for one in first["results"] if one["case"].endswith("/tpot"))
        (folder / "extra.py").write_text(slowed(options.kind, tpot))
        for _ in range(options.runs):
            runs.append(one_run(folder, options.budget))
            verdicts = runs[-1]["verdicts"]
            said = (f"{metric} {one['outcome']} {one['ratio'] - 1:+.1%}" for metric, one in verdicts.items())
            print(", ".join(said), f"({max(one['processes'] for one in verdicts.values())} pairs)", flush=True)
    affected = METRICS if options.kind == "same" else ("tpot", "latency")
    found = Counter(run["verdicts"][metric]["outcome"] for run in runs for metric in affected)
    rules = Counter(
        rule for run in runs for metric in affected for rule, failed in run["others"][metric].items() if failed
    )
    decisions = len(affected) * len(runs)
    print(f"{options.kind}{' beside a load' if options.load else ''}: of {decisions} decisions {dict(found)}")
    print(f"failed by other rules: {dict(rules)}")
    command = f"benchmarks.gate --kind {options.kind} --runs {options.runs} --budget {options.budget:g}"
    command += " --load" if options.load else ""
    script.write(options.output, command, tpot=tpot, outcomes=found, others=rules, runs=runs)
    share = found["regression"] / decisions
    wanted = {0.05: 0.9, 0.10: 0.99}.get(KINDS[options.kind])
    return 0 if (share == 0 if wanted is None else share >= wanted) else 1


if __name__ == "__main__":
    sys.exit(main())
