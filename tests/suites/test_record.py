"""Recording a baseline: fresh processes, disturbed ones replaced, and what is not accepted; end to end."""

from __future__ import annotations

import pytest
from gated import FIGURES, REF, SIM, SLOWER, TPOT, decode
from inner import BUSY, Suite


@pytest.fixture
def recorded(suite: Suite) -> Suite:
    """A suite with a baseline of 5 ms per token for ``sim``, of one sitting."""
    suite.record(FIGURES)
    return suite


def test_an_update_records_fresh_processes(suite: Suite) -> None:
    result = suite.decode("--llm-update-baselines")
    assert result.ret == 0
    assert suite.loads["sim"] == 5
    entries = {key: record for key, (record,) in suite.stored()["entries"].items()}
    assert list(entries) == [f"{SIM}/tpot"]
    assert entries[f"{SIM}/tpot"]["figure"] == pytest.approx(TPOT)
    assert [len(record["processes"]) for record in entries.values()] == [5]
    result.stdout.fnmatch_lines(
        [
            "accepted*old*new*change*sittings*not excluded*",
            "tpot b1-p16-n8 sim*-*5.000 ms*new*1*9.5%*",
            "*1 entries written to *tiny.json*",
        ]
    )


def test_what_was_recorded_passes_the_next_run(suite: Suite) -> None:
    suite.decode("--llm-update-baselines")
    result, said = decode(suite)
    assert (result.ret, said["outcome"]) == (0, "ok")


def test_more_invocations_may_be_asked_for(suite: Suite) -> None:
    suite.decode("--llm-update-baselines", "--llm-invocations=7")
    (record,) = suite.stored()["entries"][f"{SIM}/tpot"]
    assert len(record["processes"]) == 7


def test_an_update_accepts_a_slowdown_and_says_by_how_much(recorded: Suite) -> None:
    recorded.backends(sim=SLOWER)
    result = recorded.decode("--llm-update-baselines")
    assert result.ret == 0
    result.stdout.fnmatch_lines("tpot b1-p16-n8 sim *5.000 ms *5.750 ms *+15.0%*")
    figures = [record["figure"] for record in recorded.stored()["entries"][f"{SIM}/tpot"]]
    assert figures == pytest.approx([TPOT * 1.15]), "figures of other code have no common mean"


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
    assert recorded.stored()["entries"].keys() == {f"{SIM}/tpot", f"{REF}/tpot"}
    result.stdout.fnmatch_lines("*written to *1 cases, disturbed, not judged or not in parity, were not accepted*")


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


@pytest.mark.parametrize(("disturbed", "loads"), [(1, 4), (3, 6)])
def test_a_disturbed_process_is_measured_again_for_a_baseline(suite: Suite, disturbed: int, loads: int) -> None:
    suite.backends(sim=f"Busy(0.007) if process <= {disturbed} else Simulated(tpot=0.005)", extra=BUSY)
    result = suite.decode("--llm-update-baselines", "--llm-invocations=3")
    assert result.ret == 0
    assert suite.loads["sim"] == loads
    (record,) = suite.stored()["entries"][f"{SIM}/tpot"]
    assert record["figure"] == pytest.approx(TPOT)
    assert len(record["processes"]) == 3


def test_a_machine_that_stays_disturbed_records_nothing(suite: Suite) -> None:
    suite.backends(sim="Busy(0.007)", extra=BUSY)
    result = suite.decode("--llm-update-baselines", "--llm-invocations=3")
    assert result.ret == 1, "what was asked for was not done"
    assert suite.loads["sim"] == 4, "no two more could have made it three"
    assert not suite.baseline.exists()
    result.stdout.fnmatch_lines("*0 entries written to *1 cases, disturbed, not judged or not in parity, *")


def test_an_interrupted_run_writes_no_baseline(suite: Suite) -> None:
    suite.test("def test_interrupted(llm_perf):\n    llm_perf.gate('tpot')\n    raise KeyboardInterrupt")
    result = suite.run("test_it.py", "--llm-backends=sim", "--llm-update-baselines", no_reraise_ctrlc=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines("*interrupted: no baseline was written*")
    assert not suite.baseline.exists()


def test_a_sitting_notes_how_soon_the_threads_of_its_processes_met(suite: Suite) -> None:
    """Of the processes the middle one's, whatever state each was in; the next run is compared where it agrees."""
    suite.backends(sim="Simulated(tpot=0.005, barrier=[3e-6, 3.2e-6, 4.5e-6][process - 1])")
    assert suite.decode("--llm-update-baselines", "--llm-invocations=3").ret == 0
    (record,) = suite.stored()["entries"][f"{SIM}/tpot"]
    assert (record["barrier"], record["threads"], len(record["processes"])) == (3.2e-6, 2, 3)
    suite.backends(sim="Simulated(tpot=0.005, barrier=3.2e-6)")
    assert decode(suite)[1]["outcome"] == "ok"


def test_what_is_accepted_is_not_compared(recorded: Suite) -> None:
    recorded.backends(sim=SLOWER, ref="Simulated(tpot=0.009)")
    recorded.decode("--llm-update-baselines", "--llm-invocations=3", backends="ref,sim")
    assert recorded.loads == {"ref": 3, "sim": 3}
