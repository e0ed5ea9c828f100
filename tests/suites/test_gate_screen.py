"""The screen: one process against the stored baseline, in the machine's state; end to end."""

from __future__ import annotations

import json

import pytest
from gated import SIM, SLOWER, TPOT, decode, gate, looking, record, verdicts
from inner import BUSY, RATES, Suite

from pytest_llmperf import availability, plan
from pytest_llmperf.machine import detect, fingerprint


@pytest.fixture
def recorded(suite: Suite) -> Suite:
    """A suite with a baseline of 5 ms per token for ``sim``, of five sittings."""
    record(suite)
    return suite


# Without a baseline


def test_the_first_run_passes_and_says_how_to_record_a_baseline(suite: Suite) -> None:
    result, said = decode(suite)
    assert result.ret == 0
    assert (said["outcome"], said["reason"]) == ("no baseline", "baselines/cpu/tiny.json does not exist")
    assert "--llm-update-baselines" in said["remedy"]
    result.stdout.fnmatch_lines(["*tpot*sim*no baseline*", "*0 cases gated: 1 no baseline*"])


def test_nothing_is_written_without_the_flag(suite: Suite) -> None:
    suite.decode()
    assert not (suite.path / "baselines").exists()


def test_an_accelerator_that_torch_cannot_use_is_said_not_to_be_measured(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "*the CPU was measured: torch 2.13.0+cpu cannot use NVIDIA RTX A6000*"
    nothing_stated = "-ollm_device="
    monkeypatch.setattr(availability, "torch_of", lambda *_: "2.13.0+cpu")
    monkeypatch.setattr(plan, "torch_of", lambda *_: "2.13.0+cpu")
    suite.decode(nothing_stated).stdout.no_fnmatch_line(said)
    monkeypatch.setattr(detect, "found", lambda: ("NVIDIA RTX A6000",))
    suite.decode(nothing_stated).stdout.fnmatch_lines(said)
    suite.decode("--llm-device=cpu").stdout.no_fnmatch_line(said)


def test_an_accelerator_that_nobody_listed_is_measured_under_its_product_s_name(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprint.take()  # which is kept for other tests
    monkeypatch.setattr(availability, "torch_of", lambda *_: "2.13.0+cu128")
    monkeypatch.setattr(detect, "found", lambda: ("NVIDIA RTX A6000",))
    name = "nvidia-rtx-a6000"
    suite.decode("-ollm_device=", "--llm-update-baselines")
    stored = json.loads((suite.path / f"baselines/{name}/tiny.json").read_text())
    assert stored["device"] == name
    assert all({"flops", "bandwidth"} <= sitting["rates"].keys() for sitting in stored["sittings"].values())
    result, said = decode(suite, f"--llm-device={name}")
    assert (result.ret, said["outcome"], said["basis"], said["tolerance"]) == (0, "inconclusive", "stored", 0.05)
    assert json.loads((suite.path / "raw.json").read_text())["device"] == name


# Slower, faster, the same


@pytest.mark.parametrize("sittings", [1, 5])
def test_an_unchanged_case_is_ok_and_costs_no_fresh_process(suite: Suite, sittings: int) -> None:
    record(suite, sittings=sittings)
    result, said = decode(suite)
    assert (result.ret, said["outcome"], said["count"], said["basis"]) == (0, "ok", 1, "stored")
    assert suite.loads == {"ref": 0, "sim": 1}
    result.stdout.fnmatch_lines(["*tpot*sim*ok*", "*1 cases gated: 1 ok*"])


def test_a_slowdown_within_the_tolerance_is_ok_where_the_tolerance_is_excluded(recorded: Suite) -> None:
    recorded.backends(sim="Simulated(tpot=0.005 * 1.03)")
    result, said = decode(recorded)
    assert (result.ret, said["outcome"]) == (0, "ok")
    result.stdout.fnmatch_lines("*tpot*sim*+3.0%*ok*")


def test_a_slowdown_within_the_tolerance_is_open_where_it_is_not_excluded(suite: Suite) -> None:
    record(suite, sittings=1)
    suite.backends(sim="Simulated(tpot=0.005 * 1.03)")
    result, said = decode(suite)
    assert (result.ret, said["outcome"], suite.loads["sim"]) == (0, "inconclusive", 1)
    assert said["reason"].startswith("3.0% slower than the baseline in 1 process; a slowdown of 12.8% cannot be ex")
    assert said["not_excluded"] == pytest.approx(0.128, abs=0.001)
    assert said["remedy"] == "run with --llm-compare=unresolved"
    result.stdout.fnmatch_lines("*1 cases gated: 1 inconclusive*")


def test_a_slowdown_is_no_regression_by_one_process(recorded: Suite) -> None:
    recorded.backends(sim="Simulated(tpot=0.05)")
    result, said = decode(recorded, "--llm-compare=never")
    assert (result.ret, said["outcome"], recorded.loads["sim"]) == (0, "inconclusive", 1)


def test_a_faster_backend_is_said_to_be(recorded: Suite) -> None:
    recorded.backends(sim="Simulated(tpot=0.0043)")
    result, said = decode(recorded)
    assert (result.ret, said["outcome"], recorded.loads["sim"]) == (0, "faster", 1)
    result.stdout.fnmatch_lines(["*tpot*sim*-14.0%*faster*", "*1 cases gated: 1 faster*"])


def test_a_baseline_whose_own_processes_differed_is_not_failed_for_less_than_that(suite: Suite) -> None:
    suite.backends(sim="Simulated(tpot=0.005 * [1, 1.1, 1.2][process - 1])")
    suite.decode("--llm-update-baselines", "--llm-invocations=3")
    (suite.path / "sim.pids").unlink()
    suite.backends(sim="Simulated(tpot=0.0055 * 1.15)")
    result, said = decode(suite)
    assert (result.ret, said["outcome"]) == (0, "inconclusive")


def test_a_difference_below_the_floor_is_ok(suite: Suite) -> None:
    record(suite, {"sim/tpot": 0.0003})
    suite.backends(sim="Simulated(tpot=0.00034)")
    assert decode(suite)[1]["outcome"] == "ok"


# The tolerance


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
    result.stdout.fnmatch_lines("*5% (marker)*")
    recorded.ini(llm_max_regression="7%")
    recorded.decode().stdout.fnmatch_lines("*7% (llm_max_regression)*")


# The machine's state


STATES = [
    ('PEAKS["flops"] = 0.5e15', "GEMM rate is 50% below"),
    ('PEAKS["bandwidth"] = 0.8e15', "memory bandwidth is 20% below"),
    ('PEAKS["interpreter cpython-311"] = 0.7e7', "interpreter is 30% below"),
    ('PEAKS["interpreter cpython-311"] = 1.5e7', "interpreter is 50% above"),
]


@pytest.mark.parametrize("strict", [(), ("--llm-strict",)], ids=["", "strict"])
@pytest.mark.parametrize(("extra", "state"), STATES, ids=["slower cores", "slower memory", "a neighbour", "faster"])
@pytest.mark.parametrize("tpot", [0.00575, 0.005, 0.0025])
def test_on_a_machine_in_another_state_nothing_can_be_told(
    recorded: Suite, tpot: float, extra: str, state: str, strict: tuple[str, ...]
) -> None:
    recorded.backends(sim=f"Simulated(tpot={tpot})", extra=extra)
    result, said = decode(recorded, *strict)
    assert (result.ret, said["outcome"], recorded.loads["sim"]) == (bool(strict), "inconclusive", 1)
    assert said["reason"].startswith(
        f"this machine is not in the state in which the baseline was recorded: its {state} the recorded one"
    )
    assert said["remedy"].startswith("record another sitting of the baseline's code"), (
        "there is no base to compare with"
    )


@pytest.mark.parametrize("strict", [(), ("--llm-strict",)], ids=["", "strict"])
@pytest.mark.parametrize(
    ("before", "now", "times"), [(3e-6, 4.5e-6, 1.5), (4.5e-6, 3e-6, 0.7)], ids=["apart", "together"]
)
@pytest.mark.parametrize("tpot", [0.00575, 0.005, 0.004])
def test_on_cpus_that_were_moved_nothing_can_be_told(
    suite: Suite, before: float, now: float, times: float, tpot: float, strict: tuple[str, ...]
) -> None:
    record(suite, barrier=before)
    suite.backends(sim=f"Simulated(tpot={tpot}, barrier={now})")
    result, said = decode(suite, *strict)
    assert (result.ret, said["outcome"], suite.loads["sim"]) == (bool(strict), "inconclusive", 1)
    assert f"its threads take {times} times as long to meet as recorded" in said["reason"]


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
    record(suite, barrier=recorded_with)
    suite.backends(sim=f"Simulated(tpot=0.005 * 1.15, barrier={now})")
    assert suite.decode().ret == 1


@pytest.mark.parametrize(("tpot", "barrier"), [(0.005, 3e-6), (0.006, 4.5e-6)])
def test_a_process_is_compared_with_the_sitting_of_its_own_state(suite: Suite, tpot: float, barrier: float) -> None:
    record(suite, {"sim/tpot": 0.005}, sittings=1, barrier=3e-6)
    suite.record({"sim/tpot": 0.006}, recorded="2026-01-09", barrier=4.5e-6, add=True)
    suite.backends(sim=f"Simulated(tpot={tpot}, barrier={barrier})")
    _, said = decode(suite)
    assert (said["outcome"], said["baseline"]) == ("ok", pytest.approx(tpot))


def test_another_interpreter_says_nothing_of_the_machine(recorded: Suite) -> None:
    recorded.backends(sim=SLOWER, extra='PEAKS["interpreter cpython-310"] = PEAKS.pop("interpreter cpython-311") / 2')
    assert recorded.decode().ret == 1


def test_a_look_at_the_machine_that_was_disturbed_is_followed_by_another(recorded: Suite) -> None:
    recorded.backends(sim=SLOWER, extra=looking("[PEAKS | {'flops': 0.5e15}] * 2 + [PEAKS] * 9"))
    assert decode(recorded)[1]["outcome"] == "regression"
    assert len(recorded.pids("rates")) == 3 + 1, "once more after the fresh processes"


def test_what_was_found_of_the_machine_serves_every_case(suite: Suite) -> None:
    record(suite, {"sim/tpot": TPOT, "sim/latency": 0.05})
    suite.backends(sim="Simulated(tpot=0.01)", extra=looking("[PEAKS | {'flops': 0.5e15}] * 9"))
    gate(suite, "suites/test_decode.py", "suites/test_latency.py", "--llm-backends=sim")
    assert [one["outcome"] for one in verdicts(suite).values()] == ["inconclusive"] * 2
    assert len(suite.pids("rates")) == 3


#: A token costs a sleep, as a step of an accelerator does, and work of the host, which a neighbour doubles.
HOSTED = "Simulated(tpot=lambda _: 0.015 + {host})"


@pytest.mark.parametrize("known", [True, False], ids=["rates recorded", "rates not recorded"])
@pytest.mark.parametrize("host", [0.002, 0.004, 0.008])
def test_stored_figures_alone_never_blame_code_for_a_busy_host(suite: Suite, host: float, known: bool) -> None:
    rates = RATES | ({"launches": 2e5, "to host": 5e4} if known else {})
    record(suite, {"sim/tpot": 0.015 + host}, sittings=2, rates=rates if known else {})
    suite.backends(sim=HOSTED.format(host=2 * host), extra=f"PEAKS |= {rates} | {{'launches': 1e5, 'to host': 2.5e4}}")
    for compare in ("never", "flagged", "always"):
        result, said = decode(suite, f"--llm-compare={compare}", "--llm-max-regression=5%")
        assert (result.ret, said["outcome"]) == (0, "inconclusive")
        assert said["other_state"] == known


# Disturbed processes


def test_a_disturbed_process_that_is_faster_is_open(recorded: Suite) -> None:
    recorded.backends(sim="Busy(0.0043)", extra=BUSY)
    _, said = decode(recorded)
    assert said["outcome"] == "inconclusive"
    assert "too few samples of the process were undisturbed: others used 4.0 cores" in said["reason"]


# Another machine


@pytest.mark.parametrize("strict", [(), ("--llm-strict",)], ids=["", "strict"])
def test_a_baseline_of_another_machine_is_none(suite: Suite, strict: tuple[str, ...]) -> None:
    suite.record({"sim/tpot": TPOT / 3, "ref/tpot": 0.010 / 3}, cpu="a faster one")
    suite.backends(sim=SLOWER)
    result, said = decode(suite, *strict)
    assert (result.ret, said["outcome"]) == (bool(strict), "no baseline")
    assert said["reason"].startswith("the baseline is of another machine; here CPU: ")
    assert said["reason"].endswith(", not a faster one")


def test_each_machine_has_its_own_entry(recorded: Suite) -> None:
    """Two kinds of runner share a file: each compares with its own, and accepting on one leaves the other's."""
    recorded.record({"sim/tpot": TPOT / 3}, cpu="a faster one")
    recorded.backends(sim=SLOWER)
    assert recorded.decode().ret == 1, "compared with this machine's own"
    assert recorded.decode("--llm-update-baselines").ret == 0
    found = [record["figure"] for record in recorded.stored()["entries"][f"{SIM}/tpot"]]
    assert sorted(found) == pytest.approx([TPOT / 3, TPOT * 1.15], rel=1e-5)
    assert recorded.decode().ret == 0


def test_an_edited_fingerprint_is_refused(recorded: Suite) -> None:
    text = recorded.baseline.read_text()
    recorded.baseline.write_text(text.replace('"cpus": ', '"cpus": 9'))
    result = recorded.decode()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines("*tiny.json: sitting * was edited*")
