"""What does the default flow say of unchanged and of slowed code: a stored baseline of two sittings, no base named?

    python -m benchmarks.gate.flow [--kinds same,work-10,seventh] [--runs 2] [--max-regression 5%]
                                   [--batch-sizes 1,2] [--prompt-lengths 32,48,64,96,128] [--new-tokens 16]
                                   [--invocations 3] [--output FILE]

A repository of its own, as in ``benchmarks.gate``: sdpa behind a backend of its conftest.py, which does something more
in every step but the first. Its baseline is recorded in two sittings. Then each kind is a commit on top of the recorded
one, and the suites run as a user runs them, ``--runs`` times:

- ``same``: the commit touches a comment. No decision may be a regression.
- ``work-10``: matrix products take 10 % of each step. At least 90 % of all decisions on decode and latency have to be
  regressions, and none may be ok, whatever the machine did meanwhile.
- ``seventh``: a sleep of half a step in one layer, every seventh token, about +7 %. It runs with ``--llm-base``.

Every decision is written down as it came, disturbed or not.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import script
from benchmarks.gate.repository import NOTHING, SIZES, TESTS, by_workload, git, measure, repository, slowed, tpots_of
from pytest_llmperf.cases import GATED

#: Kinds, and the metrics that a kind shows in.
KINDS = {"same": GATED, "work-10": ("tpot", "latency"), "seventh": ("tpot", "latency")}
#: What is kept of a verdict.
KEPT = ("outcome", "ratio", "low", "high", "upper", "basis", "count", "tolerance", "reason", "other_state")
SEVENTH = """\
import time

SECONDS = {seconds}
COUNT = 0


def do(batch_size, prompt_length):
    global COUNT
    COUNT += 1
    if COUNT % 7 == 0:
        time.sleep(SECONDS[batch_size, prompt_length])
"""


def changed(kind: str, tpots: Mapping[tuple[int, int], float]) -> str:
    """The text of ``extra.py`` of a kind, given the TPOT (s) by batch size and prompt length."""
    if kind == "same":
        return f"# A comment.\n{NOTHING}"
    if kind == "seventh":
        return SEVENTH.format(seconds={sizes: 7 * 0.07 * tpot for sizes, tpot in tpots.items()})
    return slowed(kind, dict(tpots))


def decisions(raw: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What is kept of each case of a run, by workload and metric."""
    return {
        f"{workload}/{metric}": {name: result["verdict"][name] for name in KEPT}
        for workload, results in by_workload(dict(raw)).items()
        for metric, result in results.items()
        if metric in metrics
    }


def holds(kind: str, outcomes: Counter[str]) -> bool:
    """Whether a kind's outcomes are as they have to be."""
    if kind == "same":
        return not outcomes["regression"]
    return not outcomes["ok"] and outcomes["regression"] >= 0.9 * sum(outcomes.values()) > 0


def main() -> int:
    """Measure, print, write the data after every run; 1 if a kind does not hold."""
    parser = script.parser(__doc__, "runs", 2, "runs of each kind")
    parser.add_argument("--kinds", default=",".join(KINDS), help="in this order (default: all)")
    parser.add_argument("--max-regression", default="5%", help="the tolerance (default: 5%%)")
    parser.add_argument("--invocations", default="3", help="processes of a sitting (default: 3)")
    sizes = {**SIZES, "prompt-lengths": "32,48,64,96,128"}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", default=default, help=f"of the workloads (default: {default})")
    options = parser.parse_args()
    sizes = {name: getattr(options, name.replace("-", "_")) for name in sizes}
    kinds = options.kinds.split(",")
    command = f"benchmarks.gate.flow --kinds {options.kinds} --runs {options.runs}"
    found: dict[str, Any] = {}
    ended: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repository(folder)
        for number in (1, 2):
            began = time.monotonic()
            first = measure(folder, "--llm-update-baselines", f"--llm-invocations={options.invocations}", sizes=sizes)
            print(f"sitting {number}: {time.monotonic() - began:.0f} s", flush=True)
            if len(list((folder / "baselines").glob("*/*.json"))) != 1:
                raise SystemExit("nothing was recorded: something disturbed every process; is the machine idle?")
        tpots = tpots_of(first)
        for kind in kinds:
            (folder / "extra.py").write_text(changed(kind, tpots))
            git(folder, "commit", "--quiet", "--all", "--message", kind)
            found[kind], ended[kind] = [], Counter()
            how = ["--llm-base=base"] if kind == "seventh" else [f"--llm-max-regression={options.max_regression}"]
            if len(KINDS[kind]) < len(GATED):
                how += ["-k", " or ".join(TESTS[metric] for metric in KINDS[kind])]
            for _ in range(1 if kind == "seventh" else options.runs):
                began = time.monotonic()
                run = decisions(measure(folder, "--llm-budget=3600", *how, sizes=sizes), KINDS[kind])
                found[kind].append({"seconds": round(time.monotonic() - began), "decisions": run})
                ended[kind].update(one["outcome"] for one in run.values())
                for case, one in run.items():
                    ratio = f"{one['ratio'] - 1:+.1%}" if one["ratio"] is not None else "-"
                    print(kind, case, one["outcome"], one["basis"], ratio, one["reason"], flush=True)
                script.write(options.output, command, sizes=sizes, outcomes=ended, runs=found)
            print(f"{kind}: of {sum(ended[kind].values())} decisions {dict(ended[kind])}", flush=True)
    return int(not all(holds(kind, outcomes) for kind, outcomes in ended.items()))


if __name__ == "__main__":
    sys.exit(main())
