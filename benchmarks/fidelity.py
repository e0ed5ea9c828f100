"""Does the plugin report what a user of transformers gets? Alternating fresh processes, one generation, three ways.

    python -m benchmarks.fidelity [--pairs 8] [--output benchmarks/data/fidelity.json]

`plugin` is pytest with suites/test_latency.py and backend sdpa; `generate` is `bare_transformers.py`: transformers'
generate with a streamer that notes the time; `forward` is a bare forward loop, which shows what generate itself costs.
The criterion is that the medians of `plugin` and `generate` agree within 3 %.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from platformdirs import user_cache_path

from pytest_llmperf.cases import Workload
from pytest_llmperf.devices import fingerprint
from pytest_llmperf.models import resolve
from pytest_llmperf.prompts import Prompts

ROOT = Path(__file__).parent.parent
WORKLOAD = Workload(1, 256, 32)
LIMIT = 0.03


def plugin(folder: Path) -> dict[str, list[float]]:
    """TTFT and TPOT samples (s) of one pytest run."""
    results = folder / "results.json"
    command = [sys.executable, "-m", "pytest", "suites/test_latency.py", "-q", "-p", "no:cacheprovider"]
    command += ["--llm-backends=sdpa", f"--llm-batch-sizes={WORKLOAD.batch_size}", f"--llm-results={results}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    samples = json.loads(results.read_text())["measurements"][0]["samples"]
    rows = [sample["trace"]["times"][0] for sample in samples]
    return {"ttft": [row[0] for row in rows], "tpot": [(row[-1] - row[0]) / (len(row) - 1) for row in rows]}


def bare(loop: str, request: Path) -> dict[str, list[float]]:
    """TTFT and TPOT samples (s) of one process without the plugin."""
    command = [sys.executable, str(ROOT / "benchmarks" / "bare_transformers.py"), loop, str(request)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # type: ignore[no-any-return]


def main() -> int:
    """Measure, print the table, write the data; 1 if the criterion does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8, help="fresh processes of each kind (default: 8)")
    parser.add_argument("--output", type=Path, help="write the data as JSON")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    made: dict[str, list[dict[str, list[float]]]] = {"plugin": [], "generate": [], "forward": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plugin(folder)  # converts the model where that has not been done
        model = resolve("smollm2-135m", False, user_cache_path("pytest-llmperf"))
        prompts = Prompts(model.architecture.vocabulary, model.tokenizer_file).batch(WORKLOAD)
        request = folder / "request.json"
        request.write_text(
            json.dumps(
                {
                    "folder": str(model.folder),
                    "dtype": "bfloat16",
                    "prompts": prompts,
                    "new": WORKLOAD.max_new_tokens,
                    "generations": 4,
                }
            )
        )
        for pair in range(options.pairs):
            order = list(made) if pair % 2 == 0 else list(made)[::-1]
            for kind in order:
                made[kind].append(plugin(folder) if kind == "plugin" else bare(kind, request))
                print(f"{pair + 1}/{options.pairs} {kind}", file=sys.stderr)
    report: dict[str, Any] = {
        "command": "python -m benchmarks.fidelity --pairs " + str(options.pairs),
        "workload": str(WORKLOAD),
        "machine": fingerprint.take().as_dict(),
        "versions": fingerprint.versions(),
        "samples": made,
        "agreement": {},
    }
    good = True
    print(f"{'':10}{'TTFT ms':>10}{'TPOT ms':>10}   medians over {options.pairs} fresh processes, {WORKLOAD}, sdpa")
    centre = {
        kind: {m: median(median(run[m]) for run in runs) for m in ("ttft", "tpot")} for kind, runs in made.items()
    }
    for kind, figures in centre.items():
        print(f"{kind:10}{figures['ttft'] * 1e3:10.1f}{figures['tpot'] * 1e3:10.2f}")
    for metric in ("ttft", "tpot"):
        ratios = [
            median(mine[metric]) / median(theirs[metric])
            for mine, theirs in zip(made["plugin"], made["generate"], strict=True)
        ]
        difference = centre["plugin"][metric] / centre["generate"][metric] - 1
        report["agreement"][metric] = {"difference": difference, "ratios by pair": ratios}
        good = good and abs(difference) <= LIMIT
        print(
            f"{metric}: plugin / generate {difference:+.1%} (pairs {min(ratios) - 1:+.1%} to {max(ratios) - 1:+.1%}), "
            f"limit {LIMIT:.0%}; generate / forward {centre['generate'][metric] / centre['forward'][metric] - 1:+.1%}"
        )
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
