"""How often does the gate fail unchanged code, and how often does it catch a slowdown that head alone has?

    python -m benchmarks.gate [--kind same] [--stored] [--max-regression 7%] [--runs 10] [--budget 60] [--load]
                              [--metrics tpot,latency] [--batch-sizes 1,2] [--prompt-lengths 64,96] [--new-tokens 16]
                              [--output FILE]

A repository of its own: sdpa behind a backend of its conftest.py, which does something more in every step but the
first. Base does nothing more; head, by ``--kind``, nothing (``same``), sleeps 5 or 10 % of sdpa's TPOT (``sleep-5``,
``sleep-10``), or multiplies matrices for as long (``work-5``, ``work-10``). Every run compares prefill, decode and
end-to-end latency, or of the three those that ``--metrics`` names (a prefill shows no slowdown of the steps, and to
tell that it is unchanged takes the whole budget), of four workloads unless the sizes ask for others, at the default
tolerance unless ``--max-regression`` states one (a slowdown of just the tolerance is caught half the time, so
``--stored`` needs less than 10 % to catch 10 %): beside base, or, with ``--stored``, with what base was recorded with
before the first run, as a run without ``--llm-base`` does, where eager is recorded and gated beside it. ``--load`` adds
a process that uses a core half of the time. An output that exists is continued: its runs count with these, which may be
of another day. The criterion: of unchanged code no decision is a regression, with a load too; of the decode and
latency decisions of slowed code 90 % (5 %) or 99 % (10 %) are; with ``--stored`` 90 % (10 %) of those on a quiet
machine (threads met as soon in nine of ten looks of the recording and the run) that it did not leave open, as it does
if it is slower or faster than it was; these have to be half of those on a quiet machine. Side by side, what other
rules, which compare one process with one, say of the samples of each run's first pair, or of the first process recorded
and that of the run: pytest-benchmark's ``--benchmark-compare-fail=median:5%``; asv's, 5 % and a Mann-Whitney test with
p < 0.002; nvbench's, a difference of means above the smaller of the two relative standard deviations.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import NormalDist, fmean, median, stdev
from typing import Any

from benchmarks import script
from benchmarks.gate.repository import (
    BACKEND,
    KINDS,
    REFERENCE,
    SIZES,
    TESTS,
    WITNESSED,
    by_workload,
    measure,
    meetings,
    moved,
    quiet,
    repository,
    shown,
    slowed,
    tpots_of,
    untold,
)
from pytest_llmperf.cases import GATED
from pytest_llmperf.machine import fingerprint
from pytest_llmperf.measure.trace import Trace

#: Uses a core half of the time, in turns of a second.
LOAD = "import time\nwhile True:\n    end = time.time() + 1\n    while time.time() < end: pass\n    time.sleep(1)\n"


def figures(pair: dict[str, Any], arm: str, metric: str) -> list[float]:
    """Seconds: the samples of one arm of a pair, every turn."""
    samples = [sample for turn in pair["turns"] for sample in turn["samples"][arm]]
    return [Trace(**sample["trace"]).metric(metric) for sample in samples]


def short(values: Sequence[float]) -> list[float]:
    """To the precision that the data are kept with."""
    return [float(f"{value:.5g}") for value in values]


def mann_whitney(base: Sequence[float], head: Sequence[float]) -> float:
    """The one-sided p-value that head is slower, by the normal approximation (Mann and Whitney, 1947)."""
    wins = sum((one < other) + (one == other) / 2 for one in base for other in head)
    count = len(base) * len(head)
    spread = math.sqrt(count * (len(base) + len(head) + 1) / 12)
    return 1 - NormalDist().cdf((wins - count / 2) / spread)


def others(base: Sequence[float], head: Sequence[float]) -> dict[str, bool]:
    """Whether other rules fail on these samples."""
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


def kept(results: dict[str, Any], samples: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """What is kept of one workload: verdicts, what other rules say of the first samples, and all of them.

    Args:
        results: by metric, of those that were judged.
        samples: of each pair, or of each process that was recorded or measured, by arm and metric.
        more: to keep.
    """
    names = ("outcome", "ratio", "low", "high", "resolution", "processes", "reason")
    return {
        "verdicts": {metric: {name: found["verdict"][name] for name in names} for metric, found in results.items()},
        "others": {metric: others(*(samples[0][arm][metric] for arm in ("base", "head"))) for metric in results},
        "samples": samples,
        **more,
    }


def beside(
    folder: Path, budget: float, metrics: Sequence[str], sizes: Mapping[str, str], *arguments: str
) -> dict[str, Any]:
    """A run beside base, by workload."""
    how = ("--llm-base=base", "--llm-compare=always", f"--llm-budget={budget:g}")
    raw = measure(folder, *how, *arguments, sizes=sizes)
    results = by_workload(raw)
    return {
        one["workload"]: kept(
            results[one["workload"]],
            [
                {arm: {metric: short(figures(pair, arm, metric)) for metric in metrics} for arm in ("base", "head")}
                for pair in one["pairs"]
            ],
            culprits=[[turn["culprit"] for turn in pair["turns"]] for pair in one["pairs"]],
        )
        for one in raw["comparisons"]
        if one["pairs"] and len(results.get(one["workload"], ())) == len(metrics)  # what failed has no verdict
    }


def compared(sets: Sequence[dict[str, Any]], result: dict[str, Any]) -> list[list[float]]:
    """The samples of the set that a result is held against; each state of the CPUs may have one."""
    nearest = min(sets, key=lambda one: abs(float(one["median"]) - float(result["verdict"]["baseline"])))
    return list(nearest["invocations"])


def with_stored(
    folder: Path, recorded: Sequence[float], metrics: Sequence[str], sizes: Mapping[str, str], *arguments: str
) -> dict[str, Any]:
    """A run that compares with what is stored, by workload; ``recorded``: the recording's `meetings`."""
    (file,) = (folder / "baselines").glob("*/*.json")
    stored = json.loads(file.read_text())["entries"]
    found = {}
    raw = measure(folder, *arguments, backends=WITNESSED, sizes=sizes)
    measured, reference = by_workload(raw), by_workload(raw, REFERENCE)
    complete = {
        name: one  # what failed has no verdict, and what could not be recorded no baseline
        for name, one in measured.items()
        if len(one) == len(metrics) and all(result["case"] in stored for result in one.values())
    }
    for workload, results in complete.items():
        arms = {
            "base": {metric: compared(stored[results[metric]["case"]], results[metric]) for metric in metrics},
            "head": {metric: results[metric]["invocations"] for metric in metrics},
        }
        # A process of either that the other has none beside is empty there.
        count = max(len(rows) for one in arms.values() for rows in one.values())
        samples = [
            {
                arm: {metric: short(rows[number]) if number < len(rows) else [] for metric, rows in one.items()}
                for arm, one in arms.items()
            }
            for number in range(count)
        ]
        # How fast the machine is by now, which code that is not slowed tells.
        drift = {metric: one["verdict"]["ratio"] for metric, one in reference.get(workload, {}).items()}
        found[workload] = kept(results, samples, drift=drift, moved=float(f"{moved([*recorded, *meetings(raw)]):.3g}"))
    return found


def earlier(output: Path | None, command: str, backends: str) -> list[dict[str, Any]]:
    """The runs in an output that exists, which have to be of the same command, backends, CPU and versions."""
    if output is None or not output.exists():
        return []
    held = json.loads(output.read_text())
    here = (f"python -m {command}", backends, fingerprint.take().as_dict()["cpu"], fingerprint.versions())
    if here != (held["command"], held.get("backends", BACKEND), held["machine"]["cpu"], held["versions"]):
        raise SystemExit(f"{output}: it is of {held['command']} on {held['machine']['cpu']}, or of other versions")
    return list(held["runs"])


def main() -> int:
    """Measure, print, write the data after every run; 1 if the criterion does not hold."""
    parser = script.parser(__doc__, "runs", 10, "runs of the suites")
    parser.add_argument("--kind", choices=KINDS, default="same", help="what head does more (default: same)")
    parser.add_argument("--stored", action="store_true", help="against what was recorded first, not beside base")
    parser.add_argument("--max-regression", metavar="FRACTION", help="the tolerance (default: the plugin's)")
    parser.add_argument("--load", action="store_true", help="beside a process that uses a core half of the time")
    parser.add_argument("--metrics", default=",".join(GATED), help="what is judged (default: all three)")
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", default=default, help=f"of the workloads (default: {default})")
    parser.add_argument("--budget", type=float, default=60.0, help="--llm-budget, seconds a workload (default: 60)")
    options = parser.parse_args()
    how = " --stored" if options.stored else f" --budget {options.budget:g}"
    how += f" --max-regression {options.max_regression}" if options.max_regression else ""
    allowed = [f"--llm-max-regression={options.max_regression}"] if options.max_regression else []
    asked = set(options.metrics.split(","))
    if unknown := asked - set(GATED):
        parser.error(f"--metrics: no such metric: {', '.join(sorted(unknown))}; there are {', '.join(GATED)}")
    metrics = [metric for metric in GATED if metric in asked]
    affected = [metric for metric in metrics if options.kind == "same" or metric != "ttft"]
    if not affected:
        parser.error(f"--metrics: {options.kind} does not show in {options.metrics}; measure tpot or latency too")
    if len(metrics) < len(GATED):
        how += f" --metrics {','.join(metrics)}"
        allowed += ["-k", " or ".join(TESTS[metric] for metric in metrics)]
    sizes = {name: getattr(options, name.replace("-", "_")) for name in SIZES}
    how += "".join(f" --{name} {size}" for name, size in sizes.items() if size != SIZES[name])
    command = f"benchmarks.gate --kind {options.kind}{how}{' --load' if options.load else ''}"
    backends = WITNESSED if options.stored else BACKEND
    runs = earlier(options.output, command, backends)
    counted = "processes" if options.stored else "pairs"
    with tempfile.TemporaryDirectory() as name, competitor(options.load):
        folder = Path(name)
        repository(folder)
        if options.stored or options.kind != "same":
            recording = ["--llm-update-baselines"] if options.stored else []
            first = measure(folder, *recording, backends=backends, sizes=sizes)
            (folder / "extra.py").write_text(slowed(options.kind, tpots_of(first)))
        for _ in range(options.runs):
            if options.stored:
                run = with_stored(folder, meetings(first), metrics, sizes, *allowed)
            else:
                run = beside(folder, options.budget, metrics, sizes, *allowed)
            runs.append(run)
            for workload, one in run.items():
                said = (
                    f"{metric} {found['outcome']} {shown(found['ratio'])}" for metric, found in one["verdicts"].items()
                )
                print(workload, ", ".join(said), f"({len(one['samples'])} {counted})", flush=True)
            made = [one for run in runs for one in run.values()]
            found = Counter(one["verdicts"][metric]["outcome"] for one in made for metric in affected)
            rules = Counter(
                rule for one in made for metric in affected for rule, failed in one["others"][metric].items() if failed
            )
            script.write(options.output, command, backends=backends, outcomes=found, others=rules, runs=runs)
    decisions = sum(found.values())
    by_the_machine = untold(one["verdicts"][metric] for one in made for metric in affected)
    print(f"{command}: of {decisions} decisions {dict(found)}; {by_the_machine} left open by the machine")
    print(f"failed by other rules: {dict(rules)}")
    if KINDS[options.kind] == 0:
        return 1 if found["regression"] else 0
    counted_in = quiet(made) if options.stored else made
    verdicts = [one["verdicts"][metric] for one in counted_in for metric in affected]
    told = len(verdicts) - (untold(verdicts) if options.stored else 0)
    caught = sum(one["outcome"] == "regression" for one in verdicts)
    if options.stored:
        print(f"on a quiet machine {len(verdicts)} decisions: {caught} of {told} that it did not leave open are caught")
    wanted = 0.9 if options.stored or KINDS[options.kind] == 0.05 else 0.99
    # Of few that were told a share says nothing.
    return 0 if caught >= wanted * told and 2 * told >= len(verdicts) > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
