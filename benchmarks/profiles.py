"""Are the profiles of unchanged code equal, and what do they cost?

    python -m benchmarks.profiles [--processes 10] [--backends eager,sdpa,compile,compile-static,vllm] [--output FILE]

Each backend runs the workloads of ``make bench`` in so many fresh processes, with other prompts in each, and proves
that its optimization ran, as in a run. The first process also measures, as in a run that takes the fewest samples.

- Each process is compared with each other one of its backend, as base and head are, and as a baseline and head are.
  No line may be printed.
- The seconds that keeping the profiles takes in the first processes, over all seconds of these (limit 3 %).
- The size of a baseline of two sittings with these profiles, over its size without (limit 1.5). A baseline keeps the
  profiles of the newest sitting alone, so of one sitting they are a larger part; that is printed too.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count, permutations
from pathlib import Path
from typing import Any

from benchmarks import script
from pytest_llmperf import folders, models
from pytest_llmperf.backends.base import Backend, Engagement, EngineSpec
from pytest_llmperf.backends.registry import BUILT_IN, Combination, Registry
from pytest_llmperf.cases import LATENCIES, Case, Workload
from pytest_llmperf.explain.difference import kernels_changed
from pytest_llmperf.explain.profiles import Phase, Profile, of_metric, parse
from pytest_llmperf.gate import baseline as store
from pytest_llmperf.measure.process import measure
from pytest_llmperf.measure.worker_pool import Engines
from pytest_llmperf.measure.worker_process import Arm
from pytest_llmperf.plan import DEFAULTS
from pytest_llmperf.prompts import Generation, Prompts
from pytest_llmperf.settings import DEFAULT_BACKENDS

MODEL = "smollm2-135m"
BASELINE = Path(__file__).parent.parent / "baselines" / "cpu" / f"{MODEL}.json"
BENCH = DEFAULTS["cpu"]
WORKLOADS = [
    Workload(size, length, BENCH.max_new_tokens) for size in BENCH.batch_sizes for length in BENCH.prompt_lengths
]
COST, SIZE, SITTINGS = 0.03, 1.5, 2
#: What the engine below says in its evidence.
SECONDS = "seconds of the profile"


def timed(loader: Callable[[EngineSpec], Any]) -> Callable[[EngineSpec], Any]:
    """In a worker: the engine, whose evidence says how long it took to keep the profile."""
    from pytest_llmperf.backends import profiling

    spent = 0.0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            nonlocal spent
            began = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                spent += time.perf_counter() - began

        return wrapped

    profiling._operator = counted(profiling._operator)
    profiling.Profiler.phases = counted(profiling.Profiler.phases)  # type: ignore[method-assign]

    def load(spec: EngineSpec) -> Any:
        engine = loader(spec)
        evidence: Callable[[], Engagement] = engine.evidence

        def timed_evidence() -> Engagement:
            nonlocal spent
            spent = 0.0
            found = evidence()
            return replace(found, seen={**found.seen, SECONDS: spent})

        engine.evidence = timed_evidence
        return engine

    return load


def ask_of(engines: Engines, backend: Combination, seed: int, whole: bool, prompts: Prompts) -> dict[str, Any]:
    """What one fresh process says: each workload's profile, and of a whole measurement the seconds."""
    began, kept, profiles = time.perf_counter(), 0.0, {}
    with engines.fresh(backend) as (ask, load):
        for workload in WORKLOADS:
            if whole:
                generations = (Generation(number, prompts.batch(workload, number)) for number in count())
                measured = measure(
                    ask,
                    backend=backend.name,
                    workload=workload,
                    generations=generations,
                    load=load,
                    bounds=replace(BENCH.samples, maximum=BENCH.samples.minimum),
                    progress=lambda text: None,
                )
                evidence: Mapping[str, Any] = measured.engagement
                profile = measured.profile
            else:
                ask("generate", prompts=prompts.batch(workload, seed), max_new_tokens=workload.max_new_tokens)
                evidence = ask("evidence")
                profile = parse(evidence["profile"])
            kept += evidence["seen"][SECONDS]
            profiles[str(workload)] = profile
    return {"seconds": time.perf_counter() - began, "keeping": kept, "profiles": profiles}


def differences(profiles: list[Profile]) -> tuple[list[str], Counter[str]]:
    """The lines that pairs of processes have, and how often a kernel was called more often in one than in the other."""
    lines, calls = [], Counter[str]()
    stored = [{phase: Phase.from_stored(one.stored()) for phase, one in profile.items()} for profile in profiles]
    for metric in LATENCIES:
        found, recorded = (
            [phase for one in row if (phase := of_metric(one, metric, BENCH.max_new_tokens))]
            for row in (profiles, stored)
        )
        if not len(found) == len(recorded) == len(profiles):
            lines.append(f"{metric}: a process has no profile")
            continue
        for base, head in permutations(range(len(profiles)), 2):
            said = (kernels_changed(before, found[head]) for before in (found[base], recorded[base]))
            lines += [f"{metric}: {line}" for line in said if line]
            rows = found[base].rows
            more = (name for name, row in found[head].rows.items() if row.calls > rows.get(name, row).calls)
            calls.update(f"{metric}: {name}" for name in more)
    return lines, calls


def sizes(profiles: Mapping[str, Profile], sittings: int) -> tuple[int, int]:
    """Bytes of a baseline of so many sittings of what was profiled, without the profiles and with them."""
    held = store.load(BASELINE)
    assert held is not None
    entries = {
        key: row[:sittings] for key, row in held.entries.items() if Case.parse(MODEL, key).profile_key in profiles
    }
    one = store._holding(replace(held, profiles={}), entries)
    sitting = {Case.parse(MODEL, key).profile_key: row[0].sitting for key, row in entries.items()}
    kept = {
        key: (store.Profiled(sitting[key], {phase: found.stored() for phase, found in profiles[key].items()}),)
        for key in sitting
    }
    return len(store.dumps(one)), len(store.dumps(replace(one, profiles=kept)))


def main() -> int:
    """Measure, print, write the data; 1 if a limit is exceeded."""
    parser = script.parser(__doc__, "processes", 10, "fresh processes of each backend")
    parser.add_argument("--backends", default=",".join(DEFAULT_BACKENDS), help="default: those of make bench")
    options = parser.parse_args()
    cache = folders.cache().folder
    model = models.resolve(MODEL, False, cache)
    registry, longest = Registry(BUILT_IN), max(one.prompt_length + one.max_new_tokens for one in WORKLOADS)
    engines = Engines(
        EngineSpec(
            str(model.folder),
            None,
            script.DTYPE,
            "cpu",
            batch_size=max(BENCH.batch_sizes),
            sequence_length=longest,
            cache=str(cache),
        ),
        lambda backend: Arm(),
        environment=folders.of_workers(cache, os.environ),
        timeout=600.0,
        roomy=False,
        reference="",
        progress=lambda text: print(text, flush=True),
    )
    first: dict[str, Profile] = {}
    found: dict[str, Any] = {}
    for name in options.backends.split(","):
        known = registry[name]
        backend = Combination(name, known.engine, (*known.parts, Backend("timed", timed)))
        made = []
        for number in range(options.processes):
            prompts = Prompts(model.architecture.vocabulary, model.tokenizer_file, seed=number)
            made.append(ask_of(engines, backend, number, not number, prompts))
        lines, calls = [], Counter[str]()
        for workload in map(str, WORKLOADS):
            profiles = [one["profiles"][workload] for one in made]
            more, other = differences(profiles)
            lines += [f"{workload} {line}" for line in more]
            calls.update({f"{workload} {name}": times for name, times in other.items()})
            first[f"{script.DTYPE}/{name}/{workload}"] = profiles[0]
        found[name] = {
            "lines": dict(Counter(lines)),
            "calls that differ": dict(calls),
            "seconds": round(made[0]["seconds"], 2),
            "keeping": round(made[0]["keeping"], 4),
        }
        print(name, found[name], flush=True)
    bytes_ = {sittings: sizes(first, sittings) for sittings in (1, SITTINGS)}
    seconds, keeping = (sum(one[what] for one in found.values()) for what in ("seconds", "keeping"))
    printed = sum(sum(one["lines"].values()) for one in found.values())
    print(f"{printed} lines; keeping profiles took {keeping:.2f} s of {seconds:.0f} s, {keeping / seconds:.2%}")
    for sittings, (without, including) in bytes_.items():
        print(f"sittings: {sittings}; bytes: {without}, with profiles {including}, {including / without:.2f} times")
    command = f"benchmarks.profiles --processes {options.processes} --backends {options.backends}"
    script.write(options.output, command, backends=found, bytes=bytes_)
    without, including = bytes_[SITTINGS]
    return int(printed > 0 or keeping > COST * seconds or including > SIZE * without)


if __name__ == "__main__":
    sys.exit(main())
