"""What a gated run says: failures, what to run next, counts; and when a gate has passed nothing. End to end."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from gated import REF, SIM, SLOWER, TPOT, decode, failures, record
from inner import Suite

from pytest_llmperf.result import Result


@pytest.fixture
def recorded(suite: Suite) -> Suite:
    """A suite with a baseline of 5 ms per token for ``sim``, of five sittings."""
    record(suite)
    return suite


# A failure


def test_a_regression_fails_that_test_alone_in_one_readable_line(suite: Suite) -> None:
    record(suite, {"ref/ttft": 0.1, "ref/tpot": 0.010, "sim/ttft": 0.1, "sim/tpot": TPOT})
    suite.backends(sim=SLOWER)
    result = suite.run("suites/test_decode.py", "suites/test_prefill.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=3, failed=1)
    (line,) = failures(result)
    assert "test_decode[sim-b1-p16-n8]" in line
    said = [line for line in result.outlines if re.match(r"\S*sim/b1-p16-n8/tpot: regression: ", line)]
    assert len(said) == 1
    assert "5.750 ms" in said[0], "now"
    assert "baseline 5.000 ms" in said[0]
    assert re.search(r"\+15\.0% \[\+6\.\d%, \+24\.\d%\]", said[0]), "change and interval"
    assert "3 fresh processes" in said[0]
    assert "10% (default of cpu)" in said[0]
    assert said[0].endswith("accept it with --llm-update-baselines, or allow this case more (llm_tolerances)")
    assert "Traceback" not in result.stdout.str()
    result.stdout.fnmatch_lines("*4 cases gated: 1 regression, 3 ok*")


def test_a_failed_gate_says_what_to_run_next(recorded: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded.backends(sim=SLOWER)
    own = ("--llm-compare", "flagged", "--llm-results=raw.json", "--llm-report=a.md", "-k", "decode", "--llm-strict")
    result = recorded.decode(*own, "--llm-timeout", "60", "--llm-server=http://me:pa55word@127.0.0.1:1")
    shown = "'suites/test_decode.py::test_decode[[]sim-b1-p16-n8]' --llm-backends=sim --llm-strict --llm-timeout=60"
    said = "to accept it: pytest "
    result.stdout.fnmatch_lines(
        [
            f"to measure that alone again: pytest {shown} --llm-compare=always",
            f"{said}{shown} --llm-update-baselines=slower",
        ]
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


# What is open


def test_strictly_what_is_open_fails_with_the_slowdown_and_what_would_settle_it(suite: Suite) -> None:
    record(suite, sittings=1)
    suite.backends(sim="Simulated(tpot=0.005 * 1.03)")
    result = suite.decode("--llm-strict")
    assert result.ret == 1
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        "*sim*tpot: inconclusive: *3.0% slower than the baseline in 1 process; a slowdown of 12.8% cannot be excluded*"
        "run with --llm-compare=unresolved*"
    )


def test_strictly_a_missing_baseline_fails_its_test(suite: Suite) -> None:
    result = suite.decode("--llm-strict")
    assert result.ret == 1
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(f"*{SIM}/tpot: no baseline: *--llm-update-baselines*")


@pytest.mark.parametrize("spread", [(0.8, 1.0, 1.2), (1.0, 1.0, 1.0)], ids=["wide", "narrow"])
def test_what_a_baseline_could_not_exclude_is_in_the_results(suite: Suite, spread: tuple[float, ...]) -> None:
    suite.record({"sim/tpot": TPOT})
    suite.spread("sim/tpot", *spread)
    suite.backends(sim="Simulated(tpot=0.00496)")
    result, said = decode(suite)
    assert result.ret == 0
    assert said["outcome"] == ("ok" if spread[0] == 1 else "inconclusive")
    assert said["not_excluded"] == pytest.approx(said["upper"] - 1)
    assert (said["not_excluded"] < 0.1) == (spread[0] == 1), "an ok hides no slowdown of the tolerance"


# What passed nothing


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


def test_in_ci_a_gate_that_compared_something_passes(recorded: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    assert recorded.decode().ret == 0


# What else is said


def test_what_was_skipped_is_counted(recorded: Suite) -> None:
    recorded.test(
        "import pytest\n@pytest.mark.llm(devices=['mi210'])\ndef test_it(llm_perf):\n    llm_perf.gate('tpot')"
    )
    result = recorded.run("test_it.py", "suites/test_decode.py", "--llm-backends=sim")
    result.stdout.fnmatch_lines("*1 cases gated: 1 ok, 1 skipped*")


def test_unused_baselines_are_listed_when_asked(recorded: Suite) -> None:
    recorded.record({"gone/tpot": TPOT})
    result = recorded.decode("-v")
    result.stdout.fnmatch_lines(f"*baselines that this run did not use: *gone/b1-p16-n8/tpot, *{REF}/*")
    assert "gone" in json.dumps(recorded.stored()), "listed, never deleted"


def test_results_are_written_by_a_parity_test_too(suite: Suite) -> None:
    suite.run("suites/test_greedy_parity.py", "--llm-results=raw.json")
    assert len(json.loads((suite.path / "raw.json").read_text())["parity"]) == 2


def test_a_test_gates_one_metric(suite: Suite) -> None:
    suite.test("def test_it(llm_perf):\n    llm_perf.gate('tpot')\n    llm_perf.gate('ttft')")
    result = suite.run("test_it.py", "--llm-backends=sim")
    assert result.ret == 1
    result.stdout.fnmatch_lines("llm_perf*one row * test*")


def test_the_verdict_is_a_plain_result_for_the_test_itself(recorded: Suite) -> None:
    recorded.test("def test_it(llm_perf):\n    result = llm_perf.gate('tpot')\n    assert result.spread.median < 0.001")
    result = recorded.run("test_it.py", "--llm-backends=sim")
    assert result.ret == 1
    assert isinstance(vars(Result)["spread"], type(vars(Result)["samples"]))
