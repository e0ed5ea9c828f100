"""What does the default flow say of unchanged and of slowed code: a stored baseline of two sittings, no base named?

    python -m benchmarks.gate.flow [--kinds same,spin-10,seventh] [--runs 2] [--max-regression 5%]
                                   [--batch-sizes 1,2] [--prompt-lengths 32,48,64,96,128] [--new-tokens 16]
                                   [--invocations 3] [--output FILE]

A repository of its own, as in ``benchmarks.gate``: sdpa behind a backend of its conftest.py, which does something more
in every step but the first. Its baseline is recorded in two sittings. Then each kind is a commit on top of the recorded
one, and the suites run as a user runs them, ``--runs`` times (``seventh`` once), but for ``--llm-budget``, so that
every flagged case is compared:

- ``same``: the commit touches a comment. No decision may be a regression.
- ``spin-10``: a loop spins in each step, for 10 % of what the step's forward pass took. At least 90 % of all decisions
  on decode and latency have to be regressions, and none may be ok, whatever the machine did meanwhile. (Work that is
  timed beforehand is another share later: matrix products took 4 to 9 %, 10 % of the recorded TPOT 9 to 18 %.)
- ``seventh``: a sleep of half a step in one layer, every seventh token, about +7 %. It runs with ``--llm-base``.

Every decision is written down as it came, disturbed or not.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import script
from benchmarks.gate.repository import SAME, SIZES, TESTS, by_workload, git, measure, repository, tpots_of
from pytest_llmperf.cases import LATENCIES

#: Kinds, and the metrics that a kind shows in.
KINDS = {"same": LATENCIES, "spin-10": ("tpot", "latency"), "seventh": ("tpot", "latency")}
#: What is kept of a verdict.
KEPT = ("outcome", "ratio", "low", "high", "upper", "basis", "count", "tolerance", "reason", "other_state")
#: Spins in each step for 10 % of what the step took, whatever the machine does meanwhile.
SPIN = """\
import time

SHARE = 0.10
BEGAN = 0.0


def begin(module, arguments, named):
    global BEGAN
    BEGAN = time.perf_counter()


def prepare(engine):
    engine.model.register_forward_pre_hook(begin, with_kwargs=True)


def do(batch_size, prompt_length):
    now = time.perf_counter()
    end = now + SHARE * (now - BEGAN)
    while time.perf_counter() < end:
        pass
"""
#: Sleeps in the middle layer at every seventh decode step, so many seconds by batch size.
SEVENTH = """\
import time

SECONDS = {seconds}
COUNT = 0


def sleep(layer, arguments, named):
    global COUNT
    hidden = arguments[0] if arguments else named["hidden_states"]
    if hidden.shape[1] == 1:
        COUNT += 1
        if COUNT % 7 == 0:
            time.sleep(SECONDS[hidden.shape[0]])


def prepare(engine):
    layers = engine.model.model.layers
    layers[len(layers) // 2].register_forward_pre_hook(sleep, with_kwargs=True)


def do(batch_size, prompt_length):
    pass
"""


def changed(kind: str, tpots: Mapping[tuple[int, int], float]) -> str:
    """The text of ``extra.py`` of a kind, given the TPOT (s) by batch size and prompt length."""
    if kind == "same":
        return SAME
    if kind == "seventh":
        batches = {batch for batch, _ in tpots}
        by_batch = {batch: fmean(tpot for (size, _), tpot in tpots.items() if size == batch) for batch in batches}
        return SEVENTH.format(seconds={batch: 7 * 0.07 * tpot for batch, tpot in by_batch.items()})
    return SPIN


def decisions(raw: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What is kept of each case of a run, by workload and metric."""
    return {
        f"{workload}/{metric}": {name: result["verdict"][name] for name in KEPT}
        for workload, results in by_workload(dict(raw)).items()
        for metric, result in results.items()
        if metric in metrics
    }


def recorded(folder: Path, invocations: str, sizes: Mapping[str, str]) -> dict[str, Any]:
    """Record two sittings. Returns the results of the second."""
    for number in (1, 2):
        began = time.monotonic()
        found = measure(folder, "--llm-update-baselines", f"--llm-invocations={invocations}", sizes=sizes)
        print(f"sitting {number}: {time.monotonic() - began:.0f} s", flush=True)
        check(folder / "baselines", number)
    return found


def check(baselines: Path, sittings: int) -> None:
    """Every case has so many sittings, or the trial ends: something disturbed too many processes."""
    entries = [row for file in baselines.glob("*/*.json") for row in json.loads(file.read_text())["entries"].values()]
    if not entries or any(len(row) != sittings for row in entries):
        raise SystemExit(f"not every case has {sittings} sittings: is the machine idle?")


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
        tpots = tpots_of(
            recorded(folder, options.invocations, sizes) if kinds != ["seventh"] else measure(folder, sizes=sizes)
        )
        for kind in kinds:
            (folder / "extra.py").write_text(changed(kind, tpots))
            git(folder, "commit", "--quiet", "--all", "--message", kind)
            found[kind], ended[kind] = [], Counter()
            how = ["--llm-base=base"] if kind == "seventh" else [f"--llm-max-regression={options.max_regression}"]
            if len(KINDS[kind]) < len(LATENCIES):
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
