"""The repository that is measured: sdpa behind a backend of its conftest.py, which does something more in a step."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import script
from pytest_llmperf.cases import Workload

ROOT = Path(__file__).parent.parent.parent
KINDS = {"same": 0.0, "sleep-5": 0.05, "sleep-10": 0.10, "work-5": 0.05, "work-10": 0.10}
#: The backend of the repository's conftest.py.
BACKEND = "slowed"
#: The test that gates a metric, which has a file of its own.
TESTS = {"ttft": "test_prefill", "tpot": "test_decode", "latency": "test_latency"}
#: What is measured, if nothing else is asked for.
SIZES = {"batch-sizes": "1,2", "prompt-lengths": "64,96", "new-tokens": "16"}
NOTHING = "def do(batch_size, prompt_length):\n    pass\n"
#: The same in another file: base that is head is not compared.
SAME = f"# A comment.\n{NOTHING}"
SLEEP = """\
import time

SECONDS = {seconds}


def do(batch_size, prompt_length):
    time.sleep(SECONDS[batch_size, prompt_length])
"""
WORK = """\
import torch

LEFT = torch.ones(64, 64)
ROUNDS = {rounds}


def do(batch_size, prompt_length):
    for _ in range(ROUNDS[batch_size, prompt_length]):
        LEFT @ LEFT
"""


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=gate", "-c", "user.email=gate@localhost", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def repository(folder: Path, tests: Iterable[str] = tuple(TESTS.values())) -> None:
    """Base is what is committed; head's ``extra.py`` is written over it."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / ".gitignore").write_text("raw.json\nbaselines\nas-recorded\nflagged\n__pycache__\n.pytest_cache\n")
    (folder / "conftest.py").write_text(script.SLOWED)
    (folder / "extra.py").write_text(NOTHING)
    (folder / "suites").mkdir()
    for test in tests:
        shutil.copy(ROOT / "suites" / f"{test}.py", folder / "suites")
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "base")
    git(folder, "tag", "base")


def measure(folder: Path, *arguments: str, backends: str = BACKEND, sizes: Mapping[str, str] = SIZES) -> dict[str, Any]:
    """One run of the suites in the folder: its raw results."""
    options = [f"--llm-batch-sizes={sizes['batch-sizes']}", f"--llm-prompt-lengths={sizes['prompt-lengths']}"]
    options += [f"--llm-max-new-tokens={sizes['new-tokens']}", "--llm-results=raw.json"]
    command = [sys.executable, "-m", "pytest", "-q", "suites", f"--llm-backends={backends}", *options, *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not (folder / "raw.json").exists():
        raise SystemExit(done.stdout + done.stderr)
    raw: dict[str, Any] = json.loads((folder / "raw.json").read_text())
    return raw


def slowed(kind: str, tpots: dict[tuple[int, int], float]) -> str:
    """Head's ``extra.py``, given sdpa's TPOT (s) by batch size and prompt length."""
    seconds = {sizes: KINDS[kind] * tpot for sizes, tpot in tpots.items()}
    if kind == "same":
        return SAME
    if kind.startswith("sleep"):
        return SLEEP.format(seconds=seconds)
    code = f"import time\n{WORK.format(rounds={(0, 0): 1000})}\ndo(0, 0)\nstart = time.perf_counter()\ndo(0, 0)\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "print(time.perf_counter() - start)"], capture_output=True, text=True, check=True
    )
    rate = 1000 / float(done.stdout)
    return WORK.format(rounds={sizes: max(1, round(rate * one)) for sizes, one in seconds.items()})


def by_workload(raw: dict[str, Any], backend: str = BACKEND) -> dict[str, dict[str, Any]]:
    """Each workload's results of a backend, by metric."""
    found: dict[str, dict[str, Any]] = {}
    for result in raw["results"]:
        *_, name, workload, metric = result["case"].split("/")
        if name == backend:
            found.setdefault(workload, {})[metric] = result
    return found


def tpots_of(raw: dict[str, Any]) -> dict[tuple[int, int], float]:
    """Seconds, by batch size and prompt length."""
    medians = {Workload.parse(name): float(one["tpot"]["spread"]["median"]) for name, one in by_workload(raw).items()}
    return {(workload.batch_size, workload.prompt_length): tpot for workload, tpot in medians.items()}


def shown(ratio: float | None) -> str:
    """A change; there is none where every turn was disturbed."""
    return "-" if ratio is None else f"{ratio - 1:+.1%}"
