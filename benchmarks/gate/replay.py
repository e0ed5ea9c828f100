"""What does the gate say of every recorded process and pair? It takes seconds and no machine.

    python -m benchmarks.gate.replay [--write]

- Pairs (`benchmarks.gate`) are judged after each pair, until a verdict is final.
- Processes by a stored baseline are judged as a run screens them: head's first process against the one sitting. Then
  the replay says whether the default flow would compare the case in pairs. Where three fresh processes were recorded,
  it also judges these, as a run does that cannot have base.
- The sittings of unchanged code on H200 machines are judged alike, each against each earlier one.

Beside these stand the verdicts of the previous gate, as recorded, and what the rules of other tools
(`benchmarks.gate.rules`) say of the same samples. The last table has the figures that the priors of
`pytest_llmperf.gate.stored` come from (`benchmarks.gate.calibration`). ``--write`` puts the tables into README.md.

The criterion: no decision of unchanged code is a regression; of the decode and latency decisions beside base 99 %
(+10 %) and 90 % (+5 %) are; and every ``ok`` excludes a slowdown of the tolerance.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from benchmarks.gate import h200, judged, records, tables
from benchmarks.gate.judged import Judged
from benchmarks.gate.repository import KINDS
from benchmarks.gate.tables import Trials

DATA = Path(__file__).parent / "data"
README = Path(__file__).parent / "README.md"
WIDTH = 100
BEGIN, END = "<!-- table -->", "<!-- end -->"
#: The shares of slowed decisions beside base that have to be regressions, by slowdown.
WANTED = {0.05: 0.9, 0.10: 0.99}


def findings(made: Trials, gpu: Sequence[Judged]) -> tuple[list[str], bool]:
    """What came out, as lines, and whether the criterion holds."""
    row = [*chain.from_iterable(row for _, row in made), *gpu]
    unchanged = [one for one in row if not one.slowed]
    fresh = [one.fresh for one in unchanged if one.fresh]
    failed = [tables.outcomes(found)[0] for found in ([one.verdict for one in unchanged], fresh)]
    wrong = sum(not one.right for one in row)
    pairs = sum(one.verdict.basis == "base" for one in unchanged)
    lines = [
        f"Unchanged code, beside base: {failed[0]} of {pairs} decisions are a `regression`.",
        f"Unchanged code, by 3 fresh processes: {failed[1]} of {len(fresh)} decisions are a `regression`.",
        f"Unchanged code, screened by a stored baseline: {len(unchanged) - pairs} decisions, which never fail a test.",
    ]
    holds = not any(failed) and not wrong
    for slowdown, wanted in WANTED.items():
        slow = [one.verdict for one in slowed(made, stored=False, slowdown=slowdown)]
        caught, ok = tables.outcomes(slow)[:2]
        holds = holds and caught >= wanted * len(slow) > 0
        lines.append(
            f"Beside base, +{tables.percent(slowdown, 0)}: {caught} of {len(slow)} decisions are a `regression` "
            f"({tables.percent(caught / max(1, len(slow)))}; {tables.percent(wanted, 0)} wanted), {ok} are `ok`."
        )
    screened = [one for slowdown in WANTED for one in slowed(made, stored=True, slowdown=slowdown)]
    compared, ok, _, left_open = tables.screened(screened)
    slow = [one.fresh for one in screened if one.fresh]
    lines += [
        f"Slowed code, screened by a stored baseline: of {len(screened)} decisions {compared} are compared in pairs, "
        f"{ok} are `ok` and {left_open} left open.",
        f"Slowed code, by 3 fresh processes: {tables.outcomes(slow)[0]} of {len(slow)} decisions are a `regression`.",
        f"Of all `ok`, {wrong} do not exclude a slowdown of the tolerance.",
    ]
    return lines, holds


def slowed(made: Trials, stored: bool, slowdown: float) -> Iterator[Judged]:
    """The decisions of slowed code, by how they were judged and by the slowdown."""
    for trial, row in made:
        if trial.stored is stored and KINDS[trial.kind] == slowdown:
            yield from (one for one in row if one.slowed)


def elsewhere(made: Trials) -> Iterator[str]:
    """The cases that the previous gate's record says were measured in another state of the machine, run by run."""
    for trial, row in made:
        by_record = {(id(one.decision.record), one.decision.metric): one for one in row if one.decision}
        for number, run in enumerate(trial.runs, 1):
            cases = [
                f"{workload}/{metric}"
                for workload, record in run.items()
                for metric in record["verdicts"]
                if by_record[id(record), metric].verdict.other_state
            ]
            if cases:
                yield f"{trial.name}, run {number}: {', '.join(cases)}"


def page(found: str) -> str:
    """README.md with these tables."""
    head, _, rest = README.read_text().partition(BEGIN)
    return f"{head}{BEGIN}\n\n{found}\n\n{END}{rest.partition(END)[2]}"


def replayed() -> tuple[str, Trials, bool]:
    """What README.md has between its marks, the decisions, and whether the criterion holds."""
    made = [(one, judged.trial(one)) for one in records.trials(DATA)]
    gpu = [(one, judged.on_h200(one)) for one in h200.comparisons(DATA / "h200-sittings.json")]
    lines, holds = findings(made, [one for _, one in gpu])
    found = "\n".join(textwrap.fill(f"- {line}", WIDTH, subsequent_indent="  ") for line in lines)
    return f"{found}\n\n{tables.every(made, gpu)}", made, holds


def main() -> int:
    """Print the tables, write them if asked; 1 if the criterion does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables into README.md")
    options = parser.parse_args()
    found, made, holds = replayed()
    print(found)
    print("\nIn another state by the record of the previous gate, so compared in pairs and not screened:")
    for line in elsewhere(made):
        print(f"  {line}")
    if options.write:
        README.write_text(page(found))
    return int(not holds)


if __name__ == "__main__":
    sys.exit(main())
