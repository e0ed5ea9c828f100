"""Which engines stay when another is loaded, and what they give back; the workers only note what they are asked."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_llmperf.backends.base import EngineSpec
from pytest_llmperf.backends.registry import BUILT_IN, Registry
from pytest_llmperf.measure.worker_pool import Engines
from pytest_llmperf.measure.worker_process import Arm, WorkerLostError
from pytest_llmperf.worker.server import Worker

REGISTRY = Registry(BUILT_IN)


class Process:
    """A worker that loads at once. ``said`` is what all of them were asked, in order, with the number of each."""

    said: list[tuple[int, str]]
    made: list[Process]
    lost = False

    def __init__(self, arm: Arm, *how: Any) -> None:
        self.number = len(self.made)
        self.made.append(self)
        self.pids = [self.number]
        self.alive = self.idle = True

    def ask(self, operation: str, **arguments: Any) -> None:
        self.said.append((self.number, operation))

    def answer(self, operation: str, timeout: float) -> dict[str, float]:
        return {"seconds": 1.0}

    def call(self, operation: str, timeout: float, **arguments: Any) -> None:
        self.said.append((self.number, operation))
        if self.lost:
            raise WorkerLostError("killed for its memory")

    def close(self) -> None:
        self.said.append((self.number, "close"))


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> type[Process]:
    monkeypatch.setattr(Process, "said", [], raising=False)
    monkeypatch.setattr(Process, "made", [], raising=False)
    monkeypatch.setattr("pytest_llmperf.measure.worker_pool.Host", Process)
    return Process


def engines(device: str, reference: str = "eager") -> Engines:
    spec = EngineSpec("tiny", {}, "bfloat16", device)
    return Engines(
        spec,
        lambda backend: Arm(),
        environment={},
        timeout=1.0,
        roomy=True,
        reference=reference,
        progress=lambda text: None,
    )


def test_the_reference_gives_back_what_it_does_not_need_before_another_is_loaded(process: type[Process]) -> None:
    made = engines("cuda")
    made.get(REGISTRY["eager"])
    made.get(REGISTRY["sdpa"])
    assert process.said == [(0, "load"), (0, "rest"), (1, "load")]
    with made.fresh(REGISTRY["sdpa"]):
        pass
    assert process.said[3:] == [(0, "rest"), (1, "rest"), (2, "load"), (2, "close")]


def test_on_a_cpu_there_is_nothing_to_give_back(process: type[Process]) -> None:
    made = engines("cpu")
    made.get(REGISTRY["eager"])
    made.get(REGISTRY["sdpa"])
    assert process.said == [(0, "load"), (1, "load")]


def test_where_nothing_is_judged_by_it_the_reference_does_not_stay(process: type[Process]) -> None:
    made = engines("cuda", reference="")
    made.get(REGISTRY["eager"])
    made.release("eager")
    assert process.said == [(0, "load"), (0, "close")]


def test_a_reference_that_died_meanwhile_stops_nobody(process: type[Process], monkeypatch: pytest.MonkeyPatch) -> None:
    made = engines("cuda")
    made.get(REGISTRY["eager"])
    monkeypatch.setattr(process, "lost", True)
    made.get(REGISTRY["sdpa"])
    assert process.said == [(0, "load"), (0, "rest"), (0, "close"), (1, "load")]


@pytest.mark.parametrize(
    ("loaded", "asked"),
    [("eager", [(0, "rates")]), ("sdpa", [(1, "rates"), (1, "close")]), ("", [(0, "rates"), (0, "close")])],
    ids=["the reference", "another backend", "none"],
)
def test_the_machine_is_measured_by_the_reference_or_by_a_process_of_its_own(
    process: type[Process], loaded: str, asked: list[tuple[int, str]]
) -> None:
    """Another backend may have bound its threads."""
    made = engines("cpu")
    if loaded:
        made.get(REGISTRY[loaded])
    process.said.clear()
    with made.any_worker() as ask:
        ask("rates")
    assert process.said == asked


@pytest.mark.parametrize(("device", "emptied"), [("cuda", 1), ("cpu", 0)])
def test_a_worker_gives_back_its_devices_memory(device: str, emptied: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[None] = []
    worker = Worker()
    worker.device = device
    torch = SimpleNamespace(cuda=SimpleNamespace(empty_cache=lambda: made.append(None)))
    monkeypatch.setitem(sys.modules, "torch", torch)
    worker.rest()
    assert len(made) == emptied
