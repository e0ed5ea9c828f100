"""``pytest-llmperf prune``: it removes only what no test has, and only where complete runs show that."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inner import Suite

from pytest_llmperf.cli import main
from pytest_llmperf.gate import prune
from pytest_llmperf.gate.baseline import Baseline, Entry, Sitting
from pytest_llmperf.machine.fingerprint import Fingerprint

SIM, REF, GONE = ("bfloat16/sim/b1-p16-n8", "bfloat16/ref/b1-p16-n8", "bfloat16/gone/b1-p16-n8")
USED = {f"{SIM}/tpot", f"{SIM}/ttft", f"{REF}/tpot"}
UNUSED = [f"{GONE}/tpot", f"{GONE}/warm-start"]


@pytest.fixture
def recorded(suite: Suite) -> Suite:
    """A suite with baselines of its two backends and of one that is no more."""
    suite.record({"sim/tpot": 0.005, "sim/ttft": 0.1, "ref/tpot": 0.010, "gone/tpot": 0.005, "gone/warm-start": 1.0})
    return suite


@pytest.fixture
def ran(recorded: Suite, capsys: pytest.CaptureFixture[str]) -> Suite:
    """The same after a complete run."""
    assert recorded.run("--llm-results=raw.json").ret == 0
    capsys.readouterr()
    return recorded


def prune_with(suite: Suite, *arguments: str) -> int:
    files = [str(suite.path / one) for one in arguments if not one.startswith("-")] or [str(suite.path / "raw.json")]
    options = [one for one in arguments if one.startswith("-")]
    return main(["prune", *files, f"--baseline-dir={suite.path / 'baselines'}", *options])


def keys(suite: Suite) -> set[str]:
    return set(suite.stored()["entries"])


def edit(suite: Suite, change: Callable[[dict[str, Any]], object], file: str = "other.json") -> None:
    """Another results file, of the one that a run has left."""
    data = json.loads((suite.path / "raw.json").read_text())
    change(data)
    (suite.path / file).write_text(json.dumps(data))


def refused(suite: Suite, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that the command refuses with; the file stays as it is."""
    before = suite.baseline.read_bytes() if suite.baseline.exists() else None
    capsys.readouterr()
    assert prune_with(suite, *arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("pytest-llmperf: ")
    assert said.err.count("\n") == 1
    assert (suite.baseline.read_bytes() if suite.baseline.exists() else None) == before
    return said.err


# Which

HERE, THERE = Fingerprint.from_dict({"cpu": "here"}), Fingerprint.from_dict({"cpu": "there"})
SITTINGS = [Sitting("2026-01-31", None, one.as_dict(), {}, {}, {}) for one in (HERE, THERE)]
backends = st.sampled_from(["sim", "ref", "a/b"])
dtypes = st.sampled_from(["float32", "bfloat16"])
metrics = st.sampled_from(["ttft", "tpot", "cold-start"])
cases = st.builds(lambda *parts: "/".join(parts), dtypes, backends, st.just("b1-p16-n8"), metrics)
rows = st.sets(st.sampled_from(SITTINGS).map(lambda one: one.id), min_size=1).map(
    lambda ids: tuple(Entry(name, "s", (1.0,)) for name in sorted(ids))
)


@given(st.dictionaries(cases, rows), dtypes, st.sets(cases))
def test_only_this_machine_s_entries_of_this_dtype_that_no_test_has(
    entries: dict[str, tuple[Entry, ...]], dtype: str, used: set[str]
) -> None:
    held = Baseline("cpu", "m", {one.id: one for one in SITTINGS}, entries)
    own = {key for key in entries if key.startswith(dtype) and held.own(key, HERE)}
    runs = prune.Used("cpu", "m", dtype, HERE, frozenset(used))
    if own and not own & used:
        with pytest.raises(ValueError, match="removing all of them is refused"):
            prune.unused(held, runs)
    else:
        assert set(prune.unused(held, runs)) == own - used


def test_what_no_test_has_is_removed_and_listed(ran: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune_with(ran) == 0
    assert keys(ran) == USED
    lines = capsys.readouterr().out.splitlines()
    assert lines == [*(f"removed: {key}" for key in UNUSED), f"2 unused entries removed from {ran.baseline}"]


def test_a_dry_run_only_lists(ran: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    before = ran.baseline.read_bytes()
    assert prune_with(ran, "--dry-run") == 0
    assert ran.baseline.read_bytes() == before
    lines = capsys.readouterr().out.splitlines()
    assert lines == [*(f"unused: {key}" for key in UNUSED), f"2 unused entries in {ran.baseline}"]


def test_a_metric_that_no_test_gates_any_more_is_removed(recorded: Suite) -> None:
    for test in ("prefill", "latency"):
        (recorded.path / "suites" / f"test_{test}.py").unlink()
    assert recorded.run("--llm-results=raw.json").ret == 0
    assert prune_with(recorded) == 0
    assert keys(recorded) == {f"{SIM}/tpot", f"{REF}/tpot"}


def test_what_one_of_several_runs_has_stays(recorded: Suite) -> None:
    for backend in ("ref", "sim"):
        assert recorded.run(f"--llm-backends={backend}", f"--llm-results={backend}.json").ret == 0
    assert prune_with(recorded, "ref.json", "sim.json") == 0
    assert keys(recorded) == USED
    assert prune_with(recorded, "ref.json") == 0
    assert keys(recorded) == {f"{REF}/tpot"}


def test_the_starts_of_what_was_measured_stay_since_their_tests_run_by_name_alone(suite: Suite) -> None:
    suite.record({"sim/tpot": 0.005, "sim/cold-start": 1.0, "sim/warm-start": 1.0, "gone/warm-start": 1.0})
    suite.run("--llm-results=raw.json")
    assert prune_with(suite) == 0
    assert keys(suite) == {f"{SIM}/tpot", f"{SIM}/cold-start", f"{SIM}/warm-start"}


def test_another_machine_s_and_another_type_s_baselines_stay(recorded: Suite) -> None:
    recorded.record({"gone/tpot": 0.005}, cpu="a faster one")
    recorded.baseline.write_text(
        recorded.baseline.read_text().replace(f"{GONE}/warm-start", "float32/gone/b1-p16-n8/warm-start")
    )
    recorded.run("--llm-results=raw.json")
    assert prune_with(recorded) == 0
    assert keys(recorded) == {*USED, f"{GONE}/tpot", "float32/gone/b1-p16-n8/warm-start"}
    held = recorded.stored()
    (left,) = held["entries"][f"{GONE}/tpot"]
    assert held["machines"][held["sittings"][left["sitting"]]["machine"]]["cpu"] == "a faster one"


def test_the_results_of_an_update_will_do(recorded: Suite) -> None:
    assert recorded.run("--llm-update-baselines", "--llm-invocations=3", "--llm-results=raw.json").ret == 0
    assert prune_with(recorded) == 0
    assert GONE not in str(keys(recorded))
    assert len(keys(recorded)) == 6


def test_nothing_to_remove_leaves_the_file_alone(ran: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    prune_with(ran)
    before = ran.baseline.stat().st_mtime_ns
    capsys.readouterr()
    assert prune_with(ran) == 0
    assert capsys.readouterr().out == f"0 unused entries removed from {ran.baseline}\n"
    assert ran.baseline.stat().st_mtime_ns == before


# Refused: a run that was not complete


@pytest.mark.parametrize(
    ("sim", "backends", "why"),
    [
        (
            "Simulated(evidence=Engagement(False, 'a kernel'))",
            '[Backend("ref", load_ref), Backend("sim", load_sim)]',
            "3 of its tests have no figure, such as suites/test_",
        ),
        (
            "Simulated()",
            '[Backend("ref", load_ref), Backend("sim", load_sim, requires=lambda device: "a GPU")]',
            "[sim-b1-p16-n8]: sim: a GPU",
        ),
    ],
    ids=["failed before it measured", "skipped"],
)
def test_a_test_without_a_figure_is_refused(
    recorded: Suite, capsys: pytest.CaptureFixture[str], sim: str, backends: str, why: str
) -> None:
    recorded.backends(sim=sim, backends=backends)
    recorded.run("--llm-results=raw.json")
    said = refused(recorded, capsys)
    assert f"{recorded.path / 'raw.json'}: 3 of its tests have no figure" in said
    assert why in said


def test_an_interrupted_run_is_refused(recorded: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    recorded.test("def test_a(llm_perf):\n    raise KeyboardInterrupt")
    recorded.run(".", "--llm-results=raw.json", no_reraise_ctrlc=True)
    assert "of its tests have no figure" in refused(recorded, capsys)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-k", "decode"), "4 tests that gate a case were deselected"),
        (("-k", "not parity"), ""),
        (("--deselect=suites/test_latency.py",), "2 tests that gate a case were deselected"),
        (("--ignore=suites/test_latency.py",), "--ignore was given"),
        (("--ignore-glob=*latency*",), "--ignore-glob was given"),
        (("--lf", "-p", "cacheprovider"), "--last-failed was given"),
        (("suites/test_decode.py",), "it ran suites/test_decode.py alone"),
        (("suites/test_decode.py::test_decode",), "it ran suites/test_decode.py::test_decode alone"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_run_from_which_tests_were_hidden_is_refused(
    recorded: Suite, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    recorded.run(*arguments, "--llm-results=raw.json")
    if said:
        assert f"raw.json: its run did not have every test: {said}\n" in refused(recorded, capsys)
    else:
        assert prune_with(recorded) == 0, "the option hid no test that gates a case"


HIDES = "def pytest_collection_modifyitems(config, items):\n    config.hook.pytest_deselected(items=[items.pop(0)])\n"


@pytest.mark.parametrize(
    ("extra", "test", "said"),
    [
        (HIDES, "", "1 tests that gate a case were deselected"),
        ("", "import pytest\npytest.skip('not today', allow_module_level=True)", "test_it.py was not collected"),
        ("", "def test_it(llm_perf", "test_it.py was not collected"),
    ],
    ids=["deselected by a plugin", "skipped", "broken"],
)
def test_a_collection_that_is_not_whole_is_refused(
    recorded: Suite, capsys: pytest.CaptureFixture[str], extra: str, test: str, said: str
) -> None:
    recorded.backends(extra=extra)
    recorded.test(test)
    recorded.run("--continue-on-collection-errors", "--llm-results=raw.json")
    assert said in refused(recorded, capsys)


# Refused: other reasons


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.update(device="h100"), "the results are of two devices, cpu and h100; prune one after"),
        (lambda data: data.update(model="huge"), "the results are of two models, tiny and huge; prune one after"),
        (lambda data: data.update(dtype="float32"), "the results are of two dtypes, bfloat16 and float32; prune one"),
        (lambda data: data["environment"]["fingerprint"].update(cpu="x"), "the results are of two machines (CPU: "),
        (lambda data: data.update(narrowed=["it ran a alone"]), "other.json: its run did not have every test: it ran"),
        (lambda data: data.pop("narrowed"), "other.json: it is no results file (KeyError('narrowed'))"),
        (lambda data: data.update(schema=2), "other.json: its schema is 2"),
        (lambda data: data["results"][0].update(case="sim"), "other.json: "),
    ],
    ids=["device", "model", "dtype", "machine", "narrowed", "without a field", "old schema", "no case"],
)
def test_files_that_do_not_go_together_or_cannot_be_read_are_refused(
    ran: Suite, capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], object], said: str
) -> None:
    edit(ran, change)
    assert said in refused(ran, capsys, "raw.json", "other.json")


def test_removing_everything_is_refused(ran: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    edit(ran, lambda data: data["results"].clear())
    said = refused(ran, capsys, "other.json")
    assert "the results use none of this machine's bfloat16 baselines (5 entries)" in said
    ran.baseline.unlink()
    assert f"{ran.baseline}: there is no such file" in refused(ran, capsys)


def test_a_failed_write_leaves_the_old_file(
    ran: Suite, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pytest_llmperf.files.os.fsync", full)
    said = refused(ran, capsys)
    assert f"{ran.baseline}: cannot be written (" in said
    assert "No space left on device" in said
    assert [file.name for file in ran.baseline.parent.iterdir()] == ["tiny.json"]
