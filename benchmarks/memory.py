"""How much does the memory of unchanged code differ between fresh processes?

    python -m benchmarks.memory [--processes 10] [--backends eager,sdpa,compile-static,vllm] [--tiny]
                                [--batch-sizes 1,4] [--prompt-length 256] [--output FILE]

Each process loads SmolLM2-135M, or with ``--tiny`` a model of two layers, and generates 4 tokens of each batch size in
turn, three times. Its figures are those of ``gate("memory")`` and ``gate("weights")``. Processes of the backends take
turns. What else the machine does is in no figure.
"""

from __future__ import annotations

import random
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks import script
from pytest_llmperf import folders, models
from pytest_llmperf.backends.base import EngineSpec
from pytest_llmperf.backends.registry import BUILT_IN, Registry
from pytest_llmperf.measure.worker_process import Arm, Host
from pytest_llmperf.worker.convert import convert

MIB = 2**20
NEW, GENERATIONS, PATIENCE = 4, 3, 600
TINY: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 512, "max_position_embeddings": 512,
    "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip


def process(name: str, spec: EngineSpec, batches: list[int], length: int) -> dict[str, float]:
    """The figures (bytes) of one fresh process: ``weights``, and ``b1`` and so on."""
    backend = Registry(BUILT_IN)[name]
    host = Host(Arm(), {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", **backend.environment})
    drawn = random.Random(0)
    found: dict[str, float] = {}
    try:
        host.call("load", PATIENCE, backend=backend.reference(), spec=asdict(spec))
        for batch in batches:
            for _ in range(GENERATIONS):
                prompts = [[drawn.randrange(3, 500) for _ in range(length)] for _ in range(batch)]
                host.call("generate", PATIENCE, prompts=prompts, max_new_tokens=NEW)
            took = host.call("evidence", PATIENCE)["memory"]
            found["weights"] = took["loaded"]
            found[f"b{batch}"] = took["peak"] - took["loaded"]
    finally:
        host.close()
    return found


def main() -> int:
    """Measure, print, write the data after every round."""
    parser = script.parser(__doc__, "processes", 10, "fresh processes of each backend")
    parser.add_argument("--backends", default="eager,sdpa,compile-static,vllm", help="(default: four)")
    parser.add_argument("--tiny", action="store_true", help="a model of two layers")
    parser.add_argument("--batch-sizes", default="1,4", help="in this order (default: 1,4)")
    parser.add_argument("--prompt-length", type=int, default=256, help="tokens (default: 256)")
    options = parser.parse_args()
    batches = [int(one) for one in options.batch_sizes.split(",")]
    folder = "tiny"
    if not options.tiny:
        model = models.resolve("smollm2-135m", False, folders.cache().folder)
        models.ready(model, lambda source, target: convert(Path(source), Path(target)))
        folder = str(model.folder)
    spec = EngineSpec(
        folder, TINY if options.tiny else None, script.DTYPE, "cpu",
        batch_size=max(batches), sequence_length=options.prompt_length + NEW,
    )  # fmt: skip
    names = options.backends.split(",")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    command = f"benchmarks.memory --processes {options.processes} --backends {options.backends}" + (
        " --tiny" if options.tiny else ""
    )
    for _ in range(options.processes):
        for name in names:
            found[name].append(process(name, spec, batches, options.prompt_length))
            print(name, {key: round(size / MIB, 1) for key, size in found[name][-1].items()}, flush=True)
        script.write(options.output, command, dtype=script.DTYPE, prompt_length=options.prompt_length, figures=found)
    for name, rows in found.items():
        for key in rows[0]:
            row = [one[key] / MIB for one in rows]
            spread = f", standard deviation {stdev(row) / fmean(row):.2%}" if len(row) > 1 else ""
            print(f"{name} {key}: {fmean(row):.1f} MiB{spread}, {min(row):.1f} to {max(row):.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
