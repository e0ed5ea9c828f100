"""The files in ``data/``: how they are written and read.

A file has the command, the machine, the versions, the kind of head, whether a stored baseline judged it, the tolerance
and the runs. A run has a line of JSON for each workload:

- ``verdicts``: what the gate of that time said, by metric;
- ``flags``: where that gate blamed the machine, by metric (`OTHER_STATE`, `DISTURBED`);
- ``samples``: of each pair of processes, by arm and metric, in seconds. Beside base a turn is one sample of each arm.
  By a stored baseline, ``base`` is a process of the sitting; of every process but the first only the median is kept;
- ``culprits``: of each pair, 1 for each turn that something disturbed;
- ``drift``: how many times as long as in its baseline eager took in the same run, by metric;
- ``moved``: the share of looks in which the CPUs were not where they were in most looks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gate import rules
from pytest_llmperf.gate.compare import FEWEST_BLOCKS
from pytest_llmperf.gate.pairs import Block
from pytest_llmperf.machine import fingerprint

#: Flags: the machine was not in the state of the baseline, or something else used it.
OTHER_STATE, DISTURBED = "other state", "disturbed"
ARMS = ("base", "head")


@dataclass(frozen=True)
class Decision:
    """One case of one recorded run.

    Attributes:
        metric: which was judged.
        slowed: whether head is slower in it.
        tolerance: the slowdown allowed.
        record: the workload's line.
    """

    metric: str
    slowed: bool
    tolerance: float
    record: Mapping[str, Any]

    @property
    def previous(self) -> str:
        """What the gate of that time said."""
        return str(self.record["verdicts"][self.metric])

    @property
    def flag(self) -> str | None:
        """Why that gate blamed the machine, if it did."""
        flags: Mapping[str, str] = self.record.get("flags", {})
        return flags.get(self.metric)

    @property
    def drift(self) -> float | None:
        """How many times as long as in its baseline eager took; None where that is not known."""
        drift: Mapping[str, float | None] = self.record.get("drift", {})
        return drift.get(self.metric)

    @property
    def pairs(self) -> list[list[Block]]:
        """The undisturbed blocks of each pair that has enough of them."""
        found = []
        for pair, culprits in zip(self.record["samples"], self.record["culprits"], strict=True):
            turns = zip(*(pair[arm][self.metric] for arm in ARMS), culprits, strict=True)
            found.append([Block(base, head) for base, head, culprit in turns if not culprit])
        return [pair for pair in found if len(pair) >= FEWEST_BLOCKS]

    def processes(self, arm: str) -> list[float]:
        """The figure of each process of an arm."""
        rows = [pair[arm][self.metric] for pair in self.record["samples"]]
        return [median(row) for row in rows if row]

    @property
    def others(self) -> dict[str, bool]:
        """Whether the rules of other tools fail on the first process of each arm."""
        first = self.record["samples"][0]
        return rules.failed(*(first[arm][self.metric] for arm in ARMS))


@dataclass(frozen=True)
class Trial:
    """One file.

    Attributes:
        name: of the file, without its suffix.
        command: that made it.
        cpu: of the machine.
        kind: what head does more.
        stored: whether a stored baseline judged it, not base.
        tolerance: the slowdown allowed.
        runs: by workload.
    """

    name: str
    command: str
    cpu: str
    kind: str
    stored: bool
    tolerance: float
    runs: list[dict[str, Any]]

    def decisions(self) -> Iterator[Decision]:
        """Every case of every run. A slowdown of the decode steps does not show in the TTFT."""
        for run in self.runs:
            for record in run.values():
                for metric in record["verdicts"]:
                    yield Decision(metric, self.kind != "same" and metric != "ttft", self.tolerance, record)


def trials(folder: Path) -> list[Trial]:
    """The trials of a folder, by name."""
    held = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return [
        Trial(name, one["command"], one["machine"]["cpu"], one["kind"], one["stored"], one["tolerance"], one["runs"])
        for name, one in held.items()
        if "kind" in one
    ]


def short(value: float) -> float:
    """A figure to the precision that the data are kept with."""
    return float(f"{value:.5g}")


def text(data: Mapping[str, Any]) -> str:
    """The JSON of a file: a line for each entry, and of the runs a line for each workload."""
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in data.items() if name != "runs"]
    runs = [
        "{\n" + ",\n".join(f"{json.dumps(name)}:{_compact(one)}" for name, one in run.items()) + "\n}"
        for run in data["runs"]
    ]
    return "{\n" + ",\n".join([*lines, f'"runs": [{", ".join(runs)}]']) + "\n}\n"


def write(output: Path | None, command: str, **data: Any) -> None:
    """Write a file with the command, the machine and the versions. Without an output, write nothing."""
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        where = {"machine": fingerprint.take().as_dict(), "versions": fingerprint.versions()}
        output.write_text(text({"command": f"python -m {command}", **where, **data}))


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
