"""An engine that cannot go on past end-of-sequence: what ends early has no figures, and parity judges it too."""

from __future__ import annotations

import json
from typing import Any

import pytest
from inner import Suite

from pytest_llmperf.measure.process import ALL_EARLY

#: For the conftest.py: an engine whose first request ends in some generations after ``KEPT`` tokens, soon. ``end`` is
#: the last of them; None for the one that the reference would choose.
ENDING = """
KEPT = 4

class Ends(Simulated):
    def __init__(self, early, end=None, says=True, kept=KEPT):
        super().__init__(tpot=0.005, pausable=False)
        self.early, self.end, self.says, self.kept, self.made, self.short = early, end, says, kept, 0, False

    def generate(self, prompts, max_new_tokens, on_token):
        self.short = self.early(self.made)
        self.made += 1
        tpot, self.tpot = self.tpot, 0.001 if self.short else self.tpot
        left = self.kept if self.short else max_new_tokens

        def cut(request, token):
            nonlocal left
            if request == 0:
                left -= 1
                if left < 0:
                    return
                token = self.end if self.short and left == 0 and self.end is not None else token
            on_token(request, token)

        super().generate(prompts, max_new_tokens, cut)
        self.tpot = tpot
        self.last = len(prompts)

    def ended(self):
        return [self.short and self.says, *[False] * (self.last - 1)]
"""
#: The simulated reference's token at that position of request 0.
END = 1 + (3 * 3 * 7 + 3) % 997


@pytest.fixture
def ending(suite: Suite) -> Suite:
    suite.model(eos_token_id=END)
    suite.test(
        "def test_gate(llm_perf):\n    llm_perf.gate('tpot')\n\ndef test_tokens(llm_parity):\n    llm_parity.check()\n"
    )
    return suite


def run(suite: Suite, engine: str, *arguments: str) -> tuple[pytest.RunResult, dict[str, Any]]:
    suite.backends(sim=engine, extra=ENDING)
    result = suite.run("test_it.py", "--llm-backends=sim", "--llm-results=raw.json", *arguments)
    return result, json.loads((suite.path / "raw.json").read_text())


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("early", ["number % 3 == 1", "number == 0", "number < 7"])
def test_generations_that_end_early_are_made_again_and_give_no_figure(ending: Suite, batch: int, early: str) -> None:
    result, raw = run(ending, f"Ends(lambda number: {early})", f"--llm-batch-sizes={batch}")
    result.assert_outcomes(passed=2)
    (measured,) = raw["measurements"]
    assert raw["results"][0]["spread"]["minimum"] == pytest.approx(0.005)
    assert measured["early"]
    assert all(len(row) == 8 for one in measured["samples"] for row in one["trace"]["tokens"])
    assert all(len(one["trace"]["tokens"][0]) == 4 for one in measured["early"])


def test_parity_judges_them_too(ending: Suite) -> None:
    """Here no token but an early one is wrong: the reference would not have ended there."""
    ending.model(eos_token_id=[END, 998])
    result, raw = run(ending, "Ends(lambda number: number % 2 == 0, end=998)")
    result.assert_outcomes(passed=1, failed=1)
    assert "(token 3 of request 0 of 1 of timed generation " in raw["parity"][0]["reason"]


@pytest.mark.parametrize(
    ("ends", "kept", "said"),
    [
        ([998, END], 3, ""),
        ([998], 3, "(token 3 of request 0 of 1 of timed generation "),
        ([998, END], 5, "(token 5 of request 0 of 1 of timed generation "),
        (None, 3, "ended early, and the model has no end-of-sequence token"),
    ],
)
def test_an_end_of_sequence_that_is_not_shown_is_judged_as_a_choice(
    ending: Suite, ends: list[int] | None, kept: int, said: str
) -> None:
    """Here an engine keeps it for itself, as some servers do. At position 3 the reference would have chosen it."""
    ending.model(eos_token_id=ends)
    result, _ = run(ending, f"Ends(lambda number: number % 2 == 0, kept={kept})")
    result.assert_outcomes(passed=1 if said else 2, failed=1 if said else 0)
    result.stdout.fnmatch_lines([f"*{said}*"])


def test_an_engine_that_does_not_say_so_ends_with_an_error(ending: Suite) -> None:
    result, _ = run(ending, "Ends(lambda number: number == 2, says=False)", "-k", "gate")
    result.stdout.fnmatch_lines(["*on_token was called 4 times for request 0 *"])


def test_when_all_of_them_end_early_one_line_says_so(ending: Suite) -> None:
    result, _ = run(ending, "Ends(lambda number: True)", "-k", "gate")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*{ALL_EARLY}*"])


def test_a_turn_in_which_one_side_ends_early_is_taken_again(ending: Suite) -> None:
    result, raw = run(ending, "Ends(lambda number: number % 5 == 3)", "--llm-self-test", "--llm-budget=0.1")
    assert result.ret == 0
    turns = [turn for pair in raw["comparisons"][0]["pairs"] for turn in pair["turns"]]
    assert turns
    rows = [row for turn in turns for arm in turn["samples"].values() for one in arm for row in one["trace"]["tokens"]]
    assert {len(row) for row in rows} == {8}
