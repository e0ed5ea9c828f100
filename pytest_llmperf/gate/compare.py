"""One backend and workload in pairs: processes of base and head take turns until the verdict is final or time is up."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import count, product

from pytest_llmperf.cases import LATENCIES, METRICS, Workload
from pytest_llmperf.explain.profiles import Profile
from pytest_llmperf.gate import pairs
from pytest_llmperf.gate.pairs import Block
from pytest_llmperf.gate.rule import Outcome, Verdict, nothing
from pytest_llmperf.gate.turns import Turn, Turns
from pytest_llmperf.machine import fitness
from pytest_llmperf.machine.memory import Memory
from pytest_llmperf.measure.process import MemoryUnknownError, bytes_of, memory_in, timed
from pytest_llmperf.measure.trace import TraceError
from pytest_llmperf.measure.worker_pool import Side
from pytest_llmperf.measure.worker_process import BaseUnableError, WorkerError
from pytest_llmperf.prompts import Generation

#: Blocks of a pair: at least, and at most.
FEWEST_BLOCKS, MOST_BLOCKS = 2, 10
#: Seconds after which a pair begins no further turn. If starting and warming up the pair took longer, its turns may
#: take as long as that. Time that is divided equally between starts and turns gives a mean whose variance is at most
#: twice that of the best division, whichever differs more, processes or blocks (Kalibera and Jones, 2013, give the best
#: one for known variances). If a start serves several workloads, each counts its share of it.
PAIR_SECONDS = 8.0
#: Turns that may be taken again in one pair because something else used the machine meanwhile.
SPARE_TURNS = 4
#: The most pairs, whatever the budget.
MOST_PAIRS = 12


@dataclass(frozen=True)
class Pair:
    """One process of each arm, the turns that they took, in order, and each arm's profile and memory."""

    turns: tuple[Turn, ...]
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    memory: Mapping[str, Memory | str] = field(default_factory=dict)

    @property
    def kept(self) -> list[Turn]:
        """The turns during which nothing else used the machine. The figures do not decide that."""
        return [turn for turn in self.turns if turn.culprit is None]

    @property
    def counts(self) -> bool:
        """Whether each arm has enough of these turns."""
        kept = Counter(name for turn in self.kept for name in turn.samples)
        return all(kept[name] >= FEWEST_BLOCKS for turn in self.turns for name in turn.samples)

    def precise(self, metrics: Iterable[str]) -> bool:
        """Whether more turns would tell nothing more, for any of these latencies and any arm beside base."""
        arms = {name for turn in self.turns for name in turn.samples} - {"base"}
        return all(
            pairs.precise(pair)
            for metric, arm in product({*LATENCIES}.intersection(metrics), arms)
            for pair in blocks([self], metric, head=arm) or [[]]
        )


def blocks(pairs: Iterable[Pair], metric: str, base: str = "base", head: str = "head") -> list[list[Block]]:
    """What `pairs.compare` compares; pairs with too few undisturbed turns are left out.

    Raises:
        BaseUnableError: base does not say what it took of memory.
    """
    if not METRICS[metric].timed:
        try:
            return [[Block(*(bytes_of(pair.memory[arm], metric) for arm in (base, head)))] for pair in pairs]
        except MemoryUnknownError as error:
            raise BaseUnableError(str(error)) from None
    return [
        [turn.block(metric, base, head) for turn in pair.kept if head in turn.samples] for pair in pairs if pair.counts
    ]


class Comparison:
    """One backend and workload. Its pairs serve every metric, and more are measured where a metric needs them.

    Args:
        workload: what is generated.
        generations: the prompts of each generation of a turn; both arms have the same ones.
        start: starts and loads a process of each arm, and closes them afterwards. Gives how to ask each, by its name.
        budget: seconds, start of processes included, after which no further pair is begun; twice as many if too few
            pairs were undisturbed. If a start serves other comparisons too, each pays its share.
        progress: told what is being done.
        asked: the metrics that were asked for so far, here or in the other comparisons. A pair is measured until it
            tells enough of all of them. A metric that is asked for later may need further pairs.
        others: the comparisons that the same processes can serve, in order.
        shared: up to how many pairs it uses processes that the others start; by default what a verdict needs.
    """

    def __init__(
        self,
        workload: Workload,
        generations: Iterator[Generation],
        start: Callable[[], AbstractContextManager[Mapping[str, Side]]],
        budget: float,
        progress: Callable[[str], None],
        asked: set[str],
        others: Callable[[], Iterable[Comparison]] = tuple,
        shared: int = pairs.FEWEST_TO_FAIL,
    ) -> None:
        self._workload = workload
        self._generations = generations
        self._start = start
        self._budget = budget
        self._progress = progress
        self._asked = asked
        self._others = others
        self._shared = shared
        #: Seconds that its pairs took, with its share of each start.
        self.spent = 0.0
        self._unable: BaseUnableError | None = None
        self._failed = False
        #: The metrics that were judged. They need no further pair.
        self._judged: set[str] = set()
        #: Whether a process was started or used for it.
        self.begun = False
        self.pairs: list[Pair] = []

    def judge(self, metric: str, tolerance: float) -> Verdict:
        """Measure until the metric's verdict is final, or the budget is spent; never fewer pairs than a verdict takes.

        Raises:
            BaseUnableError: base cannot run it.
            WorkerError, TraceError: head cannot.
        """
        self._asked.add(metric)
        while True:
            found, final = self._verdict(metric, tolerance)
            if final or self._exhausted:
                self._judged.add(metric)
                return found
            self._add_pair()

    def _verdict(self, metric: str, tolerance: float) -> tuple[Verdict, bool]:
        undisturbed = blocks(self.pairs, metric)
        if len(undisturbed) < 2:
            return replace(nothing(Outcome.INCONCLUSIVE, self.disturbance()), basis="base"), False
        found, final = pairs.compare(undisturbed, tolerance, METRICS[metric])
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
        # Disturbed pairs are replaced, for up to twice the budget.
        wanted, counted = pairs.FEWEST_TO_FAIL, sum(pair.counts for pair in self.pairs)
        spent = self.spent / self._budget
        enough = len(self.pairs) >= wanted and (spent >= 2 or (spent >= 1 and counted >= wanted))
        return enough or len(self.pairs) >= MOST_PAIRS

    @property
    def _joins(self) -> bool:
        """Whether it wants a pair in the processes that another comparison starts."""
        if self._failed or self._exhausted or len(self.pairs) >= self._shared:
            return False
        return not self._judged or not self._judged >= self._asked

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
            self.spent += time.monotonic() - began - lent

    def _join(self, arms: Mapping[str, Side], share: float) -> bool:
        """Measure in processes that another comparison started. False if that failed; its own test reports it."""
        self.begun = True
        began = time.monotonic()
        try:
            self.pairs.append(self._pair(arms, share))
        except (WorkerError, TraceError):
            self._failed = True  # it would fail in the next pair too, and those after it would get no turn
            return False
        else:
            return True
        finally:
            self.spent += time.monotonic() - began + share

    def _pair(self, arms: Mapping[str, Side], start: float) -> Pair:
        """Measure a pair, whose processes took ``start`` seconds to start. Raises as `judge`."""
        number = len(self.pairs) + 1
        both = Turns(
            arms,
            self._workload,
            self._generations,
            lambda text: self._progress(f"{self._workload}: pair {number}, {text}"),
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
        evidence = both.prove()
        samples = {name: [one for turn in pair.turns for one in turn.samples.get(name, ())] for name in evidence}
        return replace(
            pair,
            profiles={name: timed(evidence[name], samples[name]) for name in evidence},
            memory={name: memory_in(evidence[name]) for name in evidence},
        )
