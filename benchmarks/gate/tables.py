"""The tables of the replay, as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from benchmarks.gate import calibration
from benchmarks.gate.h200 import Comparison
from benchmarks.gate.judged import Judged
from benchmarks.gate.records import Trial
from benchmarks.gate.repository import KINDS
from benchmarks.gate.rules import RULES
from pytest_llmperf.gate.rule import Outcome, Verdict

#: The trials with their decisions, and the H200's.
Trials = Sequence[tuple[Trial, list[Judged]]]
Gpu = Sequence[tuple[Comparison, Judged]]
OUTCOMES = (Outcome.REGRESSION, Outcome.OK, Outcome.FASTER, Outcome.INCONCLUSIVE)
#: The case whose sittings are shown one by one.
SHOWN = "bfloat16/eager/b1-p2048-n16/tpot"


def every(made: Trials, gpu: Gpu) -> str:
    """All tables."""
    return "\n\n".join([beside_base(made), by_stored(made), on_h200(gpu), sittings(gpu), spreads(made, gpu)])


def beside_base(made: Trials) -> str:
    """The pairs, by file."""

    def cells(row: Sequence[Judged]) -> list[object]:
        found = outcomes(one.verdict for one in row)
        return [len(row), percent(row[0].tolerance, 0), *found, largest(row), before(row), others(row)]

    rows = [[file, head, *cells(row)] for file, head, row in groups(made, stored=False)]
    header = ["file", "head", "decisions", "tolerance", "regression", "ok", "faster", "inconclusive", "not excluded"]
    return table("Beside base:", [*header, "previous gate", "other tools"], rows)


def by_stored(made: Trials) -> str:
    """The screenings, by file."""
    header = ["file", "head", "decisions", "tolerance", "other state", "compared", "ok", "faster", "left open"]

    def cells(row: Sequence[Judged]) -> list[object]:
        allowed = percent(row[0].tolerance, 0)
        return [len(row), allowed, elsewhere(row), *screened(row), largest(row), fresh(row), before(row), others(row)]

    rows = [[file, head, *cells(row)] for file, head, row in groups(made, stored=True)]
    more = ["not excluded", "3 processes", "previous gate", "other tools"]
    return table("By a stored baseline of one sitting:", [*header, *more], rows)


def on_h200(gpu: Gpu) -> str:
    """The screenings of unchanged code, by metric."""
    metrics = dict.fromkeys(found.metric for found, _ in gpu)
    by_metric = {metric: [one for found, one in gpu if found.metric == metric] for metric in metrics}
    return table(
        "Unchanged code on H200 machines, each sitting by each earlier one, tolerance 5 %:",
        ["metric", "decisions", "compared", "ok", "faster", "left open", "not excluded", "3 processes"],
        [[metric, len(row), *screened(row), largest(row), fresh(row)] for metric, row in by_metric.items()],
    )


def sittings(gpu: Gpu) -> str:
    """One case of unchanged code, sitting by sitting."""
    rows = [
        [found.later, f"{found.head[0] * 1e3:.1f}", signed(one.verdict.ratio), ends(one.verdict), said(one)]
        for found, one in gpu
        if found.case == SHOWN and "baseline" in found.earlier
    ]
    header = ["sitting", "ms a token", "change", "99 % interval", "verdict"]
    return table("The decode of `eager` there, batch 1, by the baseline of sitting 2:", header, rows)


def spreads(made: Trials, gpu: Gpu) -> str:
    """How much sittings differ."""
    rows = calibration.rows([trial for trial, _ in made], [found for found, _ in gpu])
    return table("How much sittings of unchanged code differ:", calibration.HEADER, rows)


def groups(made: Trials, stored: bool) -> Iterator[tuple[str, str, list[Judged]]]:
    """The decisions of each file, of unchanged and of slowed code apart; with the file and what head is."""
    for trial, row in made:
        for slowed in (False, True) if trial.stored is stored else ():
            load = " under a load" if "--load" in trial.command else ""
            if these := [one for one in row if one.slowed is slowed]:
                yield trial.name, f"+{percent(KINDS[trial.kind], 0)}" if slowed else f"unchanged{load}", these


def outcomes(row: Iterable[Verdict]) -> list[int]:
    """How many verdicts are regressions, ok, faster and inconclusive."""
    found = Counter(one.outcome for one in row)
    return [found[one] for one in OUTCOMES]


def screened(row: Sequence[Judged]) -> list[int]:
    """How many cases are compared in pairs, and of the others how many are ok, faster and left open."""
    return [sum(one.compared for one in row), *outcomes(one.verdict for one in row if not one.compared)[1:]]


def elsewhere(row: Iterable[Judged]) -> int:
    """How many cases were measured in another state of the machine, by the record of the previous gate."""
    return sum(one.verdict.other_state for one in row)


def fresh(row: Iterable[Judged]) -> str:
    """The outcomes of the cases that three fresh processes decided."""
    found = [one.fresh for one in row if one.fresh is not None]
    return slashed(outcomes(found)) if found else "-"


def before(row: Iterable[Judged]) -> str:
    """The outcomes of the previous gate."""
    found = Counter(one.decision.previous for one in row if one.decision)
    return slashed([found[one.value] for one in OUTCOMES])


def others(row: Iterable[Judged]) -> str:
    """How many decisions each rule of another tool fails."""
    found = Counter(name for one in row if one.decision for name, fails in one.decision.others.items() if fails)
    return slashed([found[name] for name in RULES])


def largest(row: Iterable[Judged]) -> str:
    """The largest slowdown that an ``ok`` did not exclude."""
    oks = [one.verdict.not_excluded for one in row if one.verdict.outcome is Outcome.OK]
    return percent(max(oks)) if oks else "-"


def said(one: Judged) -> str:
    """The outcome of a screened case, and whether it is compared."""
    return f"{one.verdict.outcome}, compared in pairs" if one.compared else str(one.verdict.outcome)


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A title and a Markdown table, which may be wide."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join([f"{title}\n", "<!-- wide -->", *(f"| {' | '.join(map(str, line))} |" for line in lines)])


def slashed(counts: Iterable[int]) -> str:
    return " / ".join(map(str, counts))


def percent(share: float, digits: int = 1) -> str:
    return f"{share * 100:.{digits}f} %"


def signed(ratio: float) -> str:
    return f"{(ratio - 1) * 100:+.1f} %"


def ends(verdict: Verdict) -> str:
    return f"{signed(verdict.low)} to {signed(verdict.high)}"
