"""The replay of recorded processes and pairs."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gate import calibration, h200, judged, replay, tables
from benchmarks.gate.calibration import Difference
from benchmarks.gate.judged import Judged
from benchmarks.gate.records import DISTURBED, OTHER_STATE, Decision, Trial, trials
from pytest_llmperf.gate.pairs import Block
from pytest_llmperf.gate.priors import Prior
from pytest_llmperf.gate.rule import Outcome

PRIOR = Prior(0.01)
SITTING = [1.0, 1.001, 0.999, 1.002, 0.998]


def in_pairs(*ratios: float, turns: int = 4, culprits: tuple[int, ...] = ()) -> dict[str, Any]:
    """The record of a workload beside base: pairs of one ratio each; ``culprits`` are the first pair's."""
    first = [*culprits, *[0] * (turns - len(culprits))]
    metrics = ("tpot", "ttft")
    return {
        "verdicts": {"tpot": "ok", "ttft": "inconclusive"},
        "samples": [
            {
                "base": {metric: [1.0] * turns for metric in metrics},
                "head": {metric: [ratio + turn * 1e-4 for turn in range(turns)] for metric in metrics},
            }
            for ratio in ratios
        ],
        "culprits": [first, *([0] * turns for _ in ratios[1:])],
    }


def in_processes(*head: float, **more: Any) -> dict[str, Any]:
    """The record of a workload by a stored baseline."""
    rows = [
        {"base": {"tpot": [base, base]}, "head": {"tpot": [figure, figure] if figure else []}}
        for base, figure in zip_longest(SITTING, head)
    ]
    return {"verdicts": {"tpot": "ok"}, "samples": rows, **more}


def decision(record: dict[str, Any], slowed: bool = False) -> Decision:
    return Decision("tpot", slowed, 0.05, record)


def trial(*records: dict[str, Any], kind: str = "same", stored: bool = False) -> Trial:
    runs = [{f"b{number}-p32-n4": record} for number, record in enumerate(records, 1)]
    return Trial("a-trial", "python -m benchmarks.gate", "AMD EPYC (26/2/1)", kind, stored, 0.05, runs)


def test_disturbed_turns_do_not_count_and_pairs_with_too_few_others_neither() -> None:
    found = decision(in_pairs(1.0, 1.1, culprits=(1, 0, 1, 0))).pairs
    assert found[0] == [Block(1.0, 1.0001), Block(1.0, 1.0003)]
    assert len(found[1]) == 4
    assert len(decision(in_pairs(1.0, 1.1, culprits=(1, 1, 1))).pairs) == 1


def test_pairs_are_looked_at_one_after_another_until_a_verdict_is_final() -> None:
    steady = [[Block(1.0, 1.0)] * 4] * 3
    slow = [[Block(1.0, 2.0)] * 4] * 9
    assert judged.beside(steady, 0.03).outcome is Outcome.OK
    assert judged.beside(steady + slow, 0.03).count == 3  # what came later was not waited for
    assert judged.beside(slow, 0.03).count == 4  # a regression takes four


def test_fewer_than_two_pairs_say_nothing() -> None:
    found = judged.beside([[Block(1.0, 2.0)] * 4], 0.03)
    assert (found.outcome, found.basis, found.not_excluded) == (Outcome.INCONCLUSIVE, "base", 0.0)


@pytest.mark.parametrize(
    ("head", "other_state", "outcome", "compared"),
    [
        (1.0, False, Outcome.OK, False),
        (1.0, True, Outcome.INCONCLUSIVE, True),
        (1.1, False, Outcome.INCONCLUSIVE, True),  # one process never fails a test
        (0.9, False, Outcome.FASTER, False),
        (0.7, False, Outcome.FASTER, True),  # too fast to be believed
    ],
)
def test_a_screening_says_what_the_default_flow_does(
    head: float, other_state: bool, outcome: Outcome, compared: bool
) -> None:
    found = Judged(judged.screen(SITTING, head, PRIOR, 0.05, other_state), 0.05)
    assert (found.verdict.outcome, found.compared) == (outcome, compared)


def test_of_fresh_processes_the_smaller_slowdown_counts() -> None:
    head = [1.2, 1.201, 1.199]
    assert judged.by_fresh(SITTING, head, PRIOR, 0.05).outcome is Outcome.REGRESSION
    with_eager = judged.by_fresh(SITTING, head, PRIOR, 0.05, ([2.0], [2.4]))
    assert with_eager.outcome is Outcome.OK
    assert with_eager.ratio == pytest.approx(1.0)
    assert with_eager.head == pytest.approx(1.2, rel=1e-3)  # in seconds, not over the reference
    faster_eager = judged.by_fresh(SITTING, head, PRIOR, 0.05, ([2.0], [1.6]))
    assert faster_eager.ratio == pytest.approx(1.2, rel=1e-3)


def test_three_fresh_processes_are_judged_unless_the_machine_was_disturbed_or_elsewhere() -> None:
    slow = (1.0, 1.5, 1.5, 1.5)
    found = judged.by_sitting(decision(in_processes(*slow))).fresh
    assert found is not None
    assert (found.outcome, found.count) == (Outcome.REGRESSION, 3)
    with_eager = judged.by_sitting(decision(in_processes(*slow, drift={"tpot": 1.5}))).fresh
    assert with_eager is not None
    assert with_eager.outcome is not Outcome.REGRESSION
    assert judged.by_sitting(decision(in_processes(1.0, 1.5))).fresh is None
    for flag in (OTHER_STATE, DISTURBED):
        assert judged.by_sitting(decision(in_processes(*slow, flags={"tpot": flag}))).fresh is None


def test_a_slowdown_of_the_steps_does_not_show_in_the_ttft() -> None:
    found = {one.metric: one.slowed for one in trial(in_pairs(1.1), kind="work-10").decisions()}
    assert found == {"tpot": True, "ttft": False}
    assert not any(one.slowed for one in trial(in_pairs(1.1)).decisions())


def test_files_without_a_kind_are_no_trials(tmp_path: Path) -> None:
    (tmp_path / "cost.json").write_text('{"seconds": {}}')
    assert trials(tmp_path) == []


def replayed(*held: Trial) -> list[tuple[Trial, list[Judged]]]:
    return [(one, judged.trial(one)) for one in held]


def test_the_criterion_is_about_unchanged_and_slowed_code() -> None:
    good = [
        trial(in_pairs(1.0, 1.0, 1.0)),
        trial(in_pairs(1.1, 1.1, 1.1, 1.1) | {"verdicts": {"tpot": "ok"}}, kind="work-10"),
        trial(in_pairs(1.1, 1.1, 1.1, 1.1) | {"verdicts": {"tpot": "ok"}}, kind="sleep-5"),
    ]
    lines, holds = replay.findings(replayed(*good), [])
    assert holds
    assert lines[0] == "Unchanged code, beside base: 0 of 2 decisions are a `regression`."
    cried = [trial(in_pairs(1.2, 1.2, 1.2, 1.2)), *good[1:]]
    assert not replay.findings(replayed(*cried), [])[1]
    missed = [good[0], trial(in_pairs(1.0, 1.0, 1.0), kind="work-10"), good[2]]
    assert not replay.findings(replayed(*missed), [])[1]


def test_an_ok_that_excludes_too_little_does_not_hold() -> None:
    made = Judged(judged.screen(SITTING, 1.0, PRIOR, 0.05), 0.05)
    assert made.right
    assert not Judged(made.verdict, tolerance=made.verdict.not_excluded / 2).right


def test_cases_in_another_state_are_listed_by_run() -> None:
    made = replayed(trial(in_processes(1.0), in_processes(1.2, flags={"tpot": OTHER_STATE}), stored=True))
    assert list(replay.elsewhere(made)) == ["a-trial, run 2: b2-p32-n4/tpot"]


def test_the_tables_count_each_decision_once() -> None:
    made = replayed(trial(in_processes(1.0), in_processes(1.2), in_processes(1.2), stored=True))
    row = made[0][1]
    assert sum(tables.screened(row)) == len(row) == 3
    assert tables.before(row) == "0 / 3 / 0 / 0"
    assert "| a-trial | unchanged | 3 | 5 % | 0 | 2 |" in tables.by_stored(made)


def test_each_sitting_is_held_against_each_earlier_one_without_disturbed_processes(tmp_path: Path) -> None:
    eager, sdpa = (f"bfloat16/{backend}/b1-p8-n4/tpot" for backend in ("eager", "sdpa"))
    sittings = [
        {"label": "one", "cases": {eager: [1.0, 9.0], sdpa: [0.5]}, "disturbed": {eager: [2]}},
        {"label": "two", "cases": {eager: [1.1], sdpa: [0.6]}},
        {"label": "three", "cases": {eager: [1.2], sdpa: [7.0]}, "disturbed": {sdpa: [1]}},
    ]
    (tmp_path / "sittings.json").write_text(json.dumps({"sittings": sittings}))
    found = list(h200.comparisons(tmp_path / "sittings.json"))
    assert [(one.earlier, one.later, one.sitting, one.head) for one in found if one.case == eager] == [
        ("one", "two", [1.0], [1.1]),
        ("one", "three", [1.0], [1.2]),
        ("two", "three", [1.1], [1.2]),
    ]
    (only,) = (one for one in found if one.case == sdpa)
    assert (only.metric, only.over) == ("tpot", ([1.0], [1.1]))
    assert judged.on_h200(only).fresh is None


def test_the_spread_is_without_the_noise_of_the_processes() -> None:
    alone = [Difference([1.0], head) for head in (1.02, 1 / 1.02)]
    assert calibration.root_mean_square(alone) == pytest.approx(0.0198, abs=1e-4)
    assert calibration.spread(alone) == pytest.approx(0.0198 / 2**0.5, abs=1e-4)
    noisy = [Difference([0.95, 1.0, 1.05], head) for head in (1.02, 1 / 1.02)]
    assert calibration.spread(noisy) == 0.0


def test_an_interval_misses_what_the_prior_does_not_expect() -> None:
    found = Difference(SITTING, 1.2)
    assert found.missed(PRIOR)
    assert not found.missed(Prior(0.1))
