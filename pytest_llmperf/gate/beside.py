"""What a run measures side by side: base and head, or, for the gate's test of itself, head and head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pytest_llmperf.cases import Case, Workload
from pytest_llmperf.explain.starts import typical
from pytest_llmperf.gate import rule, selftest
from pytest_llmperf.gate.checkout import Base
from pytest_llmperf.gate.compare import MOST_PAIRS, Comparison, blocks
from pytest_llmperf.gate.pairs import FEWEST_TO_FAIL
from pytest_llmperf.gate.rule import Outcome, Verdict
from pytest_llmperf.gate.selftest import Assessment
from pytest_llmperf.gate.starts import StartPairs
from pytest_llmperf.measure.worker_pool import Side
from pytest_llmperf.measure.worker_process import Arm, BaseLostError, BaseUnableError, SameCodeError

if TYPE_CHECKING:
    from pytest_llmperf.explain.profiles import Profile
    from pytest_llmperf.measure.process import Measurement, Sample
    from pytest_llmperf.measure.starts import Starts
    from pytest_llmperf.plan import Plan
    from pytest_llmperf.runtime import Runtime

Arms = AbstractContextManager[dict[str, Side]]

#: Seconds after which no further pair is begun for one backend and workload. The run has a bound of its own.
PATIENCE = 150.0


class DisturbedError(ValueError):
    """Something else used the machine all the time; one line says what."""


class Beside:
    """The comparisons of a run, one for each base, backend and workload; each serves every metric.

    Args:
        plan: which workloads are compared whatever their figures are, so that they share processes.
        runtime: the engines and the prompts.
        starts: measures starts.
        progress: told what is being done.

    Attributes:
        assessments: what the gate's test of itself found, by case.
    """

    def __init__(self, plan: Plan, runtime: Runtime, starts: Starts, progress: Callable[[str], None]) -> None:
        self._plan = plan
        self._runtime = runtime
        self._starts = starts
        self._progress = progress
        self._finally = ExitStack()
        self._arms: dict[Base, Callable[[str], Arm]] = {}
        self._bases: dict[Case, Base] = {}
        self._comparisons: dict[tuple[Base | None, str, Workload], Comparison] = {}
        self._asked: dict[tuple[Base | None, str], set[str]] = {}
        #: The pairs of starts, by case and base.
        self.started: dict[tuple[Case, Base], StartPairs] = {}
        self.assessments: dict[Case, Assessment] = {}

    @property
    def comparisons(self) -> dict[tuple[Base | None, str, Workload], Comparison]:
        """Those begun, by base, backend and workload."""
        return {key: one for key, one in self._comparisons.items() if one.begun}

    @property
    def spent(self) -> float:
        """Seconds that all of them took."""
        spent = [one.spent for one in self._comparisons.values()] + [one.spent for one in self.started.values()]
        return sum(spent)

    def check_out(self) -> None:
        """Check out the base that somebody named, if a case may be compared with it: before anything is measured.

        Raises:
            BaseError: git cannot.
        """
        plan = self._plan
        if plan.base is None or plan.base_is_head or plan.settings.compare == "never":
            return
        if any(map(plan.gated, plan.backends)):
            self._arm(plan.base)

    def compare(self, case: Case, base: Base, tolerance: float) -> Verdict:
        """Compare a case with base in pairs.

        Returns:
            The verdict; ``inconclusive`` where base was lost, ``new`` where base cannot run the case.

        Raises:
            WorkerError, TraceError: head could not be measured.
            SameCodeError: base is the baseline's own code, and the worker imports nothing of the repository.
            BaseError: git could not check the base out.
        """
        self._bases[case] = base
        try:
            if case.start:
                return self._pairs_of_starts(case, base).judge(case.metric, tolerance)
            return self._comparison(case.backend, case.workload, base).judge(case.metric, tolerance)
        except BaseLostError as error:
            return rule.nothing(Outcome.INCONCLUSIVE, f"base, {base}, was lost: {error}")
        except SameCodeError as error:
            if self._plan.base is None:
                raise
            return rule.nothing(Outcome.NEW, f"base, {base}, cannot run it: {error}")
        except BaseUnableError as error:
            return rule.nothing(Outcome.NEW, f"base, {base}, cannot run it: {error}")

    def samples(self, backend: str, workload: Workload) -> list[Sample]:
        """Head's timed generations so far."""
        return [
            sample
            for (base, name, size), one in self._comparisons.items()
            if base is not None and (name, size) == (backend, workload)
            for pair in one.pairs
            for turn in pair.turns
            for sample in turn.samples.get("head", ())
        ]

    def begun(self, case: Case, base: Base) -> bool:
        """Whether pairs of a case were measured already, for another metric perhaps."""
        found = self._comparisons.get((base, case.backend, case.workload))
        return not case.start and found is not None and found.begun

    def parts(self, case: Case) -> dict[str, dict[str, float]]:
        """The parts of a start of each arm, by its name: the median over the pairs of a case."""
        pairs = self.started[case, self._bases[case]].pairs
        return {arm: typical(pair[arm].start for pair in pairs) for arm in ("base", "head")}

    def profiles(self, case: Case) -> dict[str, list[Profile]]:
        """The profiles of each arm, by its name, in the pairs of a case."""
        compared = self._comparisons[self._bases[case], case.backend, case.workload]
        pairs = [pair for pair in compared.pairs if pair.profiles]
        return {arm: [pair.profiles[arm] for pair in pairs] for arm in ("base", "head")}

    def self_test(self, case: Case, tolerance: float) -> list[float]:
        """Try the gate on a case: head beside itself, and beside itself slowed.

        Returns:
            The figures of the processes that were slowed by nothing.

        Raises:
            WorkerError, TraceError: it could not be measured.
            DisturbedError: the machine was never left alone.
        """
        comparison = self._comparison(case.backend, case.workload, None)
        comparison.spend(case.metric)
        processes = comparison.processes(case.metric)
        same, slowed = (blocks(comparison.pairs, case.metric, "base", arm) for arm in ("head", "slow"))
        if len(same) < FEWEST_TO_FAIL:
            raise DisturbedError(f"{case}: {comparison.disturbance()}; nothing can be said of the gate here now")
        self.assessments[case] = selftest.assess(same, slowed, processes, tolerance, self._plan.prior(case))
        return [figure for samples in processes for figure in samples]

    def close(self) -> None:
        """Remove the checkouts, if there are any."""
        self._finally.close()

    def _comparison(self, backend: str, workload: Workload, base: Base | None) -> Comparison:
        """The one comparison of a workload with base; without a base, with head itself."""
        key = (base, backend, workload)
        if key not in self._comparisons:
            self._comparisons[key] = Comparison(
                workload,
                self._runtime.generations(backend, workload),
                partial(self._head_and_head, backend) if base is None else partial(self._base_and_head, backend, base),
                self._patience(),
                partial(self._say, backend),
                self._asked.setdefault((base, backend), set()),
                partial(self._others, backend, workload, base),
                # A test of the gate takes what its budget allows, a verdict what it needs.
                MOST_PAIRS if self._plan.settings.self_test else FEWEST_TO_FAIL,
            )
        return self._comparisons[key]

    def _pairs_of_starts(self, case: Case, base: Base) -> StartPairs:
        backend = self._plan.registry[case.backend]
        arm = self._arm(base)(self._plan.interpreter(backend).path)

        def measure(name: str) -> Measurement:
            self._say(case.backend, f"{case.workload}: pair {len(found.pairs) + 1}, {name}")
            return self._starts.measure(case.backend, case.workload, case.metric, arm if name == "base" else None)

        found = self.started[case, base] = StartPairs(measure, self._patience())
        return found

    def _others(self, backend: str, workload: Workload, base: Base | None) -> list[Comparison]:
        """The comparisons that a pair started for this one serves too."""
        return [self._comparison(backend, one, base) for one in self._plan.compared(backend) if one != workload]

    def _patience(self) -> float:
        if not self._plan.settings.self_test:
            return PATIENCE
        return self._plan.settings.budget / max(1, sum(len(self._plan.gated(one)) for one in self._plan.backends))

    def _say(self, backend: str, text: str) -> None:
        self._progress(f"{backend} {text}")

    def _arm(self, base: Base) -> Callable[[str], Arm]:
        """How to make base's arm. It is checked out once."""
        if base not in self._arms:
            self._arms[base] = self._finally.enter_context(base.arm())
        return self._arms[base]

    def _base_and_head(self, name: str, base: Base) -> Arms:
        backend = self._plan.registry[name]
        return self._runtime.engines.pair(backend, self._arm(base)(self._plan.interpreter(backend).path))

    @contextmanager
    def _head_and_head(self, name: str) -> Iterator[dict[str, Side]]:
        backend = self._plan.registry[name]
        with self._runtime.engines.pair(backend, Arm(python=self._plan.interpreter(backend).path)) as arms:
            yield arms | {"slow": replace(arms["head"], slowdown=selftest.INJECTED)}
