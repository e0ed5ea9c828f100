"""What is measured side by side in a run: base and head, or, for the gate's test of itself, head and head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property, partial

from pytest_llmperf.cases import Case, Workload
from pytest_llmperf.gate import selftest, verdict
from pytest_llmperf.gate.compare import MOST_PAIRS, Comparison, blocks
from pytest_llmperf.gate.judge import ABSOLUTE_FLOOR
from pytest_llmperf.gate.pairs import FEWEST_TO_FAIL
from pytest_llmperf.gate.selftest import Assessment
from pytest_llmperf.gate.verdict import Outcome, Verdict
from pytest_llmperf.measure.worker_pool import Engines, Side
from pytest_llmperf.measure.worker_process import Arm, BaseLostError, BaseUnableError
from pytest_llmperf.plan import Scope

Arms = AbstractContextManager[dict[str, Side]]


class DisturbedError(ValueError):
    """Something else used the machine all the time; one line says what."""


class Beside:
    """The comparisons of a run, one for each backend and workload; each serves every metric.

    Args:
        scope: what is measured.
        engines: the worker processes, made when first asked for.
        prompts: a workload's token ids, one row per request.
        compared: the workloads of a backend that tests to come compare in any case, in their order.
        progress: told what is being done.

    Attributes:
        assessments: what the gate's test of itself found, by case.
    """

    def __init__(
        self,
        scope: Scope,
        engines: Callable[[], Engines],
        prompts: Callable[[Workload], list[list[int]]],
        compared: Callable[[str], list[Workload]],
        progress: Callable[[str], None],
    ) -> None:
        self._scope = scope
        self._engines = engines
        self._prompts = prompts
        self._compared = compared
        self._progress = progress
        self._finally = ExitStack()
        self._comparisons: dict[tuple[str, Workload], Comparison] = {}
        self._asked: dict[str, set[str]] = {}
        self.assessments: dict[Case, Assessment] = {}

    @property
    def comparisons(self) -> dict[tuple[str, Workload], Comparison]:
        """Those begun, by backend and workload."""
        return {key: one for key, one in self._comparisons.items() if one.begun}

    def base(self, case: Case, tolerance: float) -> Verdict:
        """Compare a case with base.

        Raises:
            WorkerError, TraceError: head could not be measured.
            BaseError: git could not check the base out.
        """
        if self._scope.attached(self._scope.registry[case.backend]):
            return verdict.nothing(Outcome.NEW, f"base, {self._scope.base}, would ask the same server as head")
        try:
            comparison = self._comparison(case.backend, case.workload, self._base_and_head)
            return comparison.judge(case.metric, tolerance, ABSOLUTE_FLOOR)
        except BaseLostError as error:
            return verdict.nothing(Outcome.INCONCLUSIVE, f"base, {self._scope.base}, was lost: {error}")
        except BaseUnableError as error:
            return verdict.nothing(Outcome.NEW, f"base, {self._scope.base}, cannot run it: {error}")

    def self_test(self, case: Case, tolerance: float) -> list[float]:
        """Try the gate on a case: head beside itself, and beside itself slowed.

        Returns:
            The figures of the processes that were slowed by nothing.

        Raises:
            WorkerError, TraceError: it could not be measured.
            DisturbedError: the machine was never left alone.
        """
        comparison = self._comparison(case.backend, case.workload, self._head_and_head)
        comparison.spend(case.metric)
        processes = comparison.processes(case.metric)
        same, slowed = (blocks(comparison.pairs, case.metric, "base", arm) for arm in ("head", "slow"))
        if len(same) < FEWEST_TO_FAIL:
            raise DisturbedError(f"{case}: {comparison.disturbance()}; nothing can be said of the gate here now")
        self.assessments[case] = selftest.assess(same, slowed, processes, tolerance, ABSOLUTE_FLOOR)
        return [figure for samples in processes for figure in samples]

    def close(self) -> None:
        """Remove the base's checkout, if there is one."""
        self._finally.close()

    def _comparison(self, backend: str, workload: Workload, start: Callable[[str], Arms]) -> Comparison:
        key = (backend, workload)
        if key not in self._comparisons:
            self._comparisons[key] = Comparison(
                workload,
                self._prompts(workload),
                partial(start, backend),
                self._scope.settings.budget,
                lambda text: self._progress(f"{backend} {text}"),
                self._asked.setdefault(backend, set()),
                lambda: [self._comparison(backend, one, start) for one in self._compared(backend) if one != workload],
                # A test of the gate takes what its budget allows, a verdict what it needs.
                MOST_PAIRS if self._scope.settings.self_test else FEWEST_TO_FAIL,
            )
        return self._comparisons[key]

    @cached_property
    def _base_arm(self) -> Callable[[str], Arm]:
        assert self._scope.base is not None
        return self._finally.enter_context(self._scope.base.arm())

    def _base_and_head(self, name: str) -> Arms:
        backend = self._scope.registry[name]
        return self._engines().pair(backend, self._base_arm(self._scope.interpreter(backend).path))

    @contextmanager
    def _head_and_head(self, name: str) -> Iterator[dict[str, Side]]:
        backend = self._scope.registry[name]
        with self._engines().pair(backend, Arm(python=self._scope.interpreter(backend).path)) as arms:
            yield arms | {"slow": replace(arms["head"], slowdown=selftest.INJECTED)}
