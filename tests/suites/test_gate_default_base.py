"""The baseline's own code as the base, without any option: a repository whose revisions are compared in pairs."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from gated import SIM, SLOWER, TPOT, decode, gate, verdicts
from inner import TESTS, Suite, on_path

from pytest_llmperf.gate.turns import WARM_UP
from pytest_llmperf.machine import fingerprint

SAME = "Simulated(tpot=0.005)"
#: What every run of these tests has installed, whatever this machine has.
VERSIONS = {"python": "3.11.9", "torch": "2.13.0"}
UNCHANGED = "code and versions are those of the baseline: it is the machine"
OF_ELSEWHERE = (
    "the worker imports nothing of this repository, and versions are those of the baseline: it is the machine"
)
FRESH = "slower than the baseline in 3 fresh processes"


@pytest.fixture
def repository(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """A repository whose first revision needs 5 ms a token, and recorded that in one sitting."""
    monkeypatch.setattr(fingerprint, "everything_installed", lambda *_: dict(VERSIONS))
    suite.git("init", "--quiet")
    (suite.path / ".gitignore").write_text("*.pids\n*.json\n__pycache__\n.pytest_cache\n")
    suite.backends(sim=SAME)
    suite.record({"sim/tpot": TPOT}, revision=suite.commit(), versions=VERSIONS)
    return suite


def revision(suite: Suite) -> str:
    (sitting,) = suite.stored()["sittings"].values()
    return str(sitting["revision"])


def recorded_slower(suite: Suite, **what: object) -> None:
    """Instead: the same code was faster by a quarter when it was recorded, as on a machine of another day."""
    suite.record({"sim/tpot": TPOT / 1.25}, revision=revision(suite), versions=VERSIONS, **what)  # type: ignore[arg-type]


# Compared in pairs


@pytest.mark.parametrize("committed", [False, True], ids=["a changed file", "a commit"])
def test_what_looks_slower_is_compared_with_the_code_that_recorded_the_baseline(
    repository: Suite, committed: bool
) -> None:
    repository.backends(sim=SLOWER)
    if committed:
        repository.commit()
    result, said = decode(repository)
    assert (result.ret, said["outcome"], said["basis"], said["count"]) == (1, "regression", "base", 4)
    base = f"the baseline's revision ({revision(repository)[:12]})"
    assert said["reason"] == f"15.0% slower than base in 4 pairs of fresh processes; base is {base}"
    assert said["tolerance"] == 0.1, "the base was not named, so the baseline's tolerance counts"
    result.stdout.fnmatch_lines(["*regression: *5.750 ms*5.000 ms*+15.0%*", "*1 cases gated: 1 regression*"])
    assert len(repository.git("worktree", "list").splitlines()) == 1


def test_a_new_file_is_a_change_too(repository: Suite) -> None:
    recorded_slower(repository)
    (repository.path / "kernel.cu").write_text("// new")
    assert decode(repository)[1]["basis"] == "base"


def test_a_commit_that_changes_no_latency_is_ok_on_a_machine_that_is_slower(repository: Suite) -> None:
    recorded_slower(repository)
    repository.backends(sim=SAME, extra="# a comment")
    repository.commit()
    result, said = decode(repository)
    assert (result.ret, said["outcome"], said["basis"]) == (0, "ok", "base")
    assert said["reason"] == "25.0% slower than the baseline, but not than base: the machine is slower"
    result.stdout.fnmatch_lines("*tpot*sim*+0.0%*ok*")


def test_a_large_improvement_is_compared_too(repository: Suite) -> None:
    repository.backends(sim="Simulated(tpot=0.003)")
    result, said = decode(repository)
    assert (result.ret, said["outcome"], said["basis"]) == (0, "faster", "base")
    assert said["reason"].startswith("40.0% faster than base in 3 pairs of fresh processes; is something not measured")


def test_what_does_not_look_slower_costs_nothing(repository: Suite) -> None:
    repository.backends(sim=SAME, extra="# a comment")
    result, said = decode(repository)
    assert (result.ret, said["outcome"], said["basis"], repository.loads["sim"]) == (0, "ok", "stored", 1)


@pytest.mark.parametrize(
    ("compare", "tpot", "basis"),
    [
        ("flagged", 0.00515, "stored"),
        ("unresolved", 0.00515, "base"),
        ("always", 0.005, "base"),
        ("never", 0.00575, "stored"),
    ],
)
def test_the_option_says_which_cases_are_compared(repository: Suite, compare: str, tpot: float, basis: str) -> None:
    repository.backends(sim=f"Simulated(tpot={tpot})", extra="# a comment")
    result, said = decode(repository, f"--llm-compare={compare}")
    assert (result.ret, said["basis"]) == (0, basis)


@pytest.mark.parametrize(
    ("given", "tpot", "extra"),
    [("flagged", 0.00515, ""), ("never", 0.00515, ""), ("never", 0.005, 'PEAKS["flops"] = 0.5e15')],
    ids=["open", "open, never", "another state, never"],
)
def test_the_remedy_that_is_printed_compares(repository: Suite, given: str, tpot: float, extra: str) -> None:
    repository.backends(sim=f"Simulated(tpot={tpot})", extra=extra or "# a comment")
    result, said = decode(repository, f"--llm-compare={given}")
    assert (said["outcome"], said["basis"]) == ("inconclusive", "stored")
    result.stdout.fnmatch_lines(f"to settle it: {said['remedy']}")
    (option,) = re.findall(r"--llm-[-=a-z]+", said["remedy"])
    result, said = decode(repository, option)
    assert (result.ret, said["outcome"], said["basis"]) == (0, "ok", "base")


def test_in_another_state_of_the_machine_a_case_is_compared(repository: Suite) -> None:
    repository.backends(sim=SLOWER, extra='PEAKS["flops"] = 0.5e15')
    result, said = decode(repository)
    assert (result.ret, said["outcome"], said["basis"]) == (1, "regression", "base")
    repository.backends(sim=SAME, extra='PEAKS["flops"] = 0.5e15')
    (repository.path / "kernel.cu").write_text("// new")
    result, said = decode(repository)
    assert (result.ret, said["outcome"], said["basis"]) == (0, "ok", "base")


def test_a_named_base_comes_first(repository: Suite) -> None:
    repository.backends(sim=SLOWER)
    repository.commit()
    repository.backends(sim=SLOWER, extra="# a comment")
    result, said = decode(repository, "--llm-base=HEAD")
    assert (result.ret, said["outcome"], said["tolerance"]) == (0, "ok", 0.03)


def test_a_new_case_is_not_compared_with_a_revision_that_nobody_named(repository: Suite) -> None:
    result, _ = gate(repository, "suites/test_prefill.py", "--llm-backends=sim")
    (said,) = verdicts(repository).values()
    assert (result.ret, said["outcome"], repository.loads["sim"]) == (0, "no baseline", 1)


def test_an_update_of_a_clean_tree_names_the_revision_that_is_compared_next(repository: Suite) -> None:
    repository.backends(sim=SLOWER)
    now = repository.commit()
    assert repository.decode("--llm-update-baselines", "--llm-invocations=3").ret == 0
    assert revision(repository) == now
    repository.backends(sim="Simulated(tpot=0.005 * 1.15 * 1.15)")
    result, said = decode(repository)
    assert (result.ret, said["outcome"], said["basis"]) == (1, "regression", "base")
    raw = json.loads((repository.path / "raw.json").read_text())
    assert [len(one["pairs"]) for one in raw["comparisons"]] == [4]


def test_after_the_budget_no_further_case_is_compared(repository: Suite) -> None:
    repository.ini(llm_batch_sizes="1,2")
    second = SIM.replace("b1", "b2")
    stored = repository.stored()
    stored["entries"][f"{second}/tpot"] = stored["entries"][f"{SIM}/tpot"]
    repository.baseline.write_text(json.dumps(stored))
    repository.backends(sim=SLOWER)
    result, _ = decode(repository, "--llm-budget=0.000001")
    said = verdicts(repository)
    assert [one["outcome"] for one in said.values()] == ["regression", "inconclusive"]
    assert "--llm-budget" in said[f"{second}/tpot"]["reason"]
    assert result.ret == 1


# Unchanged code


@pytest.mark.parametrize("tpot", [TPOT / 1.25, TPOT / 0.7], ids=["slower", "faster"])
def test_unchanged_code_is_not_compared_and_never_a_regression(repository: Suite, tpot: float) -> None:
    repository.record({"sim/tpot": tpot}, revision=revision(repository), versions=VERSIONS)
    result, said = decode(repository)
    assert (result.ret, said["outcome"], said["basis"], repository.loads["sim"]) == (0, "inconclusive", "stored", 1)
    assert said["reason"].startswith(UNCHANGED)
    assert ("cannot be excluded" in said["reason"]) == (tpot < TPOT)
    assert said["remedy"].startswith("record another sitting of the baseline's code, with --llm-update-baselines")


def test_a_sitting_that_was_added_as_that_remedy_says_counts_too(repository: Suite) -> None:
    recorded_slower(repository)
    assert decode(repository)[1]["outcome"] == "inconclusive"
    assert repository.decode("--llm-update-baselines", "--llm-invocations=3").ret == 0
    assert len(repository.stored()["entries"][f"{SIM}/tpot"]) == 2


def test_a_commit_that_was_taken_back_is_unchanged_code(repository: Suite) -> None:
    recorded_slower(repository)
    repository.backends(sim=SLOWER)
    repository.commit()
    repository.backends(sim=SAME)
    repository.commit()
    assert UNCHANGED in decode(repository)[1]["reason"]


def test_what_runs_write_is_no_change_of_the_code(repository: Suite) -> None:
    """The baselines, the results and the reports; what is ignored; what pytest and Python leave behind."""
    recorded_slower(repository)
    (repository.path / ".gitignore").write_text("*.pids\n")
    repository.git("add", "--force", "baselines")
    repository.commit()
    repository.record({"sim/tpot": TPOT / 1.25}, revision=repository.git("rev-parse", "HEAD"), versions=VERSIONS)
    (repository.path / "suites" / "__pycache__").mkdir(exist_ok=True)
    (repository.path / "suites" / "__pycache__" / "a.pyc").write_text("")
    for _ in range(2):
        result, said = decode(repository, "--llm-report=report.md")
        assert result.ret == 0
        assert UNCHANGED in said["reason"]


def test_unchanged_code_that_is_ok_stays_so_where_everything_is_compared(repository: Suite) -> None:
    result, said = decode(repository, "--llm-compare=always")
    assert (result.ret, said["outcome"], repository.loads["sim"]) == (0, "ok", 1)


def test_strictly_unchanged_code_on_a_slower_machine_is_no_clear_pass(repository: Suite) -> None:
    recorded_slower(repository)
    result, said = decode(repository, "--llm-strict")
    assert (result.ret, said["outcome"]) == (1, "inconclusive")
    result.stdout.fnmatch_lines(f"*inconclusive: *{UNCHANGED}*")


# Code of elsewhere


#: A backend that is installed outside the repository, and counts its generations by process.
STACK = """\
import os
from pathlib import Path

from simulated import Simulated


class Stack(Simulated):
    def generate(self, *arguments):
        with open(Path(__file__).with_name("generations"), "a") as file:
            file.write(f"{os.getpid()}\\n")
        super().generate(*arguments)


def load(spec):
    return Stack(tpot=0.005)
"""


@pytest.fixture
def elsewhere(
    repository: Suite, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> tuple[Suite, Path]:
    """A repository of suites alone, whose stack is installed elsewhere; and the file with its generations.

    The stack was faster by a quarter when it was recorded, and since then somebody has edited the README.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "stack.py").write_text(STACK)
    for path in (folder, TESTS):
        on_path(monkeypatch, path)
    repository.backends(backends='[Backend("ref", load_ref), Backend("stack", "stack:load")]')
    repository.baseline.unlink()
    repository.record({"stack/tpot": TPOT / 1.25}, revision=repository.commit(), versions=VERSIONS)
    (repository.path / "README.md").write_text("A word.\n")
    repository.commit()
    return repository, folder / "generations"


def pairs(suite: Suite) -> list[int]:
    """How many pairs each comparison of the last run has."""
    raw = json.loads((suite.path / "raw.json").read_text())
    return [len(one["pairs"]) for one in raw["comparisons"]]


def test_where_the_worker_imports_nothing_of_the_repository_it_is_the_machine(elsewhere: tuple[Suite, Path]) -> None:
    suite, generations = elsewhere
    result, said = decode(suite, backends="stack")
    assert (result.ret, said["outcome"], said["basis"], said["count"]) == (0, "inconclusive", "stored", 1)
    assert said["reason"] == f"{OF_ELSEWHERE}; a slowdown of {said['not_excluded']:.1%} cannot be excluded"
    assert said["remedy"].startswith("record another sitting of the baseline's code")
    assert pairs(suite) == [0]
    _first, *pair = Counter(generations.read_text().split()).values()
    assert pair == [WARM_UP, WARM_UP], "base and head are asked for no more, and no fresh process is started"
    assert len(suite.git("worktree", "list").splitlines()) == 1


def test_that_is_found_once_for_all_metrics(elsewhere: tuple[Suite, Path]) -> None:
    suite, generations = elsewhere
    suite.record({"stack/tpot": TPOT / 1.25, "stack/latency": 0.1}, revision=revision(suite), versions=VERSIONS)
    gate(suite, "suites/test_decode.py", "suites/test_latency.py", "--llm-backends=stack")
    assert [one["reason"].startswith(OF_ELSEWHERE) for one in verdicts(suite).values()] == [True, True]
    assert len(set(generations.read_text().split())) == 1 + 2


def test_what_is_not_slower_stays_ok_where_all_is_compared(elsewhere: tuple[Suite, Path]) -> None:
    suite, _ = elsewhere
    suite.record({"stack/tpot": TPOT}, revision=revision(suite), versions=VERSIONS)
    result, said = decode(suite, "--llm-compare=always", backends="stack")
    assert (result.ret, said["outcome"], pairs(suite)) == (0, "ok", [0])


def test_another_version_of_it_is_no_such_case(elsewhere: tuple[Suite, Path]) -> None:
    suite, _ = elsewhere
    suite.record({"stack/tpot": TPOT / 1.3}, revision=revision(suite), versions=VERSIONS | {"stack": "1.0"})
    result, said = decode(suite, backends="stack")
    assert (result.ret, said["outcome"], said["basis"], said["count"]) == (1, "regression", "stored", 3)
    assert "versions differ from the baseline's (stack 1.0 -> missing)" in said["reason"]


def test_beside_a_base_that_somebody_named_it_is_new(elsewhere: tuple[Suite, Path]) -> None:
    suite, _ = elsewhere
    suite.baseline.unlink()
    result, said = decode(suite, "--llm-base=HEAD~1", backends="stack")
    assert (result.ret, said["outcome"]) == (1, "new"), "nothing was compared"
    assert "cannot run it: it imported nothing from " in said["reason"]


# Where that revision cannot be the base


def test_where_versions_differ_fresh_processes_decide_and_the_versions_are_named(
    repository: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "everything_installed", lambda *_: VERSIONS | {"torch": "2.14.0"})
    repository.backends(sim="Simulated(tpot=0.005 * 1.3)")
    result, said = decode(repository)
    assert (result.ret, said["outcome"], said["basis"]) == (1, "regression", "stored")
    assert f"30.0% {FRESH}" in said["reason"]
    assert "versions differ from the baseline's (torch 2.13.0 -> 2.14.0)" in said["reason"]
    assert repository.loads["sim"] == 1 + 3


def test_unchanged_code_with_other_versions_may_be_a_regression(
    repository: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.record({"sim/tpot": TPOT / 1.3}, revision=revision(repository), versions=VERSIONS)
    monkeypatch.setattr(fingerprint, "everything_installed", lambda *_: VERSIONS | {"vllm": "0.32"})
    result, said = decode(repository)
    assert (result.ret, said["outcome"]) == (1, "regression")
    assert "(vllm missing -> 0.32)" in said["reason"]


def test_what_is_installed_in_place_with_changed_files_is_never_the_same(
    repository: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = VERSIONS | {"kernels": "1.0 (0123456789ab+)"}
    recorded_slower(repository)
    repository.record({"sim/tpot": TPOT / 1.25}, revision=revision(repository), versions=edited)
    monkeypatch.setattr(fingerprint, "everything_installed", lambda *_: edited)
    _, said = decode(repository)
    assert UNCHANGED not in said["reason"]
    assert "kernels 1.0 (0123456789ab+)" in said["reason"]


def test_a_shallow_clone_does_not_have_that_revision(
    repository: Suite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    repository.backends(sim="Simulated(tpot=0.005 * 1.3)")
    repository.commit()
    text = repository.baseline.read_text()
    clone = tmp_path / "clone"
    repository.git("clone", "--quiet", "--depth=1", f"file://{repository.path}", str(clone))
    (clone / "baselines" / "cpu").mkdir(parents=True)
    (clone / "baselines" / "cpu" / "tiny.json").write_text(text)
    (clone / "tiny").mkdir(exist_ok=True)
    for file in (repository.path / "tiny").iterdir():
        (clone / "tiny" / file.name).write_text(file.read_text())
    monkeypatch.chdir(clone)
    results = f"--llm-results={repository.path / 'raw.json'}"
    result = repository.run("suites/test_decode.py", "--llm-backends=sim", f"--rootdir={clone}", results)
    (said,) = verdicts(repository).values()
    assert (result.ret, said["outcome"], said["basis"]) == (1, "regression", "stored")
    old = revision(repository)[:12]
    assert f"git does not have {old}, which recorded the baseline (a shallow clone?)" in said["reason"]


def test_a_tree_with_changed_files_records_no_revision(repository: Suite) -> None:
    repository.backends(sim=SAME, extra="# a comment")
    assert repository.decode("--llm-update-baselines", "--llm-invocations=3").ret == 0
    assert {one["revision"] for one in repository.stored()["sittings"].values()} == {None}
    repository.backends(sim="Simulated(tpot=0.005 * 1.3)")
    result, said = decode(repository)
    assert (result.ret, said["basis"]) == (1, "stored")
    assert f"30.0% {FRESH}" in said["reason"]
    assert "the baseline names no revision: files were changed when it was recorded" in said["reason"]


@pytest.mark.parametrize(
    ("base", "said"),
    [("1 / 0", "cannot run it: ZeroDivisionError"), ("os.kill(os.getpid(), 9)", "was lost: worker died during load")],
    ids=["cannot", "lost"],
)
def test_where_that_revision_fails_fresh_processes_decide(repository: Suite, base: str, said: str) -> None:
    repository.backends(sim=base)
    repository.record({"sim/tpot": TPOT}, revision=repository.commit(), versions=VERSIONS)
    repository.backends(sim="Simulated(tpot=0.005 * 1.3)")
    result, verdict = decode(repository)
    assert (result.ret, verdict["outcome"], verdict["basis"]) == (1, "regression", "stored")
    assert verdict["reason"].startswith(f"30.0% {FRESH}; base cannot be had: base, the baseline's revision (")
    assert said in verdict["reason"]


def test_a_folder_that_is_no_repository_has_no_default_base(suite: Suite) -> None:
    suite.record({"sim/tpot": TPOT}, revision="0" * 40)
    suite.backends(sim="Simulated(tpot=0.005 * 1.3)")
    result, said = decode(suite)
    assert (result.ret, said["outcome"], said["basis"]) == (1, "regression", "stored")
    assert "base cannot be had" in said["reason"]
