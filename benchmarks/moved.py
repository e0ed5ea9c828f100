"""What happens to latencies where a host moves this machine's CPUs? By backend and batch, from results of runs.

    python -m benchmarks.moved [--output benchmarks/data/moved.json] RESULTS ...

RESULTS are files of `pytest suites/ --llm-results=FILE` from one machine. The worker measures how long its threads
take to meet, before and after each generation. A generation is in one of three states:

- *together*: both times are within 1.25 times the shortest time seen;
- *apart*: neither is;
- *changing*: one is.

The script shows how long threads took to meet in each state. It also shows the median TTFT and TPOT of each state,
where both states have at least four generations. There is no criterion, since most machines have one state.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import script
from pytest_llmperf.cases import Workload
from pytest_llmperf.machine.fitness import APART
from pytest_llmperf.measure.trace import Trace

#: Medians are shown only where each state has this many generations.
FEW = 4


def generations(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield each generation whose barriers were measured: backend, workload, latencies and both barriers (s)."""
    for one in results["measurements"]:
        for sample in one["samples"] + one["discarded"]:
            if looks := sample["fitness"]["barriers"]:
                trace = Trace(**sample["trace"])
                yield {
                    "backend": one["backend"],
                    "workload": str(Workload(**one["workload"])),
                    "ttft": float(f"{trace.ttft:.5g}"),
                    "tpot": float(f"{trace.tpot:.5g}"),
                    "barriers": [float(f"{look['seconds']:.4g}") for look in looks],
                }


def state(barriers: list[float], soonest: float) -> str:
    """Return the state of a generation, by its barriers."""
    far = [seconds > APART * soonest for seconds in barriers]
    return "apart" if all(far) else "changing" if any(far) else "together"


def main() -> int:
    """Read the results, print the table, write the data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="results files of one machine")
    parser.add_argument("--output", type=Path, help="write the data as JSON")
    options = parser.parse_args()
    made = [one for path in options.results for one in generations(json.loads(path.read_text()))]
    if not made:
        raise SystemExit("these results have no generation whose barriers were measured")
    soonest = min(min(one["barriers"]) for one in made)
    made = [one | {"state": state(one["barriers"], soonest)} for one in made]
    for name in ("together", "apart"):
        if looks := [seconds for one in made if one["state"] == name for seconds in one["barriers"]]:
            print(f"{name}: {len(looks) // 2} generations, {min(looks) * 1e6:.2f} to {max(looks) * 1e6:.2f} us to meet")
    print(f"changing: {sum(one['state'] == 'changing' for one in made)} generations")

    def kind(one: dict[str, Any]) -> tuple[str, str]:
        return one["backend"], one["workload"]

    for (backend, workload), row in groupby(sorted(made, key=kind), kind):
        these = list(row)
        both = [[one for one in these if one["state"] == name] for name in ("together", "apart")]
        if min(map(len, both)) < FEW:
            continue
        said = []
        for metric in ("tpot", "ttft"):
            near, far = (median(one[metric] for one in arm) * 1e3 for arm in both)
            said.append(f"{metric.upper()} {near:.1f} to {far:.1f} ms ({far / near - 1:+.0%})")
        print(f"{backend} {workload}: {', '.join(said)}, of {len(both[0])} and {len(both[1])}")
    script.write(options.output, "benchmarks.moved RESULTS ...", generations=made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
