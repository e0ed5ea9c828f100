"""Does the plugin report what a user of transformers gets? Three ways to generate, in turns, in fresh processes.

    python -m benchmarks.fidelity [--pairs 40] [--output benchmarks/data/fidelity.json]

- `plugin`: a worker of the plugin with the backend sdpa, asked as a run asks it.
- `generate`: `bare_transformers.py`, which calls transformers' generate with a streamer that notes the time.
- `forward`: the same script with a bare forward loop, which shows the cost of generate itself.

Each pair of processes is fresh. Their generations take turns, and one process sleeps while the other generates, so
that both see the same state of a shared machine. Processes of the same code differ by some 7 % here for as long as
they live. So the script needs many pairs and few turns.

The criterion: `plugin` and `generate` agree within 3 % in the median pair. The script also shows medians over all
pairs. On a machine with two states those medians lie between the states.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks import script
from pytest_llmperf import folders
from pytest_llmperf.backends.base import EngineSpec
from pytest_llmperf.backends.registry import BUILT_IN, Registry
from pytest_llmperf.cases import Workload
from pytest_llmperf.measure.trace import checked
from pytest_llmperf.measure.worker_process import Arm, Host
from pytest_llmperf.models import ready, resolve
from pytest_llmperf.prompts import Prompts
from pytest_llmperf.worker.convert import convert

BARE = Path(__file__).parent / "bare_transformers.py"
WORKLOAD = Workload(1, 256, 32)
LIMIT = 0.03
KINDS = ("plugin", "generate", "forward")
#: Generations of each kind by one pair of processes, after one to warm up.
TURNS = 2
#: Seconds between turns, so that no thread of the sleeping process still spins.
PAUSE = 0.1
TIMEOUT = 600.0

Figures = dict[str, float]


def pair(request: Path, model: str, prompts: list[list[int]]) -> dict[str, list[Figures]]:
    """Start one fresh pair of processes; return the TTFT and TPOT (s) of its generations."""
    host = Host(Arm())
    bare = subprocess.Popen([sys.executable, str(BARE), str(request)], stdin=-1, stdout=-1, text=True)
    assert bare.stdin is not None
    assert bare.stdout is not None
    stdin, stdout = bare.stdin, bare.stdout

    def by_plugin() -> Figures:
        answer = host.call("generate", TIMEOUT, prompts=prompts, max_new_tokens=WORKLOAD.max_new_tokens)
        trace = checked(answer["tokens"], answer["times"], requests=1, max_new_tokens=WORKLOAD.max_new_tokens)
        return {"ttft": trace.ttft, "tpot": trace.tpot}

    def by(loop: str) -> Callable[[], Figures]:
        def generate() -> Figures:
            stdin.write(loop + "\n")
            stdin.flush()
            figures: Figures = json.loads(stdout.readline())
            return figures

        return generate

    ways = {"plugin": by_plugin, "generate": by("generate"), "forward": by("forward")}
    made: dict[str, list[Figures]] = {kind: [] for kind in KINDS}
    try:
        spec = EngineSpec(model, None, script.DTYPE, "cpu")
        host.call("load", TIMEOUT, backend=Registry(BUILT_IN)["sdpa"].reference(), spec=asdict(spec))
        for turn in range(TURNS + 1):
            for kind in KINDS if turn % 2 else reversed(KINDS):
                figures = ways[kind]()
                if turn:
                    made[kind].append(figures)
                time.sleep(PAUSE)
    finally:
        host.close()
        stdin.close()
        bare.wait()
        stdout.close()
    return made


def agreement(made: list[dict[str, list[Figures]]]) -> dict[str, dict[str, Any]]:
    """For each metric: medians (s) over processes, and the differences between plugin and generate (fractions)."""
    found = {}
    for metric in ("ttft", "tpot"):
        processes = {kind: [median(one[metric] for one in each[kind]) for each in made] for kind in KINDS}
        medians = {kind: median(values) for kind, values in processes.items()}
        pairs = zip(processes["plugin"], processes["generate"], strict=True)
        differences = [mine / theirs - 1 for mine, theirs in pairs]
        forward = zip(processes["generate"], processes["forward"], strict=True)
        found[metric] = {
            "medians": medians,
            "by pair": median(differences),
            "of medians": medians["plugin"] / medians["generate"] - 1,
            "generate over forward": median(mine / theirs - 1 for mine, theirs in forward),
            "differences by pair": differences,
        }
    return found


def main() -> int:
    """Measure, print the table, write the data; return 1 if the criterion is not met."""
    options = script.options(__doc__, "pairs", 40, "pairs of fresh processes")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    model = resolve("smollm2-135m", False, folders.cache().folder)
    ready(model, convert)
    prompts = Prompts(model.architecture.vocabulary, model.tokenizer_file).batch(WORKLOAD)
    asked = {"folder": str(model.folder), "dtype": script.DTYPE, "prompts": prompts, "new": WORKLOAD.max_new_tokens}
    made: list[dict[str, list[Figures]]] = []
    with tempfile.TemporaryDirectory() as name:
        request = Path(name) / "request.json"
        request.write_text(json.dumps(asked))
        for index in range(options.pairs):
            made.append(pair(request, str(model.folder), prompts))
            print(f"{index + 1}/{options.pairs}", file=sys.stderr)

    found = agreement(made)
    print(
        f"medians over {options.pairs} pairs of fresh processes, {TURNS} generations each; {WORKLOAD}, sdpa, "
        f"{script.DTYPE}"
    )
    for metric, one in found.items():
        low, _, high = quantiles(one["differences by pair"], n=4)
        centre = {kind: f"{kind} {seconds * 1e3:.2f} ms" for kind, seconds in one["medians"].items()}
        print(
            f"{metric}: {', '.join(centre.values())}; plugin / generate by pair {one['by pair']:+.1%} [{low:+.1%}, "
            f"{high:+.1%}], limit {LIMIT:.0%}, of medians {one['of medians']:+.1%}; generate / forward "
            f"{one['generate over forward']:+.1%}"
        )
    command = f"benchmarks.fidelity --pairs {options.pairs}"
    script.write(options.output, command, workload=str(WORKLOAD), dtype=script.DTYPE, agreement=found, pairs=made)
    return 0 if all(abs(one["by pair"]) <= LIMIT for one in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
