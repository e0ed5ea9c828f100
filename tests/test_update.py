"""Accepting figures: which baselines an update writes, what CI refuses, what is said, and what history changes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inner import Suite

from pytest_llmperf.baseline import HISTORY
from pytest_llmperf.cases import Case, Workload
from pytest_llmperf.update import change
from pytest_llmperf.verdict import centre, noise_floor

TPOT = 0.005
SIM, REF = "bfloat16/sim/b1-p16-n8", "bfloat16/ref/b1-p16-n8"
SLOWER = "Simulated(tpot=0.005 * 1.15)"


@pytest.fixture
def recorded(suite: Suite) -> Suite:
    """A suite with a baseline of 5 ms per token for ``sim``."""
    suite.record({"sim/tpot": TPOT})
    return suite


def medians(suite: Suite, key: str = f"{SIM}/tpot") -> list[float]:
    return [record["median"] for record in suite.stored()["entries"][key]]


# The arithmetic

CASE = Case("m", "bfloat16", "eager", Workload(1, 16, 8), "tpot")
sets = st.lists(st.lists(st.lists(st.floats(0.5, 2), min_size=1, max_size=3), min_size=1, max_size=3), max_size=4)


@given(sets.filter(bool), st.none() | st.floats(0, 0.5))
def test_a_change_is_told_by_what_the_gate_would_say(history: Any, tolerance: float | None) -> None:
    newest, before = history[0], history[1:]
    found = change(CASE, before, newest, tolerance, 0)
    assert found.new == centre(newest)
    if tolerance is not None:
        assert found.resolution == max(tolerance, noise_floor(newest, before))
    if not before:
        assert (found.old, found.ratio, found.beyond_noise, found.slower) == (None, None, False, False)
        return
    assert found.ratio == pytest.approx(centre(newest) / centre(before[0]))
    if found.slower:
        assert found.ratio > 1 + tolerance
        assert found.beyond_noise


def test_a_slowdown_counts_beyond_tolerance_noise_and_floor() -> None:
    calm, noisy = [[[1.0]] * 3], [[[1.0], [1.1], [1.2]]]
    slow = [[1.25]] * 3
    assert change(CASE, calm, slow, 0.2, 0.1).slower
    assert not change(CASE, calm, slow, 0.3, 0.1).slower, "within the tolerance"
    assert not change(CASE, noisy, slow, 0.1, 0.1).slower, "within the noise"
    assert not change(CASE, calm, slow, 0.2, 0.3).slower, "within the floor"
    assert not change(CASE, calm, slow, None, 0.1).slower, "never gated"
    assert change(CASE, calm, [[0.8]] * 3, 0.2, 0.1).beyond_noise
    assert not change(CASE, noisy, [[1.0]] * 3, 0.2, 0.1).beyond_noise


# History


def test_the_last_few_sets_are_kept_and_the_newest_is_compared(recorded: Suite) -> None:
    for number in range(HISTORY):
        recorded.backends(sim=f"Simulated(tpot=0.005 * {1 + (number + 1) / 1000})")
        assert recorded.decode("--llm-update-baselines", "--llm-invocations=3").ret == 0
    assert medians(recorded) == pytest.approx([TPOT * (1 + number / 1000) for number in range(HISTORY, 0, -1)])
    recorded.backends(sim="Simulated(tpot=0.005)")
    recorded.decode().stdout.fnmatch_lines("tpot b1-p16-n8 sim*-0.5% *ok")


def test_days_that_differ_are_noise_to_the_gate(suite: Suite) -> None:
    """Processes of a day differ by 1 %, two days by 3 %: a slowdown of 6 % may be a third such day."""
    for day in (1.03, 1.0):
        (suite.path / "sim.pids").unlink(missing_ok=True)
        suite.backends(sim=f"Simulated(tpot={TPOT * day} * [1, 1.01, 1.02][process - 1])")
        assert suite.decode("--llm-update-baselines", "--llm-invocations=3").ret == 0
    suite.backends(sim=f"Simulated(tpot={TPOT * 1.01 * 1.06})")
    (suite.path / "sim.pids").unlink()
    result = suite.decode("--llm-max-regression=2%")
    assert result.ret == 0
    assert suite.loads["sim"] == 1, "not even flagged"
    result.stdout.fnmatch_lines("inconclusive: 6.0% slower, more than the 2% allowed, but this baseline's own *")
    (suite.path / "sim.pids").unlink()
    suite.backends(sim=f"Simulated(tpot={TPOT * 1.01} * (1.3 if process == 1 else 1.06))")
    assert suite.decode("--llm-max-regression=2%").ret == 0, "nor confirmed where one process was slower"
    both = suite.stored()
    del both["entries"][f"{SIM}/tpot"][1]
    suite.baseline.write_text(json.dumps(both))
    assert suite.decode("--llm-max-regression=2%").ret == 1, "with that day forgotten it is a regression"


def test_an_old_schema_is_compared_and_written_anew_at_the_next_update(recorded: Suite) -> None:
    recorded.baseline.write_text(recorded.baseline.read_text().replace('"schema": 3', '"schema": 2'))
    before = recorded.baseline.read_bytes()
    recorded.decode().stdout.fnmatch_lines("1 cases gated: 1 ok")
    assert recorded.baseline.read_bytes() == before, "reading writes nothing"
    assert recorded.decode("--llm-update-baselines").ret == 0
    assert recorded.stored()["schema"] == 3
    assert len(medians(recorded)) == 2


# Which


def test_a_change_within_the_noise_is_not_starred(suite: Suite) -> None:
    suite.backends(sim="Simulated(tpot=0.005 * [1, 1.1, 1.2][process - 1])")
    suite.decode("--llm-update-baselines", "--llm-invocations=3")
    suite.backends(sim="Simulated(tpot=0.006)")
    result = suite.decode("--llm-update-baselines", "--llm-invocations=3")
    result.stdout.fnmatch_lines("tpot b1-p16-n8 sim *5.500 ms  6.000 ms  +9.1%  *")


def test_new_accepts_what_has_no_baseline_and_gates_the_rest(recorded: Suite) -> None:
    recorded.backends(sim=SLOWER)
    result = recorded.decode("--llm-update-baselines=new", backends="ref,sim")
    assert result.ret == 1
    result.assert_outcomes(passed=1, failed=1)
    assert recorded.loads == {"ref": 5, "sim": 3}, "one to screen and two to confirm"
    assert medians(recorded) == [TPOT]
    assert medians(recorded, f"{REF}/tpot") == pytest.approx([0.010])
    assert f"{SIM}/cold-start" not in recorded.stored()["entries"]
    result.stdout.fnmatch_lines(["tpot b1-p16-n8 ref *new *", "2 entries written to *", "1 cases gated: 1 regression"])


def test_new_leaves_the_cold_start_that_it_has(suite: Suite) -> None:
    suite.record({"sim/cold-start": 9.9})
    assert suite.decode("--llm-update-baselines=new").ret == 0
    assert medians(suite) == pytest.approx([TPOT])
    assert medians(suite, f"{SIM}/cold-start") == [9.9]


def test_new_of_another_machine_is_new(suite: Suite) -> None:
    suite.record({"sim/tpot": TPOT}, cpu="a faster one")
    assert suite.decode("--llm-update-baselines=new").ret == 0
    assert len(medians(suite)) == 2


def test_new_with_nothing_new_is_a_gate(recorded: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    before = recorded.baseline.read_bytes()
    result = recorded.decode("--llm-update-baselines=new")
    assert result.ret == 0
    assert recorded.loads["sim"] == 1
    assert recorded.baseline.read_bytes() == before
    result.stdout.fnmatch_lines("1 cases gated: 1 ok")
    recorded.test(
        "import pytest\n@pytest.mark.llm(devices=['mi210'])\ndef test_it(llm_perf):\n    llm_perf.gate('tpot')"
    )
    skipped = recorded.run("test_it.py", "--llm-update-baselines=new")
    assert skipped.ret == 1
    skipped.stdout.fnmatch_lines("ERROR: nothing was compared with a baseline*")


# CI


@pytest.mark.parametrize(("variable", "which", "written"), [("true", "", 0), ("true", "=slower", 1), ("", "", 1)])
def test_in_ci_a_slowdown_is_accepted_only_if_that_was_asked_for(
    recorded: Suite, variable: str, which: str, written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", variable)
    recorded.backends(sim=SLOWER)
    result = recorded.decode(f"--llm-update-baselines{which}", backends="ref,sim")
    assert result.ret == (not written)
    assert medians(recorded) == pytest.approx([TPOT * 1.15, TPOT] if written else [TPOT])
    assert medians(recorded, f"{REF}/tpot") == pytest.approx([0.010]), "the others are written"
    said = [line for line in result.outlines if line.startswith("ERROR: slower than the gate allows")]
    assert len(said) == (not written)
    if not written:
        assert f"{SIM}/tpot +15.0%" in said[0]
        assert "--llm-update-baselines=slower" in said[0]
        result.stdout.no_fnmatch_line("*not in parity, were not accepted*")


@pytest.mark.parametrize("sim", ["Simulated(tpot=0.0053)", "Simulated(tpot=0.003)"], ids=["allowed", "faster"])
def test_in_ci_what_the_gate_allows_is_accepted(recorded: Suite, sim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    recorded.backends(sim=sim)
    assert recorded.decode("--llm-update-baselines").ret == 0
    assert len(medians(recorded)) == 2


def test_in_ci_a_slowdown_that_a_case_s_own_tolerance_allows_is_accepted(
    recorded: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    recorded.backends(sim=SLOWER)
    recorded.ini(llm_tolerances="\n    */sim/* = 20%")
    assert recorded.decode("--llm-update-baselines").ret == 0
    assert len(medians(recorded)) == 2


def test_a_tolerance_says_which_line_it_is_from(recorded: Suite) -> None:
    recorded.ini(llm_tolerances="\n    */sim/*/tpot = 3%\n    */b32-* = 8%")
    recorded.backends(sim="Simulated(tpot=0.005 * 1.05)")
    result = recorded.decode("-v", "--llm-results=raw.json")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "*allowed 3% (llm_tolerances: [*]/sim/[*]/tpot)*",
            "llm_tolerances that matched no case of this run: [*]/b32-[*]",
        ]
    )
    (raw,) = json.loads((recorded.path / "raw.json").read_text())["results"]
    assert raw["tolerance_source"] == "llm_tolerances: */sim/*/tpot"
