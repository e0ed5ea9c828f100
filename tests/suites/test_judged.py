"""Parity judges tokens of timed generations, drawn after they were timed, and says which prompt had a wrong answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from inner import Suite

#: For the conftest.py: an engine whose tokens are wrong in the generations that ``wrong`` names by their number, and
#: one whose logits are shown.
ASTRAY = """
class Astray(Simulated):
    def __init__(self, wrong, **options):
        super().__init__(tpot=0.005, **options)
        self.wrong, self.made = wrong, 0

    def generate(self, prompts, max_new_tokens, on_token):
        self.wrong_from = 2 if self.wrong(self.made) else None
        self.made += 1
        super().generate(prompts, max_new_tokens, on_token)

    def observe(self, *arguments):
        self.wrong_from = None
        return super().observe(*arguments)

class Shown(Simulated):
    def __init__(self, error):
        super().__init__(tpot=0.005)
        self.error = error

    def observe(self, prompts, max_new_tokens, leading):
        from dataclasses import replace
        found = super().observe(prompts, max_new_tokens, leading)
        logits = [[1.01 + self.error, 0.5, 0.0]] * max_new_tokens
        return [replace(one, candidates=[[1, 2, 3]] * max_new_tokens, logits=logits) for one in found]
"""
GATE = "def test_gate(llm_perf):\n    llm_perf.gate('tpot')\n"
CHECK = "def test_tokens(llm_parity):\n    llm_parity.check()\n"


@pytest.fixture
def judged(suite: Suite) -> Suite:
    suite.test(GATE + CHECK)
    return suite


def astray(suite: Suite, wrong: str) -> None:
    suite.backends(sim=f"Astray(lambda number: {wrong})", extra=ASTRAY)


def run(suite: Suite, *arguments: str) -> tuple[pytest.RunResult, dict[str, Any]]:
    result = suite.run("test_it.py", "--llm-backends=sim", "--llm-results=raw.json", *arguments)
    return result, json.loads((suite.path / "raw.json").read_text())


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("order", [GATE + CHECK, CHECK + GATE], ids=["gate first", "parity first"])
def test_tokens_that_go_wrong_late_are_found_in_every_order(suite: Suite, order: str, batch: int) -> None:
    """The first generations are right: no batch that is generated for parity alone shows anything."""
    suite.test(order)
    astray(suite, "number >= 3")
    result, raw = run(suite, f"--llm-batch-sizes={batch}")
    result.assert_outcomes(passed=1, failed=1)
    (parity,) = raw["parity"]
    assert f" of {batch} of timed generation " in parity["reason"]
    assert len(raw["measurements"]) == 1, "what was timed for parity is what is gated"


def test_what_was_never_timed_is_generated(judged: Suite) -> None:
    judged.test(CHECK)
    astray(judged, "True")
    result, raw = run(judged)
    result.stdout.fnmatch_lines(
        ["sim b1-p16-n8: not in parity with ref: a token is 5 logits worse than the reference's choice; rounding "
         "explains * (token 2 of request 0 of 1 of untimed generation 0, prompts of 16 tokens each); "
         "--llm-seed=0 repeats the prompts"]
    )  # fmt: skip
    assert raw["measurements"] == []


def test_nothing_is_measured_for_parity_where_nothing_is_to_be_timed(judged: Suite) -> None:
    _, raw = run(judged, "--benchmark-disable")
    assert raw["measurements"] == []
    assert raw["parity"][0]["passed"]


def test_a_gate_that_failed_is_not_measured_again(judged: Suite) -> None:
    judged.backends(
        sim="Astray(lambda number: False, evidence=Engagement(False, 'a kernel') if process == 1 else None)",
        extra=ASTRAY,
    )
    result, raw = run(judged)
    result.assert_outcomes(passed=1, failed=1)
    assert raw["measurements"] == []


def test_a_warm_up_that_was_wrong_is_not_judged(judged: Suite) -> None:
    astray(judged, "number == 0")
    result, _ = run(judged)
    result.assert_outcomes(passed=2)


def test_a_wrong_token_of_unequal_lengths_names_the_length(judged: Suite) -> None:
    astray_untimed = ASTRAY.replace("self.wrong_from = None\n", "self.wrong_from = 2\n")
    judged.backends(sim="Astray(lambda number: False)", extra=astray_untimed)
    result, raw = run(judged, "--llm-batch-sizes=4")
    result.assert_outcomes(passed=1, failed=1)
    assert raw["parity"][0]["reason"].endswith(
        "(token 2 of request 0 of 4 of untimed batch 0, a prompt of 16 tokens among unequal ones)"
    )


def test_a_verdict_by_tokens_alone_says_so(judged: Suite) -> None:
    result, raw = run(judged, "--llm-report=out.md,out.html,out.csv")
    result.stdout.fnmatch_lines(["sim *in parity by tokens *100.0%*"])
    assert raw["parity"][0]["error_ratio"] is None
    for form in ("md", "html", "csv"):
        assert "in parity by tokens" in (judged.path / f"out.{form}").read_text()


def test_one_by_logits_does_not(judged: Suite) -> None:
    judged.backends(sim="Shown(0.0)", extra=ASTRAY)
    result, raw = run(judged)
    result.assert_outcomes(passed=2)
    assert (raw["parity"][0]["positions"], raw["parity"][0]["settled"]) == (56, True), "of 7 batches of 8 tokens"
    result.stdout.no_fnmatch_line("*by tokens*")
    judged.backends(sim="Shown(0.1)", extra=ASTRAY)
    result, raw = run(judged)
    result.assert_outcomes(passed=1, failed=1)
    said = "(most so in request 0 of 1 of untimed batch 0, a prompt of 16 tokens)"
    assert raw["parity"][0]["reason"].endswith(said)


# Timed after the test of parity

#: For the conftest.py: an engine whose tokens are wrong throughout, in a process where ``wrong``.
LATE = """
class Late(Simulated):
    def __init__(self, wrong):
        super().__init__(tpot=0.005, wrong_from=2 if wrong else None)
"""


def test_what_an_update_times_after_parity_is_judged_then(suite: Suite) -> None:
    suite.backends(sim="Late(process > 1)", extra=LATE)
    suite.test(CHECK + GATE)
    result, raw = run(suite, "--llm-update-baselines")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines("FAILED test_it.py::test_gate* sim b1-p16-n8: not in parity with ref: a token is 5 *")
    assert not suite.baseline.exists()
    assert [one["case"] for one in raw["results"]] == ["bfloat16/sim/b1-p16-n8/tpot"], "the figure is kept"
    (parity,) = raw["parity"]
    assert not parity["passed"]
    assert raw["update"]["refused"] == {"bfloat16/sim/b1-p16-n8/tpot": "its tokens were not shown to be right"}


def test_right_tokens_are_accepted_in_every_order(suite: Suite) -> None:
    suite.test(CHECK + GATE)
    result, raw = run(suite, "--llm-update-baselines")
    result.assert_outcomes(passed=2)
    assert len(raw["parity"]) == 1
    assert suite.stored()["entries"]


@pytest.mark.parametrize("order", [GATE + CHECK, CHECK + GATE], ids=["gate first", "parity first"])
def test_what_is_timed_beside_base_is_judged_too(suite: Suite, order: str) -> None:
    suite.test(order)
    suite.commit()
    suite.backends(sim="Late(process > 1)", extra=LATE)
    result, raw = run(suite, "--llm-base=HEAD", "--llm-compare=always", "--llm-batch-sizes=8")
    result.assert_outcomes(passed=1, failed=1)
    assert raw["results"][0]["verdict"]["basis"] == "base"
    assert not raw["parity"][0]["passed"]


@pytest.mark.parametrize("why", ["comes after -x", "is skipped late"])
def test_what_was_to_be_judged_and_was_not_is_not_accepted(suite: Suite, why: str) -> None:
    broken = {
        "comes after -x": "def test_other(llm_backend):\n    assert False\n" + CHECK,
        "is skipped late": "import pytest\ndef test_tokens(llm_parity):\n    pytest.skip('not now')\n",
    }[why]
    suite.test(GATE + broken)
    result, raw = run(suite, "--llm-update-baselines", "-x")
    assert raw["update"]["refused"] == {"bfloat16/sim/b1-p16-n8/tpot": "its tokens were not judged"}
    assert not suite.baseline.exists()
    assert result.ret == 1
    result.stdout.fnmatch_lines("*1 cases, disturbed, not judged or not in parity, were not accepted*")


def test_speedups_are_known_in_every_order(suite: Suite) -> None:
    suite.backends(extra="def pytest_collection_modifyitems(items):\n    items.reverse()\n")
    suite.test(GATE)
    suite.run("test_it.py", "--llm-results=raw.json")
    raw = json.loads((suite.path / "raw.json").read_text())
    assert {one["case"]: one["speedup"] for one in raw["results"]} == pytest.approx(
        {"bfloat16/sim/b1-p16-n8/tpot": 2.0, "bfloat16/ref/b1-p16-n8/tpot": 1.0}
    )
    assert raw["results"][0]["case"].startswith("bfloat16/sim/")


REPEATING = """
class Repeating(Simulated):
    def token(self, request, position):
        return 7
"""


def test_tokens_that_only_repeat_are_not_called_wrong(suite: Suite) -> None:
    suite.backends(ref="Repeating()", sim="Repeating(tpot=0.005)", extra=REPEATING)
    result = suite.run("suites/test_greedy_parity.py", "--llm-results=raw.json", "--llm-report=report.md")
    result.assert_outcomes(failed=2)
    for name in ("ref", "sim"):
        line = f"{name} b1-p16-n8: parity not shown: only * tokens carry information*"
        result.stdout.fnmatch_lines([line, f"{name} *PARITY NOT SHOWN*"])
    result.stdout.no_fnmatch_line("*not in parity*")
    assert "parity not shown" in (suite.path / "report.md").read_text()
    assert [one["judged"] for one in json.loads((suite.path / "raw.json").read_text())["parity"]] == [False, False]
