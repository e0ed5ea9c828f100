"""Base beside head, end to end: revisions of a repository with simulated backends, measured in turns."""

from __future__ import annotations

import json
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from inner import BACKENDS, BUSY, HANGING, SERVING, TESTS, Suite, eventually, on_path, pytest_process, usage_error

from pytest_llmperf.gate.checkout import BaseError, resolve
from pytest_llmperf.measure.worker_process import Checkout
from pytest_llmperf.worker.bootstrap import moved, own

TPOT = 0.005
FAST, SLOW = "Simulated(tpot=0.005)", "Simulated(tpot=0.005 * 1.05)"
#: Makes head other code than base, and no slower.
COMMENT = "# head"


@pytest.fixture
def repository(suite: Suite) -> Suite:
    """A repository whose first revision, ``base``, needs 5 ms per token. The tree has the same with a comment."""
    suite.git("init", "--quiet")
    suite.ini(llm_results="raw.json")
    (suite.path / ".gitignore").write_text("*.pids\nserved\n*.json\n__pycache__\n.pytest_cache\n")
    suite.backends(sim=FAST)
    suite.commit()
    suite.git("tag", "base")
    suite.backends(sim=FAST, extra=COMMENT)
    return suite


def sittings(suite: Suite) -> None:
    """A baseline of so many sittings that it decides about 5 % and about 15 %, where 10 % are allowed."""
    for day in range(1, 7):
        suite.record({"sim/tpot": TPOT}, recorded=f"2026-01-{day:02}", add=True)


def results(suite: Suite) -> list[dict[str, Any]]:
    """The cases of the last run, in the order of their tests."""
    return json.loads((suite.path / "raw.json").read_text())["results"]  # type: ignore[no-any-return]


def outcomes(suite: Suite) -> list[str]:
    return [one["verdict"]["outcome"] for one in results(suite)]


def said(suite: Suite, number: int = -1) -> str:
    """Outcome and reason of a case."""
    found = results(suite)[number]["verdict"]
    return f"{found['outcome']}: {found['reason']}"


def worktrees(suite: Suite) -> int:
    return len(suite.git("worktree", "list").splitlines())


# The verdict


def test_a_named_head_is_measured_instead_of_the_tree(repository: Suite) -> None:
    repository.backends(sim=SLOW)
    repository.commit()
    repository.git("tag", "slow")
    repository.backends(sim="Simulated(tpot=1)", extra="# the tree, which is never run")
    result = repository.decode("--llm-base=base", "--llm-head=slow")
    assert (result.ret, outcomes(repository)) == (1, ["regression"])
    assert said(repository).startswith("regression: 5.0% slower than base in 4 pairs of fresh processes")
    measured = json.loads((repository.path / "raw.json").read_text())
    assert measured["commit"] == repository.git("rev-parse", "slow").strip()
    assert worktrees(repository) == 1
    result = repository.decode("--llm-base=slow", "--llm-head=slow")
    result.stdout.fnmatch_lines("base, slow (*), is the code under test, so nothing is compared with it")


def test_a_named_head_needs_a_base_and_a_revision(repository: Suite) -> None:
    assert usage_error(repository.run("--llm-head=base")).endswith(
        "--llm-head=base: it is compared with another revision; name that with --llm-base"
    )
    unknown = usage_error(repository.run("--llm-base=base", "--llm-head=nowhere"))
    assert fnmatch(unknown, "*--llm-head=nowhere: * has no such revision; fetch it *")


def test_a_slowdown_of_head_alone_is_found_without_a_baseline(repository: Suite) -> None:
    repository.backends(sim=SLOW)
    result = repository.decode("--llm-base=base")
    assert result.ret == 1
    revision = repository.git("rev-parse", "base")[:12]
    expected = f"regression: 5.0% slower than base in 4 pairs of fresh processes; base is base ({revision})"
    assert said(repository) == expected
    (found,) = results(repository)
    assert (found["tolerance"], found["tolerance_source"]) == (0.03, "default with a base")
    verdict = found["verdict"]
    assert (verdict["head"], verdict["baseline"]) == pytest.approx((0.00525, TPOT))
    assert (verdict["basis"], verdict["count"]) == ("base", 4)
    result.stdout.fnmatch_lines(["*5.250 ms, base 5.000 ms, +5.0%*at 99 %, allowed 3% (default with a base)*"])
    result.stdout.fnmatch_lines(f"*; base is base ({revision})*or allow this case more (llm_tolerances)")
    again = " ".join(result.stdout.str().replace("\\\n", " ").split())
    assert "[sim-b1-p16-n8]' --llm-backends=sim --llm-base=base --llm-compare=always" in again


@pytest.mark.parametrize("committed", [False, True])
def test_a_slowdown_from_a_baseline_is_measured_beside_the_code_that_recorded_it(
    repository: Suite, committed: bool
) -> None:
    revision = repository.git("rev-parse", "HEAD")
    repository.record({"sim/tpot": TPOT}, revision=revision)
    repository.backends(sim="Simulated(tpot=0.005 * 1.15)")
    if committed:
        repository.commit()
    result = repository.decode()
    assert result.ret == 1
    base = f"base is the baseline's revision ({revision[:12]})"
    assert said(repository) == f"regression: 15.0% slower than base in 4 pairs of fresh processes; {base}"
    (found,) = results(repository)
    assert (found["tolerance"], found["tolerance_source"]) == (0.10, "default of cpu")
    assert "--llm-update-baselines=slower" in result.stdout.str(), "how to accept it"
    assert repository.loads["sim"] == 1 + 4  # of head; base's write beside their own conftest.py


def test_a_slowdown_of_both_is_not(repository: Suite) -> None:
    repository.backends(sim=SLOW)
    repository.commit()
    repository.backends(sim=SLOW, extra=COMMENT)
    repository.record({"sim/tpot": TPOT / 1.3})  # the stored figures flag it
    result = repository.decode("--llm-base=HEAD")
    assert result.ret == 0
    assert outcomes(repository) == ["ok"]
    assert results(repository)[0]["verdict"]["ratio"] == pytest.approx(1)
    result.stdout.fnmatch_lines("1 cases gated: 1 ok")


#: The tolerance that one sitting of a baseline excludes; beside a base that is named the usual one is 3 %.
ALLOWED = "--llm-max-regression=10%"


def test_what_its_baseline_passes_is_not_compared_with_base(repository: Suite) -> None:
    repository.record({"sim/tpot": TPOT})
    assert repository.decode("--llm-base=base", ALLOWED).ret == 0
    assert repository.loads["sim"] == 1
    result = repository.decode("--llm-base=base", ALLOWED, "--llm-compare=always")
    assert result.ret == 0
    assert repository.loads["sim"] == 2 + 3  # of head; base's write beside their own conftest.py


@pytest.mark.parametrize("compare", [(), ("--llm-compare=never",)], ids=["flagged", "never"])
def test_what_its_baseline_leaves_open_is_compared_with_a_named_base(
    repository: Suite, compare: tuple[str, ...]
) -> None:
    """It does not look slower; but one sitting cannot exclude the 3 % that are allowed beside a named base."""
    repository.record({"sim/tpot": TPOT})
    assert repository.decode("--llm-base=base", *compare).ret == 0
    (found,) = results(repository)
    verdict = found["verdict"]
    assert (verdict["outcome"], verdict["basis"]) == (("inconclusive", "stored") if compare else ("ok", "base"))
    assert repository.loads["sim"] == (1 if compare else 1 + 3)


def test_a_base_of_the_ini_file_is_named_too(repository: Suite) -> None:
    """So an update, which needs none, is not what to run next."""
    repository.ini(llm_results="raw.json", llm_base="base")
    repository.backends(sim=SLOW)
    result = repository.decode()
    assert result.ret == 1
    assert "to measure that alone again: " in result.stdout.str()
    assert "to accept it: " not in result.stdout.str()


def test_an_improvement_is_said(repository: Suite) -> None:
    repository.backends(sim="Simulated(tpot=0.004)")
    result = repository.decode("--llm-base=base")
    assert result.ret == 0
    assert said(repository).startswith("faster: 20.0% faster than base")


def test_one_comparison_serves_all_metrics(repository: Suite) -> None:
    repository.run("suites", "--llm-backends=sim", "--llm-base=base", "-k", "not parity")
    assert repository.loads["sim"] == 1 + 3
    raw = json.loads((repository.path / "raw.json").read_text())
    (comparison,) = raw["comparisons"]
    assert (comparison["backend"], len(comparison["pairs"])) == ("sim", 3)
    assert comparison["base"] == f"base ({repository.git('rev-parse', 'base')[:12]})"
    turn = comparison["pairs"][0]["turns"][0]
    samples = turn["samples"]
    assert turn["in_step"]
    assert [len(samples[arm]) for arm in ("base", "head")] == [1, 1]
    assert samples["base"][0]["trace"]["tokens"] == samples["head"][0]["trace"]["tokens"]


LOGGED = """\
class Logged(Simulated):
    def __init__(self, arm, **options):
        super().__init__(**options)
        self.arm = arm

    def generate(self, prompts, max_new_tokens, on_token):
        def logged(request, token):
            with open(LOG, "a") as file:
                file.write(self.arm)
            on_token(request, token)

        super().generate(prompts, max_new_tokens, logged)
"""


@pytest.mark.parametrize("pausable", [True, False])
def test_base_and_head_compute_in_step_where_both_can_wait(repository: Suite, pausable: bool) -> None:
    log = repository.path / "log"
    (repository.path / ".gitignore").write_text("*.pids\n__pycache__\n.pytest_cache\nlog\n")
    for arm in "bh":
        repository.backends(
            sim=f"Logged({arm!r}, tpot=0.005, pausable={pausable})", extra=f"LOG = {str(log)!r}\n{LOGGED}"
        )
        if arm == "b":
            repository.commit()
    repository.decode("--llm-base=HEAD")
    assert outcomes(repository) == ["ok"]
    raw = json.loads((repository.path / "raw.json").read_text())
    assert all(turn["in_step"] is pausable for pair in raw["comparisons"][0]["pairs"] for turn in pair["turns"])
    steps = log.read_text()
    in_step, in_turns = "bhhbbhhbbhhbbhhb", "b" * 8 + "h" * 16 + "b" * 8
    assert (in_step in steps, in_turns in steps) == (pausable, not pausable)


FAILING = """\
class Failing(Simulated):
    def __init__(self, fail, **options):
        super().__init__(**options)
        self.fail, self.seen = fail, 0

    def generate(self, prompts, max_new_tokens, on_token):
        def failing(request, token):
            self.seen += 1
            if self.seen == 20:  # in the third generation, the first that counts
                self.fail()
            on_token(request, token)

        super().generate(prompts, max_new_tokens, failing)


def die():
    os.kill(os.getpid(), 9)


def miss():
    raise LookupError("no such step")
"""


@pytest.mark.parametrize(
    ("fail", "why"),
    [
        ("die", "inconclusive: base, HEAD (*), was lost: worker died during generate*"),
        ("miss", "new: base, HEAD (*), cannot run it: LookupError: no such step*"),
    ],
)
def test_a_base_that_fails_in_the_middle_of_a_generation_is_no_comparison(
    repository: Suite, fail: str, why: str
) -> None:
    repository.backends(sim=f"Failing({fail}, tpot=0.005)", extra=FAILING)
    repository.commit()
    repository.backends(sim=FAST)
    repository.decode("--llm-base=HEAD")
    assert fnmatch(said(repository), why)


@pytest.mark.parametrize(
    ("fail", "why"),
    [("die", "worker died during generate: killed by signal 9*"), ("miss", "LookupError: no such step*")],
)
def test_a_head_that_fails_in_the_middle_of_a_generation_fails_its_test(repository: Suite, fail: str, why: str) -> None:
    failing = f"Failing({fail}, tpot=0.005) if process > 1 else Simulated(tpot=0.005)"
    repository.backends(sim=failing, extra=FAILING)
    result = repository.decode("--llm-base=base")
    assert result.ret == 1
    result.stdout.fnmatch_lines(f"*{why}")


def test_a_new_case_that_is_slower_than_base_fails_and_is_not_accepted(repository: Suite) -> None:
    repository.backends(sim=SLOW)
    result = repository.decode("--llm-base=base", "--llm-update-baselines=new")
    assert result.ret == 1
    assert outcomes(repository) == ["regression"]
    assert not repository.baseline.exists()
    repository.backends(sim=FAST)
    assert repository.decode("--llm-base=base", "--llm-update-baselines=new").ret == 0
    assert "bfloat16/sim/b1-p16-n8/tpot" in repository.stored()["entries"]


# Pairs that several workloads share

BATCHES = ("--llm-batch-sizes=1,2,4",)


def serving(suite: Suite, fail: str = "None") -> None:
    """Keep a record of what each process is asked for; ``fail`` is an expression of ``batch`` and ``process``."""
    suite.backends(sim=f"Serving(lambda batch: {fail}, tpot=0.005)", extra=SERVING + MIDWAY)


#: An engine that fails at a step of batch size 2, so that the other arm is left waiting for its next one.
MIDWAY = """

class Midway(Simulated):
    def generate(self, prompts, max_new_tokens, on_token):
        def failing(request, token):
            self.seen = getattr(self, "seen", 0) + (len(prompts) == 2)
            if self.seen == 2 * 2 * 8 + 5:  # in the third generation, the first that counts
                raise LookupError("no such step")
            on_token(request, token)

        super().generate(prompts, max_new_tokens, failing)
"""


def pairs(suite: Suite) -> dict[str, int]:
    """How many pairs each batch size was compared in."""
    raw = json.loads((suite.path / "raw.json").read_text())
    return {one["workload"][:2]: len(one["pairs"]) for one in raw["comparisons"]}


@pytest.mark.parametrize("compare", [(), ("--llm-compare=always",)])
def test_a_pair_serves_every_workload_that_is_compared_anyway(repository: Suite, compare: tuple[str, ...]) -> None:
    serving(repository)
    result = repository.decode("--llm-base=base", *BATCHES, *compare)
    assert result.ret == 0
    assert outcomes(repository) == ["ok"] * 3
    assert repository.served == [[1, 2, 4]] * (1 + 3)
    assert pairs(repository) == {"b1": 3, "b2": 3, "b4": 3}


def test_what_its_baseline_may_pass_joins_no_pair(repository: Suite) -> None:
    repository.record({"sim/tpot": TPOT})
    serving(repository)
    assert repository.decode("--llm-base=base", ALLOWED, *BATCHES).ret == 0
    assert repository.served == [[1, 2, 4], *[[2, 4]] * 3]
    (repository.path / "served").unlink()
    assert repository.decode("--llm-base=base", ALLOWED, "--llm-compare=always", *BATCHES).ret == 0
    assert repository.served == [[1, 2, 4]] * (1 + 3)


def test_what_is_flagged_has_others_join_its_pair(repository: Suite) -> None:
    repository.record({"sim/tpot": TPOT / 1.3})
    serving(repository)
    assert repository.decode("--llm-base=base", *BATCHES).ret == 0
    assert repository.served == [[1, 2, 4]] * (1 + 3)


def test_whoever_asks_is_first_and_others_are_in_the_order_of_the_tests(repository: Suite) -> None:
    serving(repository)
    repository.test(
        "import pytest\n"
        "def test_a(llm_perf):\n"
        "    if llm_perf.workload.batch_size == 1:\n        pytest.skip('not now')\n"
        "    llm_perf.gate('tpot')\n"
        "@pytest.mark.llm(batch_sizes=[1])\ndef test_own(llm_perf):\n    llm_perf.gate('latency')\n"
    )
    run = repository.run("test_it.py", "--llm-backends=sim", "--llm-base=base", *BATCHES)
    run.assert_outcomes(passed=3, skipped=1)
    assert repository.served == [[2, 4, 1], *[[2, 1, 4]] * 3]


def test_what_is_deselected_joins_no_pair(repository: Suite) -> None:
    serving(repository)
    assert repository.decode("--llm-base=base", *BATCHES, "-k", "not b2").ret == 0
    assert repository.served == [[1, 4]] * (1 + 3)
    assert pairs(repository) == {"b1": 3, "b4": 3}


@pytest.mark.parametrize(("fail", "why"), [("1 / 0", "ZeroDivisionError"), ("die()", "killed by signal 9")])
def test_a_head_that_fails_at_one_workload_costs_the_others_no_pair(repository: Suite, fail: str, why: str) -> None:
    serving(repository, f"batch == 2 and process > 1 and {fail}")
    result = repository.decode("--llm-base=base", *BATCHES)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines([f"*{why}*"])
    assert outcomes(repository) == ["ok"] * 2
    # It ends the turns in the first pair, joins no other, and fails again where it asks for itself.
    assert repository.served == [[1, 2, 4], [1, 2], [1, 4], [1, 4], [2], [4]]
    assert pairs(repository) == {"b1": 3, "b2": 0, "b4": 3}


@pytest.mark.parametrize(
    ("engine", "why"),
    [
        ("Serving(lambda batch: batch == 2 and 1 / 0, tpot=0.005)", "cannot run it: ZeroDivisionError*"),
        ("Serving(lambda batch: batch == 2 and die(), tpot=0.005)", "was lost: worker died during generate*"),
        ("Midway(tpot=0.005)", "cannot run it: LookupError: no such step*"),
    ],
)
def test_a_base_that_fails_at_one_workload_costs_the_others_no_pair(repository: Suite, engine: str, why: str) -> None:
    """Neither if it is gone, or in the middle of a generation, when its processes are to end."""
    repository.backends(sim=engine, extra=SERVING + MIDWAY)
    repository.commit()
    serving(repository)
    result = repository.decode("--llm-base=HEAD", *BATCHES)
    assert result.ret == 0
    assert [one for one in outcomes(repository) if one == "ok"] == ["ok"] * 2
    assert fnmatch(said(repository, 1), f"*: base, HEAD (*), {why}")
    assert pairs(repository) == {"b1": 3, "b2": 0, "b4": 3}
    assert repository.loads["sim"] == 1 + 3 + 1 + 1


def test_of_a_test_that_never_ran_no_comparison_is_reported(repository: Suite) -> None:
    serving(repository, "batch == 2 and process == 1 and 1 / 0")
    result = repository.decode("--llm-base=base", *BATCHES, "-x", "--llm-report=report.md")
    result.assert_outcomes(passed=1, failed=1)
    assert pairs(repository) == {"b1": 3, "b2": 3, "b4": 3}, "they were measured"
    assert [one["case"] for one in results(repository)] == ["bfloat16/sim/b1-p16-n8/tpot"]
    result.stdout.fnmatch_lines("1 cases gated: 1 ok*")


# How long comparing may take


OUT_OF_TIME = "not compared: comparing has taken --llm-budget=0.001 s in this run"


def test_once_comparing_has_taken_its_budget_no_further_comparison_is_begun(repository: Suite) -> None:
    repository.backends(sim=SLOW)
    assert repository.decode("--llm-base=base", "--llm-budget=0.001", backends="ref,sim").ret == 0
    assert fnmatch(said(repository, 0), "ok: *")
    assert fnmatch(said(repository), "no baseline: *; " + OUT_OF_TIME)
    assert "raise --llm-budget" in results(repository)[1]["verdict"]["remedy"]
    assert repository.loads == {"ref": 1 + 3, "sim": 1}
    assert repository.decode("--llm-base=base", "--llm-budget=100", backends="ref,sim").ret == 1


def test_a_comparison_that_was_begun_goes_on(repository: Suite) -> None:
    """Its pairs were measured: what they say of another metric or workload costs nothing."""
    repository.run(
        "suites", "--llm-backends=sim", "--llm-base=base", "--llm-budget=0.001", *BATCHES, "-k", "not parity"
    )
    assert outcomes(repository) == ["ok"] * 9
    assert pairs(repository) == {"b1": 3, "b2": 3, "b4": 3}


def test_fresh_processes_count_too(repository: Suite) -> None:
    """Where base cannot be had: the baseline names no revision."""
    repository.record({"ref/tpot": 0.010 / 1.15, "sim/tpot": TPOT / 1.15})
    repository.decode("--llm-budget=0.001", backends="ref,sim")
    assert fnmatch(said(repository, 0), "inconclusive: *base cannot be had*")
    assert fnmatch(said(repository), "inconclusive: 15.0% slower *; " + OUT_OF_TIME)
    assert repository.loads == {"ref": 1 + 3, "sim": 1}


# What base imports


def test_base_runs_its_own_modules(repository: Suite) -> None:
    """A package in the repository, found by PYTHONPATH: base's workers find base's."""
    package = repository.path / "src" / "stack"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("TPOT = 0.005\n")
    repository.backends(sim="Simulated(tpot=__import__('stack').TPOT)")
    repository.commit()
    (package / "__init__.py").write_text("TPOT = 0.00525\n")
    with pytest.MonkeyPatch.context() as patch:
        on_path(patch, repository.path / "src")
        assert repository.decode("--llm-base=HEAD").ret == 1
        repository.commit()
        (package / "__init__.py").write_text("TPOT = 0.00525  # as before\n")
        assert repository.decode("--llm-base=HEAD").ret == 0


def test_a_module_that_base_does_not_have_is_never_heads(repository: Suite) -> None:
    """Else base would run head's code, and never be any faster."""
    (repository.path / "lib").mkdir()
    (repository.path / "lib" / "fresh.py").write_text("TPOT = 0.005\n")
    with pytest.MonkeyPatch.context() as patch:
        on_path(patch, repository.path / "lib")
        repository.backends(sim="Simulated(tpot=__import__('fresh').TPOT)")
        repository.git("add", "conftest.py")
        repository.git("commit", "--quiet", "--message", "the module is forgotten")
        result = repository.decode("--llm-base=HEAD")
    assert result.ret == 1  # nothing was compared
    assert fnmatch(
        said(repository),
        "new: base, HEAD (*), cannot run it: *this revision has no fresh of its own: it would be the tree's*",
    )


@pytest.mark.parametrize("editable", [False, True])
def test_what_was_installed_from_head_is_not_bases(
    repository: Suite, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, editable: bool
) -> None:
    """By ``pip install .``, as CI does: the copy in site-packages is head's code, whatever revision is checked out."""
    site = tmp_path_factory.mktemp("site")
    (site / "stack.py").write_text("TPOT = 0.005\n")
    (site / "stack-1.dist-info").mkdir()
    origin = {"url": repository.path.as_uri(), "dir_info": {"editable": True} if editable else {}}
    for name, text in (("METADATA", "Name: stack\nVersion: 1\n"), ("RECORD", "stack.py,,\n")):
        (site / "stack-1.dist-info" / name).write_text(text)
    (site / "stack-1.dist-info" / "direct_url.json").write_text(json.dumps(origin))
    on_path(monkeypatch, site)
    repository.backends(sim="Simulated(tpot=__import__('stack').TPOT)")
    repository.commit()
    repository.backends(sim="Simulated(tpot=__import__('stack').TPOT)", extra=COMMENT)
    repository.decode("--llm-base=HEAD")
    failed = "new: base, HEAD (*), cannot run it: *stack.py was installed from the tree*"
    assert fnmatch(said(repository), "ok: *" if editable else failed)


@pytest.mark.parametrize("base", ["broken", "raising", "idle"])
def test_what_base_cannot_run_is_new_and_nothing_was_gated(repository: Suite, base: str) -> None:
    engine = {
        "broken": "no_such_name",
        "raising": "Simulated(tpot=lambda number: 1 / 0)",
        "idle": 'Simulated(tpot=0.01, evidence=Engagement(False, "fell back"))',
    }[base]
    repository.backends(sim=engine)
    repository.commit()
    repository.backends(sim=FAST)
    result = repository.decode("--llm-base=HEAD")
    assert result.ret == 1
    assert outcomes(repository) == ["new"]
    result.stdout.fnmatch_lines("ERROR: nothing was compared*")


def test_a_base_that_is_heads_code_is_no_comparison(
    repository: Suite, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The stack under test is installed from elsewhere, and the repository holds its suites alone."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "stack.py").write_text("from simulated import Simulated\n\ndef load(spec):\n    return Simulated()\n")
    repository.backends(backends=f'[{BACKENDS}, Backend("stack", "stack:load")]')
    with pytest.MonkeyPatch.context() as patch:
        for folder in (elsewhere, TESTS):
            on_path(patch, folder)
        result = repository.decode("--llm-base=base", *BATCHES, backends="stack")
    assert result.ret == 1
    assert fnmatch(
        said(repository), "new: base, base (*), cannot run it: it imported nothing from *, so both arms ran the same*"
    )
    assert pairs(repository) == {"b1": 0, "b2": 0, "b4": 0}, "of any workload"


def test_what_base_cannot_run_beside_others_is_no_failure_unless_strict(repository: Suite) -> None:
    repository.backends(sim="no_such_name")
    repository.commit()
    repository.backends(sim=FAST)
    result = repository.decode("--llm-base=HEAD", backends="ref,sim")
    assert result.ret == 0
    assert outcomes(repository) == ["ok", "new"]
    assert repository.decode("--llm-base=HEAD", "--llm-strict", backends="ref,sim").ret == 1


DIES = "Simulated(tpot=lambda number: os.kill(os.getpid(), 9))"


@pytest.mark.parametrize("always", [(), ("--llm-compare=always",)], ids=["", "always"])
@pytest.mark.parametrize(("base", "why"), [("no_such_name", "cannot run it"), (DIES, "was lost")])
@pytest.mark.parametrize(
    ("now", "outcome"), [(SLOW, "ok: "), ("Simulated(tpot=0.005 * 1.15)", "regression: 15.0% slower*; ")]
)
def test_where_base_cannot_its_baseline_decides(
    repository: Suite, now: str, outcome: str, base: str, why: str, always: tuple[str, ...]
) -> None:
    """By the tolerance of a baseline, 10 % on a CPU, not by the 3 % beside base."""
    repository.backends(sim=base)
    repository.commit()
    repository.backends(sim=now)
    sittings(repository)
    result = repository.decode("--llm-base=HEAD", *always)
    assert result.ret == ("regression" in outcome)
    assert fnmatch(said(repository), f"{outcome}base cannot be had: base, HEAD (*), {why}*")


def test_where_all_turns_were_disturbed_the_baseline_s_tolerance_is_no_excuse(repository: Suite) -> None:
    repository.backends(sim="Busy(0.005)", extra=BUSY)
    repository.commit()
    repository.backends(sim=SLOW)
    repository.record({"sim/tpot": TPOT})
    result = repository.decode("--llm-base=HEAD", "--llm-strict")
    assert result.ret == 1
    assert fnmatch(said(repository), "inconclusive: * of * pairs had too few undisturbed turns: others used 4.0 cores*")


def test_a_base_that_dies_has_compared_nothing(repository: Suite) -> None:
    repository.backends(sim=DIES)
    repository.commit()
    repository.backends(sim=FAST)
    result = repository.decode("--llm-base=HEAD")
    assert result.ret == 1
    assert fnmatch(said(repository), "inconclusive: base, HEAD (*), was lost: worker died during generate*")
    result.stdout.fnmatch_lines("ERROR: nothing was compared*")


@pytest.mark.parametrize("where", ["load", "generate"])
@pytest.mark.parametrize("arm", ["base", "head"])
def test_where_there_is_no_memory_for_both_its_baseline_decides(repository: Suite, arm: str, where: str) -> None:
    full = {"load": "exec('raise MemoryError')", "generate": "Simulated(tpot=lambda number: exec('raise MemoryError'))"}
    # Head's first process, and those that confirm, have the memory to themselves.
    arms = {"base": full[where], "head": f"{full[where]} if process == 2 else {SLOW}"}
    if arm == "base":
        repository.backends(sim=arms["base"])
        repository.commit()
    repository.backends(sim=arms["head"] if arm == "head" else SLOW)
    sittings(repository)
    result = repository.decode("--llm-base=HEAD")
    assert result.ret == 0
    assert fnmatch(
        said(repository), "ok: base cannot be had: base, HEAD (*), was lost: no memory for two processes at once: *"
    )


def test_what_is_slower_than_its_baseline_but_not_than_base_says_so(repository: Suite) -> None:
    repository.record({"sim/tpot": TPOT / 1.3})
    result = repository.decode("--llm-base=base")
    assert result.ret == 0
    assert said(repository) == "ok: 30.0% slower than the baseline, but not than base: the machine is slower"


def test_what_the_baseline_cannot_tell_is_compared_with_base(repository: Suite) -> None:
    """Slower than the tolerance, but not than processes of the baseline differ."""
    repository.backends(sim=SLOW)
    repository.record({"sim/tpot": TPOT})
    repository.spread("sim/tpot", 0.9, 1.0, 1.1)
    result = repository.decode("--llm-base=base")
    assert result.ret == 1
    assert said(repository).startswith("regression: 5.0% slower than base")


def test_a_failure_of_head_is_an_error_and_not_news(repository: Suite) -> None:
    repository.backends(sim="Simulated(tpot=lambda number: 0.005 if process == 1 else 1 / 0)")
    result = repository.decode("--llm-base=base")
    assert result.ret == 1
    result.stdout.fnmatch_lines("*ZeroDivisionError*")


def test_an_interpreter_may_be_the_base(repository: Suite) -> None:
    result = repository.decode(f"--llm-base-python={sys.executable}")
    assert result.ret == 0
    assert outcomes(repository) == ["ok"]


# The checkout


def test_nothing_is_left_behind(repository: Suite) -> None:
    repository.decode("--llm-base=base")
    assert worktrees(repository) == 1


def test_nor_after_a_failure(repository: Suite) -> None:
    repository.backends(sim="Simulated(tpot=lambda number: 0.005 if process == 1 else 1 / 0)")
    repository.decode("--llm-base=base")
    assert worktrees(repository) == 1


def test_nor_by_a_run_that_is_stopped(repository: Suite) -> None:
    repository.backends(sim="Simulated(tpot=lambda number: 0.005 if process <= 2 else hang())", extra=HANGING)
    options = ("suites/test_decode.py", "--llm-backends=sim", "--llm-base=base", "--llm-compare=always")
    with pytest_process(*options, cwd=repository.path) as process:
        assert eventually((repository.path / "hangs").exists, 30)
        assert worktrees(repository) == 2
        process.terminate()
        process.communicate(timeout=30)
    assert worktrees(repository) == 1


def test_a_checkout_that_is_gone_already_spoils_no_run(repository: Suite) -> None:
    base = resolve("base", None, repository.path)
    assert base is not None
    with base.arm() as arm:
        checkout = arm(sys.executable).checkout
        assert checkout is not None
        repository.git("worktree", "remove", "--force", str(checkout.folder))
    assert worktrees(repository) == 1


@pytest.mark.parametrize("how", ["no worktrees", "no folder", "a filter"])
def test_a_named_base_that_git_cannot_give_ends_the_run_before_anything_is_measured(
    repository: Suite, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    said = "git worktree in * failed: *"
    if how == "no worktrees":
        (repository.path / ".git" / "worktrees").write_text("not a folder")
    elif how == "no folder":
        monkeypatch.setattr("tempfile.TemporaryDirectory", Mock(side_effect=OSError(28, "No space left on device")))
        said = "there is no room for its checkout (*No space left*); check the disk and TMPDIR"
    else:
        (repository.path / ".git" / "info" / "attributes").write_text("conftest.py filter=other\n")
        repository.git("config", "filter.other.smudge", "sed s/0.005/0.004/")
        said = "git checks * out with other content than it has, in conftest.py; look for a filter in .gitattributes"
    refused = usage_error(repository.decode("--llm-base=base"))
    assert fnmatch(refused, f"ERROR: llmperf: --llm-base=base: {said}")
    assert repository.loads == {"ref": 0, "sim": 0}
    if how != "no worktrees":
        assert worktrees(repository) == 1


@pytest.mark.parametrize("how", ["no worktrees", "a filter"])
def test_a_base_that_nobody_named_and_git_cannot_give_loses_no_figure(repository: Suite, how: str) -> None:
    repository.record({"sim/tpot": TPOT}, revision=repository.git("rev-parse", "base"))
    repository.backends(sim="Simulated(tpot=0.005 * 1.3)")
    if how == "no worktrees":
        (repository.path / ".git" / "worktrees").write_text("not a folder")
    else:
        (repository.path / ".git" / "info" / "attributes").write_text("conftest.py filter=other\n")
        repository.git("config", "filter.other.smudge", "sed s/0.005/0.004/")
    assert repository.decode().ret == 1
    assert fnmatch(said(repository), "regression: 30.0% slower * in 3 fresh processes*; base cannot be had: git *")


def test_a_base_that_no_test_needs_is_not_checked_out(repository: Suite) -> None:
    (repository.path / ".git" / "worktrees").write_text("not a folder")
    options = ("--llm-base=base", "--llm-backends=sim")
    assert repository.run("suites/test_decode.py", *options, "--collect-only").ret == 0
    assert repository.run("suites/test_greedy_parity.py", *options).ret == 0
    repository.decode("--llm-base=base", "--llm-compare=never")
    assert len(results(repository)) == 1


def test_in_a_hook_of_git_its_index_is_left_alone(repository: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository.path / "staged.txt").write_text("for the next commit")
    repository.git("add", "staged.txt")
    monkeypatch.setenv("GIT_INDEX_FILE", str(repository.path / ".git" / "index"))
    base = resolve("base", None, repository.path)
    assert base is not None
    with base.arm():
        pass
    assert repository.git("diff", "--cached", "--name-only") == "staged.txt"


def test_no_hook_of_the_repository_stops_a_run(repository: Suite) -> None:
    """Such as pre-commit's, which refuses a revision of before it had a configuration."""
    hook = repository.path / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho 'No .pre-commit-config.yaml file was found' >&2\nexit 1\n")
    hook.chmod(0o755)
    result = repository.decode("--llm-base=base")
    assert result.ret == 0
    assert outcomes(repository) == ["ok"]
    assert worktrees(repository) == 1


def test_base_builds_kernels_elsewhere(repository: Suite) -> None:
    """By torch.utils.cpp_extension.load, say: whoever comes second is given what the first has built by that name."""
    base = resolve("base", None, repository.path)
    assert base is not None
    with base.arm() as arm:
        folder = arm(sys.executable).environment["TORCH_EXTENSIONS_DIR"]
        assert not Path(folder).is_relative_to(repository.path)
    assert not Path(folder).exists()


def test_code_of_the_repository_finds_no_cache_of_head_s(repository: Suite) -> None:
    keeping = """
def kept(spec):
    from pathlib import Path

    built = Path(spec["cache"] if isinstance(spec, dict) else spec.cache) / "kernel"
    built.parent.mkdir(parents=True, exist_ok=True)
    if not built.exists():
        built.write_text(TPOT)
    return Simulated(tpot=float(built.read_text()))
"""
    repository.backends(sim="kept(spec)", extra="TPOT = '0.005'\n" + keeping)
    repository.commit()
    repository.backends(sim="kept(spec)", extra="TPOT = '0.006'\n" + keeping)
    result = repository.decode("--llm-base=HEAD")
    assert result.ret == 1
    assert said(repository).startswith("regression: 20.0% slower than base")


def test_head_is_the_tree_as_it_is(repository: Suite) -> None:
    before = (repository.path / "conftest.py").read_text(), repository.git("status", "--porcelain")
    repository.decode("--llm-base=base")
    assert ((repository.path / "conftest.py").read_text(), repository.git("status", "--porcelain")) == before


def test_paths_of_the_tree_have_counterparts(tmp_path: Path) -> None:
    root, folder = tmp_path / "head", tmp_path / "base"
    for path in (root / "src", folder / "src", root / ".venv/lib/site-packages"):
        path.mkdir(parents=True)
    assert moved(str(root / "src"), root, folder) == str(folder / "src")
    assert moved(str(root / "new"), root, folder) == str(root / "new")
    assert moved("/elsewhere", root, folder) == "/elsewhere"
    assert moved(str(root / ".venv/lib/site-packages"), root, folder) == str(root / ".venv/lib/site-packages")
    assert own(root / "src" / "x.py", root)
    assert not own(Path(sys.prefix) / "x.py", Path(sys.prefix).parent)


def test_links_into_the_tree_are_followed(tmp_path: Path) -> None:
    """Else base would import head's modules through a link, and find no difference."""
    root, folder, link = tmp_path / "head", tmp_path / "base", tmp_path / "link"
    for path in (root / "src", folder / "src"):
        path.mkdir(parents=True)
    link.symlink_to(root)
    assert moved(str(link / "src"), root, folder) == str(folder / "src")
    assert own(link / "src" / "x.py", root)
    checkout = Checkout("abc", root, folder)
    found = checkout.reference({"module": "conftest", "name": "load", "file": str(link / "conftest.py")})
    assert found["file"] == str(folder / "conftest.py")


@pytest.mark.parametrize("prefix", ["usr", "usr/src/app"])
def test_a_tree_in_an_environment_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    """A system's Python has the prefix /usr, and containers keep their application in /usr/src/app."""
    root = tmp_path / "usr" / "src" / "app"
    monkeypatch.setattr(sys, "prefix", str(tmp_path / prefix))
    assert own(root / "stack.py", root)
    assert not own(root / "lib" / "site-packages" / "x.py", root)


# Base is head


IS_HEAD = "base, HEAD (*), is the code under test, so nothing is compared with it*"


def test_a_base_that_is_head_is_said_and_is_no_pass(repository: Suite) -> None:
    """It was ok for ever: the same code in two processes."""
    repository.commit()
    result = repository.decode("--llm-base=HEAD")
    assert result.ret == 1
    assert fnmatch(said(repository), "no baseline: *does not exist")
    result.stdout.fnmatch_lines(["ERROR: nothing was compared with a baseline*", IS_HEAD])
    assert (repository.loads["sim"], worktrees(repository)) == (1, 1)


@pytest.mark.parametrize(
    ("recorded", "compare", "outcome"),
    [
        (TPOT, "flagged", "ok: "),
        (TPOT / 1.3, "flagged", "inconclusive: base, HEAD (*), is head, so nothing is compared with it; a slowdown *"),
        (TPOT, "always", "ok: "),
    ],
)
def test_where_base_is_head_the_baseline_clears_a_case_and_never_fails_it(
    repository: Suite, recorded: float, compare: str, outcome: str
) -> None:
    revision = repository.commit()
    repository.record({"sim/tpot": recorded}, revision="0" * 40)
    result = repository.decode(f"--llm-base={revision[:9]}", f"--llm-compare={compare}")
    assert result.ret == 0
    assert fnmatch(said(repository), outcome.replace("HEAD", revision[:9]))
    (found,) = results(repository)
    assert found["tolerance_source"] == "default of cpu"
    result.stdout.fnmatch_lines(IS_HEAD.replace("HEAD", revision[:9]))
    assert repository.loads["sim"] == 1


def test_a_revision_with_the_same_files_is_head_too(repository: Suite) -> None:
    first = repository.commit()
    repository.backends(sim=SLOW)
    repository.commit()
    repository.git("revert", "--no-edit", "HEAD")
    result = repository.decode(f"--llm-base={first}")
    result.stdout.fnmatch_lines(IS_HEAD.replace("HEAD", first))


@pytest.mark.parametrize("how", ["a changed file", "a new file", "an interpreter"])
def test_other_code_or_another_interpreter_is_not_head(repository: Suite, how: str) -> None:
    repository.commit()
    options = ["--llm-base=HEAD"]
    if how == "a changed file":
        repository.backends(sim=SLOW)
    elif how == "a new file":
        (repository.path / "kernel.cu").write_text("// new")
    else:
        options.append(f"--llm-base-python={sys.executable}")
    result = repository.decode(*options)
    assert results(repository)[0]["verdict"]["basis"] == "base"
    result.stdout.no_fnmatch_line(IS_HEAD)


# Bad input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--llm-base=no-such"], "--llm-base=no-such: * has no such revision; fetch it*"),
        (["--llm-base=--help"], "--llm-base=--help: * has no such revision*"),
        (["--llm-base-python=/nowhere/python"], "*/nowhere/python*"),
        (["--llm-base-python="], "*--llm-base-python: cannot ask '' what *"),
        (["--llm-base=base", "--llm-compare=some"], "*'some' is not flagged, unresolved, always or never"),
        (["--llm-base=base", "--llm-update-baselines"], "--llm-update-baselines stores figures and --llm-base *"),
        (["--llm-base=base", "--llm-budget=0"], "*--llm-budget*"),
    ],
)
def test_bad_input_is_one_line(repository: Suite, options: list[str], said: str) -> None:
    assert fnmatch(usage_error(repository.decode(*options)), f"*{said}")
    assert repository.loads["sim"] == 0


def test_no_repository_is_said(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match=r"git rev-parse in .* failed: .*not a git repository"):
        resolve("main", None, tmp_path)
