"""The gate, end to end: what fails, what passes, what is said, and what is written."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from inner import BUSY, Suite

from pytest_llmperf.gate.judge import weaker
from pytest_llmperf.machine import detect
from pytest_llmperf.result import Result

TPOT = 0.005
SIM, REF = "bfloat16/sim/b1-p16-n8", "bfloat16/ref/b1-p16-n8"
SLOWER = "Simulated(tpot=0.005 * 1.15)"
UNSEEN = ", with no figures of ref to tell slow code from a slow machine"
SLOW_ONCE = "Simulated(tpot=0.005 * (1.15 if process == 1 else 1))"


@pytest.fixture
def recorded(suite: Suite) -> Suite:
    """A suite with a baseline of 5 ms per token for ``sim``."""
    suite.record({"sim/tpot": TPOT, "ref/tpot": 0.010})
    return suite


def failures(result: pytest.RunResult) -> list[str]:
    return [line for line in result.outlines if line.startswith("FAILED")]


# Without a baseline


def test_the_first_run_passes_and_says_how_to_record_a_baseline(suite: Suite) -> None:
    result = suite.decode()
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "tpot b1-p16-n8 sim*no baseline",
            "no baseline: baselines/cpu/tiny.json does not exist*--llm-update-baselines*",
        ]
    )
    result.stdout.fnmatch_lines("0 cases gated: 1 no baseline")


def test_nothing_is_written_without_the_flag(suite: Suite) -> None:
    suite.decode()
    assert not (suite.path / "baselines").exists()


# Recording one


def test_an_update_records_fresh_processes_and_the_cold_start_apart(suite: Suite) -> None:
    result = suite.decode("--llm-update-baselines")
    assert result.ret == 0
    assert suite.loads["sim"] == 5
    entries = {key: record for key, (record,) in suite.stored()["entries"].items()}
    assert list(entries) == [f"{SIM}/tpot", f"{SIM}/cold-start"]
    assert entries[f"{SIM}/tpot"]["median"] == pytest.approx(TPOT)
    assert [len(samples) for samples in entries[f"{SIM}/tpot"]["invocations"]] == [10] * 5
    assert [len(samples) for samples in entries[f"{SIM}/cold-start"]["invocations"]] == [1] * 5
    assert entries[f"{SIM}/cold-start"]["median"] > 1.0, "the cold second of the first generation is in it"
    result.stdout.fnmatch_lines(
        [
            "accepted *old *new *change *resolution",
            "tpot b1-p16-n8 sim *-  *5.000 ms  *new  *10.0%",
            "cold-start b1-p16-n8 sim *-  *1.* s  *new  *-",
            "resolution: the smallest slowdown *",
            "2 entries written to *tiny.json",
        ]
    )


def test_what_was_recorded_passes_the_next_run(suite: Suite) -> None:
    suite.decode("--llm-update-baselines")
    result = suite.decode()
    assert result.ret == 0
    result.stdout.fnmatch_lines(["tpot b1-p16-n8 sim*ok", "1 cases gated: 1 ok"])


def test_more_invocations_may_be_asked_for(suite: Suite) -> None:
    suite.decode("--llm-update-baselines", "--llm-invocations=7")
    (record,) = suite.stored()["entries"][f"{SIM}/tpot"]
    assert len(record["invocations"]) == 7


def test_an_update_accepts_a_slowdown_and_says_by_how_much(recorded: Suite) -> None:
    recorded.backends(sim=SLOWER)
    result = recorded.decode("--llm-update-baselines")
    assert result.ret == 0
    result.stdout.fnmatch_lines("tpot b1-p16-n8 sim *5.000 ms  5.750 ms  +15.0%[*]  10.0%")
    medians = [record["median"] for record in recorded.stored()["entries"][f"{SIM}/tpot"]]
    assert medians == pytest.approx([TPOT * 1.15, TPOT]), "the newest first, and what it replaced"


def test_an_update_keeps_the_entries_that_did_not_run(recorded: Suite) -> None:
    before = recorded.stored()["entries"][f"{REF}/tpot"]
    recorded.decode("--llm-update-baselines")
    assert recorded.stored()["entries"][f"{REF}/tpot"] == before


def test_an_update_does_not_accept_a_backend_out_of_parity(recorded: Suite) -> None:
    before = recorded.stored()["entries"][f"{SIM}/tpot"]
    recorded.backends(sim="Simulated(tpot=0.002, wrong_from=3)")
    result = recorded.run("suites/test_decode.py", "suites/test_greedy_parity.py", "--llm-update-baselines")
    assert result.ret == 1
    assert recorded.stored()["entries"][f"{SIM}/tpot"] == before
    assert f"{REF}/cold-start" in recorded.stored()["entries"]
    result.stdout.fnmatch_lines("*written to *1 cases, disturbed or not in parity, were not accepted")


@pytest.mark.parametrize(("disturbed", "loads"), [(1, 4), (3, 6)])
def test_a_disturbed_process_is_measured_again_for_a_baseline(suite: Suite, disturbed: int, loads: int) -> None:
    suite.backends(sim=f"Busy(0.007) if process <= {disturbed} else Simulated(tpot=0.005)", extra=BUSY)
    result = suite.decode("--llm-update-baselines", "--llm-invocations=3")
    assert result.ret == 0
    assert suite.loads["sim"] == loads
    (record,) = suite.stored()["entries"][f"{SIM}/tpot"]
    assert record["median"] == pytest.approx(TPOT)
    assert len(record["invocations"]) == 3


@pytest.mark.parametrize(
    ("apart", "loads", "tpot", "barrier"),
    [((1,), 4, 0.005, 3e-6), ((2, 4), 5, 0.005, 3e-6), ((1, 3, 4), 4, 0.006, 4.5e-6), ((), 3, 0.005, 3e-6)],
)
def test_a_baseline_is_made_of_processes_whose_cpus_were_as_far_apart(
    suite: Suite, apart: tuple[int, ...], loads: int, tpot: float, barrier: float
) -> None:
    far = f"Simulated(tpot=0.006, barrier=4.5e-6) if process in {apart} else Simulated(tpot=0.005, barrier=3e-6)"
    suite.backends(sim=far)
    assert suite.decode("--llm-update-baselines", "--llm-invocations=3").ret == 0
    assert suite.loads["sim"] == loads
    (record,) = suite.stored()["entries"][f"{SIM}/tpot"]
    assert (record["median"], len(record["invocations"]), record["barrier"]["seconds"]) == (
        pytest.approx(tpot),
        3,
        barrier,
    )


BOTH = "Simulated(tpot=0.006, barrier=4.5e-6) if process in (1, 3, 5) else Simulated(tpot=0.005, barrier=3e-6)"


def test_sets_of_both_states_of_the_cpus_are_kept(suite: Suite) -> None:
    suite.backends(sim=BOTH)
    result = suite.decode("--llm-update-baselines", "--llm-invocations=4")
    assert (result.ret, suite.loads["sim"]) == (0, 7)
    found = [
        (one["median"], len(one["invocations"]), one["barrier"]["seconds"])
        for one in suite.stored()["entries"][f"{SIM}/tpot"]
    ]
    assert found == [(pytest.approx(0.005), 4, 3e-6), (pytest.approx(0.006), 3, 4.5e-6)]
    result.stdout.fnmatch_lines(["tpot b1-p16-n8 sim, 3.0 us *5.000 ms*", "tpot b1-p16-n8 sim, 4.5 us *6.000 ms*"])
    result.stdout.fnmatch_lines("4 entries written to *")  # two of them of cold starts
    for tpot, barrier, said in ((0.006, 4.5e-6, "ok"), (0.0069, 4.5e-6, "regression"), (0.00575, 3e-6, "regression")):
        suite.backends(sim=f"Simulated(tpot={tpot}, barrier={barrier})")
        suite.decode().stdout.fnmatch_lines(f"1 cases gated: 1 {said}")


@pytest.mark.parametrize(("tpot", "said"), [(0.0055, "regression"), (0.005, "inconclusive")])
def test_a_process_is_held_against_its_own_state_wherever_the_first_one_was(
    suite: Suite, tpot: float, said: str
) -> None:
    """Those of another state convict, but do not clear: what is slow in one may not be in the other."""
    suite.record({"sim/tpot": 0.006}, barrier=4.5e-6)
    suite.record({"sim/tpot": 0.005}, barrier=3e-6)
    near = f"Simulated(tpot={tpot}, barrier=3e-6)"
    suite.backends(sim=f"{near} if process in (2, 4, 5) else Simulated(tpot=0.0066, barrier=4.5e-6)")
    result = suite.decode("--llm-max-regression=5%")
    result.stdout.fnmatch_lines(f"1 cases gated: 1 {said}")
    if said == "regression":
        assert suite.loads["sim"] == 5, "the second in one state is the third of four"
        result.stdout.fnmatch_lines("*baseline 5.000 ms, +10.0%*")


@pytest.mark.parametrize(
    ("others", "barrier", "loads"),
    [((1, 3), 4.5e-6, 6), ((1, 3, 5), 9.1e-6, 7)],
    ids=["too few", "no way between CPUs"],
)
def test_what_is_too_few_or_of_no_other_state_is_no_set(
    suite: Suite, others: tuple[int, ...], barrier: float, loads: int
) -> None:
    other = f"Simulated(tpot=0.006, barrier={barrier}) if process in {others}"
    suite.backends(sim=f"{other} else Simulated(tpot=0.005, barrier=3e-6)")
    result = suite.decode("--llm-update-baselines", "--llm-invocations=4")
    assert (result.ret, suite.loads["sim"]) == (0, loads)
    (record,) = suite.stored()["entries"][f"{SIM}/tpot"]
    assert (record["median"], len(record["invocations"])) == (pytest.approx(0.005), 4)
    result.stdout.no_fnmatch_line("* us to meet*")


def test_in_ci_a_slowdown_in_one_state_of_the_cpus_keeps_the_other_states_set_back_too(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.record({"sim/tpot": 0.004, "sim/cold-start": 1.0}, barrier=3e-6)
    before = suite.stored()["entries"][f"{SIM}/tpot"]
    suite.backends(sim=BOTH)
    monkeypatch.setenv("CI", "true")
    result = suite.decode("--llm-update-baselines", "--llm-invocations=4")
    assert result.ret == 1
    result.stdout.fnmatch_lines(f"ERROR: slower than the gate allows, so not written in CI: {SIM}/tpot +25.0%; *")
    assert suite.stored()["entries"][f"{SIM}/tpot"] == before


def test_the_first_set_of_cpus_that_were_moved_is_new_even_in_ci(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.record({"sim/tpot": TPOT, "sim/cold-start": 1.0}, barrier=3e-6)
    suite.backends(sim="Simulated(tpot=0.006, barrier=4.5e-6)")
    monkeypatch.setenv("CI", "true")
    result = suite.decode("--llm-update-baselines", "--llm-invocations=3")
    assert (result.ret, suite.loads["sim"]) == (0, 3)
    result.stdout.fnmatch_lines("tpot b1-p16-n8 sim  *-*6.000 ms*new*")
    assert [one["barrier"]["seconds"] for one in suite.stored()["entries"][f"{SIM}/tpot"]] == [4.5e-6, 3e-6]
    assert suite.decode().ret == 0


def test_a_machine_that_stays_disturbed_records_nothing(suite: Suite) -> None:
    suite.backends(sim="Busy(0.007)", extra=BUSY)
    result = suite.decode("--llm-update-baselines", "--llm-invocations=3")
    assert result.ret == 1, "what was asked for was not done"
    assert suite.loads["sim"] == 4, "no two more could have made it three"
    assert not suite.baseline.exists()
    result.stdout.fnmatch_lines("0 entries written to *1 cases, disturbed or not in parity, *")


def test_an_interrupted_run_writes_no_baseline(suite: Suite) -> None:
    suite.test("def test_interrupted(llm_perf):\n    llm_perf.gate('tpot')\n    raise KeyboardInterrupt")
    result = suite.run("test_it.py", "--llm-backends=sim", "--llm-update-baselines", no_reraise_ctrlc=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines("interrupted: no baseline was written")
    assert not suite.baseline.exists()


def test_an_accelerator_that_is_not_in_the_table_is_said_not_to_be_measured(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "the CPU was measured: NVIDIA GeForce RTX 4090 is no device that is known by name"
    nothing_stated = "-ollm_device="
    assert said not in suite.decode(nothing_stated).outlines
    monkeypatch.setattr(detect, "found", lambda: ("NVIDIA GeForce RTX 4090",))
    assert said in suite.decode(nothing_stated).outlines
    assert said not in suite.decode("--llm-device=cpu").outlines


# What it could not have seen


def test_a_baseline_that_hides_slowdowns_is_said(recorded: Suite) -> None:
    recorded.spread("sim/tpot", 0.8, 1.0, 1.2)
    result = recorded.decode()
    assert result.ret == 0
    result.stdout.fnmatch_lines("this run could have missed slowdowns of up to ??% (tpot b1-p16-n8 sim)")


def test_a_baseline_that_hides_none_is_not(recorded: Suite) -> None:
    recorded.decode().stdout.no_fnmatch_line("this run could have missed*")


@pytest.mark.parametrize("strict", [(), ("--llm-strict",)], ids=["", "strict"])
@pytest.mark.parametrize("sim", ["Simulated(tpot=0.005)", SLOW_ONCE, "Busy(0.005 * (1.15 if process == 1 else 1))"])
@pytest.mark.parametrize(
    ("ref", "outcome", "resolution"),
    [
        (0.009, "inconclusive", 0.222),  # 1.1 times as much as was recorded is 22 % more than 0.9 times
        (0.0095, "ok", 0.158),  # as much as was recorded is 5 % more than 0.95 times
        (0.0098, "ok", 0.1),  # the reference is a little fast, as by chance
        (0.0105, "ok", 0.1),
    ],
)
def test_what_a_machine_hides_that_is_faster_than_it_was_is_said(
    recorded: Suite, sim: str, ref: float, outcome: str, resolution: float, strict: tuple[str, ...]
) -> None:
    recorded.backends(sim=sim, ref=f"Simulated(tpot={ref})", extra=BUSY if "Busy" in sim else "")
    result = recorded.decode("--llm-results=raw.json", *strict, backends="ref,sim")
    assert result.ret == bool(strict and outcome == "inconclusive")
    results = json.loads((recorded.path / "raw.json").read_text())["results"]
    (found,) = [one["verdict"] for one in results if one["case"] == f"{SIM}/tpot"]
    assert (found["outcome"], found["resolution"]) == (outcome, pytest.approx(resolution, abs=0.001))
    said = "ref is 10.0% faster than its baseline: the machine may be too, and hide a slowdown"
    assert (said in found["reason"]) == (outcome == "inconclusive")
    blind = f"this run could have missed slowdowns of up to {resolution:.0%} (tpot b1-p16-n8 sim)"
    assert (blind in result.outlines) == (resolution > 0.15)


@pytest.mark.parametrize(
    ("sim", "outcomes"),
    [
        (0.0044, "2 faster"),
        (0.0045, "1 faster, 1 inconclusive"),
        (0.0053, "1 faster, 1 inconclusive"),
        (0.006, "1 regression, 1 faster"),
    ],
)
def test_what_is_too_slow_for_a_machine_that_is_faster_than_it_was_is_not_told(
    recorded: Suite, sim: float, outcomes: str
) -> None:
    """The reference takes 0.81 of its time, and so 0.89 of a case's are 10 % more than the machine's doing."""
    recorded.backends(sim=f"Simulated(tpot={sim})", ref="Simulated(tpot=0.0081)")
    result = recorded.decode(backends="ref,sim")
    result.stdout.fnmatch_lines(f"2 cases gated: {outcomes}")
    assert result.ret == ("regression" in outcomes)
    assert recorded.loads["ref"] == 1 + ("1 faster" in outcomes)  # asked again, as witness of a regression too


def test_a_reference_that_is_fast_in_one_process_alone_hides_nothing(recorded: Suite) -> None:
    recorded.backends(sim="Simulated(tpot=0.0051)", ref="Simulated(tpot=0.0092 if process == 1 else 0.010)")
    recorded.decode(backends="ref,sim").stdout.fnmatch_lines("2 cases gated: 2 ok")
    assert recorded.loads == {"ref": 2, "sim": 1}


@pytest.mark.parametrize("state", ["of another day", "disturbed"])
def test_a_witness_that_tells_nothing_of_a_faster_machine_clears_nothing(suite: Suite, state: str) -> None:
    """Asked again, the reference is on CPUs of which it has a set of another day alone, or it is disturbed."""
    suite.record({"ref/tpot": 0.010}, barrier=4.5e-6)
    stored = suite.stored()
    stored["entries"][f"{REF}/tpot"][0]["recorded"] = "2026-01-30"
    suite.baseline.write_text(json.dumps(stored))
    suite.record({"sim/tpot": TPOT, "ref/tpot": 0.010}, barrier=3e-6)
    witness = "Simulated(tpot=0.010, barrier=4.5e-6)" if state == "of another day" else "Busy(0.010)"
    suite.backends(
        sim="Simulated(tpot=0.0051, barrier=3e-6)",
        ref=f"Simulated(tpot=0.0092, barrier=3e-6) if process == 1 else {witness}",
        extra=BUSY,
    )
    suite.decode(backends="ref,sim").stdout.fnmatch_lines("2 cases gated: 1 ok, 1 inconclusive")
    assert suite.loads["ref"] == 2


def test_a_machine_hides_nothing_beneath_the_floor(suite: Suite) -> None:
    suite.record({"sim/tpot": 0.0003, "ref/tpot": 0.010})
    suite.backends(sim="Simulated(tpot=0.00031)", ref="Simulated(tpot=0.0092)")
    suite.decode(backends="ref,sim").stdout.fnmatch_lines("2 cases gated: 2 ok")


@pytest.mark.parametrize(("day", "outcomes"), [("2026-01-31", "1 ok, 1 inconclusive"), ("2026-01-30", "2 ok")])
def test_a_reference_that_was_recorded_on_another_day_says_nothing_of_a_faster_machine(
    recorded: Suite, day: str, outcomes: str
) -> None:
    """A case that was recorded later may have been so on the faster machine."""
    stored = recorded.stored()
    stored["entries"][f"{REF}/tpot"][0]["recorded"] = day
    recorded.baseline.write_text(json.dumps(stored))
    recorded.backends(sim="Simulated(tpot=0.0051)", ref="Simulated(tpot=0.0092)")
    recorded.decode(backends="ref,sim").stdout.fnmatch_lines(f"2 cases gated: {outcomes}")


def test_what_is_accepted_is_not_asked_about_a_faster_machine(recorded: Suite) -> None:
    recorded.backends(ref="Simulated(tpot=0.009)")
    result = recorded.decode("--llm-update-baselines", "--llm-invocations=3", backends="ref,sim")
    result.stdout.no_fnmatch_line("*may be too*")
    assert recorded.loads == {"ref": 3, "sim": 3}


# Slower, faster, the same


def test_a_regression_fails_that_test_alone_in_one_readable_line(suite: Suite) -> None:
    suite.record({"ref/ttft": 0.1, "ref/tpot": 0.010, "sim/ttft": 0.1, "sim/tpot": TPOT})
    suite.backends(sim=SLOWER)
    result = suite.run("suites/test_decode.py", "suites/test_prefill.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=3, failed=1)
    (line,) = failures(result)
    assert "test_decode[sim-b1-p16-n8]" in line
    said = [line for line in result.outlines if line.startswith("tiny/bfloat16/sim/b1-p16-n8/tpot: regression")]
    assert len(said) == 1
    assert "5.750 ms" in said[0], "now"
    assert "baseline 5.000 ms" in said[0]
    assert re.search(r"\+15\.0% \[\+15\.0%, \+15\.0%\] at 99 %", said[0]), "change and interval"
    assert "3 fresh processes" in said[0]
    assert "allowed 10% (default of cpu)" in said[0]
    assert "--llm-update-baselines" in said[0]
    assert "Traceback" not in result.stdout.str()
    result.stdout.fnmatch_lines("4 cases gated: 1 regression, 3 ok")


def test_a_failed_gate_says_what_to_run_next(recorded: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded.backends(sim=SLOWER)
    own = ("--llm-compare", "flagged", "--llm-results=raw.json", "--llm-report=a.md", "-k", "decode", "--llm-strict")
    result = recorded.decode(*own, "--llm-timeout", "60", "--llm-server=http://me:pa55word@127.0.0.1:1")
    shown = "'suites/test_decode.py::test_decode[[]sim-b1-p16-n8]' --llm-backends=sim --llm-strict --llm-timeout=60"
    said = "to accept it: pytest "
    result.stdout.fnmatch_lines(
        [f"to measure that alone again: pytest {shown}", f"{said}{shown} --llm-update-baselines=slower"]
    )
    assert "pa55word" not in result.stdout.str()
    (line,) = [line for line in result.outlines if line.startswith(said)]
    monkeypatch.setenv("CI", "true")
    recorded.run(*shlex.split(line.removeprefix(said)))
    assert recorded.decode().ret == 0


def test_the_tests_are_named_from_where_pytest_was_started(recorded: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded.backends(sim=SLOWER)
    monkeypatch.chdir(recorded.path / "suites")
    result = recorded.run("test_decode.py", "--rootdir=..", "--llm-backends=sim", "--llm-model=../tiny")
    result.stdout.fnmatch_lines("to measure that alone again: pytest 'test_decode.py::test_decode[[]sim-b1-p16-n8]' *")


def test_of_many_failures_pytests_own_list_is_run_next(recorded: Suite) -> None:
    recorded.backends(sim=SLOWER)
    recorded.test(
        "import pytest\n"
        "@pytest.mark.parametrize('time', range(5))\n"
        "@pytest.mark.llm(backends=['sim'])\n"
        "def test_it(llm_perf, time):\n    llm_perf.gate('tpot')\n"
    )
    result = recorded.run("test_it.py")
    assert len(failures(result)) == 5
    result.stdout.fnmatch_lines("to accept it: pytest test_it.py --lf --lfnf=none --llm-update-baselines=slower")


def test_what_passed_needs_no_next_step(recorded: Suite) -> None:
    assert "to accept it" not in recorded.decode().stdout.str()


def test_a_process_that_was_slow_alone_is_not_a_regression(recorded: Suite) -> None:
    recorded.backends(sim=SLOW_ONCE)
    result = recorded.decode()
    assert result.ret == 0
    assert recorded.loads["sim"] == 2, "it was flagged, and a fresh process that was not slow settled it"
    result.stdout.fnmatch_lines("ok: not confirmed in a fresh process (tpot b1-p16-n8 sim)")


def test_a_fresh_process_that_was_slow_too_is_followed_by_another(recorded: Suite) -> None:
    recorded.backends(sim="Simulated(tpot=0.006 if process < 3 else 0.0048)")
    result = recorded.decode()
    assert result.ret == 0
    assert recorded.loads["sim"] == 3
    result.stdout.fnmatch_lines("ok: not confirmed in 2 fresh processes (tpot b1-p16-n8 sim)")


def test_an_unflagged_case_costs_no_fresh_process(recorded: Suite) -> None:
    recorded.decode()
    assert recorded.loads["sim"] == 1


def test_a_slowdown_within_the_tolerance_is_ok(recorded: Suite) -> None:
    recorded.backends(sim="Simulated(tpot=0.005 * 1.08)")
    result = recorded.decode()
    assert result.ret == 0
    result.stdout.fnmatch_lines("tpot b1-p16-n8 sim*+8.0%*ok")


def test_a_faster_backend_is_said_to_be(recorded: Suite) -> None:
    recorded.backends(sim="Simulated(tpot=0.004)")
    result = recorded.decode()
    assert result.ret == 0
    result.stdout.fnmatch_lines(["tpot b1-p16-n8 sim*-20.0%*faster", "1 cases gated: 1 faster"])
    assert recorded.loads["sim"] == 1


@pytest.mark.parametrize("strict", [False, True])
def test_a_large_improvement_is_confirmed_and_questioned(recorded: Suite, strict: bool) -> None:
    recorded.backends(sim="Simulated(tpot=0.0025)")
    result = recorded.decode(*(["--llm-strict"] if strict else []))
    assert result.ret == strict
    assert recorded.loads["sim"] == 3
    result.stdout.fnmatch_lines(
        ["faster: 50.0% faster in 2 fresh processes: is something not measured any more, or what it is held against*"]
    )


def test_a_large_improvement_of_one_process_is_none(recorded: Suite) -> None:
    recorded.backends(sim="Simulated(tpot=0.0025 if process == 1 else 0.005)")
    result = recorded.decode("--llm-strict")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["tpot b1-p16-n8 sim*ok", "ok: not confirmed in a fresh process*"])
    assert recorded.loads["sim"] == 2


@pytest.mark.parametrize(
    ("marker", "option", "failed"),
    [
        ("", "--llm-max-regression=20%", False),
        ("", "--llm-max-regression=0.12", True),
        ("@pytest.mark.llm(max_regression=0.2)", "", False),
        ("@pytest.mark.llm(max_regression=0.05)", "--llm-max-regression=20%", True),
        ("@pytest.mark.llm(max_regression=0.2)", "--llm-max-regression=5%", True),
        ("", "-ollm_tolerances=*/sim/*/tpot = 20%", False),
        ("@pytest.mark.llm(max_regression=0.2)", "-ollm_tolerances=*/tpot = 5%", True),
        ("@pytest.mark.llm(max_regression=0.05)", "-ollm_tolerances=*/tpot = 20%", True),
        ("@pytest.mark.llm(max_regression=0.2)", "-ollm_tolerances=*/ttft = 5%", False),
    ],
)
def test_the_strictest_tolerance_counts(recorded: Suite, marker: str, option: str, failed: bool) -> None:
    recorded.backends(sim=SLOWER)
    recorded.test(f"import pytest\n{marker}\ndef test_it(llm_perf):\n    llm_perf.gate('tpot')")
    result = recorded.run("test_it.py", "--llm-backends=sim", *filter(None, [option]))
    assert result.ret == failed, result.stdout.str()


NESTED = """
import pytest


@pytest.mark.llm(max_regression=0.05)
class TestIt:
    @pytest.mark.llm(max_regression=0.2)
    def test_it(self, llm_perf):
        llm_perf.gate("tpot")
"""


def test_of_nested_markers_the_strictest_tolerance_counts_and_ini_is_named(recorded: Suite) -> None:
    recorded.backends(sim=SLOWER)
    recorded.test(NESTED)
    result = recorded.run("test_it.py", "--llm-backends=sim")
    assert result.ret == 1
    result.stdout.fnmatch_lines("*allowed 5% (marker)*")
    recorded.ini(llm_max_regression="7%")
    recorded.decode().stdout.fnmatch_lines("*allowed 7% (llm_max_regression)*")


def test_a_baseline_whose_own_processes_differed_is_not_failed_for_less_than_that(suite: Suite) -> None:
    suite.backends(sim="Simulated(tpot=0.005 * [1, 1.1, 1.2][process - 1])")
    suite.decode("--llm-update-baselines", "--llm-invocations=3")
    (suite.path / "sim.pids").unlink()
    suite.backends(sim="Simulated(tpot=0.0055 * 1.15)")
    assert suite.decode().ret == 0


@pytest.mark.parametrize("strict", [(), ("--llm-strict",)], ids=["", "strict"])
@pytest.mark.parametrize(
    ("sim", "extra", "doubt"),
    [
        ("Busy(0.00575)", BUSY, "too few samples of 2 of 2 processes were undisturbed: others used 4.0 cores"),
        ("Simulated(tpot=0.005 * [1.2, 1.3, 1.01][process - 1])", "", "one process was 1.0% slower, not above *"),
    ],
    ids=["contention", "processes that disagree"],
)
def test_a_slowdown_with_another_cause_is_inconclusive(
    recorded: Suite, sim: str, extra: str, doubt: str, strict: tuple[str, ...]
) -> None:
    recorded.backends(sim=sim, extra=extra)
    result = recorded.decode(*strict)
    assert result.ret == bool(strict)
    result.stdout.fnmatch_lines(f"inconclusive: 15.*% slower in 2 fresh processes, but *{doubt} (tpot b1-p16-n8 sim)")
    result.stdout.fnmatch_lines("1 cases gated: 1 inconclusive")


@pytest.mark.parametrize(("confirming", "ret", "loads"), [(0.00575, 1, 6), (0.005, 0, 3)])
def test_a_disturbed_process_that_confirms_is_replaced(
    recorded: Suite, confirming: float, ret: int, loads: int
) -> None:
    quiet = f"Simulated(tpot={confirming} if process > 1 else 0.00575)"
    recorded.backends(sim=f"Busy(0.009) if process in (2, 4) else {quiet}", extra=BUSY)
    result = recorded.decode()
    assert (result.ret, recorded.loads["sim"]) == (ret, loads)
    if ret:
        result.stdout.fnmatch_lines("*15.0% slower in 3 fresh processes*")


def test_where_too_few_processes_were_undisturbed_those_count_first(recorded: Suite) -> None:
    recorded.backends(sim="Simulated(tpot=0.00575) if process == 4 else Busy(0.00575)", extra=BUSY)
    result = recorded.decode()
    result.stdout.fnmatch_lines("inconclusive: 15.0% slower in 2 fresh *, but too few samples of 1 of 2 processes *")


def test_processes_that_stay_disturbed_are_replaced_no_more_than_once_each(recorded: Suite) -> None:
    recorded.backends(sim="Busy(0.00575)", extra=BUSY)
    recorded.decode().stdout.fnmatch_lines("1 cases gated: 1 inconclusive")
    assert recorded.loads["sim"] == 1 + 4


WEAKER = [
    ('PEAKS["flops"] = 0.5e15', "GEMM rate is 50%"),
    ('PEAKS["bandwidth"] = 0.8e15', "memory bandwidth is 20%"),
    ('PEAKS["interpreter cpython-311"] = 0.7e7', "interpreter is 30%"),
]


@pytest.mark.parametrize("strict", [(), ("--llm-strict",)], ids=["", "strict"])
@pytest.mark.parametrize(("extra", "doubt"), WEAKER, ids=["slower cores", "slower memory", "a hidden neighbour"])
def test_on_a_machine_that_is_weaker_than_it_was_nothing_is_confirmed(
    recorded: Suite, extra: str, doubt: str, strict: tuple[str, ...]
) -> None:
    recorded.backends(sim=SLOWER, extra=extra)
    result = recorded.decode(*strict)
    assert result.ret == bool(strict)
    said = f"this machine's {doubt} below what it was with the baseline (tpot b1-p16-n8 sim)"
    result.stdout.fnmatch_lines(f"inconclusive: flagged: 15.0% slower in one process, *, but {said}")
    assert recorded.loads["sim"] == 1


MOVED = (
    "its threads took {} times as long to meet as with the baseline: the host moved its CPUs, it seems "
    "(tpot b1-p16-n8 sim)"
)


@pytest.mark.parametrize("strict", [(), ("--llm-strict",)], ids=["", "strict"])
@pytest.mark.parametrize(
    ("before", "now", "times"), [(3e-6, 4.5e-6, 1.5), (4.5e-6, 3e-6, 0.7)], ids=["apart", "together"]
)
@pytest.mark.parametrize(
    ("tpot", "change"), [(0.00575, "flagged: 15.0% slower *, but "), (0.005, ""), (0.004, "20.0% faster, but ")]
)
def test_on_cpus_that_were_moved_nothing_can_be_told(
    suite: Suite, before: float, now: float, times: float, tpot: float, change: str, strict: tuple[str, ...]
) -> None:
    suite.record({"sim/tpot": TPOT}, barrier=before)
    suite.backends(sim=f"Simulated(tpot={tpot}, barrier={now})")
    result = suite.decode(*strict)
    assert result.ret == bool(strict)
    result.stdout.fnmatch_lines(f"inconclusive: {change}{MOVED.format(times)}")
    assert suite.loads["sim"] == 1


@pytest.mark.parametrize("confirming", [0.00575, 0.005])
@pytest.mark.parametrize(
    ("moved", "loads", "said"),
    [
        ((2, 3, 4, 5), 5, "flagged: 15.0% slower in one process, *"),
        ((3, 4, 5), 5, "flagged: 15.0% slower in one process, *"),
        ((2, 5, 6, 7), 7, "15.0% slower in 2 fresh processes"),
    ],
)
def test_a_process_whose_cpus_were_moved_neither_confirms_nor_clears(
    suite: Suite, confirming: float, moved: tuple[int, ...], loads: int, said: str
) -> None:
    suite.record({"sim/tpot": TPOT}, barrier=3e-6)
    far = f"Simulated(tpot={confirming}, barrier=4.5e-6)"
    suite.backends(sim=f"{far} if process in {moved} else Simulated(tpot=0.00575, barrier=3e-6)")
    result = suite.decode()
    assert (result.ret, suite.loads["sim"]) == (0, loads)
    result.stdout.fnmatch_lines(f"inconclusive: {said}, but {MOVED.format(1.5)}")


@pytest.mark.parametrize(("confirming", "ret", "loads"), [(0.00575, 1, 6), (0.005, 0, 3)])
def test_a_process_whose_cpus_were_moved_is_replaced(suite: Suite, confirming: float, ret: int, loads: int) -> None:
    suite.record({"sim/tpot": TPOT}, barrier=3e-6)
    near = f"Simulated(tpot={confirming} if process > 1 else 0.00575, barrier=3e-6)"
    suite.backends(sim=f"Simulated(tpot=0.004, barrier=4.5e-6) if process in (2, 4) else {near}")
    result = suite.decode()
    assert (result.ret, suite.loads["sim"]) == (ret, loads)
    if ret:
        result.stdout.fnmatch_lines("*15.0% slower in 3 fresh processes*")


NOT_MOVED = [
    (3e-6, "3.7e-6"),
    (3e-6, "2.5e-6"),
    (3e-6, "9.1e-6"),
    (3e-6, "4.5e-6, threads=4"),
    (None, "9e-6"),
    (3e-6, "None"),
]


@pytest.mark.parametrize(("recorded_with", "now"), NOT_MOVED, ids=repr)
def test_cpus_that_were_not_moved_excuse_nothing(suite: Suite, recorded_with: float | None, now: str) -> None:
    suite.record({"sim/tpot": TPOT}, barrier=recorded_with)
    suite.backends(sim=f"Simulated(tpot=0.005 * 1.15, barrier={now})")
    assert suite.decode().ret == 1


@pytest.mark.parametrize(("now", "failed"), [(4.5e-6, False), (3e-6, True)])
def test_a_set_of_which_nobody_knows_does_not_count_beside_others(suite: Suite, now: float, failed: bool) -> None:
    suite.record({"sim/tpot": TPOT}, barrier=3e-6)
    suite.record({"sim/tpot": TPOT}, barrier=None)
    suite.backends(sim=f"Simulated(tpot=0.005 * 1.15, barrier={now})")
    assert suite.decode().ret == failed


@pytest.mark.parametrize("first", [3e-6, 4.5e-6], ids=["recorded together first", "recorded apart first"])
@pytest.mark.parametrize(
    ("tpot", "now", "failed"),
    [(0.005, 3e-6, False), (0.00575, 3e-6, True), (0.006, 4.5e-6, False), (0.0069, 4.5e-6, True)],
)
def test_a_process_is_compared_with_what_was_recorded_on_cpus_as_far_apart(
    suite: Suite, first: float, tpot: float, now: float, failed: bool
) -> None:
    recorded = {3e-6: 0.005, 4.5e-6: 0.006}
    suite.record({"sim/tpot": 0.004}, barrier=None)
    for barrier in (first, *(recorded.keys() - {first})):
        suite.record({"sim/tpot": recorded[barrier]}, barrier=barrier)
    suite.backends(sim=f"Simulated(tpot={tpot}, barrier={now})")
    result = suite.decode()
    assert result.ret == failed, result.stdout.str()
    result.stdout.fnmatch_lines(f"1 cases gated: 1 {'regression' if failed else 'ok'}")


def test_the_reference_is_compared_with_what_was_recorded_on_cpus_as_far_apart(suite: Suite) -> None:
    suite.record({"sim/tpot": 0.006, "ref/tpot": 0.012}, barrier=4.5e-6)
    suite.record({"sim/tpot": 0.005, "ref/tpot": 0.010}, barrier=3e-6)
    suite.backends(sim="Simulated(tpot=0.0069, barrier=4.5e-6)", ref="Simulated(tpot=0.012, barrier=4.5e-6)")
    assert suite.decode(backends="ref,sim").ret == 1, "eager is as fast as ever on such CPUs"


@pytest.mark.parametrize(
    ("moved", "failing", "loads", "ret"),
    [((), (), 2, 1), ((2,), (), 3, 1), ((2, 3), (), 3, 0), ((2,), (3,), 3, 0)],
)
def test_a_reference_whose_cpus_were_moved_is_no_witness(
    suite: Suite, moved: tuple[int, ...], failing: tuple[int, ...], loads: int, ret: int
) -> None:
    suite.record({"sim/tpot": TPOT, "ref/tpot": 0.010}, barrier=3e-6)
    suite.backends(
        sim="Simulated(tpot=0.006, barrier=3e-6)",
        ref=f"1 / 0 if process in {failing} else Simulated(barrier=4.5e-6 if process in {moved} else 3e-6)",
    )
    result = suite.decode(backends="ref,sim")
    assert (result.ret, suite.loads["ref"]) == (ret, loads)
    if result.ret == 0:
        said = "inconclusive: 20.0% slower in 2 fresh processes, but ref cannot witness it: "
        result.stdout.fnmatch_lines(said + MOVED.format(1.5))


@pytest.mark.parametrize(
    ("rates", "meetings", "said"),
    [
        ({"bandwidth": 0.6e10}, 3.3e5, "memory bandwidth is 40% below"),
        ({"bandwidth": 0.6e10}, 2e5, None),
        ({"flops": 0.5e12}, 2e5, None),
        ({"interpreter cpython-311": 0.5e7}, 2e5, "interpreter is 50% below"),
        ({}, 2e5, None),
    ],
)
def test_what_threads_do_together_says_nothing_of_a_machine_whose_cpus_were_moved(
    rates: dict[str, float], meetings: float, said: str | None
) -> None:
    recorded = {"flops": 1e12, "bandwidth": 1e10, "interpreter cpython-311": 1e7, "meetings 2": 3.3e5}
    found = weaker(recorded | rates | {"meetings 2": meetings}, recorded)
    assert (said in found) if said and found else found is said
    there = weaker({"flops": 1e12, "bandwidth": 0.6e10}, recorded)
    assert there is not None, "where nobody knows how soon they met, the rates count"


def test_another_interpreter_says_nothing_of_the_machine(recorded: Suite) -> None:
    recorded.backends(sim=SLOWER, extra='PEAKS["interpreter cpython-310"] = PEAKS.pop("interpreter cpython-311") / 2')
    assert recorded.decode().ret == 1


@pytest.mark.parametrize(("believed", "probes"), [(60.0, 1 + 3), (0.0, 1 + 3 + 3)])
def test_what_was_found_of_a_machine_is_believed_for_a_while(suite: Suite, believed: float, probes: int) -> None:
    suite.record({"sim/tpot": TPOT, "sim/latency": 0.05})
    counting = f"""
def pytest_sessionstart():
    from pytest_llmperf.gate import judge
    from pytest_llmperf.session import Run

    judge.BELIEVED = {believed}
    Run.measure_peaks = lambda run: started("peaks") and PEAKS | {{"flops": 0.5e15}}
"""
    suite.backends(sim="Simulated(tpot=0.01)", extra=counting)
    result = suite.run("suites/test_decode.py", "suites/test_latency.py", "--llm-backends=sim")
    result.stdout.fnmatch_lines("2 cases gated: 2 inconclusive")
    assert len(suite.pids("peaks")) == probes


def test_a_machine_that_is_weaker_while_it_is_confirmed_is_doubted_too(recorded: Suite) -> None:
    falling = """
from itertools import chain, repeat
RATES = chain([1e15] * 2, repeat(0.5e15))


def pytest_sessionstart():
    from pytest_llmperf.session import Run

    Run.measure_peaks = lambda run: PEAKS | {"flops": next(RATES)}
"""
    recorded.backends(sim=SLOWER, extra=falling)
    said = "15.0% slower in 2 fresh processes, but this machine's GEMM rate is 50% below what it was with the baseline"
    recorded.decode().stdout.fnmatch_lines(f"inconclusive: {said} (tpot b1-p16-n8 sim)")
    assert recorded.loads["sim"] == 3


@pytest.mark.parametrize(
    ("sim", "ref", "witnesses", "said"),
    [
        ("0.005 if process == 4 else 0.006", "0.010", 1, "inconclusive: 20.0% slower in 3 fresh processes, but *"),
        ("0.006", "0.010 if process == 1 else 0.012", 2, "inconclusive: 20.0% slower in 2 fresh *, but ref is *"),
        ("0.006", "0.012 if process == 2 else 0.010", 2, "regression: 20.0% slower in 4 fresh processes"),
        ("0.006", "0.0105 if process == 1 else 0.010", 1, "regression: 20.0% slower in 3 fresh processes"),
        ("0.006", "0.010 if process == 1 else 1 / 0", 1, f"regression: 20.0% slower in 3 fresh processes{UNSEEN}"),
        ("0.006", "0.0105 if process == 1 else 1 / 0", 2, "inconclusive: 20.0% slower in 2 fresh *, but ref is *"),
        ("0.006", "0.010", 1, "regression: 20.0% slower in 3 fresh processes"),
    ],
)
def test_a_slow_spell_that_outlasts_the_confirmation_is_no_regression(
    suite: Suite, sim: str, ref: str, witnesses: int, said: str
) -> None:
    """The reference ran before the spell, and is measured again beside the processes that confirm."""
    suite.record({"sim/tpot": 0.005, "ref/tpot": 0.010, "sim/latency": 0.135, "ref/latency": 0.170})
    suite.backends(sim=f"Simulated(tpot=lambda number: {sim})", ref=f"Simulated(tpot=lambda number: {ref})")
    result = suite.decode(backends="ref,sim")
    result.stdout.fnmatch_lines(f"{said} (tpot b1-p16-n8 sim*")
    assert suite.loads == {"ref": witnesses + 1, "sim": 1 + int(said.split(" fresh")[0][-1])}
    assert result.ret == ("regression" in said)


@pytest.mark.parametrize(
    ("backend", "said"),
    [("sim", UNSEEN), ("ref", "")],
)
def test_a_regression_without_a_baseline_of_the_reference_says_so(suite: Suite, backend: str, said: str) -> None:
    suite.record({f"{backend}/tpot": 0.005})
    suite.backends(**{backend: "Simulated(tpot=0.006)"})
    result = suite.decode(backends=backend)
    assert result.ret == 1
    result.stdout.fnmatch_lines(f"regression: 20.0% slower in 3 fresh processes{said} (tpot b1-p16-n8 {backend})")


def test_the_reference_is_measured_again_once_for_all_metrics(suite: Suite) -> None:
    suite.record({"sim/tpot": 0.005, "ref/tpot": 0.010, "sim/latency": 0.135, "ref/latency": 0.170})
    suite.backends(sim="Simulated(tpot=0.050)")
    result = suite.run("suites/test_decode.py", "suites/test_latency.py", "--llm-results=raw.json")
    result.stdout.fnmatch_lines("4 cases gated: 2 regression, 2 ok")
    assert suite.loads == {"ref": 2, "sim": 4}
    (witness,) = json.loads((suite.path / "raw.json").read_text())["witnesses"]
    assert (witness["beside"], witness["backend"]) == ("sim", "ref")


@pytest.mark.parametrize(
    ("sim", "ref", "outcomes"),
    [
        (0.006, 0.012, "1 regression, 1 inconclusive"),  # a fifth slower both
        (0.006, 0.01095, "1 ok, 1 inconclusive"),  # less than the tolerance is left
        (0.007, 0.0105, "1 regression, 1 ok"),
        (0.006, 0.0095, "1 regression, 1 ok"),
        (0.0056, 0.0102, "1 regression, 1 ok"),  # the reference is a little slow, as by chance
        (0.0065, 0.0109, "1 ok, 1 inconclusive"),  # a slow spell may slow another backend by twice as much
        (0.0067, 0.0109, "1 regression, 1 ok"),
    ],
)
def test_a_slowdown_that_the_reference_shares_is_the_machine_s_or_fails_by_the_reference(
    suite: Suite, sim: float, ref: float, outcomes: str
) -> None:
    suite.record({"sim/tpot": 0.005, "ref/tpot": 0.010})
    suite.backends(sim=f"Simulated(tpot={sim})", ref=f"Simulated(tpot={ref})")
    result = suite.decode(backends="ref,sim")
    assert result.ret == ("regression" in outcomes)
    result.stdout.fnmatch_lines(f"2 cases gated: {outcomes}")
    if "inconclusive" in outcomes:
        said = "but ref is *% slower than its baseline too, so it may be the machine (tpot b1-p16-n8 sim)"
        result.stdout.fnmatch_lines(f"inconclusive: {sim / 0.005 - 1:.1%} slower in 2 fresh processes, {said}")


# Another machine


ELSEWHERE = {"sim/tpot": TPOT / 3, "ref/tpot": 0.010 / 3}


def test_a_baseline_of_another_machine_is_compared_by_speedup(suite: Suite) -> None:
    suite.record(ELSEWHERE, cpu="a faster one")
    result = suite.decode(backends="ref,sim")
    assert result.ret == 0, "everything is 3 times slower here, so nothing is"
    result.stdout.fnmatch_lines(
        ["tpot b1-p16-n8 sim*0.0%*ok", "ok: by the speedup on another machine (CPU: *a faster one)*"]
    )


@pytest.mark.parametrize("strict", [(), ("--llm-strict",)], ids=["", "strict"])
def test_a_speedup_that_is_less_than_on_another_machine_is_a_question(suite: Suite, strict: tuple[str, ...]) -> None:
    suite.record(ELSEWHERE, cpu="a faster one")
    suite.backends(sim=SLOWER)
    result = suite.run("suites/test_decode.py", *strict)
    assert result.ret == bool(strict)
    assert suite.loads["sim"] == 1, "fresh processes cannot tell the machine from the change"
    result.stdout.fnmatch_lines("inconclusive: less speedup over ref than on another machine *a faster one*record a *")


def test_a_speedup_that_is_more_than_on_another_machine_is_no_improvement(suite: Suite) -> None:
    suite.record(ELSEWHERE, cpu="a faster one")
    suite.backends(sim="Simulated(tpot=0.003)")
    suite.decode(backends="ref,sim").stdout.fnmatch_lines("tpot b1-p16-n8 sim*-40.0%*ok")


@pytest.mark.parametrize("here", [True, False], ids=["no reference in the file", "no reference in this run"])
def test_without_the_reference_another_machine_s_baseline_is_none(suite: Suite, here: bool) -> None:
    figures = {"sim/tpot": TPOT} if here else {"sim/tpot": TPOT, "ref/tpot": 0.010}
    suite.record(figures, cpus=9999)
    result = suite.decode(backends="ref,sim" if here else "sim")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        "incomparable: no baseline of this machine, only of another (CPUs: *no speedup over ref*"
    )


def test_each_machine_has_its_own_entry(recorded: Suite) -> None:
    """Two kinds of runner share a file: each compares with its own, and accepting on one leaves the other's."""
    recorded.record(ELSEWHERE, cpu="a faster one")
    recorded.backends(sim=SLOWER)
    assert recorded.decode().ret == 1, "compared with this machine's own"
    assert recorded.decode("--llm-update-baselines").ret == 0
    medians = [record["median"] for record in recorded.stored()["entries"][f"{SIM}/tpot"]]
    assert sorted(medians) == pytest.approx([TPOT / 3, TPOT, TPOT * 1.15], rel=1e-5)
    assert recorded.decode().ret == 0


def test_an_edited_fingerprint_is_refused(recorded: Suite) -> None:
    text = recorded.baseline.read_text()
    recorded.baseline.write_text(text.replace('"cpus": ', '"cpus": 9'))
    result = recorded.decode()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines("*tiny.json: environment * was edited*")


# Figures that are none


@pytest.mark.parametrize(("metric", "peak"), [("ttft", ("flops", 1e3)), ("tpot", ("bandwidth", 1e7))])
@pytest.mark.parametrize("whole", [False, True], ids=["itself", "latency"])
def test_an_impossible_figure_fails(suite: Suite, metric: str, peak: tuple[str, float], whole: bool) -> None:
    suite.backends(extra=f'PEAKS["{peak[0]}"] = {peak[1]}')
    suite.test(f"def test_it(llm_perf):\n    llm_perf.gate('{'latency' if whole else metric}')")
    result = suite.run("test_it.py", "--llm-backends=sim")
    assert result.ret == 1
    result.stdout.fnmatch_lines(f"tiny/{SIM}/{metric}: impossible figure *: *the measured roof of this machine*")


@pytest.mark.parametrize("update", [(), ("--llm-update-baselines",)], ids=["gate", "update"])
def test_an_impossible_figure_is_never_recorded(suite: Suite, update: tuple[str, ...]) -> None:
    suite.backends(extra='PEAKS["bandwidth"] = 1e3')
    assert suite.decode(*update).ret == 1
    assert not suite.baseline.exists()


SHORT = """
class Short(Simulated):
    def generate(self, prompts, max_new_tokens, on_token):
        super().generate(prompts, max_new_tokens - 1, on_token)
"""
SILENT = """
class Silent(Simulated):
    def generate(self, prompts, max_new_tokens, on_token):
        super().generate(prompts[:-1], max_new_tokens, on_token)
"""
BACKWARDS = """
class Backwards(Simulated):
    def generate(self, prompts, max_new_tokens, on_token):
        self.tpot = -0.001
        super().generate(prompts, max_new_tokens, on_token)
"""
ALL_AT_ONCE = """
class AllAtOnce(Simulated):
    def generate(self, prompts, max_new_tokens, on_token):
        self.tpot = 0.0
        super().generate(prompts, max_new_tokens, on_token)
"""


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (SHORT, "request 0: 7 tokens came back, 8 were asked for"),
        (SILENT, "request 0: 0 tokens came back, 8 were asked for"),
        (BACKWARDS, "request 0: token times do not run forward*"),
        (ALL_AT_ONCE, "request 0: all 8 tokens came at one instant*"),
    ],
    ids=["short", "silent", "backwards", "all at once"],
)
def test_a_generation_that_is_not_what_was_asked_is_no_figure(suite: Suite, engine: str, said: str) -> None:
    name = re.search(r"class (\w+)", engine)[1]  # type: ignore[index]
    suite.backends(sim=f"{name}()", extra=engine)
    result = suite.decode()
    assert result.ret == 1
    result.stdout.fnmatch_lines(said)
    result.stdout.no_fnmatch_line("tpot b1-p16-n8 sim*")


def test_an_optimization_that_did_not_engage_is_no_figure(suite: Suite) -> None:
    fallback = 'Engagement(False, "a paged kernel", {"kernel": "math"})'
    suite.backends(sim=f"Simulated(tpot=0.001, evidence={fallback})")
    result = suite.decode("--llm-update-baselines", "--llm-results=raw.json")
    assert result.ret == 1
    result.stdout.fnmatch_lines("*did not engage: expected a paged kernel; seen: kernel=math")
    result.stdout.no_fnmatch_line("*1.000 ms*")
    assert not suite.baseline.exists()
    assert json.loads((suite.path / "raw.json").read_text())["results"] == []


# What else is said


def test_unused_baselines_are_listed_when_asked(recorded: Suite) -> None:
    recorded.record({"gone/tpot": TPOT})
    result = recorded.decode("-v")
    result.stdout.fnmatch_lines("baselines that this run did not use: *gone/b1-p16-n8/tpot, *ref/*")
    assert "gone" in json.dumps(recorded.stored()), "listed, never deleted"


@pytest.mark.parametrize(
    "how", [("CI", ()), ("", ("--llm-max-regression=5%",)), ("", ())], ids=["CI", "a tolerance", "neither"]
)
def test_a_gate_that_compared_nothing_has_passed_nothing(
    suite: Suite, how: tuple[str, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    variable, options = how
    if variable:
        monkeypatch.setenv(variable, "true")
    result = suite.decode(*options)
    asked = bool(variable or options)
    assert result.ret == asked
    assert any("nothing was compared with a baseline" in line for line in result.outlines) == asked


@pytest.mark.parametrize(
    "test",
    [
        "import pytest\n@pytest.mark.llm(devices=['mi210'])\ndef test_it(llm_perf):\n    llm_perf.gate('tpot')",
        "import pytest\n@pytest.mark.skip\ndef test_it(llm_perf):\n    llm_perf.gate('tpot')",
        "def test_it(llm_perf):\n    pass",
    ],
    ids=["another device", "skipped", "never gated"],
)
def test_in_ci_a_gate_that_measured_nothing_has_passed_nothing(
    recorded: Suite, test: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    recorded.test(test)
    assert recorded.run("test_it.py", "--benchmark-skip").ret in (0, 5), "nothing was to be gated"
    assert recorded.run("test_it.py", "--collect-only").ret == 0
    result = recorded.run("test_it.py")
    assert result.ret == 1
    result.stdout.fnmatch_lines("ERROR: nothing was compared with a baseline*")


def test_what_was_skipped_is_counted(recorded: Suite) -> None:
    recorded.test(
        "import pytest\n@pytest.mark.llm(devices=['mi210'])\ndef test_it(llm_perf):\n    llm_perf.gate('tpot')"
    )
    result = recorded.run("test_it.py", "suites/test_decode.py", "--llm-backends=sim")
    result.stdout.fnmatch_lines("1 cases gated: 1 ok, 1 skipped")


def test_a_backend_whose_parity_could_not_be_shown_is_not_accepted(recorded: Suite) -> None:
    broken = """
class Broken(Simulated):
    def observe(self, prompts, max_new_tokens, leading):
        raise RuntimeError("no logits today")
"""
    before = recorded.stored()["entries"][f"{SIM}/tpot"]
    recorded.backends(sim="Broken(tpot=0.002)", extra=broken)
    result = recorded.run("suites/test_decode.py", "suites/test_greedy_parity.py", "--llm-update-baselines")
    assert result.ret == 1
    assert recorded.stored()["entries"][f"{SIM}/tpot"] == before


def test_results_are_written_by_a_parity_test_too(suite: Suite) -> None:
    suite.run("suites/test_greedy_parity.py", "--llm-results=raw.json")
    assert len(json.loads((suite.path / "raw.json").read_text())["parity"]) == 2


def test_a_test_gates_one_metric(suite: Suite) -> None:
    suite.test("def test_it(llm_perf):\n    llm_perf.gate('tpot')\n    llm_perf.gate('ttft')")
    result = suite.run("test_it.py", "--llm-backends=sim")
    assert result.ret == 1
    result.stdout.fnmatch_lines("llm_perf gates one metric a test, *")


def test_in_ci_a_gate_that_compared_something_passes(recorded: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    assert recorded.decode().ret == 0


def test_strictly_a_missing_baseline_fails_its_test(suite: Suite) -> None:
    result = suite.decode("--llm-strict")
    assert result.ret == 1
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(f"tiny/{SIM}/tpot: no baseline: *")


def test_the_verdict_is_a_plain_result_for_the_test_itself(recorded: Suite) -> None:
    recorded.test("def test_it(llm_perf):\n    result = llm_perf.gate('tpot')\n    assert result.spread.median < 0.001")
    result = recorded.run("test_it.py", "--llm-backends=sim")
    assert result.ret == 1
    assert "spread" in Result.__annotations__
