"""What does the gate cost where nothing is wrong, and what does it cost to confirm one case that is flagged?

    python -m benchmarks.gate.cost [--turns 5] [--output benchmarks/gate/data/cost.json]

The repository of ``benchmarks.gate``, timed as whole commands that take turns: its twelve cases without a baseline and
with one of the same code; and one case alone with that baseline, and with one that was made twice as fast, so that it
is flagged, confirmed by fresh processes or, with a base of the same code, beside it. The criterion: with a baseline at
most 1.3 times what it takes without, and at most 90 s more for the flagged case. A case that noise flags in between is
confirmed too, and costs what that costs.
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
from benchmarks.gate.repository import measure, repository

RATIO, SECONDS = 1.3, 90.0
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
            record["median"] *= FASTER
            record["invocations"] = [[figure * FASTER for figure in row] for row in record["invocations"]]
    file.write_text(json.dumps(stored))


def main() -> int:
    """Measure, print, write the data; 1 if the criterion does not hold."""
    options = script.options(__doc__, "turns", 5, "turns of the five commands")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repository(folder)
        measure(folder, "--llm-update-baselines")
        (folder / "baselines").rename(folder / "as-recorded")
        shutil.copytree(folder / "as-recorded", folder / "flagged")
        flag(folder / "flagged")
        commands = {
            "without a baseline": ["--llm-baseline-dir=none"],
            "with one": ["--llm-baseline-dir=as-recorded"],
            "one case": ["--llm-baseline-dir=as-recorded", *ALONE],
            "it flagged": ["--llm-baseline-dir=flagged", *ALONE],
            "it flagged, with a base": ["--llm-baseline-dir=flagged", "--llm-base=base", *ALONE],
        }
        seconds: dict[str, list[float]] = {what: [] for what in commands}
        outcomes: dict[str, list[dict[str, str]]] = {what: [] for what in commands}
        for _ in range(options.turns):
            for what, arguments in commands.items():
                began = time.monotonic()
                raw = measure(folder, *arguments)
                seconds[what].append(round(time.monotonic() - began, 2))
                outcomes[what].append({one["case"]: one["verdict"]["outcome"] for one in raw["results"]})
                print(f"{what}: {seconds[what][-1]:.0f} s", flush=True)
    plain, gated, alone, fresh, beside = (median(made) for made in seconds.values())
    print(f"with a baseline {gated / plain:.2f} times as long as without (limit {RATIO}); one case confirmed in ")
    print(f"{fresh - alone:.0f} s by fresh processes, {beside - alone:.0f} s beside base (limit {SECONDS:.0f})")
    command = f"benchmarks.gate.cost --turns {options.turns}"
    script.write(options.output, command, seconds=seconds, outcomes=outcomes)
    return int(gated / plain > RATIO or max(fresh, beside) - alone > SECONDS)


if __name__ == "__main__":
    sys.exit(main())
