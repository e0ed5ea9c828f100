"""Does a host move this machine's CPUs, and what does that do to latencies? Processes alive at once, in turns.

    python -m benchmarks.moved [--turns 60] [--output benchmarks/data/moved.json]

Four workers of the plugin are alive: two of eager, one of sdpa and one of vllm. In a turn each makes one generation
while the others sleep, and its threads are seen to meet before it and after it, as around every sample. A generation is
*apart* if both took more than 1.25 times as long as the soonest of that process, and *together* if neither did. Were a
state a process's own, the two of eager would be in it independently; if it is the machine's, they are in one at a time,
but for turns in which it changes. There is no criterion: most machines have one state.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any

from platformdirs import user_cache_path

from benchmarks import script
from pytest_llmperf.backends.base import EngineSpec
from pytest_llmperf.backends.registry import BUILT_IN, Registry
from pytest_llmperf.cases import Workload
from pytest_llmperf.devices.fitness import APART
from pytest_llmperf.host import Arm, Host
from pytest_llmperf.measurement import Sample, generate
from pytest_llmperf.models import ready, resolve
from pytest_llmperf.prompts import Prompts
from pytest_llmperf.worker.convert import convert

WORKLOAD = Workload(1, 256, 32)
#: The processes, by what they are called here, and their backends.
PROCESSES = {"eager": "eager", "another eager": "eager", "sdpa": "sdpa", "vllm": "vllm"}
#: Generations of each that do not count.
WARM_UP = 2
#: Seconds between two generations, so that no thread of the process that is to sleep still spins.
PAUSE = 0.1
TIMEOUT = 600.0


def states(samples: list[dict[str, Any]]) -> list[str]:
    """The state of each generation of one process: apart, together, or changing."""
    soonest = min(min(one["barriers"]) for one in samples)
    far = [[seconds > APART * soonest for seconds in one["barriers"]] for one in samples]
    return ["apart" if all(one) else "changing" if any(one) else "together" for one in far]


def kept(sample: Sample) -> dict[str, Any]:
    """What the data hold of a generation, in seconds."""
    if sample.fitness.barriers is None:
        raise SystemExit("torch uses one thread here, which meets nobody")
    return {
        "ttft": float(f"{sample.trace.ttft:.5g}"),
        "tpot": float(f"{sample.trace.tpot:.5g}"),
        "barriers": [float(f"{one.seconds:.4g}") for one in sample.fitness.barriers],
    }


def main() -> int:
    """Measure, print, write the data."""
    options = script.options(__doc__, "turns", 60, "generations of each process")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    cache = user_cache_path("pytest-llmperf")
    model = resolve("smollm2-135m", False, cache)
    ready(model, convert)
    prompts = Prompts(model.architecture.vocabulary, model.tokenizer_file).batch(WORKLOAD)
    spec = EngineSpec(
        str(model.folder),
        None,
        script.DTYPE,
        "cpu",
        sequence_length=WORKLOAD.prompt_length + WORKLOAD.max_new_tokens,
        cache=str(cache),
    )
    made: dict[str, list[dict[str, Any]]] = {name: [] for name in PROCESSES}
    with ExitStack() as stack:
        hosts = {}
        for name, backend in ((name, Registry(BUILT_IN)[backend]) for name, backend in PROCESSES.items()):
            hosts[name] = stack.enter_context(closing(Host(Arm(), backend.environment)))
            hosts[name].call("load", TIMEOUT, backend=backend.reference(), spec=asdict(spec))
        for turn in range(WARM_UP + options.turns):
            for name, host in hosts.items():
                sample = generate(partial(host.call, timeout=TIMEOUT), WORKLOAD, prompts)
                time.sleep(PAUSE)
                if turn >= WARM_UP:
                    made[name].append(kept(sample))
            print(f"{turn + 1}/{WARM_UP + options.turns}", file=sys.stderr)
    found = {name: states(samples) for name, samples in made.items()}
    for name, samples in made.items():
        counted = Counter(found[name])
        print(f"{name}: {', '.join(f'{count} {state}' for state, count in counted.most_common())}")
        for state in ("together", "apart"):
            these = [one for one, its in zip(samples, found[name], strict=True) if its == state]
            if these:
                ttft, tpot = (median(one[metric] for one in these) for metric in ("ttft", "tpot"))
                print(f"  {state}: TTFT {ttft * 1e3:.1f} ms, TPOT {tpot * 1e3:.2f} ms")
    both = list(zip(found["eager"], found["another eager"], strict=True))
    same, different = sum(a == b != "changing" for a, b in both), sum({a, b} == {"apart", "together"} for a, b in both)
    print(f"the two of eager: {same} times in one state, {different} times in two")
    command = f"benchmarks.moved --turns {options.turns}"
    script.write(options.output, command, workload=str(WORKLOAD), states=found, samples=made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
