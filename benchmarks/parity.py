"""Does parity find wrong kernels with any text, and never fail a right one? In bfloat16, by many seeds.

    python -m benchmarks.parity [--seeds 20] [--output FILE]

Each seed gives a run's prompts: two requests of 48 and of 1 tokens, 16 new tokens each, so that an untimed batch has
32 positions. Only the untimed batches are judged. Timed rows could only show more. The criterion: every wrong kernel is
found with every seed, and no right one fails.
"""

from __future__ import annotations

import random
from statistics import median
from typing import Any

import torch
from platformdirs import user_cache_path

from benchmarks import script
from benchmarks.wrong_kernels import WRONG, Bench, kernel
from pytest_llmperf import models
from pytest_llmperf.cases import Workload
from pytest_llmperf.worker.convert import convert

WORKLOAD = Workload(batch_size=2, prompt_length=48, max_new_tokens=16)
#: Right kernels that go by the attention under test, and backends.
ORDERS = ["sums in two halves", "sums cut at random"]
BACKENDS = ["sdpa", "compile", "int8"]
RIGHT = [*ORDERS, *BACKENDS]


def trial(bench: Bench, name: str, seed: int) -> dict[str, Any]:
    """What parity says of a kernel with the prompts of a seed."""
    kernel.mutation = name if name in WRONG else None
    kernel.split = {ORDERS[0]: lambda terms: terms // 2, ORDERS[1]: random.Random(seed).randrange}.get(name)
    found = bench.judge(name, WORKLOAD, seed, timed=False)
    kernel.mutation = kernel.split = None
    return {
        "kernel": name,
        "seed": seed,
        "passed": found.passed,
        "settled": found.settled,
        "ratio": float(f"{found.error_ratio:.4g}"),
        "positions": found.positions,
    }


def summary(trials: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By kernel: with how many seeds it failed, and was settled, and of each seed the error ratio and the positions."""
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(one["kernel"] for one in trials):
        own = sorted((one for one in trials if one["kernel"] == name), key=lambda one: int(one["seed"]))
        found[name] = {
            "seeds": len(own),
            "failed": sum(not one["passed"] for one in own),
            "settled": sum(one["settled"] for one in own),
            **{key: " ".join(str(one[key]) for one in own) for key in ("ratio", "positions")},
        }
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """A row of Markdown for each kernel."""
    lines = ["| kernel | failed | error ratio | positions |", "| --- | --- | --- | --- |"]
    for name, one in found.items():
        ratios, positions = (sorted(map(float, one[key].split())) for key in ("ratio", "positions"))
        lines.append(
            f"| {name} | {one['failed']} of {one['seeds']} | {median(ratios):.2f} ({ratios[0]:.2f} to "
            f"{ratios[-1]:.2f}) | {' to '.join(dict.fromkeys(f'{positions[at]:.0f}' for at in (0, -1)))} |"
        )
    return "\n".join(lines)


def bench() -> Bench:
    """The engines in bfloat16, on one thread."""
    torch.set_num_threads(1)
    model = models.resolve("smollm2-135m", False, user_cache_path("pytest-llmperf"))
    models.ready(model, convert)
    made = Bench(model, "bfloat16")
    for name in BACKENDS:
        made.load(name)
    return made


def main() -> None:
    options = script.options(__doc__, "seeds", 20, "seeds of prompts for each kernel")
    engines = bench()
    found = summary([trial(engines, name, seed) for seed in range(options.seeds) for name in (*WRONG, *RIGHT)])
    print(table(found))
    script.write(options.output, "benchmarks.parity", workload=str(WORKLOAD), kernels=found)


if __name__ == "__main__":
    main()
