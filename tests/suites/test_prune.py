"""Removing baselines: only what no test of the whole project has, and only where that can be known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inner import Suite, usage_error

from pytest_llmperf.prune import is_stale

SIM, REF, GONE = ("bfloat16/sim/b1-p16-n8", "bfloat16/ref/b1-p16-n8", "bfloat16/gone/b1-p16-n8")
PRUNE = "--llm-prune-baselines"


@pytest.fixture
def recorded(suite: Suite) -> Suite:
    """A suite with baselines of its two backends and of one that is no more."""
    suite.record({"sim/tpot": 0.005, "sim/ttft": 0.1, "ref/tpot": 0.010, "gone/tpot": 0.005, "gone/cold-start": 1.0})
    return suite


def keys(suite: Suite) -> set[str]:
    return set(suite.stored()["entries"])


USED = {f"{SIM}/tpot", f"{SIM}/ttft", f"{REF}/tpot"}

# Which

names = st.sampled_from(["sim", "ref", "a+b"])
workloads = st.sampled_from(["b1-p16-n8", "b32-p16-n8"])
pairs = st.tuples(names, workloads)
dtypes = st.sampled_from(["float32", "bfloat16"])
cases = st.tuples(dtypes, pairs, st.sampled_from(["ttft", "tpot"])).map(lambda c: f"{c[0]}/{c[1][0]}/{c[1][1]}/{c[2]}")


@given(cases, dtypes, st.sets(cases), st.sets(pairs))
def test_what_may_be_used_is_never_stale(
    key: str, dtype: str, used: set[str], unmeasured: set[tuple[str, str]]
) -> None:
    own, backend, workload, _ = key.split("/")
    safe = own != dtype or key in used or (backend, workload) in unmeasured
    assert is_stale(key, dtype, used, unmeasured) == (not safe)


def test_collecting_is_enough_for_what_no_test_has(recorded: Suite) -> None:
    result = recorded.run("--collect-only", PRUNE)
    assert result.ret == 0
    assert recorded.loads == {"ref": 0, "sim": 0}
    assert keys(recorded) == USED
    result.stdout.fnmatch_lines(
        [f"removed {GONE}/tpot", f"removed {GONE}/cold-start", "2 unused baselines removed from *tiny.json"]
    )


def test_a_metric_that_every_test_measured_past_is_removed(recorded: Suite) -> None:
    for test in ("prefill", "latency"):
        (recorded.path / "suites" / f"test_{test}.py").unlink()
    assert recorded.run("--collect-only", PRUNE).ret == 0
    assert keys(recorded) == USED, "only a measurement tells which metric a test gates"
    result = recorded.run(".", PRUNE)
    assert result.ret == 0
    assert keys(recorded) == {f"{SIM}/tpot", f"{REF}/tpot"}
    result.stdout.fnmatch_lines(["1 unused baselines removed from *", "2 cases gated: 2 ok"])


@pytest.mark.parametrize(
    ("sim", "backends"),
    [
        ("Simulated(evidence=Engagement(False, 'a kernel'))", '[Backend("ref", load_ref), Backend("sim", load_sim)]'),
        ("Simulated()", '[Backend("ref", load_ref), Backend("sim", load_sim, requires=lambda device: "a GPU")]'),
    ],
    ids=["failed before it measured", "skipped"],
)
def test_what_did_not_measure_keeps_its_baselines(recorded: Suite, sim: str, backends: str) -> None:
    (recorded.path / "suites" / "test_prefill.py").unlink()
    recorded.backends(sim=sim, backends=backends)
    recorded.run(PRUNE)
    assert f"{SIM}/ttft" in keys(recorded)
    assert f"{GONE}/tpot" not in keys(recorded)


def test_another_machine_s_and_another_type_s_baselines_stay(recorded: Suite) -> None:
    recorded.record({"gone/tpot": 0.005}, cpu="a faster one")
    recorded.baseline.write_text(
        recorded.baseline.read_text().replace(f"{GONE}/cold-start", "float32/gone/b1-p16-n8/cold-start")
    )
    assert recorded.run("--collect-only", PRUNE).ret == 0
    assert keys(recorded) == {*USED, f"{GONE}/tpot", "float32/gone/b1-p16-n8/cold-start"}
    (left,) = recorded.stored()["entries"][f"{GONE}/tpot"]
    assert recorded.stored()["environments"][left["environment"]]["fingerprint"]["cpu"] == "a faster one"


def test_an_update_and_pruning_go_together(recorded: Suite) -> None:
    result = recorded.run(PRUNE, "--llm-update-baselines", "--llm-invocations=3")
    assert result.ret == 0
    assert GONE not in str(keys(recorded))
    assert len(keys(recorded)) == 8


def test_nothing_to_remove_leaves_the_file_alone(recorded: Suite) -> None:
    recorded.run("--collect-only", PRUNE)
    before = recorded.baseline.stat().st_mtime_ns
    recorded.run("--collect-only", PRUNE).stdout.fnmatch_lines("0 unused baselines removed from *")
    assert recorded.baseline.stat().st_mtime_ns == before


# Refused


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-k", "decode"), "-k hides tests; leave it out"),
        (("-m", "not slow"), "-m hides tests; leave it out"),
        (("--deselect=suites/test_latency.py",), "--deselect hides tests; leave it out"),
        (("--ignore=suites/test_latency.py",), "--ignore hides tests; leave it out"),
        (("--lf", "-p", "cacheprovider"), "--last-failed hides tests; leave it out"),
        (("-o", "llm_backends=ref"), "--override-ini hides tests; leave it out"),
        (("suites",), "tests outside of suites are hidden; collect the whole project, *"),
        (("suites/test_decode.py::test_decode",), "tests outside of suites/test_decode.py::test_decode are hidden; *"),
        (("--llm-backends=ref",), "--llm-backends hides what the tests run with by default; *"),
        (("--llm-tp=1",), "--llm-tp hides what the tests run with by default; *"),
        (("--confcutdir=.",), "--confcutdir hides tests; leave it out"),
        (("--llm-batch-sizes=1",), "--llm-batch-sizes hides what the tests run with by default; *"),
        (("--llm-prompt-lengths=16",), "--llm-prompt-lengths hides what the tests run with by default; *"),
        (("--llm-max-new-tokens=8",), "--llm-max-new-tokens hides what the tests run with by default; *"),
        (("--llm-baseline-dir=../elsewhere",), "*elsewhere is outside of *"),
        (("-p", "xdist", "-n", "1"), "-n hides tests; leave it out"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_run_that_does_not_see_everything_prunes_nothing(
    recorded: Suite, arguments: tuple[str, ...], said: str
) -> None:
    before = recorded.baseline.read_bytes()
    line = usage_error(recorded.run(*arguments, PRUNE))
    pytest.LineMatcher([line]).fnmatch_lines(f"ERROR: llmperf: --llm-prune-baselines: {said}")
    assert recorded.baseline.read_bytes() == before
    assert recorded.loads == {"ref": 0, "sim": 0}


def test_test_paths_of_the_project_are_not_all_of_it(recorded: Suite) -> None:
    recorded.ini(testpaths="suites")
    assert "tests outside of suites are hidden" in usage_error(recorded.run(PRUNE))
    assert recorded.run(".", "--collect-only", PRUNE).ret == 0
    assert keys(recorded) == USED


HIDES = "def pytest_collection_modifyitems(config, items):\n    config.hook.pytest_deselected(items=[items.pop()])\n"


@pytest.mark.parametrize(
    ("extra", "test", "said"),
    [
        (HIDES, "", "*::test_* was deselected"),
        ("", "import pytest\npytest.skip('not today', allow_module_level=True)", "test_it.py was not collected"),
        ("", "def test_it(llm_perf", "test_it.py was not collected"),
    ],
    ids=["deselected by a plugin", "skipped", "broken"],
)
def test_a_collection_that_is_not_whole_prunes_nothing(recorded: Suite, extra: str, test: str, said: str) -> None:
    recorded.backends(extra=extra)
    recorded.test(test)
    before = recorded.baseline.read_bytes()
    result = recorded.run("--collect-only", PRUNE)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(f"ERROR: llmperf: --llm-prune-baselines: cannot tell which baselines are used: {said}")
    assert recorded.baseline.read_bytes() == before


def test_a_project_without_our_tests_prunes_nothing(recorded: Suite) -> None:
    for test in (recorded.path / "suites").glob("test_*.py"):
        test.unlink()
    recorded.test("def test_plain():\n    pass")
    assert "no test gates a case" in usage_error(recorded.run(PRUNE))


def test_an_interrupted_run_prunes_nothing(recorded: Suite) -> None:
    recorded.test("def test_interrupted():\n    raise KeyboardInterrupt")
    before = recorded.baseline.read_bytes()
    result = recorded.run(PRUNE, no_reraise_ctrlc=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines("interrupted: no baseline was removed")
    assert recorded.baseline.read_bytes() == before


def test_pruning_that_fails_leaves_the_old_file(recorded: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    before = recorded.baseline.read_bytes()

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pytest_llmperf.files.os.fsync", full)
    result = recorded.run("--collect-only", PRUNE)
    assert result.ret == 1
    result.stdout.fnmatch_lines("ERROR: *tiny.json: cannot be written (*No space left on device*")
    assert recorded.baseline.read_bytes() == before
    assert [file.name for file in recorded.baseline.parent.iterdir()] == ["tiny.json"]
