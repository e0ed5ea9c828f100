"""How long a pair of processes is measured, on a clock of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import cycle, repeat
from typing import Any

import pytest

from pytest_llmperf.cases import Workload
from pytest_llmperf.gate import compare
from pytest_llmperf.gate.compare import MOST_BLOCKS, MOST_PAIRS, PAIR_SECONDS, Comparison, Pair, blocks
from pytest_llmperf.gate.pairs import FEWEST, FEWEST_PRECISE, FEWEST_TO_FAIL
from pytest_llmperf.gate.rule import Outcome
from pytest_llmperf.gate.turns import WARM_UP, Turn
from pytest_llmperf.machine.fitness import Fitness
from pytest_llmperf.measure.process import Sample
from pytest_llmperf.measure.trace import Trace
from pytest_llmperf.measure.worker_process import BaseUnableError, SameCodeError, WorkerError
from pytest_llmperf.prompts import Generation

PROMPTS = repeat(Generation(0, [[1, 2]]))


class Clock:
    """Seconds that pass only where something is said to take them."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Side:
    """A process that can be asked and cannot be paused; base's may be of head's code."""

    pausable = False

    def __init__(self, wrong_code: Exception | None = None) -> None:
        self._wrong_code = wrong_code

    def prove(self) -> dict[str, Any]:
        return {}

    def check_code(self) -> None:
        if self._wrong_code is not None:
            raise self._wrong_code


class Machine:
    """Where starting a pair and generating take so many seconds; a generation of a workload in ``unable`` fails.

    Attributes:
        asked: the workload of each generation, in order.
        noise: what the time per token of each generation is multiplied by.
        noise_of_first: what its first token's is, if that is another.
        failure: how.
        wrong_code: what is wrong with the code that base has imported.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, start: float, generation: float) -> None:
        self.clock = Clock()
        self.started = 0
        self.asked: list[Workload] = []
        self.unable: set[Workload] = set()
        self.noise: Iterator[float] = cycle((1.0, 1.1, 0.9, 1.0, 0.9, 1.1))
        self.noise_of_first: Iterator[float] | None = None
        self.failure: Exception = WorkerError("out of its depth")
        self.wrong_code: Exception | None = None
        self._start, self._generation = start, generation
        monkeypatch.setattr(compare, "time", self.clock)
        monkeypatch.setattr("pytest_llmperf.gate.turns.generate", self._generate)

    def _generate(self, ask: Any, workload: Workload, generation: Generation) -> Sample:
        self.clock.now += self._generation
        self.asked.append(workload)
        if workload in self.unable:
            raise self.failure
        noise = next(self.noise)
        first = 0.1 * (noise if self.noise_of_first is None else next(self.noise_of_first))
        return Sample(Trace(((1, 2),), ((first, first + 0.1 * noise),)), Fitness(), 0)

    @contextmanager
    def _arms(self) -> Iterator[dict[str, Any]]:
        self.started += 1
        self.clock.now += self._start
        yield {"base": Side(self.wrong_code), "head": Side()}

    def comparisons(self, count: int = 1, budget: float = 1.0, shared: int = FEWEST_TO_FAIL) -> list[Comparison]:
        """As many, each of which has all the others join the pairs that it starts."""
        made: list[Comparison] = []
        asked: set[str] = set()
        for number in range(count):
            workload = Workload(1 + number, 2, 2)
            others = partial(lambda number: [one for one in made if one is not made[number]], number)
            made.append(Comparison(workload, PROMPTS, self._arms, budget, _unheard, asked, others, shared))
        return made


def _unheard(progress: str) -> None:
    pass


def turns(comparison: Comparison) -> list[int]:
    """How many each pair took."""
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
    (one,) = Machine(monkeypatch, start, generation).comparisons()
    one.spend("tpot")
    assert set(turns(one)) == {int(expected)}


def test_turns_end_when_more_of_them_would_tell_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, 300.0, 1.0)
    machine.noise = repeat(1.0)
    (one,) = machine.comparisons()
    one.spend("tpot")
    assert set(turns(one)) == {FEWEST_PRECISE}


def test_but_only_of_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, 300.0, 1.0)
    machine.noise_of_first = repeat(1.0)
    (one,) = machine.comparisons()
    one.spend("ttft")
    assert set(turns(one)) == {FEWEST_PRECISE}
    (other,) = machine.comparisons()
    other.judge("ttft", 0.03)
    assert set(turns(other)) == {FEWEST_PRECISE}
    other.spend("tpot")
    assert turns(other)[-1] == MOST_BLOCKS


def test_of_a_start_that_serves_several_each_has_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    several = Machine(monkeypatch, 60.0, 1.0).comparisons(3)
    several[0].spend("tpot")
    # A turn takes 4 seconds, and whoever is alone would have 60 + 4 seconds of them.
    assert [turns(one) for one in several] == [[(60 / 3 + 2 * WARM_UP) // 4] * FEWEST_TO_FAIL] * 3


def test_the_budget_is_charged_with_ones_own_time_and_a_share_of_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, 60.0, 1.0)
    asking, other = machine.comparisons(2, budget=450.0)
    # Four pairs together: half of 60 seconds of starting, and 40 of one's own. Then alone, in 60 + 44.
    asking.spend("tpot")
    assert [len(asking.pairs), len(other.pairs)] == [FEWEST_TO_FAIL + 2, FEWEST_TO_FAIL]
    other.spend("tpot")
    assert [len(asking.pairs), len(other.pairs)] == [FEWEST_TO_FAIL + 2, FEWEST_TO_FAIL + 2]


def test_pairs_that_serve_several_are_no_more_than_any_has_to_have(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, 1.0, 1.0)
    asking, other = machine.comparisons(2, budget=1e9)
    asking.spend("tpot")
    assert [len(asking.pairs), len(other.pairs)] == [MOST_PAIRS, FEWEST_TO_FAIL]
    assert machine.asked[0] == Workload(1, 2, 2), "whoever asks is first"


def test_pairs_are_shared_for_as_long_as_their_budgets_last_where_that_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(monkeypatch, 60.0, 1.0)
    asking, other = machine.comparisons(2, budget=450.0, shared=MOST_PAIRS)
    asking.spend("tpot")  # 30 + 40 seconds for each pair and either one
    assert [len(asking.pairs), len(other.pairs)] == [7, 7]
    other.spend("tpot")
    assert [len(asking.pairs), len(other.pairs)] == [7, 7], "which comes first makes no difference"
    assert machine.started == 7


def test_who_fails_joins_no_further_pair_and_is_told_when_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, 1.0, 1.0)
    asking, failing, last = machine.comparisons(3)
    machine.unable = {Workload(2, 2, 2)}
    asking.spend("tpot")
    assert machine.asked.count(Workload(2, 2, 2)) == 1
    # The first pair's processes may be in the middle of something, so the last had no turn in it.
    assert [len(one.pairs) for one in (asking, failing, last)] == [FEWEST_TO_FAIL, 0, FEWEST_TO_FAIL - 1]
    with pytest.raises(WorkerError, match="out of its depth"):
        failing.spend("tpot")
    last.spend("tpot")
    assert len(last.pairs) == FEWEST_TO_FAIL


def test_a_base_that_cannot_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, 1.0, 1.0)
    asking, other = machine.comparisons(2)
    machine.unable, machine.failure = {Workload(1, 2, 2)}, BaseUnableError("the same code")
    for _ in range(2):
        with pytest.raises(BaseUnableError, match="the same code"):
            asking.spend("tpot")
    assert machine.started == 1, "it is remembered"
    assert [asking.pairs, other.pairs] == [[], []]
    other.spend("tpot")
    assert [len(asking.pairs), len(other.pairs)] == [0, FEWEST_TO_FAIL]


def test_a_base_of_head_s_code_is_found_after_warming_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, 1.0, 1.0)
    machine.wrong_code = SameCodeError("it imported nothing")
    asking, other = machine.comparisons(2)
    for _ in range(2):
        with pytest.raises(SameCodeError, match="it imported nothing"):
            asking.judge("tpot", 0.03)
    assert machine.asked == [Workload(1, 2, 2)] * 2 * WARM_UP, "no turn was taken"
    assert (machine.started, asking.pairs, other.pairs) == (1, [], [])


def test_one_that_nobody_served_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, 1.0, 1.0)
    machine.unable = {Workload(1, 2, 2)}
    asking, other = machine.comparisons(2)
    with pytest.raises(WorkerError):
        asking.spend("tpot")
    assert [asking.begun, other.begun] == [True, False]


def test_what_disturbed_too_many_pairs_is_named_where_the_others_do_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = Machine(monkeypatch, 1.0, 1.0).comparisons()
    one.spend("tpot")
    disturbed = Pair(tuple(replace(turn, culprit="others used 1.0 cores") for turn in one.pairs[0].turns))
    one.pairs[0] = disturbed
    found = one.judge("tpot", 0.001)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.reason.endswith("; 1 of 4 pairs had too few undisturbed turns: others used 1.0 cores")


@pytest.mark.parametrize(("disturbed", "pairs"), [(0, 4), (1, 5), (12, 6)])
def test_disturbed_pairs_are_replaced_for_as_long_again(
    monkeypatch: pytest.MonkeyPatch, disturbed: int, pairs: int
) -> None:
    machine = Machine(monkeypatch, 10.0, 1.0)
    monkeypatch.setattr(
        "pytest_llmperf.gate.turns.fitness.culprits",
        lambda records: ["others"] if machine.started <= disturbed else [None],
    )
    (one,) = machine.comparisons(budget=100.0)
    one.spend("tpot")
    assert len(one.pairs) == pairs


def test_a_pair_counts_if_each_arm_has_enough_undisturbed_turns() -> None:
    def turn(arm: str, culprit: str | None = None) -> Turn:
        sample = Sample(Trace(((1, 2),), ((0.1, 0.2),)), Fitness(), 0)
        return Turn({"base": (sample,), arm: (sample,)}, culprit, in_step=True)

    head, slow, disturbed = turn("head"), turn("slow"), turn("slow", "others used 1.0 cores")
    assert Pair((head, slow, head, slow)).counts
    assert not Pair((head, slow, head, disturbed, head)).counts
    pairs = [Pair((head, slow, head, disturbed, head)), Pair((head, slow, head, slow, head))]
    assert [[len(pair) for pair in blocks(pairs, "tpot", "base", arm)] for arm in ("head", "slow")] == [[3], [2]]


def test_who_is_judged_already_joins_no_further_pair_unless_another_metric_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(monkeypatch, 1.0, 1.0)
    machine.noise = repeat(1.0)
    first, second = machine.comparisons(2, budget=100.0)
    machine.unable = {Workload(2, 2, 2)}
    assert first.judge("tpot", 0.03).outcome is Outcome.OK
    assert [len(first.pairs), len(second.pairs)] == [FEWEST, 0]
    machine.unable = set()
    assert second.judge("tpot", 0.03).outcome is Outcome.OK
    assert [len(first.pairs), len(second.pairs)] == [FEWEST, FEWEST]
    second.spend("ttft")
    assert len(first.pairs) == FEWEST_TO_FAIL
