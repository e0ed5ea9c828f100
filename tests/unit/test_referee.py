"""The referee generates untimed batches until the decision no longer depends on which text the run has."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import Any

import pytest

from pytest_llmperf.backends.base import Observation, Score
from pytest_llmperf.cases import Workload
from pytest_llmperf.parity.decision import Parity, enough_positions, error_margin
from pytest_llmperf.parity.scoring import MOST_BATCHES, Made, Referee

WORKLOAD = Workload(batch_size=1, prompt_length=4, max_new_tokens=16)
HALF, SINGLE = error_margin("bfloat16"), error_margin("float32")
LOGITS = 16


class Engines:
    """A backend and the reference. A batch's number is its prompt.

    Args:
        times: how many times as far as the reference's the backend's logits are from the exact ones, by batch.
        repeats: the batches whose tokens repeat one another.
        shows: whether the backend shows its logits.
    """

    def __init__(self, times: Any = lambda batch: 1.0, repeats: Any = lambda batch: False, shows: bool = True) -> None:
        self.times, self.repeats, self.shows, self.calls = times, repeats, shows, []
        self.draw = random.Random(0)

    def tokens(self, batch: int) -> list[int]:
        return [7] * WORKLOAD.max_new_tokens if self.repeats(batch) else self.draw.sample(range(999), 16)

    def logits(self, times: float) -> list[list[float]]:
        """Around 0, which stands for the exact ones."""
        return [[self.draw.gauss(0, times) for _ in range(LOGITS)] for _ in range(WORKLOAD.max_new_tokens)]

    def __call__(self, backend: str, operation: str, **asked: Any) -> list[dict[str, Any]]:
        self.calls.append((backend, operation))
        if operation == "observe":
            ((batch,),) = asked["prompts"]
            logits = self.logits(self.times(batch)) if self.shows else []
            ids = [list(range(LOGITS))] * len(logits)
            return [asdict(Observation(self.tokens(batch), ids, logits, f"text {batch}"))]
        own, exact = self.logits(1.0), [[0.0] * LOGITS] * WORKLOAD.max_new_tokens
        return [asdict(Score([0.0] * 16, exact, own, exact)) for _ in asked["prompts"]]

    @property
    def batches(self) -> int:
        return self.calls.count(("mine", "observe"))

    @property
    def turns(self) -> int:
        """How often the other engine is asked than before: without memory for both, one is loaded each time."""
        return sum(one != other for one, other in zip(self.calls, self.calls[1:], strict=False))


def judge(engines: Engines, margin: float = HALF, **other: Any) -> Parity:
    referee = Referee(engines, "ref", [], lambda text: None, margin)
    timed = [Made("a timed row", [99], tuple(engines.tokens(99)), "text 99")]
    return referee.judge("mine", WORKLOAD, timed=timed, untimed=lambda number: [[number]], **other)


@pytest.mark.parametrize(("margin", "batches"), [(HALF, 4), (SINGLE, 1)])
def test_a_right_kernel_is_settled_with_few_batches(margin: float, batches: int) -> None:
    assert -(-enough_positions(margin) // WORKLOAD.max_new_tokens) == batches
    engines = Engines(lambda batch: 0.9)
    found = judge(engines, margin)
    assert (found.passed, found.settled) == (True, True)
    assert engines.batches == batches
    assert found.positions == 16 * batches


def test_an_error_that_the_first_batches_hide_is_found() -> None:
    """The first batches have text on which the wrong kernel is hardly further off, so that they do not settle it."""
    engines = Engines(lambda batch: 1.1 if batch < 4 else 3.0)
    found = judge(engines)
    assert "times as far" in found.reason
    assert engines.batches == 8
    assert engines.turns <= 3, "the engines are asked in rounds"


def test_what_stays_near_the_margin_ends_at_some_time() -> None:
    engines = Engines(lambda batch: HALF)
    found = judge(engines)
    assert (found.passed, found.settled) == (True, False)
    assert engines.batches == MOST_BATCHES


@pytest.mark.parametrize("options", [{}, {"other_weights": True}])
@pytest.mark.parametrize("shows", [True, False])
def test_text_that_repeats_is_followed_by_other_text(shows: bool, options: dict[str, bool]) -> None:
    found = judge(Engines(repeats=lambda batch: batch in (0, 99), shows=shows), SINGLE, **options)
    assert found.passed, found.reason


def test_text_that_always_repeats_proves_nothing() -> None:
    engines = Engines(repeats=lambda batch: True)
    found = judge(engines, SINGLE)
    assert "carry information" in found.reason
    assert engines.batches == 4


@pytest.mark.parametrize(("reference", "passes"), [([1, 2, 3, 9, 4, 5], True), ([1, 2, 3, 4, 5, 6], False)])
def test_a_text_that_ended_is_held_against_the_references_up_to_its_end(reference: list[int], passes: bool) -> None:
    """Token 9 ends a sequence, which this server does not show."""

    def decode(prompt: Any, tokens: Any) -> str:
        return " ".join(map(str, tokens))

    def ask(backend: str, operation: str, **asked: Any) -> list[dict[str, Any]]:
        assert operation == "observe"
        tokens = [-1] * 3 if backend == "mine" else reference
        return [asdict(Observation(tokens, [], [], "1 2 3", ended=backend == "mine"))]

    found = Referee(ask, "ref", [9], lambda text: None).judge_by_text(
        "mine", Workload(1, 4, 6), timed=[], untimed=lambda number: [[number]], decode=decode
    )
    assert found.passed == passes, found.reason


def test_by_text_too_other_text_follows() -> None:
    engines = Engines(repeats=lambda batch: batch in (0, 99), shows=False)
    referee = Referee(engines, "ref", [], lambda text: None)
    timed = [Made("a timed row", [99], (-1,) * 16, "text 99")]
    found = referee.judge_by_text(
        "mine", WORKLOAD, timed=timed, untimed=lambda number: [[number]], decode=lambda prompt, _: f"text {prompt[0]}"
    )
    assert (found.passed, found.by_text) == (True, True)
    assert engines.batches > 1
