"""Compare the worker's stamps with CUDA events, and find where a generation waits for the device.

    python -m benchmarks.accelerator_stamps eager,sdpa OUTPUT

The script records an event with every token, while the device is idle. The time between two events by the device's
clock must then equal the time between two stamps by the host's clock. The criterion: TTFT and TPOT agree within 1 %.
One more generation runs with ``torch.cuda.set_sync_debug_mode("warn")``. It shows where the host waits for the
device, and how often per step.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import script
from pytest_llmperf.backends.base import EngineSpec
from pytest_llmperf.backends.registry import BUILT_IN, Registry
from pytest_llmperf.cases import Workload
from pytest_llmperf.models import CONFIGS
from pytest_llmperf.prompts import Prompts
from pytest_llmperf.worker.recorder import Recorder
from pytest_llmperf.worker.server import find

WORKLOAD = Workload(batch_size=4, prompt_length=2048, max_new_tokens=32)
GENERATIONS = 5
#: The criterion.
AGREE = 0.01


def spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"median": ordered[len(ordered) // 2], "low": ordered[0], "high": ordered[-1]}


def event_of(torch: Any) -> Any:
    """Make an event that records its time."""
    return torch.cuda.Event(enable_timing=True)


def of(backend: str) -> dict[str, Any]:
    """Measure one backend, in this process."""
    import torch

    parts = Registry(BUILT_IN)[backend].reference()
    loader = find(parts[0])
    for part in parts[1:]:
        loader = find(part)(loader)
    config = dict(CONFIGS["llama-2-7b"])
    engine = loader(EngineSpec("llama-2-7b", config, "bfloat16", "cuda", batch_size=WORKLOAD.batch_size))
    prompts = Prompts(config["vocab_size"], None).batch(WORKLOAD)
    tokens = WORKLOAD.max_new_tokens
    rows: dict[str, list[float]] = {"ttft": [], "tpot": []}
    for generation in range(GENERATIONS + 2):
        torch.cuda.synchronize()
        begun = event_of(torch)
        begun.record()
        events: list[Any] = []
        recorder = Recorder(len(prompts))

        def on_token(request: int, token: int, recorder: Recorder = recorder, events: list[Any] = events) -> None:
            recorder(request, token)
            if request == 0:
                events.append(event_of(torch))
                events[-1].record()

        engine.generate(prompts, tokens, on_token)
        torch.cuda.synchronize()
        if generation < 2:  # warm-up
            continue
        times = recorder.times[0]
        device = [begun.elapsed_time(event) / 1e3 for event in events]
        rows["ttft"].append(times[0] / device[0] - 1)
        rows["tpot"].append((times[-1] - times[0]) / (device[-1] - device[0]) - 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        engine.generate(prompts, tokens, Recorder(len(prompts)))
        torch.cuda.set_sync_debug_mode("default")
    waits = Counter(
        f"{Path(one.filename).parent.name}/{Path(one.filename).name}:{one.lineno}"
        for one in caught
        if "synchron" in str(one.message)
    )
    return {
        "backend": backend,
        "difference": {name: spread(values) for name, values in rows.items()},
        "waits per step": {where: count / tokens for where, count in waits.most_common()},
    }


def main() -> int:
    """Measure each backend in a process of its own; return 1 if a difference exceeds the criterion."""
    if len(sys.argv) == 2:
        print(json.dumps(of(sys.argv[1])))
        return 0
    found, wrong = [], False
    for backend in sys.argv[1].split(","):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.accelerator_stamps", backend], capture_output=True, text=True
        )
        if done.returncode:
            print(done.stderr[-2000:])
            wrong = True
            continue
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(found[-1]), flush=True)
        wrong |= any(abs(end) > AGREE for one in found[-1]["difference"].values() for end in (one["low"], one["high"]))
    script.write(Path(sys.argv[2]), "benchmarks.accelerator_stamps", workload=str(WORKLOAD), backends=found)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
