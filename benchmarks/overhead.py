"""Measure the cost of the installed plugin to a pytest that does not use it, and the cost of stamping a token.

    python -m benchmarks.overhead [--pairs 20] [--output benchmarks/data/overhead.json]

- `pytest --collect-only` in an empty folder, with and without the plugin in turns (criterion: the median difference
  is under 30 ms);
- `Recorder.__call__` in a loop (criterion: under 10 us per token);
- `pytest --llm-list` (criterion: the median is under 2 s).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from statistics import median

from benchmarks import script
from pytest_llmperf.worker.recorder import Recorder

COLLECT_LIMIT = 0.030
STAMP_LIMIT = 10e-6
LIST_LIMIT = 2.0


def collect(folder: str, *options: str) -> float:
    """Run ``pytest --collect-only`` once; return the seconds it took."""
    return seconds(folder, "--collect-only", "-q", *options)


def seconds(folder: str, *options: str) -> float:
    """Run pytest once in a folder, with its bytecode cached as after an install; return the seconds it took."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, folder]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    subprocess.run(command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, check=False)
    return time.perf_counter() - start


def stamp(tokens: int = 100_000) -> float:
    """Stamp many tokens; return the seconds per token."""
    recorder = Recorder(1)
    start = time.perf_counter()
    for token in range(tokens):
        recorder(0, token)
    return (time.perf_counter() - start) / tokens


def main() -> int:
    """Measure, print, write the data; return 1 if a criterion is not met."""
    options = script.options(__doc__, "pairs", 20, "pairs of collections")
    without, including = [], []
    with tempfile.TemporaryDirectory() as folder:
        collect(folder)
        for pair in range(options.pairs):
            if pair % 2:
                without.append(collect(folder, "-p", "no:llmperf"))
                including.append(collect(folder))
            else:
                including.append(collect(folder))
                without.append(collect(folder, "-p", "no:llmperf"))
        lists = [seconds(folder, "--llm-list") for _ in range(5)]
    stamps = [stamp() for _ in range(5)]
    difference = median(a - b for a, b in zip(including, without, strict=True))
    print(f"collect-only: {median(including) * 1e3:.0f} ms with, {median(without) * 1e3:.0f} ms without the plugin")
    print(f"  median difference {difference * 1e3:+.1f} ms, limit {COLLECT_LIMIT * 1e3:.0f} ms")
    print(f"stamping a token: {median(stamps) * 1e6:.2f} us, limit {STAMP_LIMIT * 1e6:.0f} us")
    print(f"--llm-list: {median(lists):.2f} s, limit {LIST_LIMIT:.0f} s")
    samples = {"with": including, "without": without, "stamp": stamps, "list": lists}
    script.write(options.output, f"benchmarks.overhead --pairs {options.pairs}", **samples)
    kept = difference < COLLECT_LIMIT and median(stamps) < STAMP_LIMIT and median(lists) < LIST_LIMIT
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
