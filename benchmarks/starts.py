"""How much do starts of unchanged code differ, and is a slower load found and named?

    python -m benchmarks.starts [--sittings 1] [--backends eager,vllm] [--output benchmarks/data/starts.json]

Each sitting records cold and warm starts of the backends, three processes each. The table shows the parts of the first
sitting, and how much processes of a sitting and sittings differ. `--sittings 0` leaves this out.

Then warm starts of a repository are gated. Its backend is eager. The first revision records a baseline of one sitting.
Head loads longer, by 30 % of that start, or has another comment. Criterion: the first is a regression whose first line
names `load`, and the second is none.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks import script
from benchmarks.gate.repository import ROOT, git
from pytest_llmperf.cases import Case
from pytest_llmperf.explain.starts import PARTS
from pytest_llmperf.gate.stored import centre

#: Few tokens: what takes long is not the generation.
SIZES = ("--llm-prompt-lengths=64", "--llm-max-new-tokens=8")
#: How much longer head's start is, as a fraction.
SLOWER = 0.30
CONFTEST = """\
import time

from pytest_llmperf import Backend

SECONDS = {seconds}


def load(spec):
    from pytest_llmperf.backends.transformers_engine import TransformersEngine

    class Late(TransformersEngine):
        attention = "eager"

        def prepare(self):
            time.sleep(SECONDS)

    return Late(spec)


def pytest_llmperf_backends():
    return [Backend("late", load)]
"""


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    """One run of the starts in a folder: its results, and under ``failed`` whether a test did."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "suites/test_startup.py",
        "--llm-results=raw.json",
        *SIZES,
        *arguments,
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not (folder / "raw.json").exists():
        raise SystemExit(done.stdout + done.stderr)
    raw: dict[str, Any] = json.loads((folder / "raw.json").read_text())
    return raw | {"failed": done.returncode == 1}


def repository(folder: Path) -> None:
    """Base is what is committed; head's ``conftest.py`` is written over it."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / ".gitignore").write_text("*.json\nbaselines\n__pycache__\n.pytest_cache\n")
    (folder / "conftest.py").write_text(CONFTEST.format(seconds=0))
    shutil.copytree(ROOT / "suites", folder / "suites", ignore=shutil.ignore_patterns("__pycache__"))
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "base")


def sitting(folder: Path, backends: str, *arguments: str) -> dict[str, dict[str, Any]]:
    """What one sitting records of each start: ``processes`` and ``parts``, in seconds, by metric and backend."""
    raw = run(folder, f"--llm-backends={backends}", "--llm-update-baselines", "--llm-invocations=3", *arguments)
    entries = raw["update"]["baseline"]["entries"]
    cases = {key: Case.parse("", key) for key in entries}
    return {
        f"{case.metric} {case.backend}": {name: entries[key][0][name] for name in ("processes", "parts")}
        for key, case in cases.items()
    }


def gated(folder: Path, seconds: float, comment: str) -> dict[str, Any]:
    """How a warm start is judged whose load sleeps so long: the verdict, and what the failing test says."""
    (folder / "conftest.py").write_text(f"# {comment}\n{CONFTEST.format(seconds=seconds)}")
    raw = run(folder, "--llm-backends=late", "-k", "warm")
    (one,) = raw["results"]
    kept = ("outcome", "ratio", "low", "high", "basis", "count", "reason")
    return {name: one["verdict"][name] for name in kept} | {"slower": one["slower"], "said": one["said"]}


def table(sittings: list[dict[str, dict[str, Any]]]) -> list[str]:
    """A line per start."""
    lines = [
        "| start | seconds | " + " | ".join(PARTS) + " | processes | sittings |",
        "| --- " * (4 + len(PARTS)) + "|",
    ]
    for name, first in sittings[0].items():
        spread = stdev(first["processes"]) / fmean(first["processes"])
        centres = [centre(one[name]["processes"]) for one in sittings if name in one]
        apart = f"{max(centres) / min(centres) - 1:.1%}" if len(centres) > 1 else "-"
        parts = " | ".join(f"{part:.2f}" for part in first["parts"])
        lines.append(f"| {name} | {centres[0]:.2f} | {parts} | {spread:.1%} | {apart} |")
    return lines


def main() -> int:
    """Record, print the table, gate, print what was said, write the data."""
    parser = script.parser(__doc__, "sittings", 1, "sittings of each start")
    parser.add_argument(
        "--backends", default="eager,compile-static,vllm", help="which are recorded (default: %(default)s)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        repository(folder)
        sittings = [sitting(folder, options.backends) for _ in range(options.sittings)]
        if sittings:
            print("\n".join(table(sittings)), flush=True)
        base = sitting(folder, "late", "-k", "warm").get("warm-start late")
        if base is None:
            raise SystemExit("something else used the machine, so nothing was recorded; try again")
        seconds = SLOWER * centre(base["processes"])
        found = {"slower": gated(folder, seconds, "slower"), "same": gated(folder, 0, "the same")}
    for name, one in found.items():
        print(f"{name}: {one['said']}", *one["slower"], sep="\n  ")
    slower, same = found["slower"], found["same"]
    named = slower["outcome"] == "regression" and " load: " in slower["slower"][0]
    held = named and same["outcome"] != "regression"
    script.write(options.output, "benchmarks.starts", sittings=sittings, base=base, **found)
    print("held" if held else "NOT HELD")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
