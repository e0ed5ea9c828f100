"""How long does an HTML report of 5,000 cases take, and how large is it?

    python -m benchmarks.report [--times 5] [--output benchmarks/data/report.json]

The report has prefill and decode of 25 backends, 5 prompt lengths and 20 batch sizes. Each report is rendered in a
fresh process. The criterion: at most 10 s and 15 MB.
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

from benchmarks import script

LIMIT_SECONDS, LIMIT_BYTES = 10.0, 15e6
RENDER = """\
import itertools
from pytest_llmperf.report import document
from pytest_llmperf.report.write import render_html

METRICS = [("ttft", "s"), ("tpot", "s/token")]
rows = []
for number, (backend, prompt, batch, (metric, unit)) in enumerate(
    itertools.product(range(25), (128, 256, 512, 1024, 2048), range(1, 21), METRICS)
):
    seconds = 0.01 + 1e-5 * (number * 7919 % 1000)
    spread = {"median": seconds, "q1": seconds * 0.98, "q3": seconds * 1.02, "minimum": seconds * 0.9}
    verdict = {"outcome": ("ok", "regression", "faster")[number % 3], "ratio": 1.01, "low": 0.99, "high": 1.03}
    work = {"name": "MBU", "fraction": 0.5, "bound": seconds / 2, "limit": "memory", "flops": 1e9, "size": 1e9}
    result = {
        "case": f"bfloat16/backend-{backend}/b{batch}-p{prompt}-n32/{metric}", "model": "model", "unit": unit,
        "spread": spread | {"maximum": seconds * 1.2, "n": 10}, "processes": 1, "speedup": 1.5, "utilization": work,
        "verdict": verdict | {"not_excluded": 0.02, "reason": "1.0% slower than the baseline in 1 process"},
        "said": "said", "accepted": False, "throughput": 100.0, "load": 10.0, "compile_time": 5.0,
        "peak_memory": 2**30, "boundary": "in process", "itl": [0.01] * 7 if metric == "tpot" else None,
    }
    rows.append(document.Row(result, "in parity"))
assert len(rows) == 5000
peaks = {"flops": 1e15, "bandwidth": 1e12}
print(len(render_html(document.Document("h200", "model", "bfloat16", "eager", {"peaks": peaks}, tuple(rows)))))
"""


def main() -> int:
    """Measure, print, write the data; return 1 if the criterion is not met."""
    options = script.options(__doc__, "times", 5, "processes")
    seconds, size = [], 0
    for _ in range(options.times):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", RENDER], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
        size = int(done.stdout)
    print(f"5,000 cases: {median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f}), {size / 1e6:.1f} MB")
    script.write(options.output, f"benchmarks.report --times {options.times}", seconds=seconds, characters=size)
    return 0 if median(seconds) <= LIMIT_SECONDS and size <= LIMIT_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
