"""The store of baselines: stable text, pure merge, atomic write, one clear line for every bad file."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmperf.cases import METRICS, Case, Workload
from pytest_llmperf.gate import baseline as store
from pytest_llmperf.gate.baseline import Baseline, BaselineError, Entry, Environment
from pytest_llmperf.machine.fingerprint import Fingerprint
from pytest_llmperf.machine.fitness import Barrier

MACHINE = Environment({"cpu": "Some CPU", "cpus": 16}, {"torch": "2.13"}, {"flops": 9.89e14, "bandwidth": 4.8e12})
OTHER = Environment({"cpu": "Another", "cpus": 64}, {"torch": "2.13"}, {"flops": 1.81e14, "bandwidth": 1.6e12})


def case(metric: str = "ttft", batch: int = 1, backend: str = "eager", dtype: str = "bfloat16") -> str:
    return Case("m", dtype, backend, Workload(batch, 128, 32), metric).key


def of(*keys: str, machine: Environment = MACHINE, seconds: float = 0.5) -> Baseline:
    entry = Entry(machine.id, "2026-01-31", "s", ((seconds, 1.5 * seconds, 2 * seconds), (2 * seconds, 3 * seconds)))
    return Baseline("h200", "org/Model-1", {machine.id: machine}, dict.fromkeys(keys, (entry,)))


keys = st.builds(case, st.sampled_from(sorted(METRICS)), st.integers(1, 64), st.sampled_from(["eager", "tp2", "a/b"]))
samples = st.lists(st.floats(1e-9, 1e6), min_size=1, max_size=6).map(tuple)
json_values = st.none() | st.booleans() | st.integers() | st.text() | st.floats(-1e9, 1e9) | st.lists(st.integers())
tables = st.dictionaries(st.text(), json_values, max_size=3)
invocations = st.lists(samples, min_size=1, max_size=3).map(tuple)
UPGRADED = replace(MACHINE, versions={"torch": "2.14"})  # the same machine
ENVIRONMENTS = {one.id: one for one in (MACHINE, OTHER, UPGRADED)}


def entry(environment: Environment) -> st.SearchStrategy[Entry]:
    barrier = st.none() | st.builds(Barrier, st.floats(3.0e-6, 3.7e-6), st.just(2))  # of one state
    return st.builds(Entry, st.just(environment.id), st.dates().map(str), st.text(), invocations, barrier)


here = st.lists(st.sampled_from([MACHINE, UPGRADED]).flatmap(entry), min_size=1, max_size=store.HISTORY)
there = st.lists(entry(OTHER), min_size=1, max_size=2)
entries = st.one_of(here, there, st.builds(list.__add__, here, there), st.builds(list.__add__, there, here)).map(tuple)


def by_machine(baseline: Baseline, key: str) -> dict[str, list[Entry]]:
    """A case's entries by the name of their CPU, newest first."""
    found: dict[str, list[Entry]] = {}
    for one in baseline.entries.get(key, ()):
        found.setdefault(baseline.machine(one).cpu, []).append(one)
    return found


few = settings(max_examples=40)  # each example is a whole store
baselines = st.dictionaries(keys, entries, max_size=3).map(
    lambda named: store.merge(None, Baseline("h200", "m", ENVIRONMENTS, named))
)


@few
@given(baselines)
def test_what_is_read_back_is_what_was_stored_to_six_digits(baseline: Baseline) -> None:
    again = store.loads(store.dumps(baseline))
    assert (again.device, again.model) == (baseline.device, baseline.model)
    assert again.environments == baseline.environments
    assert again.entries.keys() == baseline.entries.keys()
    for key, row in baseline.entries.items():
        for read, entry in zip(again.entries[key], row, strict=True):
            assert list(read.invocations) == [pytest.approx(one, rel=5e-6) for one in entry.invocations]
            assert (read.barrier is None) == (entry.barrier is None)
            if read.barrier and entry.barrier:
                assert read.barrier.seconds == pytest.approx(entry.barrier.seconds, rel=5e-6)
                assert read.barrier.threads == entry.barrier.threads
            assert replace(read, invocations=(), barrier=None) == replace(entry, invocations=(), barrier=None)


@few
@given(baselines)
def test_a_second_round_trip_changes_nothing(baseline: Baseline) -> None:
    text = store.dumps(baseline)
    assert store.dumps(store.loads(text)) == text


@few
@given(baselines)
def test_the_order_of_insertion_does_not_show(baseline: Baseline) -> None:
    for order in (list, reversed):
        rows = [(key, order(by_machine(baseline, key).values())) for key in reversed(list(baseline.entries))]
        other = {key: tuple(chain.from_iterable(machines)) for key, machines in rows}
        assert store.dumps(replace(baseline, entries=other)) == store.dumps(baseline)


def test_entries_are_ordered_as_a_reader_counts() -> None:
    ordered = [case("ttft", 2), case("tpot", 2), case("latency", 2), case("ttft", 16)]
    ordered += [case(backend="tp2"), case(backend="tp10"), case(dtype="float32")]
    assert list(json.loads(store.dumps(of(*reversed(ordered))))["entries"]) == ordered


def test_the_text_is_made_to_be_reviewed() -> None:
    text = store.dumps(of(case(), seconds=0.01))
    assert text.endswith("}\n")
    assert text.splitlines()[5:15] == [
        '    "bfloat16/eager/b1-p128-n32/ttft": [',
        "      {",
        '        "median": 0.015,',
        f'        "environment": "{MACHINE.id}",',
        '        "recorded": "2026-01-31",',
        '        "unit": "s",',
        '        "invocations": [',
        "          [0.01, 0.015, 0.02],",
        "          [0.02, 0.03]",
        "        ]",
    ]


def test_an_entry_is_summed_up_by_the_median_of_its_processes() -> None:
    """The gate's figure: of each process the median of its blocks, which are the best of 2 samples in a row."""
    assert Entry("", "", "s", ((1.0, 2.0, 9.0, 8.0), (4.0,), (8.0, 10.0))).median == 4.5


@given(tables, tables)
def test_an_environment_is_named_by_its_content(fingerprint: dict[str, Any], peaks: dict[str, Any]) -> None:
    machine = Environment(fingerprint, {}, peaks)
    assert len(machine.id) == 12
    assert machine.id == Environment(dict(reversed(list(fingerprint.items()))), {}, peaks).id
    assert machine.id != Environment({**fingerprint, "one more": 1}, {}, peaks).id
    assert store.loads(store.dumps(of(case(), machine=machine))).environments[machine.id].id == machine.id


@few
@given(baselines, baselines)
def test_merging_puts_what_is_new_first_and_keeps_a_few_of_each_machine(old: Baseline, new: Baseline) -> None:
    merged = store.merge(old, new)
    assert merged.entries.keys() == old.entries.keys() | new.entries.keys()
    for key in merged.entries:
        before, added, now = (by_machine(one, key) for one in (old, new, merged))
        assert now.keys() == before.keys() | added.keys()
        for cpu, sets in now.items():
            mine = added.get(cpu, [])
            assert sets == [*mine, *(one for one in before.get(cpu, []) if one not in mine)][: store.HISTORY]
    assert set(merged.environments) == {entry.environment for row in merged.entries.values() for entry in row}


@few
@given(baselines, baselines)
def test_merging_twice_is_merging_once(old: Baseline, new: Baseline) -> None:
    once = store.merge(old, new)
    assert store.merge(once, new) == once
    assert store.merge(None, new) == store.merge(new, new) == new


@few
@given(baselines, baselines, baselines)
def test_merging_is_associative(a: Baseline, b: Baseline, c: Baseline) -> None:
    assert store.merge(store.merge(a, b), c) == store.merge(a, store.merge(b, c))


def test_an_environment_leaves_with_its_last_entry() -> None:
    baseline = of(case())
    for number in range(store.HISTORY):
        assert MACHINE.id in baseline.environments
        baseline = store.merge(baseline, of(case(), machine=UPGRADED, seconds=1 + number))
    assert set(baseline.environments) == {UPGRADED.id}
    assert [entry.invocations[0][0] for entry in baseline.entries[case()]] == [5, 4, 3, 2, 1], "the newest first"


def test_a_machine_goes_before_its_own_entries_and_leaves_other_machines() -> None:
    both = store.merge(of(case()), of(case(), machine=OTHER))
    again = store.merge(both, of(case(), machine=UPGRADED, seconds=0.25))
    assert [entry.environment for entry in again.entries[case()]] == [OTHER.id, UPGRADED.id, MACHINE.id]
    assert [entry.environment for entry in both.entries[case()]] == [OTHER.id, MACHINE.id], "machines keep their order"


def test_memory_of_which_the_kernel_took_more_is_the_same_machine() -> None:
    less, more = (replace(MACHINE, fingerprint={**MACHINE.fingerprint, "memory_gib": size}) for size in (62, 63))
    for older, newer in ((less, more), (more, less)):
        both = store.merge(of(case(), machine=older), of(case(), machine=newer))
        assert [entry.environment for entry in both.entries[case()]] == [newer.id, older.id], "the newest first"
        assert store.loads(store.dumps(both)).entries == both.entries


@few
@given(baselines, st.sampled_from([MACHINE, OTHER]), st.sets(keys))
def test_removing_takes_a_machine_s_entries_of_the_cases_named(
    baseline: Baseline, machine: Environment, named: set[str]
) -> None:
    cpu = machine.fingerprint["cpu"]
    named |= set(list(baseline.entries)[:1])
    left = store.without(baseline, Fingerprint.from_dict(machine.fingerprint), named)
    for key in baseline.entries:
        before = by_machine(baseline, key)
        assert by_machine(left, key) == {name: row for name, row in before.items() if key not in named or name != cpu}
    assert all(left.entries.values()), "no case is left without an entry"
    assert set(left.environments) == {entry.environment for row in left.entries.values() for entry in row}


@few
@given(baselines)
def test_a_file_of_an_old_schema_is_read_as_it_is_and_written_as_4(baseline: Baseline) -> None:
    newest = {key: tuple(sets[0] for sets in by_machine(baseline, key).values()) for key in baseline.entries}
    text = store.dumps(store.merge(None, replace(baseline, entries=newest)))
    for schema in (2, 3):
        old = text.replace('"schema": 4', f'"schema": {schema}', 1)
        assert old != text
        assert store.dumps(store.loads(old)) == text


def test_of_each_state_of_a_machine_s_cpus_the_newest_sets_stay() -> None:
    held = None
    states = [4.5e-6, *[3e-6, 3.3e-6] * store.HISTORY]
    for number, barrier in enumerate(states):
        newest = of(case(), seconds=1.0 + number)
        (entry,) = newest.entries[case()]
        held = store.merge(held, replace(newest, entries={case(): (replace(entry, barrier=Barrier(barrier, 2)),)}))
    assert held is not None
    kept = [one.barrier.seconds for one in held.entries[case()] if one.barrier]
    assert kept == [*reversed(states[-store.HISTORY :]), 4.5e-6]


def test_baselines_of_two_models_do_not_merge() -> None:
    with pytest.raises(BaselineError, match=r"'another' on 'h200' cannot be merged into 'org/Model-1' on 'h200'"):
        store.merge(of(case()), replace(of(case()), model="another"))


def test_entries_that_no_test_uses_are_listed() -> None:
    baseline = of(case("tpot", 16), case("ttft", 2), case("ttft", 16))
    assert store.unused(baseline, [case("ttft", 16), "of another suite"]) == [case("ttft", 2), case("tpot", 16)]


def test_what_was_written_can_be_loaded(tmp_path: Path) -> None:
    path = store.path_for(tmp_path, "h200", "org/Model-1")
    store.write(path, of(case()))
    assert store.load(path, "h200", "org/Model-1") == of(case())
    assert [file.name for file in path.parent.iterdir()] == ["org--model-1.json"]


def test_no_file_is_no_baseline(tmp_path: Path) -> None:
    assert store.load(tmp_path / "h200" / "m.json") is None


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_bytes_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, error: BaseException
) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, failing, Mock(side_effect=error))
    with pytest.raises((BaselineError, KeyboardInterrupt)) as caught:
        store.write(path, of(case()))
    if isinstance(error, OSError):
        assert_one_line(caught.value, str(path), "No space left")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("bad", [(), ((),), ((0.0,),), ((float("nan"),),)], ids=str)
def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, bad: tuple[tuple[float, ...], ...]) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(b"old")
    (good,) = of(case()).entries[case()]
    with pytest.raises(BaselineError):
        store.write(path, replace(of(case()), entries={case(): (replace(good, invocations=bad),)}))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_tried_and_left_empty_or_the_reason_is_said(tmp_path: Path) -> None:
    store.check_writable(tmp_path / "new" / "baselines")
    assert list((tmp_path / "new" / "baselines").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(BaselineError) as caught:
        store.check_writable(tmp_path / "file" / "baselines")
    assert_one_line(caught.value, str(tmp_path / "file" / "baselines"), "cannot be written to")
    with pytest.raises(BaselineError, match="cannot be written"):
        store.write(tmp_path / "file" / "m.json", of(case()))


def test_a_model_has_one_file_whatever_its_name() -> None:
    names = {"org/Llama-2-7b": "org--llama-2-7b", "./My Model": "my-model", "../../etc": "etc", "C:\\x": "c--x"}
    for model, name in names.items():
        assert store.path_for(Path("b"), "h200", model) == Path("b/h200") / f"{name}.json"


@given(st.text(), st.text())
def test_no_name_leads_out_of_the_folder(device: str, model: str) -> None:
    with contextlib.suppress(BaselineError):
        folder, *parts = store.path_for(Path("b"), device, model).parts
        assert (folder, len(parts)) == ("b", 2)
        assert not any(part.startswith(".") for part in parts)


# Bad files


def assert_one_line(error: BaseException, *parts: str) -> None:
    assert len(str(error).splitlines()) == 1
    for part in parts:
        assert part in str(error)


def edited(*where: str | int, to: Any) -> str:
    """The text of a valid file with one value replaced."""
    document = json.loads(store.dumps(of(case())))
    inner = document
    for step in where[:-1]:
        inner = inner[step]
    inner[where[-1]] = to
    return json.dumps(document)


RECORDS = ("entries", case())
ENTRY = (*RECORDS, 0)
FIRST = (*ENTRY, "invocations", 0)
VALID = store.dumps(of(case()))
RECORD_AGAIN = "record again with --llm-update-baselines"

BAD = [
    ("", "is not JSON", RECORD_AGAIN),
    (VALID[:200], "is not JSON", RECORD_AGAIN),
    ("<<<<<<< HEAD\n" + VALID, "line 1", "restore it from version control"),
    ("[" * 100_000, "is not JSON", RECORD_AGAIN),
    ("[]", "is not a JSON object with a schema number", RECORD_AGAIN),
    (VALID.replace('"unit"', '"recorded": "2026-01-01", "unit"'), "twice: ['recorded']", RECORD_AGAIN),
    (edited("schema", to=5), "schema 5, newer than this version's 4", "upgrade pytest-llmperf"),
    (edited("schema", to=1), "schema 1, older than this version's 4", RECORD_AGAIN),
    (edited("note", to="hi"), "['note']", RECORD_AGAIN),
    (edited("entries", to=[]), "'entries' has the wrong type", RECORD_AGAIN),
    (edited(*RECORDS, to=1.5), f"{case()!r} is not a list of records", RECORD_AGAIN),
    (edited(*RECORDS, to=[]), f"{case()!r} is not a list of records", RECORD_AGAIN),
    (edited(*ENTRY, to=1.5), f"{case()!r} is not an object", RECORD_AGAIN),
    (edited(*ENTRY, to={"median": 1}), f"{case()!r} has fields too many or too few", RECORD_AGAIN),
    (edited(*ENTRY, "recorded", to="31.1.2026"), "'31.1.2026', not a date", RECORD_AGAIN),
    (edited(*ENTRY, "environment", to="0" * 12), "unknown environment '000000000000'", RECORD_AGAIN),
    (edited(*ENTRY, "median", to=True), "'median' has the wrong type", RECORD_AGAIN),
    (edited(*ENTRY, "median", to=0.001), "was edited: its median is 0.75", RECORD_AGAIN),
    (edited(*ENTRY, "invocations", to=[]), "no invocations", RECORD_AGAIN),
    (edited(*ENTRY, "barrier", to={"seconds": 0.0, "threads": 2}), "not of threads that meet", RECORD_AGAIN),
    (edited(*ENTRY, "barrier", to={"seconds": 1e-6, "threads": 1}), "not of threads that meet", RECORD_AGAIN),
    (edited(*ENTRY, "barrier", to={"seconds": 1e-6}), "'barrier' has fields too many or too few", RECORD_AGAIN),
    (edited(*ENTRY, "barrier", to=None), "'barrier' has the wrong type", RECORD_AGAIN),
    (edited(*FIRST, to=[]), "not a list of samples", RECORD_AGAIN),
    (edited(*FIRST, to=[True]), "positive and finite", RECORD_AGAIN),
    (edited(*FIRST, to=[0.1, -0.1]), "positive and finite", RECORD_AGAIN),
    (edited(*FIRST, to=[float("nan")]), "positive and finite", RECORD_AGAIN),
    (edited(*FIRST, to=[10**400]), "too large", RECORD_AGAIN),
    (edited("environments", MACHINE.id, "peaks", "flops", to=1.0), "was edited", RECORD_AGAIN),
    (edited("environments", MACHINE.id, "peaks", "flops", to=float("nan")), "not JSON compliant", RECORD_AGAIN),
]


@pytest.mark.parametrize(("text", "wrong", "remedy"), BAD, ids=[wrong for _, wrong, _ in BAD])
def test_a_bad_file_says_what_is_wrong_and_what_to_do(tmp_path: Path, text: str, wrong: str, remedy: str) -> None:
    path = tmp_path / "m.json"
    path.write_text(text)
    with pytest.raises(BaselineError) as caught:
        store.load(path)
    assert_one_line(caught.value, f"{path}: ", wrong, remedy)


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe{}")
    for path in (tmp_path, tmp_path / "binary.json"):
        with pytest.raises(BaselineError) as caught:
            store.load(path)
        assert_one_line(caught.value, f"{path}: cannot be read", "check its permissions")


def test_a_copied_file_is_not_taken_for_another_models_or_devices(tmp_path: Path) -> None:
    store.write(tmp_path / "m.json", of(case()))
    with pytest.raises(BaselineError, match=r"holds device 'h200', not 'a100'"):
        store.load(tmp_path / "m.json", "a100", "org/Model-1")
    with pytest.raises(BaselineError, match=r"holds model 'org/Model-1', not 'other'"):
        store.load(tmp_path / "m.json", "h200", "other")


json_documents = st.recursive(json_values, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(
    where=st.sampled_from(
        [("schema",), ("device",), ("entries",), RECORDS, ENTRY, FIRST, (*FIRST, 0), ("environments",)]
    ),
    to=json_documents,
)
def test_whatever_a_value_is_replaced_by_the_file_loads_or_says_what_is_wrong(where: tuple[Any, ...], to: Any) -> None:
    try:
        store.loads(edited(*where, to=to), "m.json")
    except BaselineError as error:
        assert_one_line(error, "m.json: ")
