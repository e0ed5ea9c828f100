"""Accepting figures: which baselines an update writes, what CI refuses, what is said, and what history changes."""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable
from fnmatch import fnmatch
from importlib import metadata

import pytest
from inner import RATES, SERVING, Suite

from pytest_llmperf.gate import baseline as store
from pytest_llmperf.gate.baseline import HISTORY
from pytest_llmperf.machine.fingerprint import take

TPOT = 0.005
SIM, REF = "bfloat16/sim/b1-p16-n8", "bfloat16/ref/b1-p16-n8"
SLOWER = "Simulated(tpot=0.005 * 1.15)"


@pytest.fixture
def recorded(suite: Suite) -> Suite:
    """A suite with a baseline of 5 ms per token for ``sim``."""
    suite.record({"sim/tpot": TPOT})
    return suite


def medians(suite: Suite, key: str = f"{SIM}/tpot") -> list[float]:
    return [record["figure"] for record in suite.stored()["entries"][key]]


def said(result: pytest.RunResult) -> str:
    """The output as one line, however it was wrapped."""
    return " ".join(result.stdout.str().split())


def sittings(suite: Suite) -> None:
    """A baseline of so many sittings that fresh processes tell a slowdown of 15 % from none."""
    for day in range(1, 7):
        suite.record({"sim/tpot": TPOT}, recorded=f"2026-01-{day:02}", add=True)


UPDATED = ("--llm-update-baselines", "--llm-invocations=3")

# What is stored


def test_a_sitting_says_with_what_it_was_recorded(suite: Suite) -> None:
    revision = suite.commit()
    assert suite.decode(*UPDATED).ret == 0
    held = suite.stored()
    (sitting,) = held["sittings"].values()
    assert sitting["revision"] == revision
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", sitting["recorded"])
    assert sitting["rates"] == RATES
    assert "kernel" in sitting["system"]
    versions = held["versions"][sitting["versions"]]
    assert versions["python"] == platform.python_version()
    for name in ("pytest", "hypothesis", "pluggy", "torch"):
        assert versions[name] == metadata.version(name), "of every distribution"
    assert held["machines"][sitting["machine"]] == take().as_dict()
    (entry,) = held["entries"][f"{SIM}/tpot"]
    assert entry["processes"] == pytest.approx([TPOT] * 3)


def test_a_tree_with_changes_stores_no_revision(suite: Suite) -> None:
    suite.commit()
    suite.test("# of nobody's revision")
    assert suite.decode(*UPDATED).ret == 0
    assert [one["revision"] for one in suite.stored()["sittings"].values()] == [None]


def test_of_what_was_accepted_nothing_is_left_to_do(suite: Suite) -> None:
    result = suite.run("suites", *UPDATED, "--llm-results=r.json", "--llm-report=r.csv,r.md,r.html,r.report.json")
    result.stdout.no_fnmatch_line("*accept the figures*")
    for file in ("r.json", "r.csv", "r.md", "r.html", "r.report.json"):
        written = (suite.path / file).read_text()
        assert "accepted" in written
        assert "accept the figures" not in written, file
    (one, *_) = json.loads((suite.path / "r.json").read_text())["results"]
    assert (one["said"], one["verdict"]["outcome"]) == (f"tiny/{one['case']}: accepted", "no baseline")


UNNAMED = "the baseline names no revision ({why}): no later run can compare beside this code"


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("clean", ""),
        ("changed", "files differ from the commit"),
        ("no repository", "git rev-parse in * failed: *not a git repository*"),
    ],
)
def test_a_sitting_without_a_revision_is_noted(suite: Suite, how: str, why: str) -> None:
    noted = f"*{UNNAMED.format(why=why or '*')}*"
    if how != "no repository":
        suite.commit()
    if how == "changed":
        suite.test("# of nobody's revision")
    assert not fnmatch(said(suite.decode()), noted), "nothing is accepted"
    result = suite.decode(*UPDATED, "--llm-results=raw.json")
    assert result.ret == 0
    assert fnmatch(said(result), noted) == bool(why)
    raw = json.loads((suite.path / "raw.json").read_text())
    assert (raw["commit"] is None) == (how == "no repository")
    assert fnmatch(str(raw["no_commit"]), why if how == "no repository" else "None")
    assert not fnmatch(said(suite.decode()), noted)


# Sittings of the same code add up, figures of other code replace


def test_sittings_of_the_same_revision_add_up(suite: Suite) -> None:
    """The baselines, the results and the reports of the runs themselves are no changes."""
    revision = suite.commit()
    for number, factor in enumerate((1, 1.01, 1.02), 1):
        suite.backends(sim=f"Simulated(tpot={TPOT * factor})")
        suite.git("update-index", "--assume-unchanged", "conftest.py")
        result = suite.decode(*UPDATED, "--llm-results=raw.json", "--llm-report=report.html")
        assert result.ret == 0
        assert len(medians(suite)) == number
    assert medians(suite) == pytest.approx([TPOT * 1.02, TPOT * 1.01, TPOT]), "the newest first"
    assert {one["revision"] for one in suite.stored()["sittings"].values()} == {revision}
    assert re.search(r"^tpot b1-p16-n8 sim .* 3 ", result.stdout.str(), re.M), "how many there are"


MEANWHILE = """
def pytest_runtest_teardown(item):
    from shutil import copy

    if (HERE / "baselines" / "other").exists():
        (HERE / "baselines" / "cpu").mkdir(exist_ok=True)
        copy(HERE / "baselines" / "other", HERE / "baselines" / "cpu" / "tiny.json")
"""


def test_a_sitting_that_another_run_of_the_same_code_writes_meanwhile_stays(suite: Suite) -> None:
    suite.backends(extra=MEANWHILE)
    suite.commit()
    assert suite.decode(*UPDATED).ret == 0
    (first,) = suite.stored()["sittings"]
    suite.baseline.rename(suite.path / "baselines" / "other")
    time.sleep(1)  # sittings of one second are one
    assert suite.decode(*UPDATED).ret == 0
    assert len(medians(suite)) == 2
    assert first in suite.stored()["sittings"]


def test_an_update_waits_for_whoever_changes_the_baseline(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PATIENCE", 0.05)
    with store.locked(suite.baseline):
        result = suite.decode(*UPDATED)
    assert result.ret == 1
    assert f"ERROR: {suite.baseline}: cannot be changed (" in said(result)
    assert "another process has kept it locked for 0.05 s" in said(result)
    assert not suite.baseline.exists()
    assert suite.decode(*UPDATED).ret == 0


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda suite: suite.test("# another test"), 1),
        (lambda suite: suite.backends(sim="Simulated(tpot=0.0051)"), 1),
        (lambda suite: (suite.path / "notes").mkdir(), 2),
        (lambda suite: (suite.test("# committed"), suite.commit()), 1),
        (lambda suite: suite.commit(), 2),
    ],
    ids=["a new file", "a changed file", "nothing", "another revision", "a commit of baselines alone"],
)
def test_figures_of_other_code_replace_the_old_ones(suite: Suite, change: Callable[[Suite], object], left: int) -> None:
    suite.backends(sim="Simulated(tpot=0.005 * (1 + process / 1000))")
    suite.commit()
    assert suite.decode(*UPDATED).ret == 0
    change(suite)
    assert suite.decode(*UPDATED).ret == 0
    assert len(medians(suite)) == left


def test_figures_of_other_versions_replace_the_old_ones(suite: Suite) -> None:
    revision = suite.commit()
    suite.record({"sim/tpot": TPOT}, revision=revision, versions={"python": "3.9.1"})
    assert suite.decode(*UPDATED).ret == 0
    assert len(medians(suite)) == 1


def test_a_distribution_that_was_installed_with_changes_is_never_the_same_code(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = suite.commit()
    suite.backends(sim="Simulated(tpot=0.005 * (1 + process / 1000))")
    versions = {"mine": "1.0 (c0ffee+)"}
    monkeypatch.setattr("pytest_llmperf.machine.fingerprint.everything_installed", lambda *_: versions)
    suite.record({"sim/tpot": TPOT}, revision=revision, versions=versions)
    assert suite.decode(*UPDATED).ret == 0
    assert len(medians(suite)) == 1
    assert suite.decode("--llm-update-baselines=add", UPDATED[1]).ret == 0
    assert len(medians(suite)) == 2, "the user says that it is"


def test_without_git_the_user_says_that_the_code_is_the_same(recorded: Suite) -> None:
    assert recorded.decode("--llm-update-baselines=add", UPDATED[1]).ret == 0
    assert len(medians(recorded)) == 2
    assert recorded.decode(*UPDATED).ret == 0
    assert len(medians(recorded)) == 1, "nobody says so of this one"


def test_each_interpreter_s_versions_decide_for_its_own_backends(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """One backend's interpreter has a new version: its old figures go, the other's stay."""
    revision = suite.commit()
    old, new = {"torch": "2.13"}, {"torch": "2.14"}
    suite.record({"sim/tpot": TPOT, "ref/tpot": 0.01}, revision=revision, versions=old)
    monkeypatch.setattr("pytest_llmperf.plan.Plan.installed", lambda _plan, backend: new if backend == "sim" else old)
    assert suite.decode(*UPDATED, backends="ref,sim").ret == 0
    assert (len(medians(suite)), len(medians(suite, f"{REF}/tpot"))) == (1, 2)


def test_the_last_few_sittings_are_kept_and_all_of_them_are_compared(recorded: Suite) -> None:
    for number in range(HISTORY):
        recorded.backends(sim=f"Simulated(tpot=0.005 * {1 + (number + 1) / 1000})")
        result = recorded.decode("--llm-update-baselines=add", UPDATED[1])
        assert result.ret == 0
    assert re.search(rf"^tpot b1-p16-n8 sim .* {HISTORY} ", result.stdout.str(), re.M), "as many as are kept"
    assert medians(recorded) == pytest.approx([TPOT * (1 + number / 1000) for number in range(HISTORY, 0, -1)])
    recorded.backends(sim="Simulated(tpot=0.005)")
    recorded.decode().stdout.fnmatch_lines("tpot b1-p16-n8 sim*-0.3% *ok")


def test_an_old_schema_is_compared_and_written_anew_at_the_next_update(recorded: Suite) -> None:
    held = recorded.stored()
    (sitting,) = held["sittings"].values()
    environment = {
        "fingerprint": held["machines"][sitting["machine"]],
        "versions": {"python": "3.12.3", "torch": "2.13"},
        "peaks": sitting["rates"],
    }
    record = {"environment": "0" * 12, "recorded": "2026-01-31", "unit": "s/token"}
    sets = [record | {"median": tpot, "invocations": [[tpot, 2 * tpot, tpot]] * 3} for tpot in (TPOT, 2 * TPOT)]
    old = {"schema": 4, "device": "cpu", "model": "tiny", "entries": {f"{SIM}/tpot": sets}}
    recorded.baseline.write_text(json.dumps(old | {"environments": {"0" * 12: environment}}))
    before = recorded.baseline.read_bytes()
    note = "baselines/cpu/tiny.json has schema 4: its newest figures are used, and the next update writes schema 5"
    result = recorded.decode("--llm-max-regression=15%")
    assert note in said(result)
    assert "1 cases gated: 1 ok" in said(result)
    assert recorded.baseline.read_bytes() == before, "reading writes nothing"
    result = recorded.decode("--llm-update-baselines")
    assert result.ret == 0
    assert note not in said(result)
    assert recorded.stored()["schema"] == 5
    assert len(medians(recorded)) == 1, "nothing says that the old figures are of this code"
    assert note not in said(recorded.decode())


# Which


@pytest.mark.parametrize(("rate", "times"), [(0.8e15, 1), (0.9e15, 0)])
def test_a_change_of_a_machine_in_another_state_is_doubted_once(recorded: Suite, rate: float, times: int) -> None:
    recorded.record({"sim/tpot": TPOT, "sim/latency": 0.05})
    recorded.backends(sim=SLOWER, extra=f'PEAKS["flops"] = {rate}')
    result = recorded.run(
        "suites/test_decode.py", "suites/test_latency.py", "--llm-backends=sim", "--llm-update-baselines"
    )
    assert result.ret == 0
    doubt = "another state when the old figures were recorded: its GEMM rate is 20% below the recorded one"
    assert said(result).count(doubt) == times


def test_a_large_improvement_is_accepted_with_a_question(recorded: Suite) -> None:
    recorded.backends(sim="Simulated(tpot=0.003)")
    result = recorded.decode("--llm-update-baselines")
    assert result.ret == 0
    asked = "faster by more than 20%: tpot b1-p16-n8 sim: is something not measured any more?"
    assert asked in said(result)
    assert len(medians(recorded)) == 1, "of other code, as far as anybody knows"
    assert asked not in said(recorded.decode("--llm-update-baselines"))


@pytest.mark.parametrize(("tpot", "star"), [(0.006, ""), (0.012, "*")])
def test_only_a_change_beyond_the_noise_is_starred(suite: Suite, tpot: float, star: str) -> None:
    suite.backends(sim="Simulated(tpot=0.005 * [1, 1.1, 1.2][process - 1])")
    suite.decode(*UPDATED)
    suite.backends(sim=f"Simulated(tpot={tpot})")
    result = suite.decode(*UPDATED)
    change = f"{tpot / (TPOT * (1 * 1.1 * 1.2) ** (1 / 3)) - 1:+.1%}"
    assert any(line.startswith("tpot b1-p16-n8 sim") and f"{change}{star} " in line for line in result.outlines)


def test_new_accepts_what_has_no_baseline_and_gates_the_rest(recorded: Suite) -> None:
    sittings(recorded)
    before = medians(recorded)
    recorded.backends(sim=SLOWER)
    result = recorded.decode("--llm-update-baselines=new", backends="ref,sim")
    assert result.ret == 1
    result.assert_outcomes(passed=1, failed=1)
    assert recorded.loads == {"ref": 5, "sim": 4}, "one to screen and three to confirm"
    assert medians(recorded) == before
    assert medians(recorded, f"{REF}/tpot") == pytest.approx([0.010])
    result.stdout.fnmatch_lines("tpot b1-p16-n8 ref *new *")
    for line in ("1 entries written to ", "1 cases gated: 1 regression"):
        assert line in said(result)


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
    assert "1 cases gated: 1 ok" in said(result)
    recorded.test(
        "import pytest\n@pytest.mark.llm(devices=['mi210'])\ndef test_it(llm_perf):\n    llm_perf.gate('tpot')"
    )
    skipped = recorded.run("test_it.py", "--llm-update-baselines=new")
    assert skipped.ret == 1
    skipped.stdout.fnmatch_lines("ERROR: nothing was compared with a baseline*")


# CI


@pytest.mark.parametrize(
    ("variable", "which", "written"), [("true", "", 0), ("true", "=slower", 1), ("", "", 1), ("false", "", 1)]
)
def test_in_ci_a_slowdown_is_accepted_only_if_that_was_asked_for(
    recorded: Suite, variable: str, which: str, written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", variable)
    recorded.backends(sim=SLOWER)
    result = recorded.decode(f"--llm-update-baselines{which}", backends="ref,sim")
    assert result.ret == (not written)
    assert medians(recorded) == pytest.approx([TPOT * 1.15] if written else [TPOT])
    assert medians(recorded, f"{REF}/tpot") == pytest.approx([0.010]), "the others are written"
    refused = f"ERROR: slower than the gate allows, so not written in CI: {SIM}/tpot +15.0%; accept with --llm-update"
    assert said(result).count(refused) == (not written)
    assert "not in parity, were not accepted" not in said(result)


@pytest.mark.parametrize("sim", ["Simulated(tpot=0.0053)", "Simulated(tpot=0.003)"], ids=["allowed", "faster"])
def test_in_ci_what_the_gate_allows_is_accepted(recorded: Suite, sim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    recorded.backends(sim=sim)
    assert recorded.decode("--llm-update-baselines").ret == 0
    assert medians(recorded) != [TPOT]


def test_in_ci_a_slowdown_that_a_case_s_own_tolerance_allows_is_accepted(
    recorded: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    recorded.backends(sim=SLOWER)
    recorded.ini(llm_tolerances="\n    */sim/* = 20%")
    assert recorded.decode("--llm-update-baselines").ret == 0
    assert medians(recorded) == pytest.approx([TPOT * 1.15])


def test_a_tolerance_says_which_line_it_is_from(recorded: Suite) -> None:
    sittings(recorded)
    recorded.ini(llm_tolerances="\n    */sim/*/tpot = 3%\n    */b32-* = 8%")
    recorded.backends(sim="Simulated(tpot=0.005 * 1.15)")
    result = recorded.decode("-v", "--llm-results=raw.json")
    assert result.ret == 1
    assert "allowed 3% (llm_tolerances: */sim/*/tpot)" in said(result)
    assert "llm_tolerances that matched no case of this run: */b32-*" in said(result)
    (raw,) = json.loads((recorded.path / "raw.json").read_text())["results"]
    assert raw["tolerance_source"] == "llm_tolerances: */sim/*/tpot"


# Processes

BATCHES = ("--llm-batch-sizes=1,2,4", "--llm-invocations=3")
UPDATE = (*BATCHES, "--llm-update-baselines")


def serving(suite: Suite, fail: str = "None", tpot: float = TPOT) -> None:
    """Keep a record of what each process is asked for; ``fail`` is an expression of ``batch`` and ``process``."""
    suite.backends(sim=f"Serving(lambda batch: {fail}, tpot={tpot}, cold=100.0)", extra=SERVING)


def tpots(suite: Suite) -> dict[str, int]:
    """How many processes each batch size's newest TPOT is of."""
    entries = suite.stored()["entries"] if suite.baseline.exists() else {}
    return {key.split("/")[2][:2]: len(row[0]["processes"]) for key, row in entries.items() if key.endswith("/tpot")}


def test_a_fresh_process_measures_every_workload_in_the_order_of_the_tests(suite: Suite) -> None:
    serving(suite)
    assert suite.decode(*UPDATE).ret == 0
    assert suite.served == [[1, 2, 4]] * 3
    assert tpots(suite) == {"b1": 3, "b2": 3, "b4": 3}


@pytest.mark.parametrize("roomy", [True, False])
def test_every_process_measures_each_workload_once(suite: Suite, roomy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_llmperf.plan.Plan.fits_twice", roomy)
    serving(suite)
    assert suite.decode(*UPDATE).ret == 0
    assert suite.loads["sim"] == 3, "where one makes room for the next, too"
    assert tpots(suite) == {"b1": 3, "b2": 3, "b4": 3}


def test_processes_are_shared_by_metrics_and_markers_and_tests_of_ones_own(suite: Suite) -> None:
    serving(suite)
    suite.test(
        "import pytest\n"
        "@pytest.mark.llm(batch_sizes=[3])\ndef test_marked(llm_perf):\n    llm_perf.gate('tpot')\n"
        "@pytest.fixture\ndef measured(llm_perf):\n    return llm_perf\n"
        "def test_own(measured):\n    assert measured.gate('latency').spread.median > 0\n"
        "@pytest.mark.llm(prompt_lengths=[5], batch_sizes=[2])\ndef test_short(llm_perf):\n    llm_perf.gate('ttft')\n"
    )
    assert suite.run("test_it.py", "--llm-backends=sim", *UPDATE).ret == 0
    assert suite.served == [[3, 1, 2, 4]] * 3


def test_what_is_deselected_is_not_measured(suite: Suite) -> None:
    serving(suite)
    assert suite.decode(*UPDATE, "-k", "not b2").ret == 0
    assert suite.served == [[1, 4]] * 3


def test_what_did_not_fail_last_time_is_not_measured(suite: Suite) -> None:
    """``--lf`` deselects when every other plugin has had its turn."""
    serving(suite, "batch != 2 and 1 / 0")
    suite.decode(*BATCHES).assert_outcomes(passed=1, failed=2)
    serving(suite)
    (suite.path / "served").unlink()
    suite.decode(*UPDATE, "--lf").assert_outcomes(passed=2)
    assert suite.served == [[1, 4]] * 3


def test_a_test_that_was_named_twice_is_waited_for_once(suite: Suite) -> None:
    serving(suite)
    one = "suites/test_decode.py::test_decode[sim-b1-p16-n8]"
    assert suite.run("--keep-duplicates", one, one, "suites/test_prefill.py", "--llm-backends=sim", *UPDATE).ret == 0
    assert suite.served == [[1, 2, 4]] * 3


@pytest.mark.parametrize(
    ("mark", "runs"),
    [
        ("skip", False),
        ("skipif(True, reason='so')", False),
        ("skipif(condition=True, reason='so')", False),
        ("skipif('True', reason='so')", False),
        ("llm(devices=['h100'])", False),
        ("xfail(run=False)", False),
        ("skipif(False, reason='so')", True),
    ],
)
def test_what_is_skipped_is_not_measured(suite: Suite, mark: str, runs: bool) -> None:
    serving(suite)
    suite.test(
        "import pytest\n"
        "@pytest.mark.llm(batch_sizes=[1])\ndef test_one(llm_perf):\n    llm_perf.gate('tpot')\n"
        f"@pytest.mark.llm(batch_sizes=[2])\n@pytest.mark.{mark}\ndef test_two(llm_perf):\n    llm_perf.gate('tpot')\n"
    )
    assert suite.run("test_it.py", "--llm-backends=sim", *UPDATE).ret == 0
    assert suite.served == [[1, 2] if runs else [1]] * 3


@pytest.mark.parametrize(
    ("fail", "served", "said"),
    [
        ("1 / 0", [[1, 2, 4], [1, 2, 4], [1, 4], [2]], "ZeroDivisionError"),
        ("exhaust()", [[1, 2, 4], [1, 2], [1, 4], [2], [4]], "MemoryError: no room"),
        ("die()", [[1, 2, 4], [1, 2], [1, 4], [2], [4]], "killed by signal 9"),
    ],
)
def test_a_workload_that_fails_costs_the_others_nothing(
    suite: Suite, fail: str, served: list[list[int]], said: str
) -> None:
    """Only where it took the process with it have others to be measured in another one."""
    serving(suite, f"batch == 2 and process > 1 and {fail}")
    result = suite.decode(*UPDATE)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(f"*{said}*")
    assert suite.served == served
    assert tpots(suite) == {"b1": 3, "b4": 3}


LATER = """\
import pytest


def test_a(llm_perf):
    if llm_perf.workload.batch_size == 1:
        pytest.skip("not now")
    llm_perf.gate("tpot")


def test_b(llm_perf):
    llm_perf.gate("tpot")
"""


@pytest.mark.parametrize("fail", ["1 / 0", "die()"])
def test_what_was_measured_before_a_failure_is_kept(suite: Suite, fail: str) -> None:
    """The second workload asks first, is measured after the one before it, and fails: both its tests do, no other."""
    serving(suite, f"batch == 2 and process > 1 and {fail}")
    suite.test(LATER)
    run = suite.run("test_it.py", "--llm-backends=sim", "--llm-batch-sizes=1,2", *UPDATE[1:])
    run.assert_outcomes(passed=1, skipped=1, failed=2)
    assert tpots(suite) == {"b1": 3}
    assert suite.served == [[2, 1], [1, 2], [1], [2]]


def test_a_workload_of_no_test_to_come_is_not_measured_again(suite: Suite) -> None:
    """It failed, and its tests are over; what asks next is alone."""
    serving(suite, "batch == 1 and 1 / 0")
    suite.decode(*UPDATE).assert_outcomes(passed=2, failed=1)
    assert suite.served == [[1, 2, 4], [2, 4], [2, 4]]


def test_a_confirmation_measures_the_flagged_workload_alone(recorded: Suite) -> None:
    sittings(recorded)
    serving(recorded, tpot=TPOT * 1.15)
    result = recorded.decode("--llm-update-baselines=new", *BATCHES)
    result.assert_outcomes(passed=2, failed=1)
    assert recorded.served == [[1, 2, 4], [1], [1], [1], [2, 4], [2, 4]]


def test_new_measures_no_other_workload_that_has_a_baseline(recorded: Suite) -> None:
    serving(recorded)
    assert recorded.decode("--llm-update-baselines=new", "--llm-batch-sizes=2,1,4", BATCHES[1]).ret == 0
    assert recorded.served == [[2, 1, 4], [2, 4], [2, 4]]


def test_what_others_disturbed_is_measured_again_alone(suite: Suite) -> None:
    """One more process for the batch size 2, of which the others have enough."""
    disturbed = (
        "from pytest_llmperf.machine.fitness import Fitness\n"
        "from pytest_llmperf.worker import watch\n"
        "class Disturbed(Serving):\n"
        "    def generate(self, prompts, *rest):\n"
        "        others = 2.0 if len(prompts) == 2 and self.process == 2 else 0.0\n"
        "        watch.Watch.end = lambda _watch, _before: Fitness(others=others)\n"
        "        super().generate(prompts, *rest)\n"
        "def disturbed(process):\n"
        "    engine = Disturbed(tpot=0.005)\n"
        "    engine.process = process\n"
        "    return engine\n"
    )
    suite.backends(sim="disturbed(process)", extra=SERVING + disturbed)
    assert suite.decode(*UPDATE).ret == 0
    assert suite.served == [[1, 2, 4]] * 3 + [[2]]
    assert tpots(suite) == {"b1": 3, "b2": 3, "b4": 3}


def test_of_a_test_that_never_ran_nothing_is_written_or_reported(suite: Suite) -> None:
    serving(suite, "batch == 2 and process == 1 and 1 / 0")
    suite.decode(*UPDATE, "-x", "--llm-results=raw.json", "--llm-report=report.md").assert_outcomes(passed=1, failed=1)
    assert suite.served[1:] == [[1, 2, 4]] * 2, "it was measured"
    assert tpots(suite) == {"b1": 3}
    raw = json.loads((suite.path / "raw.json").read_text())
    assert [one["case"] for one in raw["results"]] == ["bfloat16/sim/b1-p16-n8/tpot"]
    rows = [line for line in (suite.path / "report.md").read_text().splitlines() if line.startswith("|")]
    assert not any("b4-p16-n8" in row for row in rows)
