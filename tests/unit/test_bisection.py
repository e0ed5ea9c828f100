"""Which candidate is compared next, and which is the first slower one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from math import ceil, log2
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf import bisecting, cli
from pytest_llmperf.bisecting import BisectError, Bisection, Candidates, Environments, Step
from pytest_llmperf.gate.bisection import Found, bounds, following, judged

CASE = "m/bfloat16/sim/b1-p16-n8/tpot"


def searched(first_bad: int, last: int, mute: frozenset[int] = frozenset()) -> tuple[int, int, int]:
    """Good and bad end of the row, and how many were compared, where those in ``mute`` tell nothing."""
    decided: dict[int, Found] = {}
    while (one := following(last, decided)) is not None:
        assert one not in decided
        decided[one] = Found.OPEN if one in mute else Found.BAD if one >= first_bad else Found.GOOD
    return *bounds(last, decided), len(decided)


@given(st.integers(1, 300), st.data())
def test_the_first_bad_one_is_found_in_as_few_comparisons_as_halving_takes(last: int, data: st.DataObject) -> None:
    first_bad = data.draw(st.integers(1, last))
    good, bad, compared = searched(first_bad, last)
    assert (good, bad) == (first_bad - 1, first_bad)
    assert compared <= ceil(log2(last))


@given(st.integers(2, 60), st.data())
def test_those_that_tell_nothing_are_never_guessed(last: int, data: st.DataObject) -> None:
    first_bad = data.draw(st.integers(1, last))
    mute = data.draw(st.frozensets(st.integers(1, last - 1), max_size=5))
    good, bad, _ = searched(first_bad, last, mute)
    assert good < first_bad <= bad
    assert set(range(good + 1, bad)) <= mute


def test_one_that_tells_nothing_is_passed_on_both_sides() -> None:
    assert following(16, {}) == 8
    assert following(16, {8: Found.UNABLE}) == 9
    assert following(16, {8: Found.OPEN, 9: Found.OPEN}) == 7
    assert following(16, {8: Found.OPEN, 9: Found.GOOD}) == 12
    assert following(2, {1: Found.OPEN}) is None


@given(st.integers(4, 300), st.data())
def test_one_in_the_middle_that_tells_nothing_costs_one_comparison(last: int, data: st.DataObject) -> None:
    first_bad = data.draw(st.integers(1, last))
    *_, compared = searched(first_bad, last, frozenset({last // 2}))
    assert compared <= ceil(log2(last)) + 1


@given(st.integers(1, 64))
def test_a_row_that_cannot_run_is_left_in_growing_steps(width: int) -> None:
    mute = frozenset(range(150 - width // 2, 150 - width // 2 + width))
    for first_bad in (30, 270):
        *_, compared = searched(first_bad, 300, mute)
        assert compared <= ceil(log2(300)) + 2 * ceil(log2(width + 1)) + 2


@pytest.mark.parametrize(
    ("outcomes", "found"),
    [
        (("regression", "ok"), Found.BAD),
        (("regression", None), Found.BAD),
        (("ok", "faster"), Found.GOOD),
        (("ok", "inconclusive"), Found.OPEN),
        (("ok", "new"), Found.OPEN),
        (("ok", None), Found.UNABLE),
    ],
)
def test_a_candidate_is_judged_by_the_cases_that_are_slower_in_the_last(
    outcomes: Sequence[str | None], found: Found
) -> None:
    verdicts = {str(number): {"outcome": one} for number, one in enumerate(outcomes) if one is not None}
    assert judged(verdicts | {"another": {"outcome": "regression"}}, ["0", "1"]) is found


class Row(Candidates):
    """Candidates by number."""

    kind = "revision"

    def __init__(self, count: int) -> None:
        self.names = tuple(f"c{number}" for number in range(count))

    def options(self, one: int, base: int) -> list[str]:
        return [str(one), str(base)]

    @property
    def identity(self) -> list[str]:
        return list(self.names)


class Simulated(Bisection):
    """A bisection whose runs of pytest are made up: candidates from ``first_bad`` on are 8 % slower.

    ``open`` are inconclusive, ``broken`` end with a usage error, ``uncollected`` while tests are collected, and
    ``stop`` is one at which Ctrl-C comes.
    """

    first_bad, open, broken, uncollected, stop = 7, frozenset[int](), frozenset[int](), frozenset[int](), -1

    def _pytest(self, options: list[str], results: Path, log: Path) -> int:
        one, base = map(int, options)
        log.write_text("collected\nERROR: no module named this\n")
        if one == self.stop:
            log.write_text("!!!! KeyboardInterrupt !!!!\n")
            return bisecting.INTERRUPTED
        if one in self.uncollected:
            return bisecting.INTERRUPTED
        if one in self.broken:
            return 4
        slower = (one >= self.first_bad) > (base >= self.first_bad)
        outcome = "inconclusive" if one in self.open else "regression" if slower else "ok"
        ratio = 1.08 if slower else 1.0
        verdict = {"outcome": outcome, "ratio": ratio, "low": ratio - 0.01, "high": ratio + 0.01, "reason": ""}
        verdict |= {"count": 4, "basis": "base"}
        why = ["+7.9% copy_: new, 30 calls a step"] if slower else []
        results.write_text(json.dumps({"results": [{"case": CASE, "verdict": verdict, "slower": why}]}))
        return int(outcome == "regression")


def lines(tmp_path: Path, count: int = 17, **what: Any) -> tuple[int, list[str]]:
    said: list[str] = []
    one = Simulated(Row(count), ["suites"], tmp_path, said.append)
    for name, value in what.items():
        setattr(one, name, value)
    return one.run(), said


def test_the_first_slower_one_is_named_with_its_interval_beside_the_one_before_it(tmp_path: Path) -> None:
    code, said = lines(tmp_path)
    assert code == 0
    assert said[-4:] == [
        "the first slower revision is c7",
        "  beside the revision before it: tpot b1-p16-n8 sim +8.0% [+7.0%, +9.0%] in 4 pairs",
        "  tpot b1-p16-n8 sim: +7.9% copy_: new, 30 calls a step",
        "6 comparisons in 0.0 min; 24 pairs in all",
    ]
    assert "  c16: bad: tpot b1-p16-n8 sim +8.0% [+7.0%, +9.0%] in 4 pairs (0 s)" in said
    assert "  c4: good: ok, tpot b1-p16-n8 sim +0.0% [-1.0%, +1.0%] in 4 pairs (0 s)" in said


def test_of_memory_it_is_the_first_that_takes_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "CASE", "m/bfloat16/sim/b1-p16-n8/memory")
    assert lines(tmp_path)[1][-4] == "the first revision that takes more memory is c7"


def test_one_that_cannot_run_is_skipped_with_its_last_words(tmp_path: Path) -> None:
    code, said = lines(tmp_path, broken=frozenset({8, 7}))
    assert code == 1
    assert "  c8: cannot run: ERROR: no module named this (0 s)" in said
    at = said.index("the first slower revision is one of these 3, which cannot be told apart:")
    assert said[at + 1 : at + 4] == ["  c7: cannot run", "  c8: cannot run", "  c9: bad"]


def test_an_inconclusive_one_is_not_guessed(tmp_path: Path) -> None:
    code, said = lines(tmp_path, open=frozenset({7}))
    assert (code, said[-3:-1]) == (1, ["  c7: inconclusive", "  c8: bad"])


def test_a_stopped_one_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        lines(tmp_path, stop=4)
    code, said = lines(tmp_path)
    assert (code, said[0]) == (0, "goes on after 2 comparisons that were made before")
    assert sum(one.startswith("comparing") for one in said) == 4
    assert said[-4] == "the first slower revision is c7"
    assert lines(tmp_path)[1][0] == "comparing c16", "what was finished is not gone on with"


@pytest.mark.parametrize("text", ["{", '[{"candidate": 16}]', '[{"found": "good", "more": 1}]', "[1]", "{}"])
def test_steps_that_cannot_be_read_are_made_again(tmp_path: Path, text: str) -> None:
    (tmp_path / "steps.json").write_text(text)
    assert lines(tmp_path)[1][0] == "comparing c16"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"first_bad": 99}, "nothing to find: beside the first revision the last one, c16, is ok, tpot .*; name tests"),
        ({"broken": frozenset({16})}, "c16: ERROR: no module named this"),
        ({"uncollected": frozenset({16})}, "c16: ERROR: no module named this"),
        ({"open": frozenset({16})}, "nothing to find: .* is inconclusive, "),
    ],
)
def test_a_last_one_that_is_not_slower_ends_it(tmp_path: Path, what: dict[str, Any], said: str) -> None:
    with pytest.raises(BisectError, match=said):
        lines(tmp_path, **what)


def test_a_good_one_that_cannot_run_ends_it(tmp_path: Path) -> None:
    new = {
        "outcome": "new",
        "ratio": None,
        "reason": "base, v1, cannot run it: no module",
        "basis": "stored",
        "count": 1,
    }
    one = Simulated(Row(3), ["suites"], tmp_path, lambda _: None)
    one._steps.append(Step(2, 0, Found.OPEN, new["reason"], 1.0, {CASE: new}))  # type: ignore[arg-type]
    with pytest.raises(BisectError, match="base, v1, cannot run it: no module"):
        one.run()


def test_environments_are_compared_by_their_interpreters(tmp_path: Path) -> None:
    import sys

    (other := tmp_path / "python").symlink_to(sys.executable)
    row = Environments([sys.executable, str(other)])
    assert row.options(1, 0) == [f"--llm-base-python={sys.executable}", f"--llm-python={other}"]
    with pytest.raises(BisectError, match="cannot ask '/no/python' what is installed there"):
        Environments([sys.executable, "/no/python"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bisect", "a", "b"], "name the tests that are slower after --"),
        (["bisect", "a", "--", "suites"], "name two revisions"),
        (["bisect", "a", "b", "--environments", "python3", "--", "suites"], "not both"),
        (["bisect", "--environments", "python3", "--", "suites"], "there is nothing between the first environment"),
    ],
)
def test_a_command_that_bisects_nothing_says_why(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert said in capsys.readouterr().err


def test_two_that_bisect_the_same_at_once_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    row = Row(3)
    identity = [str(Path.cwd()), row.kind, *row.identity, "suites"]
    with bisecting._own(identity), pytest.raises(BisectError, match="another process bisects the same"):
        bisecting.bisect(row, ["suites"])
    assert replace(Step(1, 0, None, "", 0.0)).found is None
