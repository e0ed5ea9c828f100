"""What happens to latencies where a host moves this machine's CPUs? By backend and batch, from results of runs.

    python -m benchmarks.moved [--output benchmarks/data/moved.json] RESULTS ...

RESULTS are files of `pytest suites/ --llm-results=FILE` from one machine. The worker measures how long its threads
take to meet, before and after each generation. A generation is in one of three states:

- *together*: both times are within 1.25 times the shortest time seen;
- *apart*: neither is;
- *changing*: one is.

The script shows how long threads took to meet in each state. It also shows the median TTFT and TPOT of each state,
where both states have at least four generations. There is no criterion, since most machines have one state.

The data are a summary: how many looks took how many tenths of a microsecond, in each state, and the medians. Commit
feac3d5 has every generation.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import script
from pytest_llmperf.cases import Workload
from pytest_llmperf.machine.fitness import APART
from pytest_llmperf.measure.trace import Trace

#: Medians are shown only where each state has this many generations.
FEW = 4
METRICS = ("tpot", "ttft")


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


def grouped(made: Iterable[dict[str, Any]], *names: str) -> dict[Any, list[dict[str, Any]]]:
    """The generations by what they have under one name, or under several."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for one in sorted(made, key=itemgetter(*names)):
        found.setdefault(itemgetter(*names)(one), []).append(one)
    return found


def microseconds(made: Iterable[dict[str, Any]]) -> dict[str, int]:
    """How many looks took threads so many microseconds to meet, by tenths."""
    looks = sorted(seconds for one in made for seconds in one["barriers"])
    return dict(Counter(f"{seconds * 1e6:.1f}" for seconds in looks))


def figures(made: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many generations there are, and their medians."""
    medians = {name: float(f"{median(one[name] for one in made):.4g}") for name in METRICS}
    return {"generations": len(made), **medians}


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
    looks = [
        {"state": name, "generations": len(row), "looks by microseconds": microseconds(row)}
        for name, row in grouped(made, "state").items()
    ]
    for one in looks:
        times = list(one["looks by microseconds"])
        print(f"{one['state']}: {one['generations']} generations, {times[0]} to {times[-1]} us to meet")
    cases = []
    for (backend, workload), row in grouped(made, "backend", "workload").items():
        found = {name: figures(these) for name, these in grouped(row, "state").items()}
        cases.append({"backend": backend, "workload": workload, "states": found})
        both = [found[name] for name in ("together", "apart") if name in found and found[name]["generations"] >= FEW]
        if len(both) < 2:
            continue
        near, far = both
        said = [f"{name.upper()} {near[name]} to {far[name]} s ({far[name] / near[name] - 1:+.0%})" for name in METRICS]
        print(f"{backend} {workload}: {', '.join(said)}, of {near['generations']} and {far['generations']}")
    script.write(options.output, "benchmarks.moved RESULTS ...", generations=len(made), looks=looks, cases=cases)
    return 0


if __name__ == "__main__":
    sys.exit(main())
