"""How much sittings of unchanged code differ, by the recorded data: where the priors of `stored` come from.

Head's first process and the sitting that it is held against differ, in logarithms, with a variance of::

    2 * spread**2 + within * (1 + 1 / size)

``within`` is the variance of a process in its sitting, and ``size`` the processes of the sitting. So the spread follows
from the mean square of the differences.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from benchmarks.gate.h200 import Comparison
from benchmarks.gate.records import OTHER_STATE, Trial
from pytest_llmperf.cases import LATENCIES
from pytest_llmperf.gate import stored
from pytest_llmperf.gate.priors import Prior, prior_of

HEADER = ["data", "differences", "root mean square", "spread", "prior", "intervals that miss 1"]
#: A run is quiet if so few looks found the CPUs elsewhere.
QUIET = 0.1
#: Here a core of the host was slow for most of the time.
SLOW = "sitting 6"


@dataclass(frozen=True)
class Difference:
    """A process of unchanged code, and the sitting that it is held against."""

    sitting: Sequence[float]
    head: float

    @property
    def log(self) -> float:
        """How much slower head is, in logarithms."""
        return math.log(self.head / stored.centre(self.sitting))

    def missed(self, prior: Prior) -> bool:
        """Whether the 99 % interval does not contain 1, though the code is unchanged."""
        found = stored.interval([self.sitting], [self.head], prior)
        return not found.low <= 1 <= found.high


def spread(row: Sequence[Difference]) -> float:
    """The standard deviation of a sitting's mean, in logarithms."""
    several = [one.sitting for one in row if len(one.sitting) > 1]
    within = fmean(variance(map(math.log, sitting)) for sitting in several) if several else 0.0
    noise = fmean(within * (1 + 1 / len(one.sitting)) for one in row)
    return math.sqrt(max(0.0, root_mean_square(row) ** 2 - noise) / 2)


def root_mean_square(row: Sequence[Difference]) -> float:
    """How much head and its sitting differ, in logarithms."""
    return math.sqrt(fmean(one.log**2 for one in row))


def rows(trials: Iterable[Trial], gpu: Iterable[Comparison]) -> list[list[str]]:
    """The table: a row for each group of data."""
    found: dict[str, dict[str, list[Difference]]] = {}

    def add(data: str, metric: str, one: Difference) -> None:
        found.setdefault(data, {}).setdefault(metric, []).append(one)

    for trial in trials:
        cpu = trial.cpu.partition("(")[0].strip()
        flagged = any("flags" in record for run in trial.runs for record in run.values())
        for decision in trial.decisions() if trial.stored and trial.kind == "same" else ():
            one = Difference(decision.processes("base"), decision.processes("head")[0])
            add(f"{cpu}, all", decision.metric, one)
            if flagged and decision.flag != OTHER_STATE:
                add(f"{cpu}, not in another state", decision.metric, one)
            if decision.record.get("moved", 1.0) <= QUIET:
                add(f"{cpu}, CPUs not moved", decision.metric, one)
    for pair in gpu:
        one = Difference(pair.sitting, pair.head[0])
        add("H200, all", pair.metric, one)
        if SLOW not in (pair.earlier, pair.later):
            add(f"H200, without {SLOW}", pair.metric, one)
    return [line(data, metrics) for data, metrics in found.items()]


def line(data: str, metrics: Mapping[str, Sequence[Difference]]) -> list[str]:
    """A row of the table: in each cell the metrics' figures."""
    found = [metrics[metric] for metric in LATENCIES]
    priors = [prior_of("cuda" if data.startswith("H200") else "cpu", metric) for metric in LATENCIES]
    return [
        data,
        " / ".join(str(len(row)) for row in found),
        percents(root_mean_square(row) for row in found),
        percents(spread(row) for row in found),
        percents(prior.spread for prior in priors),
        " / ".join(str(sum(one.missed(prior) for one in row)) for row, prior in zip(found, priors, strict=True)),
    ]


def percents(shares: Iterable[float]) -> str:
    return " / ".join(f"{share * 100:.1f}" for share in shares) + " %"
