"""Base against head on this machine, now: pairs of fresh processes that take turns until it is known, or time is up."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import count, product

from pytest_llmperf.cases import Workload
from pytest_llmperf.gate import pairs
from pytest_llmperf.gate.pairs import Block
from pytest_llmperf.gate.turns import Turn, Turns
from pytest_llmperf.gate.verdict import Outcome, Verdict, nothing
from pytest_llmperf.machine import fitness
from pytest_llmperf.measure.trace import TraceError
from pytest_llmperf.measure.worker_pool import Side
from pytest_llmperf.measure.worker_process import BaseUnableError, WorkerError

#: Blocks of a pair: at least, and at most.
FEWEST_BLOCKS, MOST_BLOCKS = 2, 10
#: Seconds of turns after which no further one is begun; or as many as it took to start the pair and to warm it up, if
#: those are more. Whichever differs more, processes or blocks, time that is divided equally gives a mean whose variance
#: is at most twice that of the best division (which Kalibera and Jones, 2013, give for known variances). Where a start
#: serves several workloads, each has its share of it: that is what a process costs each of them.
PAIR_SECONDS = 8.0
#: Turns that may be taken again in one pair because something else used the machine meanwhile.
SPARE_TURNS = 4
#: Pairs at most, whatever the budget.
MOST_PAIRS = 12


@dataclass(frozen=True)
class Pair:
    """One process of either arm, and the turns that they took, in order."""

    turns: tuple[Turn, ...]

    @property
    def kept(self) -> list[Turn]:
        """Those during which nothing else used the machine. Which they are does not depend on the figures."""
        return [turn for turn in self.turns if turn.culprit is None]

    @property
    def counts(self) -> bool:
        """Whether they are enough, for each arm beside base."""
        kept = Counter(name for turn in self.kept for name in turn.samples)
        return all(kept[name] >= FEWEST_BLOCKS for turn in self.turns for name in turn.samples)

    def precise(self, metrics: Iterable[str]) -> bool:
        """Whether more turns would tell nothing, of none of these metrics and of no arm beside base."""
        arms = {name for turn in self.turns for name in turn.samples} - {"base"}
        return all(
            pairs.precise(pair)
            for metric, arm in product(metrics, arms)
            for pair in blocks([self], metric, head=arm) or [[]]
        )


def blocks(pairs: Iterable[Pair], metric: str, base: str = "base", head: str = "head") -> list[list[Block]]:
    """What `pairs.compare` compares; pairs with too few undisturbed turns are left out."""
    return [
        [turn.block(metric, base, head) for turn in pair.kept if head in turn.samples] for pair in pairs if pair.counts
    ]


class Comparison:
    """One backend and workload. Its pairs serve every metric, and more are measured where a metric needs them.

    Args:
        workload: what is generated.
        prompts: token ids, one row per request.
        start: starts a process of either arm, loaded, gone afterwards: how to ask each, by its name.
        budget: seconds, start of processes included, after which no further pair is begun; twice as many where too few
            pairs were undisturbed. Of a start that serves others too, each is charged with its share.
        progress: told what is being done.
        asked: the metrics that were asked for so far, of this or of others: a pair is measured until it tells enough of
            them. What is asked for first later may take further pairs.
        others: of the same processes, in order: what is compared too, so that a start may serve them.
        shared: how many pairs it takes of what the others start; by default those that a verdict needs.
    """

    def __init__(
        self,
        workload: Workload,
        prompts: list[list[int]],
        start: Callable[[], AbstractContextManager[Mapping[str, Side]]],
        budget: float,
        progress: Callable[[str], None],
        asked: set[str],
        others: Callable[[], Iterable[Comparison]] = tuple,
        shared: int = pairs.FEWEST_TO_FAIL,
    ) -> None:
        self._workload = workload
        self._prompts = prompts
        self._start = start
        self._budget = budget
        self._progress = progress
        self._asked = asked
        self._others = others
        self._shared = shared
        self._spent = 0.0
        self._unable: BaseUnableError | None = None
        self._failed = False
        #: Whether anything was asked of a process for it.
        self.begun = False
        self.pairs: list[Pair] = []

    def judge(self, metric: str, tolerance: float, floor: float) -> Verdict:
        """Measure until the metric's verdict is final, or the budget is spent; never fewer pairs than a verdict takes.

        Raises:
            BaseUnableError: base cannot run it.
            WorkerError, TraceError: head cannot.
        """
        self._asked.add(metric)
        while True:
            found, final = self._verdict(metric, tolerance, floor)
            if final or self._exhausted:
                return found
            self._add_pair()

    def _verdict(self, metric: str, tolerance: float, floor: float) -> tuple[Verdict, bool]:
        undisturbed = blocks(self.pairs, metric)
        if len(undisturbed) < 2:
            return replace(nothing(Outcome.INCONCLUSIVE, self.disturbance()), basis="base"), False
        found, final = pairs.compare(undisturbed, tolerance, floor)
        if not final and len(undisturbed) < len(self.pairs):
            found = replace(found, reason=f"{found.reason}; {self.disturbance()}")
        return found, final

    def disturbance(self) -> str:
        """How many pairs had too few undisturbed turns, and what disturbed most turns."""
        culprit = fitness.chief(turn.culprit for pair in self.pairs for turn in pair.turns)
        few = sum(not pair.counts for pair in self.pairs)
        said = f"{few} of {len(self.pairs)} pairs had too few undisturbed turns"
        return f"{said}: {culprit}" if culprit else said

    def spend(self, metric: str) -> None:
        """Measure pairs for as long as the budget lasts, and no fewer than a verdict takes. Raises as `judge` does."""
        self._asked.add(metric)
        while not self._exhausted:
            self._add_pair()

    def processes(self, metric: str) -> list[list[float]]:
        """The figures of each process, in its undisturbed turns."""
        return [
            [sample.trace.metric(metric) for turn in pair.kept for sample in turn.samples.get(name, ())]
            for pair in self.pairs
            if pair.counts
            for name in ("base", "head")
        ]

    @property
    def _exhausted(self) -> bool:
        # Disturbed pairs are replaced, for as long again.
        wanted, counted = pairs.FEWEST_TO_FAIL, sum(pair.counts for pair in self.pairs)
        spent = self._spent / self._budget
        enough = len(self.pairs) >= wanted and (spent >= 2 or (spent >= 1 and counted >= wanted))
        return enough or len(self.pairs) >= MOST_PAIRS

    @property
    def _joins(self) -> bool:
        """Whether it is to have a pair of what another one starts."""
        return not self._failed and not self._exhausted and len(self.pairs) < self._shared

    def _add_pair(self) -> None:
        if self._unable is not None:
            raise self._unable
        others = [one for one in self._others() if one._joins]
        self.begun = True
        began, lent = time.monotonic(), 0.0
        try:
            with self._start() as arms:
                share = (time.monotonic() - began) / (1 + len(others))
                self.pairs.append(self._pair(arms, share))
                for other in others:
                    joined = time.monotonic()
                    served = other._join(arms, share)
                    lent += time.monotonic() - joined + share
                    if not served:
                        break  # the processes may be in the middle of something
        except (WorkerError, TraceError) as error:
            self._failed = True
            if isinstance(error, BaseUnableError):
                self._unable = error
            raise
        finally:
            self._spent += time.monotonic() - began - lent

    def _join(self, arms: Mapping[str, Side], share: float) -> bool:
        """Measure by the processes that another one started; False if that failed, of which its own test is told."""
        self.begun = True
        began = time.monotonic()
        try:
            self.pairs.append(self._pair(arms, share))
        except (WorkerError, TraceError):
            self._failed = True  # it would fail the next one too, and those after it would have no turn
            return False
        else:
            return True
        finally:
            self._spent += time.monotonic() - began + share

    def _pair(self, arms: Mapping[str, Side], start: float) -> Pair:
        """Measure, where the processes took so many seconds to start. Raises as `judge`."""
        number = len(self.pairs) + 1
        both = Turns(
            arms, self._workload, self._prompts, lambda text: self._progress(f"{self._workload}: pair {number}, {text}")
        )
        began = time.monotonic()
        both.warm_up()
        pair = Pair(())
        warm = time.monotonic()
        until = warm + max(PAIR_SECONDS, start + warm - began)
        for round_ in count(number):
            # Whoever goes first alternates, so that a drift favours nobody.
            pair = Pair((*pair.turns, *both.take(base_first=bool(round_ % 2))))
            kept, kinds = len(pair.kept), both.kinds
            enough = pair.counts and (time.monotonic() >= until or pair.precise(self._asked))
            if enough or kept >= MOST_BLOCKS * kinds or len(pair.turns) - kept > SPARE_TURNS * kinds:
                break
        both.prove()
        return pair
