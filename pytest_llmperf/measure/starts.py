"""Starts: fresh processes that are timed from their launch until an engine that has compiled gives its first token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from pytest_llmperf.cases import COLD_START, METRICS
from pytest_llmperf.measure.process import Measurement, generate, measure
from pytest_llmperf.measure.sampling import Bounds

if TYPE_CHECKING:
    from pytest_llmperf.cases import Workload
    from pytest_llmperf.measure.trace import Trace
    from pytest_llmperf.measure.worker_pool import Loading
    from pytest_llmperf.measure.worker_process import Arm
    from pytest_llmperf.plan import Plan
    from pytest_llmperf.runtime import Runtime

#: Generations after the first one, which show how long one takes that compiles nothing.
SETTLED = Bounds(minimum=2, maximum=2, budget=0.0)


def parts(loading: Loading, first: Trace, settled: Sequence[Trace]) -> dict[str, float]:
    """The parts of a start, in seconds, by the names of `pytest_llmperf.explain.starts.PARTS`. Pure.

    Args:
        loading: how the process became ready.
        first: its first generation, which also compiles, tunes and fills caches, also where it ended early.
        settled: later ones of the same shape; at least one. The fastest tells what the first would take without that.
    """
    best = min(settled, key=lambda trace: trace.latency)
    rest = max(0.0, loading.load - loading.imports)
    compiled = min(loading.compiled, rest)  # what it imports while it compiles counts once
    return {
        "import": loading.ready - loading.load + loading.imports,
        "load": rest - compiled,
        "compile": compiled + max(0.0, first.latency - best.latency),
        "first token": best.ttft,
    }


class Starts:
    """Measures starts, each by a process of its own.

    Args:
        plan: the backends.
        runtime: the engines and the prompts.
        progress: told what is being done.
    """

    def __init__(self, plan: Plan, runtime: Runtime, progress: Callable[[str], None]) -> None:
        self._plan = plan
        self._runtime = runtime
        self._progress = progress
        #: What has filled its caches in this run: a backend and workload in an arm, by its interpreter and revision.
        self._warm: set[tuple[str, Workload, str, str]] = set()

    def measure(self, backend: str, workload: Workload, metric: str, arm: Arm | None = None) -> Measurement:
        """Start one process.

        A cold start finds nothing in the caches of compiled and tuned kernels. Before the first warm start of a backend
        and workload another process, which does not count, fills them.

        Args:
            backend: its name.
            workload: what is generated.
            metric: one of `STARTS`.
            arm: where it runs; None for head.

        Raises:
            WorkerError, TraceError: it could not be measured.
            SameCodeError: the arm has a checkout, and the worker imports nothing of it.
        """
        registered, engines = self._plan.registry[backend], self._runtime.engines
        drawn = self._runtime.generations(backend, workload)
        name = f"{backend} {workload}"
        code = ("", "") if arm is None else (arm.python, arm.checkout.revision if arm.checkout else "")
        cold = metric == COLD_START
        if not cold and (backend, workload, *code) not in self._warm:
            self._progress(f"{name}: filling the caches before warm starts")
            with engines.starting(registered, arm, cold=False) as (side, _):
                generate(side, workload, next(drawn))
            self._warm.add((backend, workload, *code))
        self._progress(f"{name}: {METRICS[metric].title}")
        opening = next(drawn)
        with engines.starting(registered, arm, cold) as (side, loading):
            found = measure(
                side,
                backend=backend,
                workload=workload,
                generations=chain([opening], drawn),
                load=loading.load,
                bounds=SETTLED,
                progress=self._progress,
            )
            if arm is not None:  # a built-in backend imports nothing of head's checkout
                side.check_code()
        first = next((one.trace for one in found.early if one.generation == opening.number), found.warm_up[0])
        return replace(found, start=parts(loading, first, [sample.trace for sample in found.samples]))
