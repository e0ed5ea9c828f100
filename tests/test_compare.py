"""How long a pair of processes is measured, on a clock of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pytest_llmperf import compare
from pytest_llmperf.cases import Workload
from pytest_llmperf.compare import MOST_BLOCKS, PAIR_SECONDS, Comparison, Pair, blocks
from pytest_llmperf.devices.fitness import Fitness
from pytest_llmperf.measurement import Sample
from pytest_llmperf.trace import Trace
from pytest_llmperf.turns import WARM_UP, Turn


class Clock:
    """Seconds that pass only where something is said to take them."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Side:
    """A process that can be asked and cannot be paused."""

    pausable = False

    def prove(self) -> None:
        pass


def turns(monkeypatch: pytest.MonkeyPatch, start: float, generation: float) -> list[int]:
    """How many turns each pair takes where starting one and generating take so many seconds."""
    clock = Clock()

    def generate(ask: Any, workload: Workload, prompts: list[list[int]]) -> Sample:
        clock.now += generation
        return Sample(Trace(((1, 2),), ((0.1, 0.2),)), Fitness(), 0)

    @contextmanager
    def arms() -> Iterator[dict[str, Any]]:
        clock.now += start
        yield {name: Side() for name in ("base", "head")}

    monkeypatch.setattr(compare, "time", clock)
    monkeypatch.setattr("pytest_llmperf.turns.generate", generate)
    comparison = Comparison(Workload(1, 2, 2), [[1, 2]], arms, budget=1.0, progress=lambda text: None)
    comparison.spend()
    return [len(pair.turns) for pair in comparison.pairs]


@pytest.mark.parametrize(
    ("start", "generation", "expected"),
    [
        (0.0, 0.5, PAIR_SECONDS / 2),
        (20.0, 1.0, (20 + 2 * WARM_UP) / 4),  # as long as loading, and warming both up, took
        (20.0, 2.0, 4),
        (20.0, 30.0, 2),
        (300.0, 1.0, MOST_BLOCKS),
    ],
)
def test_turns_take_as_long_as_starting_did(
    monkeypatch: pytest.MonkeyPatch, start: float, generation: float, expected: float
) -> None:
    assert set(turns(monkeypatch, start, generation)) == {int(expected)}


def test_a_pair_counts_if_each_arm_has_enough_undisturbed_turns() -> None:
    def turn(arm: str, culprit: str | None = None) -> Turn:
        sample = Sample(Trace(((1, 2),), ((0.1, 0.2),)), Fitness(), 0)
        return Turn({"base": (sample,), arm: (sample,)}, culprit, in_step=True)

    head, slow, disturbed = turn("head"), turn("slow"), turn("slow", "others used 1.0 cores")
    assert Pair((head, slow, head, slow)).counts
    assert not Pair((head, slow, head, disturbed, head)).counts
    pairs = [Pair((head, slow, head, disturbed, head)), Pair((head, slow, head, slow, head))]
    assert [[len(pair) for pair in blocks(pairs, "tpot", "base", arm)] for arm in ("head", "slow")] == [[3], [2]]
