"""Does the backend vllm-serve report what vLLM's own client does? One server, the same requests, in turns.

    python -m benchmarks.served [--turns 20] [--output benchmarks/data/served.json]

The backend starts the server. In every turn the plugin's worker and ``vllm bench serve`` submit the same requests
(token ids) to it, one after the other. Their order changes from turn to turn. While one submits, the other is idle or
has ended. Requests go one at a time: the server puts several that arrive within a millisecond into one step or into
two, which moves TTFT by tens of per cent for any client.

The criterion: mean TTFT and mean TPOT agree within 5 % in the median turn.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any

from benchmarks import script
from pytest_llmperf import folders
from pytest_llmperf.backends import vllm_serve
from pytest_llmperf.backends.base import EngineSpec
from pytest_llmperf.cases import Workload
from pytest_llmperf.measure.trace import checked
from pytest_llmperf.measure.worker_process import Arm, Host
from pytest_llmperf.models import ready, resolve
from pytest_llmperf.prompts import Prompts
from pytest_llmperf.served.vllm import MAIN
from pytest_llmperf.worker.convert import convert

WORKLOAD = Workload(1, 256, 32)
REQUESTS = 8
LIMIT = 0.05
TIMEOUT = 900.0

#: ``vllm bench serve``, changed to read its prompts without pandas, which it needs for nothing else.
BENCH = MAIN.replace(
    "main()\n",
    """\
import json
from vllm.benchmarks.datasets import datasets
def load(self):
    with open(self.dataset_path) as file:
        self.data = [json.loads(line) for line in file]
datasets.CustomDataset.load_data = load
main()
""",
)

Figures = dict[str, float]


def by_plugin(host: Host, prompts: list[list[int]]) -> Figures:
    """Return the TTFT and TPOT (s) as a run of pytest measures them."""
    traces = []
    for prompt in prompts:
        answer = host.call("generate", TIMEOUT, prompts=[prompt], max_new_tokens=WORKLOAD.max_new_tokens)
        traces.append(checked(answer["tokens"], answer["times"], requests=1, max_new_tokens=WORKLOAD.max_new_tokens))
    return {"ttft": fmean(one.ttft for one in traces), "tpot": fmean(one.tpot for one in traces)}


def by_bench(url: str, folder: Path) -> Figures:
    """Return the same from ``vllm bench serve``: its process, its client, its arithmetic."""
    body = {"max_tokens": WORKLOAD.max_new_tokens, "temperature": 0, "return_token_ids": True}
    command = [
        sys.executable, "-c", BENCH, "bench", "serve", "--backend", "openai", "--base-url", url,
        "--endpoint", "/v1/completions", "--model", "llmperf", "--skip-tokenizer-init", "--dataset-name", "custom",
        "--dataset-path", str(folder / "prompts.jsonl"), "--disable-shuffle", "--num-prompts", str(REQUESTS),
        "--request-rate", "inf", "--max-concurrency", "1",
        "--ignore-eos", "--extra-body", json.dumps(body), "--disable-tqdm", "--save-result",
        "--save-detailed", "--result-dir", str(folder), "--result-filename", "result.json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if done.returncode:
        raise RuntimeError(f"vllm bench serve ended with status {done.returncode}: {done.stderr[-2000:]}")
    result = json.loads((folder / "result.json").read_text())
    counted = [1 + len(gaps) for gaps in result["itls"]]
    if counted != [WORKLOAD.max_new_tokens] * REQUESTS:
        raise RuntimeError(
            f"vllm bench serve counted {counted} chunks, {WORKLOAD.max_new_tokens} tokens were asked for"
        )
    return {"ttft": fmean(result["ttfts"]), "tpot": fmean(sum(gaps) / len(gaps) for gaps in result["itls"])}


def measure(turns: int) -> list[dict[str, Figures]]:
    """Return the figures of both in every turn, after one turn to warm up."""
    model = resolve("smollm2-135m", False, folders.cache().folder)
    ready(model, convert)
    prompts = Prompts(model.architecture.vocabulary, model.tokenizer_file).many(REQUESTS, WORKLOAD.prompt_length)
    size = {"batch_size": WORKLOAD.batch_size, "sequence_length": WORKLOAD.prompt_length + WORKLOAD.max_new_tokens}
    spec = EngineSpec(str(model.folder), None, "float32", "cpu", timeout=TIMEOUT, **size)  # type: ignore[arg-type]
    made: list[dict[str, Figures]] = []
    host = Host(Arm())
    try:
        host.call("load", TIMEOUT, backend=[vllm_serve.BACKEND.reference()], spec=asdict(spec))
        by_plugin(host, prompts)
        url: str = host.call("evidence", TIMEOUT)["seen"]["server"]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": one}) + "\n" for one in prompts))
            ways: dict[str, Any] = {
                "plugin": lambda: by_plugin(host, prompts),
                "bench": lambda: by_bench(url, folder),
            }
            for turn in range(turns + 1):
                order = list(ways) if turn % 2 else list(reversed(ways))
                figures = {way: ways[way]() for way in order}
                if turn:
                    made.append(figures)
                print(f"{turn}/{turns}", file=sys.stderr)
    finally:
        host.close()
    return made


def main() -> int:
    """Measure, print the table, write the data; return 1 if the criterion is not met."""
    options = script.options(__doc__, "turns", 20, "turns")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    made = measure(options.turns)
    print(f"one vllm serve, {REQUESTS} requests of {WORKLOAD}, float32, cpu; {options.turns} turns")
    agreement = {}
    for metric in ("ttft", "tpot"):
        differences = [one["plugin"][metric] / one["bench"][metric] - 1 for one in made]
        low, _, high = quantiles(differences, n=4)
        agreement[metric] = {
            "plugin": median(one["plugin"][metric] for one in made),
            "bench": median(one["bench"][metric] for one in made),
            "by turn": median(differences),
        }
        print(
            f"{metric}: plugin {agreement[metric]['plugin'] * 1e3:.2f} ms, vllm bench serve "
            f"{agreement[metric]['bench'] * 1e3:.2f} ms; plugin / bench by turn {median(differences):+.1%} "
            f"[{low:+.1%}, {high:+.1%}], limit {LIMIT:.0%}"
        )
    command = f"benchmarks.served --turns {options.turns}"
    script.write(options.output, command, workload=str(WORKLOAD), agreement=agreement, turns=made)
    return 0 if all(abs(one["by turn"]) <= LIMIT for one in agreement.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
