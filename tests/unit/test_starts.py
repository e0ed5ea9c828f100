"""The start of a process: its parts, what became of them, how imports and caches are told apart, and pairs of it."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import count, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf import folders
from pytest_llmperf.cases import STARTS, Case, Workload
from pytest_llmperf.explain.starts import PARTS, lines, typical
from pytest_llmperf.gate.rule import Outcome
from pytest_llmperf.gate.starts import StartPairs
from pytest_llmperf.measure.process import Measurement
from pytest_llmperf.measure.starts import Starts, parts
from pytest_llmperf.measure.trace import Trace
from pytest_llmperf.measure.worker_pool import Loading
from pytest_llmperf.measure.worker_process import (
    Arm,
    BaseLostError,
    BaseUnableError,
    SameCodeError,
    WorkerLostError,
)
from pytest_llmperf.prompts import Generation
from pytest_llmperf.worker.imports import ImportClock

seconds = st.floats(0.001, 100)


def generation(ttft: float, latency: float) -> Trace:
    return Trace(((1, 2),), ((ttft, latency),))


# Parts


def test_a_start_ends_at_the_first_token_of_an_engine_that_has_compiled() -> None:
    loading = Loading(ready=5.0, load=4.0, imports=1.5, compiled=0.5)
    settled = [generation(0.3, 2.0), generation(0.2, 1.0)]
    found = parts(loading, generation(0.4, 11.0), settled)
    assert found == pytest.approx({"import": 2.5, "load": 2.0, "compile": 0.5 + 10.0, "first token": 0.2})
    assert tuple(found) == PARTS


@given(seconds, seconds, seconds, seconds, seconds, st.lists(st.tuples(seconds, seconds), min_size=1, max_size=3))
def test_parts_add_up_and_none_is_negative(
    before: float, load: float, imports: float, compiled: float, first: float, later: list[tuple[float, float]]
) -> None:
    imports = min(imports, load)
    settled = [generation(ttft, ttft + more) for ttft, more in later]
    found = parts(Loading(before + load, load, imports, compiled), generation(first / 2, first), settled)
    best = min(settled, key=lambda one: one.latency)
    assert all(value >= 0 for value in found.values())
    assert sum(found.values()) == pytest.approx(before + load + max(0, first - best.latency) + best.ttft)


def test_the_part_that_lost_most_comes_first_and_the_parts_add_up() -> None:
    before = dict(zip(PARTS, (4.0, 2.0, 3.0, 1.0), strict=True))
    after = dict(zip(PARTS, (4.1, 5.0, 2.5, 1.0), strict=True))
    assert lines(before, after) == [
        "+30.0% load: 2.00 s -> 5.00 s",
        "+1.0% import: 4.00 s -> 4.10 s",
        "-5.0% compile: 3.00 s -> 2.50 s",
    ]


def test_of_several_processes_each_part_has_its_median() -> None:
    made = [dict(zip(PARTS, (1.0, load, 0.0, 0.1), strict=True)) for load in (3.0, 9.0, 4.0)]
    assert typical(made) == {"import": 1.0, "load": 4.0, "compile": 0.0, "first token": 0.1}
    assert typical([]) == {}


def test_the_starts_of_a_workload_are_kept_with_its_other_cases() -> None:
    case = Case("m", "float32", "sdpa", Workload(1, 16, 8), "tpot")
    assert case.kept == tuple(f"float32/sdpa/b1-p16-n8/{metric}" for metric in ("tpot", *STARTS))
    assert case.start == ""


# Processes


class Process:
    """A started process that takes 5 s longer for its first generation, and imports nothing of its checkout."""

    def __init__(self, early: int = 0) -> None:
        self._early = early
        self._made = 0

    def __call__(self, operation: str, **asked: Any) -> dict[str, Any]:
        if operation == "evidence":
            return {"seen": {}}
        self._made += 1
        tokens = [1] if self._made <= self._early else [1, 2]
        late = 5.0 if self._made == 1 else 0.0
        times = [late + 0.1 * (at + 1) for at in range(len(tokens))]
        fitness = {"gpu": None, "canaries": None}
        ended = [len(tokens) < 2]
        return {"tokens": [tokens], "times": [times], "ended": ended, "statistics": [], "fitness": fitness}

    def check_code(self) -> None:
        raise SameCodeError("it imported nothing")


def started(process: Process, arm: Arm | None = None) -> Measurement:
    loading = Loading(ready=3.0, load=2.0, imports=1.0, compiled=0.0)
    engines = SimpleNamespace(starting=lambda *_: nullcontext((process, loading)))
    generations = map(Generation, count(7), repeat([[1]]))
    runtime: Any = SimpleNamespace(engines=engines, generations=lambda *_: generations)
    plan: Any = SimpleNamespace(registry={"sim": None})
    return Starts(plan, runtime, lambda _: None).measure("sim", Workload(1, 1, 2), "cold-start", arm)


def test_head_may_import_nothing_of_its_checkout_and_base_may_not() -> None:
    assert started(Process()).start["compile"] == pytest.approx(5.0)
    with pytest.raises(SameCodeError):
        started(Process(), Arm("base"))


def test_the_first_generation_pays_also_if_it_ended_early() -> None:
    assert started(Process(early=1)).start["compile"] == pytest.approx(5.0, abs=0.2)


# Imports


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Writes a module that can be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, code: str) -> None:
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return write


def test_imports_are_timed_wherever_they_stand_and_nested_ones_once(module: Callable[[str, str], None]) -> None:
    module("llmperf_inner", "import time\ntime.sleep(0.02)")
    module("llmperf_outer", "import llmperf_inner, time\ntime.sleep(0.02)")
    with ImportClock() as clock:
        time.sleep(0.05)
        importlib.import_module("llmperf_outer")
        once = clock.seconds
        importlib.import_module("llmperf_outer")
    assert 0.04 <= once < 0.09
    assert clock.seconds < once + 0.005, "it was there already"


def test_a_failed_import_counts_and_afterwards_nothing_does(module: Callable[[str, str], None]) -> None:
    module("llmperf_broken", "import time\ntime.sleep(0.02)\nraise ValueError('broken')")
    module("llmperf_later", "import time\ntime.sleep(0.02)")
    clock = ImportClock()
    with clock, pytest.raises(ValueError, match="broken"):
        importlib.import_module("llmperf_broken")
    assert (found := clock.seconds) >= 0.02
    importlib.import_module("llmperf_later")
    assert clock.seconds == found


def test_what_another_thread_imports_is_not_this_thread_s_time(module: Callable[[str, str], None]) -> None:
    module("llmperf_elsewhere", "import time\ntime.sleep(0.02)")
    thread = threading.Thread(target=importlib.import_module, args=("llmperf_elsewhere",))
    with ImportClock() as clock:
        thread.start()
        thread.join()
    assert clock.seconds < 0.01


# Caches


def test_caches_are_emptied_by_a_folder_that_is_gone_afterwards(tmp_path: Path) -> None:
    with folders.emptied(tmp_path / "cache") as (_, found):
        assert found.keys() >= {
            "TORCHINDUCTOR_CACHE_DIR",
            "TRITON_CACHE_DIR",
            "VLLM_CACHE_ROOT",
            "TORCH_EXTENSIONS_DIR",
            "TMPDIR",
        }
        assert len(set(found.values())) == len(found)
        assert all(Path(one).is_dir() and not any(Path(one).iterdir()) for one in found.values())
        with folders.emptied(tmp_path / "cache") as (_, other):
            assert set(other.values()).isdisjoint(found.values())
    assert not Path(found["TMPDIR"]).exists()
    assert not any((tmp_path / "cache").iterdir())


# Pairs


class Arms:
    """Starts of two arms that take scripted seconds; keeps the order in which they are started."""

    def __init__(
        self, base: float, head: float, apart: float = 0.001, failing: Mapping[str, Exception] | None = None
    ) -> None:
        self._seconds = {"base": base, "head": head}
        self._apart = apart
        self._failing = failing or {}
        self.started: list[str] = []

    def __call__(self, arm: str) -> Any:
        self.started.append(arm)
        if arm in self._failing:
            raise self._failing[arm]
        seconds = self._seconds[arm] * (1 + self._apart * (len(self.started) % 3))
        return SimpleNamespace(figures=lambda metric: [seconds])


@pytest.mark.parametrize(
    ("head", "outcome", "count"), [(13.0, Outcome.REGRESSION, 4), (10.5, Outcome.OK, 3), (6.0, Outcome.FASTER, 3)]
)
def test_pairs_of_starts_are_judged_by_the_rule_of_pairs(head: float, outcome: Outcome, count: int) -> None:
    arms = Arms(10.0, head)
    found = StartPairs(arms, 0.0).judge("warm-start", 0.25)
    assert (found.outcome, found.count, found.basis) == (outcome, count, "base")
    assert arms.started == ["base", "head", "head", "base", "base", "head", "head", "base"][: 2 * count]


def test_a_comparison_that_stays_open_ends_with_its_budget() -> None:
    arms = Arms(10.0, 12.5, apart=0.1)
    found = StartPairs(arms, 0.0).judge("warm-start", 0.25)
    assert (found.outcome, found.count) == (Outcome.INCONCLUSIVE, 4)


@pytest.mark.parametrize(
    ("failing", "kind"),
    [
        ({"base": RuntimeError("x")}, RuntimeError),
        ({"base": WorkerLostError("gone")}, BaseLostError),
        ({"base": SameCodeError("same")}, SameCodeError),
        ({"head": WorkerLostError("gone")}, WorkerLostError),
    ],
)
def test_a_base_that_cannot_start_is_no_failure_of_head(failing: dict[str, Exception], kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        StartPairs(Arms(1.0, 1.0, failing=failing), 0.0).judge("cold-start", 0.25)
    assert isinstance(caught.value, BaseUnableError) == (kind in (BaseLostError, SameCodeError))
