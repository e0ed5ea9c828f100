"""Does the gate catch a backend that sleeps 15 % longer than sdpa takes, and pass it when it does not sleep?

    python -m benchmarks.slowdown [--runs 10] [--output benchmarks/data/slowdown.json]

The suite is its own, and its conftest.py has a backend that runs sdpa and sleeps before every token except the first.
The baseline is recorded with sdpa itself. The criterion: every run with the sleep fails in the decode test (exit code
1, one failure in the JUnit file), and every run without it passes. Everything computes on one thread. Two threads
wait for each other whenever a shared host takes a core away, and that hides 15 %.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks import script
from pytest_llmperf.cases import Case, Workload

ROOT = Path(__file__).parent.parent
CASE = Case("smollm2-135m", script.DTYPE, "sdpa", Workload(1, 64, 16), "tpot")
SLOWDOWN = 0.15

EXTRA = """\
import os
import time

SLEEP = float(os.environ["SLEEP"])


def do(batch_size, prompt_length):
    time.sleep(SLEEP)
"""


def pytest(folder: Path, sleep: float, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the suite in the folder once."""
    workload = CASE.workload
    options = [f"--llm-batch-sizes={workload.batch_size}", f"--llm-prompt-lengths={workload.prompt_length}"]
    options += [f"--llm-max-new-tokens={workload.max_new_tokens}", f"--llm-baseline-dir={folder / 'baselines'}"]
    options += [f"--llm-dtype={CASE.dtype}", "--junitxml=junit.xml", "-q"]
    command = [sys.executable, "-m", "pytest", "test_decode.py", *options, *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "SLEEP": str(sleep), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def record(folder: Path) -> float:
    """Record sdpa, rename its entries to the slowed backend, and return the median TPOT (s)."""
    done = pytest(folder, 0.0, "--llm-backends=sdpa", "--llm-update-baselines")
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    path = folder / "baselines" / "cpu" / f"{CASE.model}.json"
    stored = json.loads(path.read_text())
    median = stored["entries"][CASE.key][0]["median"]
    path.write_text(path.read_text().replace("/sdpa/", "/slowed/"))
    return float(median)


def run(folder: Path, sleep: float) -> dict[str, Any]:
    """Make one gated run; return its exit code, the failures in the JUnit file, and the lines with the verdict."""
    done = pytest(folder, sleep, "--llm-backends=slowed")
    suite = next(ElementTree.parse(folder / "junit.xml").iter("testsuite"))
    lines = [line for line in done.stdout.splitlines() if line.startswith((f"{CASE.model}/", "tpot "))]
    return {"exit": done.returncode, "junit failures": int(suite.get("failures", "-1")), "said": lines}


def main() -> int:
    """Record, run, print, write the data; return 1 if the criterion is not met."""
    options = script.options(__doc__, "runs", 10, "runs of each kind")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    made: dict[str, list[dict[str, Any]]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pytest.ini").write_text("[pytest]\n")
        (folder / "conftest.py").write_text(script.SLOWED)
        (folder / "extra.py").write_text(EXTRA)
        shutil.copy(ROOT / "suites" / "test_decode.py", folder)
        tpot = record(folder)
        for _ in range(options.runs):
            for kind, sleep in (("without", 0.0), ("with", SLOWDOWN * tpot)):
                made[kind].append(run(folder, sleep))
                print(f"{kind} the sleep: exit {made[kind][-1]['exit']}; {made[kind][-1]['said'][0]}", flush=True)
    passed = sum(one["exit"] == 0 for one in made["without"])
    caught = sum(one["exit"] == 1 and one["junit failures"] == 1 for one in made["with"])
    print(f"sdpa {tpot * 1e3:.1f} ms per token; without a sleep {passed} of {options.runs} runs passed,")
    print(f"with one of {SLOWDOWN:.0%} of that {caught} of {options.runs} failed")
    command = f"benchmarks.slowdown --runs {options.runs}"
    script.write(options.output, command, case=str(CASE), tpot=tpot, slowdown=SLOWDOWN, runs=made)
    return 0 if passed == caught == options.runs else 1


if __name__ == "__main__":
    sys.exit(main())
