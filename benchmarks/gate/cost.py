"""What does the gate cost where nothing is flagged, and what does it cost to compare one case that is?

    python -m benchmarks.gate.cost [--turns 3] [--output benchmarks/gate/data/cost.json]

The repository of ``benchmarks.gate``, timed as whole commands that take turns: its twelve cases without a baseline,
and with one of the same code; and one case alone with that baseline, and with one that was made twice as fast. The
last is flagged, and compared in pairs with the code that recorded the baseline: the commit under test touches a
comment. The criterion: with a baseline at most 1.1 times the time without, and at most 75 s more for the flagged case.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks import script
from benchmarks.gate.repository import NOTHING, git, measure, repository

RATIO, SECONDS = 1.1, 75.0
#: What the flagged case's stored figures are multiplied by.
FASTER = 0.5
FLAGGED = "/b1-p64-n16/tpot"
ALONE = ["-k", "decode and b1-p64"]


def flag(baselines: Path) -> None:
    """Make the stored figures of one case faster than the code is."""
    (file,) = baselines.glob("*/*.json")
    stored = json.loads(file.read_text())
    for key, records in stored["entries"].items():
        for record in records if key.endswith(FLAGGED) else ():
            record["figure"] *= FASTER
            record["processes"] = [figure * FASTER for figure in record["processes"]]
    file.write_text(json.dumps(stored))


def main() -> int:
    """Measure, print, write the data; 1 if the criterion does not hold."""
    options = script.options(__doc__, "turns", 3, "turns of the four commands")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repository(folder)
        measure(folder, "--llm-update-baselines", "--llm-invocations=3")
        (folder / "baselines").rename(folder / "as-recorded")
        shutil.copytree(folder / "as-recorded", folder / "flagged")
        flag(folder / "flagged")
        commands = {
            "without a baseline": ["--llm-baseline-dir=none"],
            "with one": ["--llm-baseline-dir=as-recorded"],
            "one case": ["--llm-baseline-dir=as-recorded", *ALONE],
            "it flagged": ["--llm-baseline-dir=flagged", *ALONE],
        }
        seconds: dict[str, list[float]] = {what: [] for what in commands}
        outcomes: dict[str, list[dict[str, str]]] = {what: [] for what in commands}
        for turn in range(options.turns):
            for what, arguments in commands.items():
                # Code that has not changed is compared with nothing, so the flagged case runs a commit later.
                later = what == "it flagged"
                (folder / "extra.py").write_text(f"# {turn}\n{NOTHING}" if later else NOTHING)
                git(folder, "commit", "--quiet", "--all", "--allow-empty", "--message", what)
                began = time.monotonic()
                raw = measure(folder, *arguments)
                seconds[what].append(round(time.monotonic() - began, 2))
                verdicts = {one["case"]: one["verdict"] for one in raw["results"]}
                outcomes[what].append({case: f"{one['outcome']} ({one['basis']})" for case, one in verdicts.items()})
                print(f"{what}: {seconds[what][-1]:.0f} s", flush=True)
    plain, gated, alone, beside = (median(made) for made in seconds.values())
    print(f"with a baseline {gated / plain:.2f} times as long as without (limit {RATIO});")
    print(f"one flagged case compared in {beside - alone:.0f} s (limit {SECONDS:.0f})")
    command = f"benchmarks.gate.cost --turns {options.turns}"
    script.write(options.output, command, seconds=seconds, outcomes=outcomes)
    return int(gated / plain > RATIO or beside - alone > SECONDS)


if __name__ == "__main__":
    sys.exit(main())
