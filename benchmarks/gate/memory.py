"""What does the gate say of the memory of unchanged code, and of code that keeps a part of its cache twice?

    python -m benchmarks.gate.memory [--same 6] [--twice 2] [--share 0.10] [--batch-sizes 1,4]
                                     [--prompt-lengths 64,96,128,192,256] [--new-tokens 4] [--invocations 3]
                                     [--output FILE]

A repository of its own, as in ``benchmarks.gate.flow``: sdpa on SmolLM2-135M. Its baseline is one sitting. Then each
kind is a commit on top of the recorded one, and ``suites/test_memory.py`` runs as a user runs it, with the default
tolerance and without a base. No time is judged, so a process makes one sample of each workload, disturbed or not.

- ``same``: the commit touches a comment. No decision may be a regression.
- ``twice``: a copy of keys and values is kept until the next generation, as much of them as is ``--share`` of the
  recorded figure. All decisions have to be regressions.

Every decision is written down as it came. The spread of the first process's figures over the runs is printed too.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks import script
from benchmarks.gate.flow import check, decisions
from benchmarks.gate.repository import SAME, by_workload, git, measure, repository
from pytest_llmperf.cases import Workload

MIB = 2**20
SIZES = {"batch-sizes": "1,4", "prompt-lengths": "64,96,128,192,256", "new-tokens": "4"}
#: For the conftest.py: one sample, and nothing that disturbs a time is looked for, since no time is judged.
SHORT = """

def pytest_configure():
    from dataclasses import replace

    from pytest_llmperf import plan
    from pytest_llmperf.machine import fitness
    from pytest_llmperf.measure.sampling import Bounds

    plan.DEFAULTS["cpu"] = replace(plan.DEFAULTS["cpu"], samples=Bounds(minimum=1, maximum=1, budget=0.1))
    fitness.culprits = lambda records: [None] * len(records)
"""
#: Keeps copies of the cache's layers after a prefill, one after the other, until they are so many bytes.
TWICE = """\
BYTES = {sizes}
KEPT = []


def keep(model, arguments, named, output):
    layers = output.past_key_values.layers
    batch, _, length, _ = layers[0].keys.shape
    if (batch, length) not in BYTES:
        return  # a decode step
    KEPT.clear()
    left = BYTES[batch, length]
    while left > 0:
        for layer in layers:
            for part in (layer.keys, layer.values):
                if left > 0:
                    KEPT.append(part.clone())
                    left -= part.numel() * part.element_size()


def prepare(engine):
    engine.model.register_forward_hook(keep, with_kwargs=True)


def do(batch_size, prompt_length):
    pass
"""


def changed(kind: str, figures: Mapping[str, float], share: float) -> str:
    """The text of ``extra.py`` of a kind, given the recorded figure (bytes) of each workload."""
    if kind == "same":
        return SAME
    workloads = {Workload.parse(name): round(share * figure) for name, figure in figures.items()}
    return TWICE.format(sizes={(one.batch_size, one.prompt_length): size for one, size in workloads.items()})


def figures_of(raw: Mapping[str, Any]) -> dict[str, float]:
    """Bytes: the figure of the first process, by workload."""
    return {name: float(one["memory"]["spread"]["median"]) for name, one in by_workload(dict(raw)).items()}


def holds(ended: Mapping[str, Mapping[str, int]]) -> bool:
    """Whether the outcomes of both kinds, counted, are as they have to be."""
    return not ended["same"].get("regression") and set(ended["twice"]) <= {"regression"}


def shown(figures: Mapping[str, float]) -> str:
    """The figures in MiB."""
    return ", ".join(f"{name} {figure / MIB:.1f} MiB" for name, figure in figures.items())


def main() -> int:
    """Measure, print, write the data after every run; 1 if a kind does not hold."""
    parser = script.parser(__doc__, "same", 6, "runs of unchanged code")
    parser.add_argument("--twice", type=int, default=2, help="runs of code that keeps a part twice (default: 2)")
    parser.add_argument("--share", type=float, default=0.10, help="of the recorded figure (default: 0.10)")
    parser.add_argument("--invocations", default="3", help="processes of the sitting (default: 3)")
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", default=default, help=f"of the workloads (default: {default})")
    options = parser.parse_args()
    sizes = {name: getattr(options, name.replace("-", "_")) for name in SIZES}
    command = f"benchmarks.gate.memory --same {options.same} --twice {options.twice} --share {options.share}"
    runs: dict[str, list[Any]] = {"same": [], "twice": []}
    ended = {kind: Counter[str]() for kind in runs}
    seen: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repository(folder, ["test_memory"])
        (folder / "conftest.py").write_text((folder / "conftest.py").read_text() + SHORT)
        git(folder, "commit", "--quiet", "--all", "--message", "base")
        began = time.monotonic()
        how = ("--llm-update-baselines", f"--llm-invocations={options.invocations}")
        figures = figures_of(measure(folder, *how, sizes=sizes))
        check(folder / "baselines", 1)
        print(f"sitting: {time.monotonic() - began:.0f} s, {shown(figures)}", flush=True)
        for kind, found in runs.items():
            (folder / "extra.py").write_text(changed(kind, figures, options.share))
            git(folder, "commit", "--quiet", "--all", "--message", kind)
            for _ in range(getattr(options, kind)):
                began = time.monotonic()
                raw = measure(folder, "--llm-budget=3600", sizes=sizes)
                run = decisions(raw, ("memory",))
                found.append({"seconds": round(time.monotonic() - began), "decisions": run})
                ended[kind].update(one["outcome"] for one in run.values())
                for case, one in run.items():
                    print(kind, case, one["outcome"], f"{one['ratio'] - 1:+.1%}", one["reason"], flush=True)
                if kind == "same":
                    for workload, figure in figures_of(raw).items():
                        seen.setdefault(workload, []).append(figure)
                script.write(options.output, command, sizes=sizes, outcomes=ended, figures=seen, runs=runs)
            print(f"{kind}: of {sum(ended[kind].values())} decisions {dict(ended[kind])}", flush=True)
    for workload, row in seen.items():
        if len(row) > 1:
            print(f"{workload}: {fmean(row) / MIB:.1f} MiB, standard deviation {stdev(row) / fmean(row):.2%}")
    return int(not holds(ended))


if __name__ == "__main__":
    sys.exit(main())
