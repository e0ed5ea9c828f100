"""The gate's test of itself: what it says of pairs whose noise is known, and end to end."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inner import HANGING, Suite, eventually, pytest_process, usage_error

from pytest_llmperf.gate.pairs import Block
from pytest_llmperf.gate.priors import CPU
from pytest_llmperf.gate.selftest import GRID, INJECTED, assess
from pytest_llmperf.report import results


def pairs(spread: float, count: int = 8, slowdown: float = 0.0, seed: int = 0) -> list[list[Block]]:
    """Pairs of equal arms whose log-ratios have that standard deviation; head slowed by so much."""
    rng = random.Random(seed)
    return [[Block(0.04, 0.04 * (1 + slowdown) * (1 + rng.gauss(0, spread)))] * 3 for _ in range(count)]


def processes(spread: float) -> list[list[float]]:
    rng = random.Random(1)
    return [[0.04 * (1 + rng.gauss(0, spread))] * 4 for _ in range(8)]


def test_on_a_quiet_machine_five_per_cent_are_caught_at_three() -> None:
    found = assess(pairs(0.003), pairs(0.003, slowdown=INJECTED), processes(0.003), 0.03, CPU)
    assert (found.false_alarms, found.undecided, found.power) == (0, 0, 1)
    assert found.resolution is not None
    assert 0.03 <= found.resolution <= 0.05
    assert found.recommended is not None
    assert found.recommended <= 0.02


def test_on_a_noisy_machine_more_must_be_allowed() -> None:
    found = assess(pairs(0.08), pairs(0.08, slowdown=INJECTED), processes(0.08), 0.03, CPU)
    assert found.undecided > 0.5
    assert found.power < 0.5
    assert found.resolution is None or found.resolution > 0.1
    assert found.recommended is None or found.recommended > 0.05
    assert found.stored > 0.05


@settings(max_examples=8)
@given(st.floats(0, 0.1), st.integers(2, 8), st.integers(0, 5))
def test_it_is_seeded_and_its_rates_are_rates(spread: float, count: int, seed: int) -> None:
    same, slowed = pairs(spread, count, 0.0, seed), pairs(spread, count, INJECTED, seed)
    found = assess(same, slowed, processes(spread), 0.03, CPU)
    assert assess(same, slowed, processes(spread), 0.03, CPU) == found
    assert all(0 <= rate <= 1 for rate in (found.false_alarms, found.undecided, found.power))
    assert {found.resolution, found.recommended} <= {None, *GRID}


def test_a_table_says_what_the_gate_can_tell_here(suite: Suite) -> None:
    result = suite.run("--llm-self-test", "suites", "--llm-backends=sim", "--llm-results=raw.json", "--llm-budget=0.1")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "case * pairs *false alarms*inconclusive*+5% caught*resolution*recommended*stored",
            "tpot b1-p16-n8 sim *4 * 3.0% *0% *0% *100% *4.0% *1.0% *9.5%",
        ]
    )
    raw = json.loads((suite.path / "raw.json").read_text())
    (comparison,) = raw["comparisons"]
    assert [len(comparison["pairs"]), len(raw["self_test"]), raw["results"]] == [4, 3, []]
    turns = comparison["pairs"][0]["turns"]
    assert [set(turn["samples"]) for turn in turns[:2]] == [{"base", "head"}, {"base", "slow"}]
    slow, base = ([sample["trace"]["times"][0][-1] for sample in turns[1]["samples"][arm]] for arm in ("slow", "base"))
    assert slow == pytest.approx([seconds * (1 + INJECTED) for seconds in base])
    result.assert_outcomes(passed=3, skipped=2)


def test_a_stated_tolerance_is_tried(suite: Suite) -> None:
    result = suite.decode("--llm-self-test", "--llm-max-regression=10%", "--llm-budget=0.1")
    result.stdout.fnmatch_lines("tpot b1-p16-n8 sim *4 * 10% *0% *0% *0% *15% *1.0% *9.5%")


def test_its_pairs_serve_every_workload(suite: Suite) -> None:
    options = ("--llm-self-test", "--llm-batch-sizes=1,2,4", "--llm-results=raw.json", "--llm-budget=0.001")
    suite.decode(*options).assert_outcomes(passed=3)
    assert suite.loads["sim"] == 2 * 4
    raw = json.loads((suite.path / "raw.json").read_text())
    assert [len(one["pairs"]) for one in raw["comparisons"]] == [4, 4, 4]
    assert [one["pairs"] for one in raw["self_test"]] == [4, 4, 4]


def test_with_time_left_they_serve_them_all_the_same(suite: Suite) -> None:
    options = ("--llm-self-test", "--llm-batch-sizes=1,2,4", "--llm-results=raw.json", "--llm-budget=1000")
    suite.decode(*options).assert_outcomes(passed=3)
    assert suite.loads["sim"] == 2 * 12
    raw = json.loads((suite.path / "raw.json").read_text())
    assert [one["pairs"] for one in raw["self_test"]] == [12, 12, 12]


def test_what_was_measured_survives_a_run_that_is_stopped(suite: Suite) -> None:
    suite.backends(sim="Simulated(tpot=lambda number: 0.005 if process <= 4 else hang())", extra=HANGING)
    options = ("suites/test_decode.py", "--llm-backends=sim", "--llm-self-test", "--llm-results=raw.json")
    with pytest_process(*options, cwd=suite.path) as process:
        assert eventually((suite.path / "hangs").exists, 30)
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == pytest.ExitCode.INTERRUPTED
    (comparison,) = json.loads((suite.path / "raw.json").read_text())["comparisons"]
    assert len(comparison["pairs"]) == 2


def test_what_could_not_be_written_when_the_run_was_stopped_is_written_at_its_end(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = results.write, iter(range(100))

    def stopped(path: Path, found: dict[str, Any]) -> None:
        if next(calls) == 1:
            raise KeyboardInterrupt
        write(path, found)

    monkeypatch.setattr(results, "write", stopped)
    options = ("--llm-self-test", "--llm-batch-sizes=1,2,4", "--llm-results=raw.json", "--llm-budget=0.001")
    done = suite.run("suites/test_decode.py", "--llm-backends=sim", *options, no_reraise_ctrlc=True)
    assert done.ret == pytest.ExitCode.INTERRUPTED
    assert len(json.loads((suite.path / "raw.json").read_text())["self_test"]) == 2


def test_a_backend_that_fails_fails_its_test(suite: Suite) -> None:
    suite.backends(sim="Simulated(tpot=lambda number: 1 / 0)")
    result = suite.decode("--llm-self-test")
    assert result.ret == 1
    result.stdout.fnmatch_lines("*ZeroDivisionError*")


@pytest.mark.parametrize("other", ["--llm-update-baselines", "--llm-base-python=python3"])
def test_it_gates_and_accepts_nothing(suite: Suite, other: str) -> None:
    assert "--llm-self-test gates nothing and accepts nothing" in usage_error(suite.decode("--llm-self-test", other))
