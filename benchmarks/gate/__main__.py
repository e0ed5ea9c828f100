"""How often does the gate fail unchanged code beside base, and how often does it catch a slowdown that head has?

    python -m benchmarks.gate [--kind same] [--max-regression 7%] [--runs 10] [--budget 3600] [--load]
                              [--metrics tpot,latency] [--batch-sizes 1,2] [--prompt-lengths 64,96] [--new-tokens 16]
                              [--output FILE]

A repository of its own: sdpa behind a backend of its conftest.py, which does something more in every step but the
first. Base does nothing more. Head depends on ``--kind``: it does nothing more (``same``), sleeps 5 or 10 % of sdpa's
TPOT (``sleep-5``, ``sleep-10``), or multiplies matrices for as long (``work-5``, ``work-10``). Every run compares each
case with base in pairs. ``--metrics`` leaves metrics out: a prefill shows no slowdown of the steps, and it takes long
to tell that it is unchanged. ``--load`` adds a process that uses a core half of the time. An output that exists is
continued.

The criterion: of unchanged code no decision is a regression, with a load too. Of the decode and latency decisions of
slowed code 90 % (5 %) or 99 % (10 %) are. The script also prints what the rules of other tools
(`benchmarks.gate.rules`) say of the samples of each run's first pair.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import script
from benchmarks.gate import records, rules
from benchmarks.gate.repository import (
    KINDS,
    SIZES,
    TESTS,
    by_workload,
    measure,
    repository,
    shown,
    slowed,
    tpots_of,
)
from pytest_llmperf.cases import LATENCIES
from pytest_llmperf.machine import fingerprint
from pytest_llmperf.measure.trace import Trace
from pytest_llmperf.plan import BASE_TOLERANCE

#: Uses a core half of the time, in turns of a second.
LOAD = "import time\nwhile True:\n    end = time.time() + 1\n    while time.time() < end: pass\n    time.sleep(1)\n"


def figures(pair: dict[str, Any], arm: str, metric: str) -> list[float]:
    """Seconds: the samples of one arm of a pair, every turn."""
    samples = [sample for turn in pair["turns"] for sample in turn["samples"][arm]]
    return [records.short(Trace(**sample["trace"]).metric(metric)) for sample in samples]


@contextmanager
def competitor(wanted: bool) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", LOAD]) if wanted else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()


def kept(results: Mapping[str, Any], pairs: Sequence[dict[str, Any]], metrics: Sequence[str]) -> dict[str, Any]:
    """What is kept of one workload: its outcomes, the samples of its pairs, and which turns were disturbed."""
    return {
        "verdicts": {metric: found["verdict"]["outcome"] for metric, found in results.items()},
        "samples": [
            {arm: {metric: figures(pair, arm, metric) for metric in metrics} for arm in ("base", "head")}
            for pair in pairs
        ],
        "culprits": [[int(turn["culprit"] is not None) for turn in pair["turns"]] for pair in pairs],
    }


def beside(
    folder: Path, metrics: Sequence[str], sizes: Mapping[str, str], *arguments: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run beside base, by workload: what is kept, and the results."""
    raw = measure(folder, "--llm-base=base", "--llm-compare=always", *arguments, sizes=sizes)
    results = by_workload(raw)
    made = {
        one["workload"]: kept(results[one["workload"]], one["pairs"], metrics)
        for one in raw["comparisons"]
        if one["pairs"] and len(results.get(one["workload"], ())) == len(metrics)  # what failed has no verdict
    }
    return made, results


def earlier(output: Path | None, command: str) -> list[dict[str, Any]]:
    """The runs in an output that exists, which have to be of the same command, CPU and versions."""
    if output is None or not output.exists():
        return []
    held = json.loads(output.read_text())
    here = (f"python -m {command}", fingerprint.take().as_dict()["cpu"], fingerprint.versions())
    if here != (held["command"], held["machine"]["cpu"], held["versions"]):
        raise SystemExit(f"{output}: it is of {held['command']} on {held['machine']['cpu']}, or of other versions")
    return list(held["runs"])


def share(text: str | None) -> float:
    """A fraction, as in ``5%`` or ``0.05``; the plugin's default beside base without one."""
    if text is None:
        return BASE_TOLERANCE
    return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)


def main() -> int:
    """Measure, print, write the data after every run; 1 if the criterion does not hold."""
    parser = script.parser(__doc__, "runs", 10, "runs of the suites")
    parser.add_argument("--kind", choices=KINDS, default="same", help="what head does more (default: same)")
    parser.add_argument("--max-regression", metavar="FRACTION", help="the tolerance (default: the plugin's)")
    parser.add_argument("--load", action="store_true", help="beside a process that uses a core half of the time")
    parser.add_argument("--metrics", default=",".join(LATENCIES), help="what is judged (default: all three)")
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", default=default, help=f"of the workloads (default: {default})")
    parser.add_argument("--budget", type=float, default=3600.0, help="--llm-budget, seconds a run (default: 3600)")
    options = parser.parse_args()
    asked = set(options.metrics.split(","))
    if unknown := asked - set(LATENCIES):
        parser.error(f"--metrics: no such metric: {', '.join(sorted(unknown))}; there are {', '.join(LATENCIES)}")
    metrics = [metric for metric in LATENCIES if metric in asked]
    affected = [metric for metric in metrics if options.kind == "same" or metric != "ttft"]
    if not affected:
        parser.error(f"--metrics: {options.kind} does not show in {options.metrics}; measure tpot or latency too")
    command = f"benchmarks.gate --kind {options.kind} --budget {options.budget:g}"
    arguments = [f"--llm-budget={options.budget:g}"]
    if options.max_regression:
        command += f" --max-regression {options.max_regression}"
        arguments.append(f"--llm-max-regression={options.max_regression}")
    if len(metrics) < len(LATENCIES):
        command += f" --metrics {','.join(metrics)}"
        arguments += ["-k", " or ".join(TESTS[metric] for metric in metrics)]
    sizes = {name: getattr(options, name.replace("-", "_")) for name in SIZES}
    command += "".join(f" --{name} {size}" for name, size in sizes.items() if size != SIZES[name])
    command += " --load" if options.load else ""
    runs = earlier(options.output, command)
    about = {"kind": options.kind, "stored": False, "tolerance": share(options.max_regression)}
    with tempfile.TemporaryDirectory() as name, competitor(options.load):
        folder = Path(name)
        repository(folder)
        tpots = {} if options.kind == "same" else tpots_of(measure(folder, sizes=sizes))
        (folder / "extra.py").write_text(slowed(options.kind, tpots))
        for _ in range(options.runs):
            run, results = beside(folder, metrics, sizes, *arguments)
            runs.append(run)
            for workload, one in run.items():
                verdicts = {metric: result["verdict"] for metric, result in results[workload].items()}
                said = (f"{metric} {found['outcome']} {shown(found['ratio'])}" for metric, found in verdicts.items())
                print(workload, ", ".join(said), f"({len(one['samples'])} pairs)", flush=True)
            records.write(options.output, command, **about, runs=runs)
    made = [(one, metric) for run in runs for one in run.values() for metric in affected]
    found = Counter(one["verdicts"][metric] for one, metric in made)
    others = Counter(
        rule
        for one, metric in made
        for rule, fails in rules.failed(*(one["samples"][0][arm][metric] for arm in ("base", "head"))).items()
        if fails
    )
    print(f"{command}: of {len(made)} decisions {dict(found)}; failed by other rules: {dict(others)}")
    if KINDS[options.kind] == 0:
        return int(found["regression"] > 0)
    wanted = 0.9 if KINDS[options.kind] == 0.05 else 0.99
    return int(found["regression"] < wanted * len(made) or not made)


if __name__ == "__main__":
    sys.exit(main())
