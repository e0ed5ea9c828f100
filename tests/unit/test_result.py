"""What is derived of a case's measurements."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.backends.registry import BUILT_IN, Registry
from pytest_llmperf.cases import Case, Workload
from pytest_llmperf.explain.starts import PARTS
from pytest_llmperf.gate.rule import Outcome, nothing
from pytest_llmperf.machine.fitness import Fitness
from pytest_llmperf.measure.process import Measurement, Sample
from pytest_llmperf.measure.trace import Trace
from pytest_llmperf.result import LONG, MANY, Result

REGISTRY = Registry(BUILT_IN)
WORKLOAD = Workload(1, 16, 2)


def result(backend: str, first: float, settled: float, graphs: int = 0) -> Result:
    """A case whose first generation took so many seconds, and each further one so many."""
    cold, warm = (Trace(((1, 2),), ((0.5 * seconds, seconds),)) for seconds in (first, settled))
    measured = Measurement(
        backend, WORKLOAD, 1.0, (cold,), (Sample(warm, Fitness(), 0),), True, {"seen": {"graphs": graphs}}
    )
    case = Case("tiny", "float32", backend, WORKLOAD, "tpot")
    verdict = nothing(Outcome.NO_BASELINE, "")
    return Result(case, measured, [measured], None, REGISTRY[backend], verdict, 0.1, "default")


@given(st.floats(0.01, 10), st.floats(0, 100))
def test_a_first_generation_is_odd_if_it_is_both_much_longer_and_many_times_as_long(
    settled: float, more: float
) -> None:
    found = result("eager", settled + more, settled).slow_start
    assert bool(found) == (settled + more - settled >= LONG and (settled + more) / settled >= MANY)


@pytest.mark.parametrize("backend", ["compile", "compile-static", "eager+tunableop", "compile-static+max-autotune"])
def test_a_backend_that_compiles_or_tunes_has_a_reason(backend: str) -> None:
    assert result("sdpa", 30.0, 1.0).slow_start
    assert not result(backend, 30.0, 1.0).slow_start


def test_graphs_in_the_evidence_are_a_reason() -> None:
    assert not result("sdpa", 30.0, 1.0, graphs=1).slow_start
    whole = result("sdpa", 30.0, 1.0)
    assert replace(whole, first=replace(whole.first, engagement={})).slow_start


def test_the_samples_of_a_start_are_those_of_its_processes() -> None:
    one = result("sdpa", 1.0, 1.0)
    made = [replace(one.first, start=dict.fromkeys(PARTS, seconds)) for seconds in (7.5, 2.0, 2.5)]
    start = replace(one, case=replace(one.case, metric="warm-start"), first=made[0], processes=made)
    assert start.samples == [30.0, 8.0, 10.0]
    assert start.spread.median == sum(start.start.values())
