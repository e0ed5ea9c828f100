"""Starts of one backend and workload in pairs: one process of base, then one of head, or the other way round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from pytest_llmperf.gate import pairs
from pytest_llmperf.gate.compare import MOST_PAIRS
from pytest_llmperf.gate.pairs import Block
from pytest_llmperf.gate.rule import Verdict
from pytest_llmperf.measure.process import Measurement
from pytest_llmperf.measure.trace import TraceError
from pytest_llmperf.measure.worker_process import SameCodeError, WorkerError, unable


class StartPairs:
    """The pairs of one kind of start. The two processes of a pair are never alive together: each has the machine.

    Args:
        measure: starts a process of the arm ``base`` or ``head`` and measures it.
        budget: seconds after which no further pair is begun.

    Attributes:
        pairs: so far; each has a measurement of both arms.
        spent: seconds that they took.
    """

    def __init__(self, measure: Callable[[str], Measurement], budget: float) -> None:
        self._measure = measure
        self._budget = budget
        self.pairs: list[Mapping[str, Measurement]] = []
        self.spent = 0.0

    def judge(self, metric: str, tolerance: float) -> Verdict:
        """Measure until the verdict is final, or the budget is spent; never fewer pairs than a verdict takes.

        Raises:
            BaseUnableError: base cannot start.
            WorkerError, TraceError: head cannot.
        """
        while True:
            if len(self.pairs) >= pairs.FEWEST:
                figures = ([sum(pair[arm].figures(metric)) for arm in ("base", "head")] for pair in self.pairs)
                found, final = pairs.compare([[Block(*both)] for both in figures], tolerance)
                if final or self._exhausted:
                    return found
            self._add_pair()

    @property
    def _exhausted(self) -> bool:
        enough = len(self.pairs) >= pairs.FEWEST_TO_FAIL and self.spent >= self._budget
        return enough or len(self.pairs) >= MOST_PAIRS

    def _add_pair(self) -> None:
        began = time.monotonic()
        # Whoever goes first alternates, so that a drift favours nobody.
        order = ("head", "base") if len(self.pairs) % 2 else ("base", "head")
        try:
            self.pairs.append({arm: self._start(arm) for arm in order})
        finally:
            self.spent += time.monotonic() - began

    def _start(self, arm: str) -> Measurement:
        try:
            return self._measure(arm)
        except (WorkerError, TraceError) as error:
            if arm != "base" or isinstance(error, SameCodeError):
                raise
            raise unable(error) from error
