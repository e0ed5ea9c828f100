"""Base against head on this machine, now: pairs of fresh processes that take turns until it is known, or time is up."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from pytest_llmperf import paired
from pytest_llmperf.cases import Workload
from pytest_llmperf.host import BaseUnableError, WorkerError
from pytest_llmperf.measurement import Sample, generate
from pytest_llmperf.paired import Block
from pytest_llmperf.trace import TraceError
from pytest_llmperf.verdict import Outcome, Verdict, nothing

#: Generations that each process makes before its turns begin: the first pays for compilation, tuning and caches.
WARM_UP = 2
#: Blocks of a pair: at least, and at most; and seconds of generations after which no further one is begun.
FEWEST_BLOCKS, MOST_BLOCKS, PAIR_SECONDS = 2, 10, 8.0
#: Turns that may be taken again in one pair because something else used the machine meanwhile.
SPARE_TURNS = 4
#: Pairs at most, whatever the budget.
MOST_PAIRS = 12

#: Calls an operation of a worker.
Ask = Callable[..., Any]


@dataclass(frozen=True)
class Turn:
    """Base, head, head, base, or the other way round: two samples of each, next to each other in time."""

    base: tuple[Sample, Sample]
    head: tuple[Sample, Sample]

    @property
    def contaminated(self) -> bool:
        return any(sample.contaminated for sample in (*self.base, *self.head))

    def block(self, metric: str) -> Block:
        """The best of either arm: a neighbour makes a sample slower, never faster."""
        base, head = (min(sample.trace.metric(metric) for sample in arm) for arm in (self.base, self.head))
        return Block(base, head)


@dataclass(frozen=True)
class Pair:
    """One process of either arm.

    Attributes:
        turns: those that count, in the order taken.
        discarded: those during which something else used the machine.
    """

    turns: tuple[Turn, ...]
    discarded: tuple[Turn, ...]


class Comparison:
    """One backend and workload. Its pairs serve every metric, and more are measured where a metric needs them.

    Args:
        workload: what is generated.
        prompts: token ids, one row per request.
        start: starts a process of either arm, loaded, gone afterwards; base comes first.
        budget: seconds, start of processes included, after which no further pair is begun.
        progress: told what is being done.
        clock: seconds.
    """

    def __init__(
        self,
        workload: Workload,
        prompts: list[list[int]],
        start: Callable[[], AbstractContextManager[tuple[Ask, Ask]]],
        budget: float,
        progress: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workload = workload
        self._prompts = prompts
        self._start = start
        self._budget = budget
        self._progress = progress
        self._clock = clock
        self._spent = 0.0
        self._unable: BaseUnableError | None = None
        self.pairs: list[Pair] = []

    def judge(self, metric: str, tolerance: float, floor: float) -> Verdict:
        """Measure until the metric's verdict is final, or the budget is spent; never fewer pairs than a verdict takes.

        Raises:
            BaseUnableError: base cannot run it.
            WorkerError, TraceError: head cannot.
        """
        while True:
            blocks = [[turn.block(metric) for turn in pair.turns] for pair in self.pairs if pair.turns]
            if len(blocks) > 1:
                found, final = paired.compare(blocks, tolerance, floor)
            else:
                said = f"something else used the machine during all but {len(blocks)} of {len(self.pairs)} pairs"
                found, final = nothing(Outcome.INCONCLUSIVE, said), False
            enough = len(self.pairs) >= paired.FEWEST_TO_FAIL and self._spent >= self._budget
            if final or enough or len(self.pairs) >= MOST_PAIRS:
                return found
            self._measure()

    def _measure(self) -> None:
        if self._unable is not None:
            raise self._unable
        began = self._clock()
        try:
            with self._start() as (base, head):
                self.pairs.append(self._pair(base, head))
        except BaseUnableError as error:
            self._unable = error
            raise
        finally:
            self._spent += self._clock() - began

    def _pair(self, base: Ask, head: Ask) -> Pair:
        number, made = len(self.pairs) + 1, 0

        def sample(ask: Ask, name: str) -> Sample:
            nonlocal made
            made += 1
            self._progress(f"{self._workload}: pair {number}, {name}: generation {made}")
            try:
                return generate(ask, self._workload, self._prompts)
            except (WorkerError, TraceError) as error:
                if ask is not base:
                    raise
                raise BaseUnableError(str(error)) from error

        for ask, name in ((base, "base"), (head, "head")):
            for _ in range(WARM_UP):
                sample(ask, name)
        kept: list[Turn] = []
        discarded: list[Turn] = []
        began = self._clock()
        while len(kept) < FEWEST_BLOCKS or (len(kept) < MOST_BLOCKS and self._clock() - began < PAIR_SECONDS):
            if len(discarded) > SPARE_TURNS:
                break
            # Whoever goes first alternates, within a turn and from turn to turn, so that a drift favours neither.
            outer, inner = ("base", "head") if (number + len(kept) + len(discarded)) % 2 else ("head", "base")
            taken: dict[str, list[Sample]] = {"base": [], "head": []}
            for name in (outer, inner, inner, outer):
                taken[name].append(sample(base if name == "base" else head, name))
            turn = Turn((taken["base"][0], taken["base"][1]), (taken["head"][0], taken["head"][1]))
            (discarded if turn.contaminated else kept).append(turn)
        return Pair(tuple(kept), tuple(discarded))
