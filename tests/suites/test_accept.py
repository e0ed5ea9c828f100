"""``pytest-llmperf accept``: baselines from the results of a run elsewhere, or of one that was stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from inner import BUSY, Suite

from pytest_llmperf.cases import Case, Workload
from pytest_llmperf.cli import main
from pytest_llmperf.gate import baseline as store
from pytest_llmperf.gate.baseline import Sitting
from pytest_llmperf.gate.canonical import digest

UPDATE = ("--llm-update-baselines", "--llm-invocations=3", "--llm-results=raw.json")
TPOT = "bfloat16/sim/b1-p16-n8/tpot"


def accept(suite: Suite, *files: str, folder: str = "baselines") -> int:
    paths = [str(suite.path / file) for file in files or ("raw.json",)]
    return main(["accept", *paths, f"--baseline-dir={suite.path / folder}"])


def edit(suite: Suite, change: Callable[[dict[str, Any]], object], file: str = "raw.json") -> None:
    """Another results file, of the one that a run has left."""
    data = json.loads((suite.path / "raw.json").read_text())
    change(data)
    (suite.path / file).write_text(json.dumps(data))


def resat(data: dict[str, Any], **changes: Any) -> None:
    """Make the update's sitting another one, with these fields."""
    baseline = data["update"]["baseline"]
    ((old, stored),) = baseline["sittings"].items()
    stored |= {name: value for name, value in changes.items() if name != "machine"}
    machine, versions = baseline["machines"][stored["machine"]], baseline["versions"][stored["versions"]]
    sitting = Sitting(**stored | {"machine": machine | changes.get("machine", {}), "versions": versions})
    stored["machine"] = digest(sitting.machine)
    baseline |= {"sittings": {sitting.id: stored}, "machines": {stored["machine"]: sitting.machine}}
    for row in baseline["entries"].values():
        row[0]["sitting"] = sitting.id
    data["update"]["same_code"] = {sitting.id: data["update"]["same_code"][old]}


def aged(day: str) -> Callable[[dict[str, Any]], None]:
    """Of another day."""

    def change(data: dict[str, Any]) -> None:
        data["when"] = f"{day}T00:00:00+00:00"
        resat(data, recorded=day)

    return change


def days(suite: Suite, folder: str = "baselines", key: str = TPOT) -> list[str]:
    """When the sittings of a case were, in the file's order."""
    held = json.loads((suite.path / folder / "cpu" / "tiny.json").read_text())
    return [held["sittings"][one["sitting"]]["recorded"] for one in held["entries"][key]]


@pytest.fixture
def updated(suite: Suite, capsys: pytest.CaptureFixture[str]) -> Suite:
    """A suite whose run with an update left results, and a baseline."""
    suite.decode(*UPDATE, backends="ref,sim").assert_outcomes(passed=2)
    capsys.readouterr()
    return suite


def test_it_writes_what_the_update_wrote_byte_for_byte(updated: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    assert accept(updated, folder="mine") == 0
    assert (updated.path / "mine" / "cpu" / "tiny.json").read_bytes() == updated.baseline.read_bytes()
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("tpot b1-p16-n8 sim") and " new " in line for line in lines)
    assert lines[-1].startswith("2 entries of ")


@pytest.mark.parametrize("backend", ["sim", "sdpa+tp2", "team/kernel"])
def test_a_case_is_known_by_its_key(backend: str) -> None:
    case = Case("tiny", "bfloat16", backend, Workload(1, 16, 8), "tpot")
    assert Case.parse("tiny", case.key) == case


def test_a_run_that_was_stopped_is_accepted_as_far_as_it_came(suite: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    suite.test(
        "def test_one(llm_perf):\n    llm_perf.gate('tpot')\n    raise KeyboardInterrupt\n"
        "def test_two(llm_perf):\n    llm_perf.gate('ttft')\n"
    )
    suite.run("test_it.py", "--llm-backends=sim", *UPDATE, no_reraise_ctrlc=True)
    assert not suite.baseline.exists()
    capsys.readouterr()
    assert accept(suite) == 0
    assert set(suite.stored()["entries"]) == {TPOT}
    assert "left out: 1 of that run's tests have no figure" in capsys.readouterr().out


def test_accepted_twice_is_accepted_once(updated: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    before = updated.baseline.read_bytes()
    assert accept(updated) == 1
    assert updated.baseline.read_bytes() == before
    assert f"left out: {TPOT}: it is accepted already" in capsys.readouterr().out.splitlines()


def test_files_are_taken_by_their_age_and_what_is_older_is_left_out(
    updated: Suite, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(updated, aged("2031-01-02"), "a.json")
    edit(updated, aged("2031-01-01"), "b.json")
    assert accept(updated, "a.json", "b.json") == 0
    assert days(updated) == ["2031-01-02"], "nothing says that they are of the same code"
    edit(updated, aged("2030-01-01"), "c.json")
    capsys.readouterr()
    assert accept(updated, "c.json") == 1
    why = "that machine has figures of 2031-01-02, and these are of 2030-01-01"
    assert f"left out: {TPOT}: {why}" in capsys.readouterr().out.splitlines()


def test_runs_of_the_same_revision_add_up(suite: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither run knew of the other, as jobs of CI do not."""
    suite.commit()
    suite.decode(*UPDATE, "--llm-baseline-dir=elsewhere")
    for day in (1, 2, 3):
        edit(suite, aged(f"2031-01-0{day}"), f"{day}.json")
    capsys.readouterr()
    assert accept(suite, "1.json", "2.json") == 0
    assert days(suite) == ["2031-01-02", "2031-01-01"]
    edit(suite, lambda data: (aged("2031-01-03")(data), resat(data, revision="0" * 40)), "3.json")
    assert accept(suite, "3.json") == 0
    assert days(suite) == ["2031-01-03"], "of another revision"


def test_runs_of_other_variables_do_not_add_up(suite: Suite) -> None:
    suite.commit()
    suite.decode(*UPDATE, "--llm-baseline-dir=elsewhere")

    def with_variables(day: str, **variables: str) -> None:
        def change(data: dict[str, Any]) -> None:
            aged(day)(data)
            (stored,) = data["update"]["baseline"]["sittings"].values()
            resat(data, system=stored["system"] | {"environment": variables})

        edit(suite, change, "other.json")
        assert accept(suite, "other.json") == 0

    with_variables("2031-01-01")
    with_variables("2031-01-02")
    assert days(suite) == ["2031-01-02", "2031-01-01"]
    with_variables("2031-01-03", OURS_THREADS="2")
    assert days(suite) == ["2031-01-03"], "its figures are of other code"


def test_what_the_run_knew_to_be_of_the_same_code_stays(suite: Suite) -> None:
    suite.record({"sim/tpot": 0.005}, recorded="2026-01-31")
    suite.decode("--llm-update-baselines=add", *UPDATE[1:], "--llm-results=raw.json")
    assert len(days(suite)) == 2
    before = suite.baseline.read_bytes()
    suite.baseline.unlink()
    suite.record({"sim/tpot": 0.005}, recorded="2026-01-31")
    assert accept(suite) == 0
    assert suite.baseline.read_bytes() == before


def test_another_machine_s_figures_are_that_machine_s(updated: Suite) -> None:
    def elsewhere(data: dict[str, Any]) -> None:
        resat(data, machine={"cpus": 9999})

    edit(updated, elsewhere, "other.json")
    assert accept(updated, "other.json") == 0
    assert len({one["sitting"] for one in updated.stored()["entries"][TPOT]}) == len(updated.stored()["machines"]) == 2


def test_what_the_run_gated_is_left_out(suite: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    """Fresh processes were started since the first was slow: they are a sample of nothing."""
    suite.record({"sim/tpot": 0.005})
    suite.backends(sim="Simulated(tpot=0.007)")
    suite.run("suites/test_decode.py", "suites/test_prefill.py", "--llm-update-baselines=new", *UPDATE[1:], "-k", "sim")
    capsys.readouterr()
    assert accept(suite, folder="mine") == 0
    written = json.loads((suite.path / "mine" / "cpu" / "tiny.json").read_text())["entries"]
    assert set(written) == {"bfloat16/sim/b1-p16-n8/ttft"}
    assert f"left out: {TPOT}: it was gated, not accepted" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("sim", "ci", "why"),
    [
        ("Busy(0.005)", "", "it was disturbed"),
        ("Simulated(tpot=0.005, wrong_from=3)", "", "its tokens were not shown to be right"),
        ("Simulated(tpot=0.007)", "true", "it is slower than the gate allows"),
    ],
    ids=["disturbed", "wrong", "slower"],
)
def test_what_the_run_refused_is_left_out_with_the_reason(
    suite: Suite, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, sim: str, ci: str, why: str
) -> None:
    monkeypatch.setenv("CI", ci)
    suite.record({"sim/tpot": 0.005})
    before = suite.baseline.read_bytes()
    suite.backends(sim=sim, extra=BUSY)
    suites = ("suites/test_decode.py", "suites/test_greedy_parity.py")
    suite.run(*suites, "--llm-backends=ref,sim", "-k", "sim", *UPDATE)
    capsys.readouterr()
    assert accept(suite) == 1
    assert f"left out: {TPOT}: {why}" in capsys.readouterr().out.splitlines()
    assert suite.baseline.read_bytes() == before


@pytest.mark.parametrize("ci", ["", "true"])
def test_in_ci_it_refuses_what_an_update_would(
    suite: Suite, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, ci: str
) -> None:
    suite.record({"sim/tpot": 0.004})
    suite.decode(*UPDATE, "--llm-baseline-dir=elsewhere")
    monkeypatch.setenv("CI", ci)
    capsys.readouterr()
    assert accept(suite) == bool(ci), "nothing else is to be written"
    refused = f"left out: {TPOT}: slower than the gate allows, so not written in CI"
    assert (refused in capsys.readouterr().out.splitlines()) == bool(ci)
    assert [one["figure"] for one in suite.stored()["entries"][TPOT]] == pytest.approx([0.004 if ci else 0.005])


@pytest.mark.parametrize("options", [(), ("--llm-self-test", "--llm-budget=0.001")], ids=["gated", "self-test"])
def test_a_run_that_was_to_accept_nothing_is_refused(
    suite: Suite, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    suite.record({"sim/tpot": 0.005})
    before = suite.baseline.read_bytes()
    suite.decode("--llm-results=raw.json", *options)
    capsys.readouterr()
    assert accept(suite) == 2
    said = "it is not of a run with --llm-update-baselines, so there is nothing to accept\n"
    assert capsys.readouterr().err == f"pytest-llmperf: {suite.path / 'raw.json'}: {said}"
    assert suite.baseline.read_bytes() == before


def test_a_change_is_told_as_an_update_tells_it(suite: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    suite.record({"sim/tpot": 0.004})
    suite.decode(*UPDATE, "--llm-baseline-dir=elsewhere")
    capsys.readouterr()
    assert accept(suite) == 0
    assert "+25.0%*" in capsys.readouterr().out
    assert len(suite.stored()["entries"][TPOT]) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.update(kind="report"), "its schema is 3"),
        (lambda data: data.update(schema=99), "its schema is 99"),
        (lambda data: data.update(when=None), "it has no update that can be accepted (TypeError("),
        (lambda data: data.pop("update"), "(KeyError('update'))"),
        (lambda data: data["update"].pop("tolerances"), "(KeyError('tolerances'))"),
        (lambda data: data["update"].update(tolerances={}), "its tolerances are of other cases than its figures"),
        (lambda data: data["update"]["baseline"]["entries"][TPOT][0].update(figure=1.0), "was edited: its figure is"),
        (
            lambda data: data["update"]["baseline"]["entries"][TPOT].append(
                data["update"]["baseline"]["entries"][TPOT][0]
            ),
            "several entries of one case",
        ),
        (lambda data: data["update"]["baseline"].update(entries={"sim": []}), "is not a list of records"),
        (lambda data: data["update"].update(same_code=[]), "it has no update that can be accepted (AttributeError("),
    ],
)
def test_what_is_no_such_file_is_one_line_and_nothing_is_written(
    updated: Suite, capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], object], said: str
) -> None:
    edit(updated, change, "bad.json")
    assert accept(updated, "raw.json", "bad.json", folder="mine") == 2
    error = capsys.readouterr().err
    assert f"{updated.path / 'bad.json'}: " in error
    assert said in error
    assert error.count("\n") == 1
    assert not (updated.path / "mine").exists()


def test_a_baseline_file_or_folder_that_cannot_be_used_is_one_line(
    updated: Suite, capsys: pytest.CaptureFixture[str]
) -> None:
    updated.baseline.write_text("{")
    assert accept(updated) == 2
    assert "is not JSON" in capsys.readouterr().err
    assert updated.baseline.read_text() == "{"
    (updated.path / "taken").write_text("")
    assert accept(updated, folder="taken") == 2
    assert capsys.readouterr().err.count("\n") == 1


# Several at once

ACCEPT = (sys.executable, "-c", "import sys; from pytest_llmperf.cli import main; sys.exit(main())", "accept")


def test_several_at_once_lose_nothing(updated: Suite) -> None:
    """Each waits for the others, from reading the file to replacing it."""
    runs = []
    for number in range(6):
        edit(updated, lambda data, number=number: resat(data, machine={"cpus": 9000 + number}), f"{number}.json")
    with store.locked(updated.path / "mine" / "cpu" / "tiny.json"):
        for number in range(6):
            command = [*ACCEPT, f"{number}.json", "--baseline-dir=mine"]
            runs.append(subprocess.Popen(command, cwd=updated.path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        with pytest.raises(subprocess.TimeoutExpired):
            runs[0].wait(3)
    assert [(run.communicate(timeout=60), run.returncode)[1] for run in runs] == [0] * 6
    held = json.loads((updated.path / "mine" / "cpu" / "tiny.json").read_text())
    assert {machine["cpus"] for machine in held["machines"].values()} == set(range(9000, 9006))
    assert [file.name for file in (updated.path / "mine" / "cpu").iterdir()] == ["tiny.json"]


def test_the_same_file_accepted_twice_at_once_is_accepted_once(updated: Suite) -> None:
    command = [*ACCEPT, "raw.json", "--baseline-dir=mine"]
    runs = [subprocess.Popen(command, cwd=updated.path, stdout=subprocess.PIPE) for _ in range(3)]
    assert sorted((run.communicate(timeout=60), run.returncode)[1] for run in runs) == [0, 1, 1]


def test_what_stays_locked_is_one_line(
    updated: Suite, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PATIENCE", 0.05)
    before = updated.baseline.read_bytes()
    edit(updated, aged("2031-01-02"), "later.json")
    with store.locked(updated.baseline):
        assert accept(updated, "later.json") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"pytest-llmperf: {updated.baseline}: cannot be changed (")
    assert "another process has kept it locked for 0.05 s" in said
    assert said.count("\n") == 1
    assert updated.baseline.read_bytes() == before
