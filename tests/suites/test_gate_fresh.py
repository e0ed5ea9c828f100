"""Where base cannot be had: fresh processes, in turns with the reference's, against the stored figures; end to end.

The suite's folder is no repository, so no baseline of it names a revision.
"""

from __future__ import annotations

import json

import pytest
from gated import FIGURES, SIM, SLOW_ONCE, SLOWER, TPOT, decode, gate, looking, record, verdicts
from inner import BUSY, Suite

WHY_NOT = "base cannot be had: the baseline names no revision: files were changed when it was recorded, or its file"


@pytest.fixture
def recorded(suite: Suite) -> Suite:
    """A suite with a baseline of 5 ms per token for ``sim`` and 10 ms for ``ref``, of five sittings."""
    record(suite)
    return suite


@pytest.fixture
def alone(suite: Suite) -> Suite:
    """A suite with a baseline of ``sim`` alone."""
    record(suite, {"sim/tpot": TPOT})
    return suite


def test_three_fresh_processes_in_turns_with_the_reference_decide(recorded: Suite) -> None:
    recorded.backends(sim=SLOWER)
    result, said = decode(recorded)
    assert (result.ret, said["outcome"], said["basis"], said["count"]) == (1, "regression", "stored", 3)
    assert said["reason"].startswith(f"15.0% slower than the baseline in 3 fresh processes; beside ref; {WHY_NOT}")
    assert recorded.loads == {"ref": 3, "sim": 1 + 3}


def test_a_reference_that_another_interpreter_runs_has_a_sitting_of_its_own(suite: Suite) -> None:
    """One run recorded both, so the two sittings are of one moment; what they had installed differs."""
    record(suite, {"sim/tpot": TPOT})
    record(suite, {"ref/tpot": 0.010}, versions={"python": "3.12"})
    assert len(suite.stored()["sittings"]) == 2 * 5
    suite.backends(sim=SLOWER)
    result, said = decode(suite)
    assert (result.ret, said["outcome"]) == (1, "regression")
    assert "; beside ref; " in said["reason"]
    assert suite.loads == {"ref": 3, "sim": 1 + 3}


def test_a_reference_that_fails_in_turns_is_named(recorded: Suite) -> None:
    recorded.backends(sim=SLOWER, ref="1 / 0")
    result = recorded.decode()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines("*the reference, ref, in turns with sim: *ZeroDivisionError*")


def test_without_figures_of_the_reference_they_decide_alone(alone: Suite) -> None:
    alone.backends(sim=SLOWER)
    result, said = decode(alone)
    assert (result.ret, said["outcome"]) == (1, "regression")
    assert "beside" not in said["reason"]
    assert alone.loads == {"ref": 0, "sim": 1 + 3}


def test_the_reference_itself_is_compared_alone(recorded: Suite) -> None:
    recorded.backends(ref="Simulated(tpot=0.0115)")
    result, said = decode(recorded, backends="ref")
    assert (result.ret, said["outcome"]) == (1, "regression")
    assert recorded.loads == {"ref": 1 + 3, "sim": 0}


@pytest.mark.parametrize("sittings", [1, 5])
def test_one_sitting_proves_less(suite: Suite, sittings: int) -> None:
    record(suite, {"sim/tpot": TPOT}, sittings=sittings)
    suite.backends(sim=SLOWER)
    result, said = decode(suite)
    assert said["outcome"] == ("inconclusive" if sittings == 1 else "regression")
    assert result.ret == (sittings > 1)
    suite.backends(sim="Simulated(tpot=0.005 * 1.3)")
    assert decode(suite)[1]["outcome"] == "regression", "a large slowdown is told by one sitting"


def test_a_process_that_was_slow_alone_is_not_a_regression(recorded: Suite) -> None:
    recorded.backends(sim=SLOW_ONCE)
    result, said = decode(recorded)
    assert (result.ret, said["outcome"], recorded.loads["sim"]) == (0, "ok", 1 + 3)


def test_the_process_that_looked_slower_does_not_count_again(recorded: Suite) -> None:
    """It was chosen for being slow."""
    recorded.backends(sim="Simulated(tpot=0.005 * (3 if process == 1 else 1))")
    assert decode(recorded)[1]["outcome"] == "ok"


@pytest.mark.parametrize("strict", [(), ("--llm-strict",)], ids=["", "strict"])
@pytest.mark.parametrize(
    ("sim", "extra", "doubt"),
    [
        (
            "Busy(0.00575)",
            BUSY,
            "too few samples of 3 of 3 processes were undisturbed: others used 4.0 cores",
        ),
        (
            "Simulated(tpot=0.005 * [1.2, 1.4, 1.01, 1.01][process - 1])",
            "",
            "a slowdown of ",
        ),
    ],
    ids=["contention", "processes that disagree"],
)
def test_a_slowdown_with_another_cause_is_inconclusive(
    alone: Suite, sim: str, extra: str, doubt: str, strict: tuple[str, ...]
) -> None:
    alone.backends(sim=sim, extra=extra)
    result, said = decode(alone, *strict)
    assert (result.ret, said["outcome"]) == (bool(strict), "inconclusive")
    assert doubt in said["reason"]
    assert said["remedy"]
    result.stdout.fnmatch_lines("*1 cases gated: 1 inconclusive*")


def test_a_disturbed_reference_leaves_it_open(recorded: Suite) -> None:
    recorded.backends(sim=SLOWER, ref="Busy(0.010)", extra=BUSY)
    result, said = decode(recorded)
    assert (result.ret, said["outcome"]) == (0, "inconclusive")
    assert "too few samples of 3 of 6 processes were undisturbed" in said["reason"]


def test_processes_whose_cpus_were_moved_meanwhile_decide_nothing(suite: Suite) -> None:
    record(suite, {"sim/tpot": TPOT}, barrier=3e-6)
    suite.backends(sim="Simulated(tpot=0.00575, barrier=4.5e-6 if process == 3 else 3e-6)")
    result, said = decode(suite)
    assert (result.ret, said["outcome"], suite.loads["sim"]) == (0, "inconclusive", 4)
    assert said["reason"].endswith("; the machine changed meanwhile")


def test_processes_of_a_machine_that_changed_meanwhile_decide_nothing(alone: Suite) -> None:
    """Its rates are those of the start of the run; a host that became busy since then shows in a further look."""
    alone.backends(sim=SLOWER, extra=looking("[PEAKS, *[PEAKS | {'interpreter cpython-311': 0.5e7}] * 9]"))
    result, said = decode(alone)
    assert (result.ret, said["outcome"], alone.loads["sim"]) == (0, "inconclusive", 1 + 3)
    assert said["reason"].endswith("; the machine changed meanwhile")
    assert len(alone.pids("rates")) == 2


@pytest.mark.parametrize(
    ("sim", "ref", "outcome"),
    [
        (0.006, 0.012, "inconclusive"),  # a fifth slower both
        (0.005, 0.010, "ok"),
        (0.005, 0.008, "inconclusive"),  # as it was, on a machine that is faster by a fifth
        (0.006, 0.01095, "inconclusive"),  # the machine explains a half of it
        (0.007, 0.0105, "regression"),
        (0.006, 0.0095, "regression"),
        (0.0067, 0.0109, "regression"),
        (0.010, 0.010, "regression"),
    ],
)
def test_a_slowdown_that_the_reference_shares_is_the_machine_s(
    recorded: Suite, sim: float, ref: float, outcome: str
) -> None:
    recorded.backends(sim=f"Simulated(tpot={sim})", ref=f"Simulated(tpot={ref})")
    result, said = decode(recorded, "--llm-compare=always")
    assert (said["outcome"], result.ret) == (outcome, outcome == "regression")
    slower, over = sim / 0.005, sim / 0.005 / (ref / 0.010)
    both = min(slower, over) == 1 != max(slower, over)  # one is ok, and the other is not
    assert said["ratio"] == pytest.approx(slower if both else min(slower, over))
    shared = ", and so is the reference: " if over < slower else ", but the reference is faster: "
    assert (shared in said["reason"]) == both


@pytest.mark.parametrize(
    ("ref", "outcome"),
    [("0.010 if process == 1 else 0.012", "inconclusive"), ("0.012 if process == 1 else 0.010", "regression")],
    ids=["slow beside it", "slow before it"],
)
def test_the_reference_counts_as_it_is_beside_the_fresh_processes(recorded: Suite, ref: str, outcome: str) -> None:
    recorded.backends(sim="Simulated(tpot=0.006)", ref=f"Simulated(tpot={ref})")
    result = recorded.decode("--llm-results=raw.json", backends="ref,sim")
    assert verdicts(recorded)[f"{SIM}/tpot"]["outcome"] == outcome
    assert result.ret == (outcome == "regression")


def test_one_set_of_fresh_processes_serves_every_metric_and_backend(suite: Suite) -> None:
    record(suite, {"sim/tpot": 0.005, "ref/tpot": 0.010, "sim/latency": 0.135, "ref/latency": 0.170})
    suite.backends(sim="Simulated(tpot=0.050)")
    result, _ = gate(suite, "suites/test_decode.py", "suites/test_latency.py")
    assert sorted(one["outcome"] for one in verdicts(suite).values()) == ["ok", "ok", "regression", "regression"]
    assert result.ret == 1
    assert suite.loads == {"ref": 1 + 3, "sim": 1 + 3}
    raw = json.loads((suite.path / "raw.json").read_text())
    assert {len(one["invocations"]) for one in raw["results"] if "/sim/" in one["case"]} == {4}


def test_a_fresh_process_that_fails_fails_its_test_in_one_line(recorded: Suite) -> None:
    recorded.backends(sim="Simulated(tpot=0.005 * 1.15) if process < 3 else 1 / 0")
    result = recorded.decode()
    assert result.ret == 1
    result.stdout.fnmatch_lines("*ZeroDivisionError*")
    assert "Traceback" not in result.stdout.str()


# Improvements


@pytest.mark.parametrize("strict", [False, True])
def test_a_large_improvement_is_confirmed_and_questioned(recorded: Suite, strict: bool) -> None:
    recorded.backends(sim="Simulated(tpot=0.0025)")
    result, said = decode(recorded, *(["--llm-strict"] if strict else []))
    assert (result.ret, said["outcome"], recorded.loads["sim"]) == (strict, "faster", 1 + 3)
    assert said["reason"].startswith("50.0% faster than the baseline in 3 fresh processes; is something not measured")


def test_a_large_improvement_of_one_process_is_none(recorded: Suite) -> None:
    recorded.backends(sim="Simulated(tpot=0.0025 if process == 1 else 0.005)")
    result, said = decode(recorded, "--llm-strict")
    assert (result.ret, said["outcome"], recorded.loads["sim"]) == (0, "ok", 1 + 3)


@pytest.mark.parametrize(("ref", "outcome"), [(0.010, "faster"), (0.005, "ok")])
def test_an_improvement_that_the_reference_shares_is_the_machine_s(recorded: Suite, ref: float, outcome: str) -> None:
    recorded.backends(sim="Simulated(tpot=0.0025)", ref=f"Simulated(tpot={ref})")
    assert decode(recorded)[1]["outcome"] == outcome


# Which cases


@pytest.mark.parametrize(
    ("compare", "sim", "loads"),
    [
        ("flagged", "0.005", 1),
        ("flagged", "0.00515", 1),
        ("flagged", "0.00575", 4),
        ("unresolved", "0.005", 1),
        ("unresolved", "0.00515", 4),
        ("always", "0.005", 4),
        ("never", "0.00575", 1),
    ],
)
def test_the_option_says_which_cases_are_measured_again(suite: Suite, compare: str, sim: str, loads: int) -> None:
    record(suite, {"sim/tpot": TPOT}, sittings=1)
    suite.backends(sim=f"Simulated(tpot={sim})")
    suite.decode(f"--llm-compare={compare}")
    assert suite.loads["sim"] == loads


def test_after_the_budget_no_further_case_is_measured_again(suite: Suite) -> None:
    record(suite, {"sim/tpot": 0.005, "sim/ttft": 0.1})
    suite.backends(sim="Simulated(tpot=0.006, ttft=0.12)")
    suite.test("".join(f"def test_{name}(llm_perf):\n    llm_perf.gate('{name}')\n" for name in ("tpot", "ttft")))
    result, _ = gate(suite, "test_it.py", "--llm-backends=sim", "--llm-budget=0.000001")
    first, second = verdicts(suite).values()
    assert (first["outcome"], second["outcome"]) == ("regression", "inconclusive")
    assert second["reason"].endswith("; not compared: comparing has taken --llm-budget=1e-06 s in this run")
    assert second["remedy"] == "raise --llm-budget, or run this test alone"
    assert result.ret == 1


def test_a_sitting_without_the_reference_leaves_it_out(suite: Suite) -> None:
    record(suite, FIGURES, sittings=4)
    suite.record({"sim/tpot": TPOT}, recorded="2026-01-09", add=True)
    suite.backends(sim=SLOWER)
    assert decode(suite)[1]["outcome"] == "regression"
    assert suite.loads == {"ref": 0, "sim": 1 + 3}
