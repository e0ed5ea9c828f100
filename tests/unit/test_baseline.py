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

from pytest_llmperf.cases import Case, Workload
from pytest_llmperf.explain.starts import PARTS
from pytest_llmperf.gate import baseline as store
from pytest_llmperf.gate.baseline import HISTORY, Baseline, BaselineError, Entry, Profiled, Sitting
from pytest_llmperf.machine.fitness import Barrier

CPU, ANOTHER = {"cpu": "Some CPU", "cpus": 16}, {"cpu": "Another", "cpus": 64}
VERSIONS = {"python": "3.12.3", "torch": "2.13"}
RATES = {"flops": 9.89e14, "bandwidth": 4.8e12}
SITTING = Sitting("2026-01-31T10:00:00Z", "c0ffee", CPU, VERSIONS, {"kernel": "6.18"}, RATES)
LATER = replace(SITTING, recorded="2026-02-01T10:00:00Z", revision=None)  # of the same machine
UPGRADED = replace(SITTING, recorded="2026-02-02", versions={"torch": "2.14"})  # likewise
OTHER = Sitting("2026-01-31", None, ANOTHER, VERSIONS, {}, {"flops": 1.81e14})
SITTINGS = {one.id: one for one in (SITTING, LATER, UPGRADED, OTHER)}


def case(metric: str = "ttft", batch: int = 1, backend: str = "eager", dtype: str = "bfloat16") -> str:
    return Case("m", dtype, backend, Workload(batch, 128, 32), metric).key


def of(*keys: str, sitting: Sitting = SITTING, seconds: float = 0.5) -> Baseline:
    entry = Entry(sitting.id, "s", (seconds, 1.5 * seconds, 2 * seconds))
    return Baseline("h200", "org/Model-1", {sitting.id: sitting}, dict.fromkeys(keys, (entry,)))


keys = st.builds(
    case,
    st.sampled_from(["latency", "tpot", "ttft", "warm-start"]),
    st.integers(1, 64),
    st.sampled_from(["eager", "tp2", "a/b"]),
)
json_values = st.none() | st.booleans() | st.integers() | st.text() | st.floats(-1e9, 1e9) | st.lists(st.integers())
tables = st.dictionaries(st.text(), json_values, max_size=3)
processes = st.lists(st.floats(1e-9, 1e6), min_size=1, max_size=4).map(tuple)


def entry(sitting: Sitting) -> st.SearchStrategy[Entry]:
    barrier = st.none() | st.builds(Barrier, st.floats(1e-6, 1e-3), st.integers(2, 64))
    parts = st.just(()) | st.tuples(*[st.floats(0, 1e6)] * len(PARTS))
    return st.builds(Entry, st.just(sitting.id), st.text(), processes, barrier, parts)


here = st.lists(st.sampled_from([SITTING, LATER, UPGRADED]).flatmap(entry), min_size=1, max_size=HISTORY)
there = st.lists(entry(OTHER), min_size=1, max_size=2)
entries = st.one_of(here, there, st.builds(list.__add__, here, there), st.builds(list.__add__, there, here)).map(tuple)


def by_machine(baseline: Baseline, key: str) -> dict[str, list[Entry]]:
    """A case's entries by the name of their CPU, newest first."""
    found: dict[str, list[Entry]] = {}
    for one in baseline.entries.get(key, ()):
        found.setdefault(baseline.sitting(one).fingerprint.cpu, []).append(one)
    return found


few = settings(max_examples=40)  # each example is a whole store
baselines = st.dictionaries(keys, entries, max_size=3).map(
    lambda named: store.merge(None, Baseline("h200", "m", SITTINGS, named))
)


@few
@given(baselines)
def test_what_is_read_back_is_what_was_stored_to_six_digits(baseline: Baseline) -> None:
    again = store.loads(store.dumps(baseline))
    assert (again.device, again.model) == (baseline.device, baseline.model)
    assert again.sittings == baseline.sittings
    assert again.migrated is None
    assert again.entries.keys() == baseline.entries.keys()
    for key, row in baseline.entries.items():
        for read, entry in zip(again.entries[key], row, strict=True):
            assert read.processes == pytest.approx(entry.processes, rel=5e-6)
            assert (read.barrier is None) == (entry.barrier is None)
            if read.barrier and entry.barrier:
                assert read.barrier.seconds == pytest.approx(entry.barrier.seconds, rel=5e-6)
                assert read.barrier.threads == entry.barrier.threads
            assert read.parts == pytest.approx(entry.parts, rel=5e-6)
            same = {"processes": (1.0,), "barrier": None, "parts": ()}
            assert replace(read, **same) == replace(entry, **same)


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
    lines = text.splitlines()
    assert lines[5:13] == [
        '    "bfloat16/eager/b1-p128-n32/ttft": [',
        "      {",
        '        "figure": 0.0144225,',
        f'        "sitting": "{SITTING.id}",',
        '        "unit": "s",',
        '        "processes": [0.01, 0.015, 0.02]',
        "      }",
        "    ]",
    ]
    assert len([line for line in lines if '"torch"' in line or '"Some CPU"' in line]) == 2, "said once"
    both = json.loads(store.dumps(store.merge(of(case()), of(case(), sitting=LATER), [SITTING.id])))
    assert list(both["sittings"]) == [SITTING.id, LATER.id], "by their day"
    assert len(both["machines"]) == len(both["versions"]) == 1, "those of both sittings"


def test_an_entry_is_summed_up_by_the_geometric_mean_of_its_processes() -> None:
    assert Entry("", "s", (1.0, 4.0, 16.0)).figure == pytest.approx(4.0)


@given(tables, st.dictionaries(st.text(), st.floats(1e-3, 1e18), max_size=3))
def test_a_sitting_is_named_by_its_content(machine: dict[str, Any], rates: dict[str, float]) -> None:
    sitting = Sitting("2026-01-31", None, machine, {}, {}, rates)
    assert len(sitting.id) == 12
    assert sitting.id == replace(sitting, machine=dict(reversed(list(machine.items())))).id
    assert sitting.id != replace(sitting, machine={**machine, "one more": 1}).id
    assert sitting.id != replace(sitting, revision="c0ffee").id
    held = Baseline("h200", "m", {sitting.id: sitting}, {case(): (Entry(sitting.id, "s", (1.0,)),)})
    assert store.loads(store.dumps(held)).sittings[sitting.id].id == sitting.id


def test_the_name_of_a_sitting_does_not_hang_on_what_was_asked_of_it_before() -> None:
    asked = replace(SITTING)
    assert asked.fingerprint.cpu == "Some CPU"
    assert asked.id == SITTING.id


def test_a_sitting_says_what_the_code_was_only_where_no_file_was_changed() -> None:
    assert SITTING.code == "c0ffee"
    assert LATER.code is None
    assert replace(SITTING, versions={"mine": "1.0 (abc)"}).code == "c0ffee"
    assert replace(SITTING, versions={"mine": "1.0 (abc+)"}).code is None, "installed in place, and edited"


def test_a_machine_s_own_entries_are_those_of_its_fingerprint() -> None:
    held = store.merge(of(case()), of(case(), sitting=OTHER, seconds=1))
    assert [one.sitting for one in held.own(case(), OTHER.fingerprint)] == [OTHER.id]
    assert [one.sitting for one in held.own(case(), SITTING.fingerprint)] == [SITTING.id]
    assert held.own("of no test", SITTING.fingerprint) == []


@few
@given(baselines, baselines, st.sets(st.sampled_from(sorted(SITTINGS))))
def test_merging_puts_what_is_new_first_and_keeps_what_is_of_the_same_code(
    old: Baseline, new: Baseline, same: set[str]
) -> None:
    merged = store.merge(old, new, same)
    assert merged.entries.keys() == old.entries.keys() | new.entries.keys()
    for key in merged.entries:
        before, added, now = (by_machine(one, key) for one in (old, new, merged))
        assert now.keys() == before.keys() | added.keys()
        for cpu, row in now.items():
            mine = list(dict.fromkeys(added.get(cpu, [])))
            kept = [one for one in before.get(cpu, []) if one not in mine and (one.sitting in same or not mine)]
            assert row == [*mine, *kept][:HISTORY]
    assert set(merged.sittings) == {entry.sitting for row in merged.entries.values() for entry in row}


@few
@given(baselines, baselines, st.sets(st.sampled_from(sorted(SITTINGS))))
def test_merging_twice_is_merging_once(old: Baseline, new: Baseline, same: set[str]) -> None:
    once = store.merge(old, new, same)
    assert store.merge(once, new, same) == once
    assert store.merge(None, new) == store.merge(new, new) == new


@few
@given(baselines, baselines, baselines, st.sampled_from([[], sorted(SITTINGS)]))
def test_merging_is_associative(a: Baseline, b: Baseline, c: Baseline, same: list[str]) -> None:
    assert store.merge(store.merge(a, b, same), c, same) == store.merge(a, store.merge(b, c, same), same)


def test_figures_of_other_code_replace_the_old_ones() -> None:
    other_code = of(case(), sitting=UPGRADED, seconds=2)
    assert store.merge(of(case(), case("tpot")), other_code).entries[case("tpot")], "other cases stay"
    assert store.merge(of(case()), other_code) == other_code


def test_a_sitting_leaves_with_its_last_entry() -> None:
    baseline, added = of(case()), []
    for number in range(HISTORY):
        assert SITTING.id in baseline.sittings
        sitting = replace(SITTING, recorded=f"2026-02-0{1 + number}")
        added.append(sitting.id)
        baseline = store.merge(baseline, of(case(), sitting=sitting, seconds=1 + number), baseline.sittings)
    assert list(baseline.sittings) == added
    assert [entry.processes[0] for entry in baseline.entries[case()]] == [5, 4, 3, 2, 1], "the newest first"


def test_a_machine_goes_before_its_own_entries_and_leaves_other_machines() -> None:
    both = store.merge(of(case()), of(case(), sitting=OTHER))
    again = store.merge(both, of(case(), sitting=LATER, seconds=0.25), [SITTING.id])
    assert [entry.sitting for entry in again.entries[case()]] == [OTHER.id, LATER.id, SITTING.id]
    assert [entry.sitting for entry in both.entries[case()]] == [OTHER.id, SITTING.id], "machines keep their order"


def test_memory_of_which_the_kernel_took_more_is_the_same_machine() -> None:
    less, more = (replace(SITTING, machine={**CPU, "memory_gib": size}) for size in (62, 63))
    for older, newer in ((less, more), (more, less)):
        both = store.merge(of(case(), sitting=older), of(case(), sitting=newer), [older.id])
        assert [entry.sitting for entry in both.entries[case()]] == [newer.id, older.id], "the newest first"
        assert store.loads(store.dumps(both)).entries == both.entries
        assert store.merge(of(case(), sitting=older), of(case(), sitting=newer)) == of(case(), sitting=newer)


@few
@given(baselines, st.sampled_from([SITTING, OTHER]), st.sets(keys))
def test_removing_takes_a_machine_s_entries_of_the_cases_named(
    baseline: Baseline, sitting: Sitting, named: set[str]
) -> None:
    cpu = sitting.fingerprint.cpu
    named |= set(list(baseline.entries)[:1])
    left = store.without(baseline, sitting.fingerprint, named)
    for key in baseline.entries:
        before = by_machine(baseline, key)
        assert by_machine(left, key) == {name: row for name, row in before.items() if key not in named or name != cpu}
    assert all(left.entries.values()), "no case is left without an entry"
    assert set(left.sittings) == {entry.sitting for row in left.entries.values() for entry in row}


# Old files

OLD_ENVIRONMENTS = {
    "aaaaaaaaaaaa": {
        "fingerprint": {**CPU, "memory_gib": 62},
        "versions": {"python": "3.12.3", "torch": "2.13", "kernel": "6.18", "nvidia driver": "580"},
        "peaks": {"flops": 9.89e14, "interpreter cpython-312": 1.5e7},
    },
    "bbbbbbbbbbbb": {
        "fingerprint": {**CPU, "memory_gib": 63},
        "versions": {"python": "3.12.3", "torch": "2.12", "kernel": "6.18"},
        "peaks": {"flops": 9.89e14},
    },
    "cccccccccccc": {
        "fingerprint": ANOTHER,
        "versions": {"python": "3.12.3", "torch": "2.13", "kernel": "6.18"},
        "peaks": {"flops": 1.81e14},
    },
}


def old_record(environment: str, day: str, *invocations: list[float], **more: Any) -> dict[str, Any]:
    return {
        "median": 1.0,  # by a rule that is no more
        "environment": environment,
        "recorded": day,
        "unit": "s",
        "invocations": list(invocations),
        **more,
    }


def old_file(schema: int) -> dict[str, Any]:
    """A file as the version with that schema wrote it."""
    met = {"barrier": {"seconds": 3.1e-06, "threads": 2}} if schema == 4 else {}
    newest = old_record("aaaaaaaaaaaa", "2026-01-31", [9.0, 1.0, 2.0], [8.0], **met)
    older = old_record("bbbbbbbbbbbb", "2026-01-30", [50.0])
    other = old_record("cccccccccccc", "2026-01-29", [3.0, 5.0])
    row = [other, newest] if schema == 2 else [other, newest, older]
    return {
        "schema": schema,
        "device": "h200",
        "model": "org/Model-1",
        "entries": {case(): row},
        "environments": OLD_ENVIRONMENTS,
    }


@pytest.mark.parametrize("schema", [2, 3, 4])
def test_of_an_old_file_the_newest_figures_of_each_machine_are_read(schema: int) -> None:
    held = store.loads(json.dumps(old_file(schema)))
    assert (held.device, held.model, held.migrated) == ("h200", "org/Model-1", schema)
    other, mine = held.entries[case()]
    assert mine.processes == (2.0, 8.0), "of each process its median"
    assert mine.figure == pytest.approx(4.0)
    assert mine.barrier == (Barrier(3.1e-06, 2) if schema == 4 else None)
    assert other.processes == (4.0,)
    sitting = held.sitting(mine)
    assert (sitting.recorded, sitting.revision) == ("2026-01-31", None)
    assert sitting.machine == OLD_ENVIRONMENTS["aaaaaaaaaaaa"]["fingerprint"]
    assert sitting.versions == {"python": "3.12.3", "torch": "2.13"}
    assert sitting.system == {"kernel": "6.18", "nvidia driver": "580"}
    assert sitting.rates == {"flops": 9.89e14, "interpreter cpython-312": 1.5e7}
    assert held.sitting(other).machine == ANOTHER


def test_what_older_versions_called_a_cold_start_is_left_out() -> None:
    """It was a load and a generation with caches as they were, and has no parts."""
    start = replace(of("").entries[""][0], parts=(2.0, 1.0, 0.0, 0.5))
    old = of(case("cold-start"), case("tpot"))
    assert store.loads(store.dumps(old)).entries.keys() == {case("tpot")}
    new = replace(old, entries={**old.entries, case("cold-start"): (start,)})
    assert store.loads(store.dumps(new)) == new


@pytest.mark.parametrize("parts", [[1.0], [1.0, 2.0, -1.0, 0.5], [1.0, 2.0, "x", 0.5], [True, 1, 1, 1], {"load": 1.0}])
def test_parts_of_a_start_are_as_many_seconds_as_it_has_parts(parts: Any) -> None:
    document = json.loads(store.dumps(of(case("warm-start"))))
    document["entries"][case("warm-start")][0]["parts"] = parts
    with pytest.raises(BaselineError, match="parts"):
        store.loads(json.dumps(document))


@pytest.mark.parametrize("schema", [2, 3, 4])
def test_an_old_file_is_written_as_schema_5(tmp_path: Path, schema: int) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps(old_file(schema)))
    held = store.load(path, "h200", "org/Model-1")
    assert held is not None
    store.write(path, held)
    again = store.load(path)
    assert json.loads(path.read_text())["schema"] == store.SCHEMA == 5
    assert again == replace(held, migrated=None)


def test_new_figures_replace_migrated_ones() -> None:
    """Nothing says of which code an old file's figures are."""
    held = store.loads(json.dumps(old_file(4)))
    new = of(case(), sitting=replace(SITTING, machine={**CPU, "memory_gib": 62}))
    merged = store.merge(held, new)
    assert [merged.sitting(one).machine["cpu"] for one in merged.entries[case()]] == ["Another", "Some CPU"]
    assert merged.own(case(), new.sittings[next(iter(new.sittings))].fingerprint) == list(new.entries[case()])
    assert merged.migrated is None


def broken(*where: str | int, to: Any) -> dict[str, Any]:
    data = json.loads(json.dumps(old_file(4)))
    inner = data
    for step in where[:-1]:
        inner = inner[step]
    inner[where[-1]] = to
    return data  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (broken("entries", to=[]), "is no valid file of schema 4 (AttributeError: "),
        (broken("entries", case(), 0, "environment", to="0" * 12), "is no valid file of schema 4 (KeyError: "),
        (broken("entries", case(), 0, "invocations", 0, to=[]), "is no valid file of schema 4 (StatisticsError: "),
        (broken("entries", case(), 0, "invocations", to=[]), "is no valid file of schema 4 (ValueError: "),
        (broken("entries", case(), 0, "invocations", 0, to=[-1.0]), "positive and finite"),
        (broken("entries", case(), 0, "recorded", to="31.1.2026"), "'31.1.2026', not a date"),
        (broken("entries", case(), to=[]), "is not a list of records"),
    ],
)
def test_a_bad_old_file_is_one_line_too(data: dict[str, Any], wrong: str) -> None:
    with pytest.raises(BaselineError) as caught:
        store.loads(json.dumps(data), "m.json")
    assert_one_line(caught.value, "m.json: ", wrong, RECORD_AGAIN)


# Files


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


@pytest.mark.parametrize("bad", [(), (0.0,), (float("nan"),), (float("inf"),)], ids=str)
def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, bad: tuple[float, ...]) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(b"old")
    (good,) = of(case()).entries[case()]
    with pytest.raises(BaselineError):
        store.write(path, replace(of(case()), entries={case(): (replace(good, processes=bad),)}))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_tried_and_its_folder_left_empty_or_the_reason_is_said(tmp_path: Path) -> None:
    store.check_writable(tmp_path / "new" / "baselines" / "m.json")
    assert list((tmp_path / "new" / "baselines").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(BaselineError) as caught:
        store.check_writable(tmp_path / "file" / "m.json")
    assert_one_line(caught.value, str(tmp_path / "file" / "m.json"), "cannot be written")
    with pytest.raises(BaselineError, match="cannot be written"):
        store.write(tmp_path / "file" / "m.json", of(case()))


@pytest.mark.parametrize("target", ["/dev/null", "/dev/zero", "pipe"])
def test_a_device_or_a_pipe_is_no_baseline_and_is_not_read(tmp_path: Path, target: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "m.json").symlink_to(target)
    with pytest.raises(BaselineError) as caught:
        store.load(tmp_path / "m.json")
    assert_one_line(caught.value, str(tmp_path / "m.json"), "is a device or a pipe")


def test_a_baseline_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "m.json").symlink_to("shared.json")
    for one in (of(case()), of(case())):
        store.write(tmp_path / "m.json", one)
        assert store.load(tmp_path / "m.json") == store.load(tmp_path / "shared.json") == one
    assert (tmp_path / "m.json").is_symlink()


def test_two_links_to_a_file_are_locked_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PATIENCE", 0.05)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "m.json").symlink_to("../shared/m.json")
    with store.locked(tmp_path / "a" / "m.json"):
        with pytest.raises(BaselineError) as caught, store.locked(tmp_path / "shared" / "m.json"):
            pass
        with store.locked(tmp_path / "b" / "m.json"):
            pass
    assert_one_line(caught.value, str(tmp_path / "shared" / "m.json"), "another process has kept it locked")
    with store.locked(tmp_path / "shared" / "m.json"):
        assert list((tmp_path / "shared").iterdir()) == []


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


def met(seconds: Any, threads: Any) -> str:
    """The text of a valid file, but for the barrier of its entry."""
    (entry,) = json.loads(store.dumps(of(case())))["entries"][case()]
    return edited("entries", case(), 0, to=entry | {"barrier": seconds, "threads": threads})


RECORDS = ("entries", case())
ENTRY = (*RECORDS, 0)
FIRST = (*ENTRY, "processes", 0)
HELD = ("sittings", SITTING.id)
VALID = store.dumps(of(case()))
RECORD_AGAIN = "record again with --llm-update-baselines"

BAD = [
    ("", "is not JSON", RECORD_AGAIN),
    (VALID[:200], "is not JSON", RECORD_AGAIN),
    ("<<<<<<< HEAD\n" + VALID, "line 1", "restore it from version control"),
    ("[" * 100_000, "is not JSON", RECORD_AGAIN),
    ("[]", "is not a JSON object with a schema number", RECORD_AGAIN),
    (VALID.replace('"unit"', '"sitting": "", "unit"'), "twice: ['sitting']", RECORD_AGAIN),
    (edited("schema", to=6), "schema 6, newer than this version's 5", "upgrade pytest-llmperf"),
    (edited("schema", to=1), "schema 1, older than this version's 5", RECORD_AGAIN),
    (edited("schema", to="5"), "is not a JSON object with a schema number", RECORD_AGAIN),
    (edited("note", to="hi"), "['note']", RECORD_AGAIN),
    (edited("entries", to=[]), "'entries' has the wrong type", RECORD_AGAIN),
    (edited(*RECORDS, to=1.5), f"{case()!r} is not a list of records", RECORD_AGAIN),
    (edited(*RECORDS, to=[]), f"{case()!r} is not a list of records", RECORD_AGAIN),
    (edited(*ENTRY, to=1.5), f"{case()!r} is not an object", RECORD_AGAIN),
    (edited(*ENTRY, to={"figure": 1}), f"{case()!r} has fields too many or too few", RECORD_AGAIN),
    (edited(*ENTRY, "sitting", to="0" * 12), "unknown sitting '000000000000'", RECORD_AGAIN),
    (edited(*ENTRY, "figure", to=True), "'figure' has the wrong type", RECORD_AGAIN),
    (edited(*ENTRY, "figure", to=0.001), "was edited: its figure is 0.721125", RECORD_AGAIN),
    (edited(*ENTRY, "barrier", to=1e-6), "has fields too many or too few: ['threads']", RECORD_AGAIN),
    (met(0.0, 2), "not of threads that meet", RECORD_AGAIN),
    (met(1e-6, 1), "not of threads that meet", RECORD_AGAIN),
    (met(None, 2), "'barrier' has the wrong type", RECORD_AGAIN),
    (edited(*ENTRY, "processes", to=[]), "not a list of figures", RECORD_AGAIN),
    (edited(*FIRST, to=[0.1]), "positive and finite", RECORD_AGAIN),
    (edited(*FIRST, to=True), "positive and finite", RECORD_AGAIN),
    (edited(*FIRST, to=-0.1), "positive and finite", RECORD_AGAIN),
    (edited(*FIRST, to=float("nan")), "positive and finite", RECORD_AGAIN),
    (edited(*FIRST, to=10**400), "too large", RECORD_AGAIN),
    (edited(*HELD, to=1.5), f"sitting {SITTING.id!r} is not an object", RECORD_AGAIN),
    (edited(*HELD, "recorded", to="31.1.2026"), "'31.1.2026', not a date", RECORD_AGAIN),
    (edited(*HELD, "recorded", to="2026-01-30"), "was edited", RECORD_AGAIN),
    (edited(*HELD, "revision", to="deadbeef"), "was edited", RECORD_AGAIN),
    (edited(*HELD, "machine", to="0" * 12), "names the unknown machine '000000000000'", RECORD_AGAIN),
    (edited(*HELD, "versions", to="0" * 12), "names the unknown versions '000000000000'", RECORD_AGAIN),
    (edited(*HELD, "rates", "flops", to=1.0), "was edited", RECORD_AGAIN),
    (edited(*HELD, "rates", "flops", to=0), "rates are positive numbers", RECORD_AGAIN),
    (edited(*HELD, "rates", "flops", to=float("nan")), "not JSON compliant", RECORD_AGAIN),
    (edited(*HELD, "system", to=[]), "'system' has the wrong type", RECORD_AGAIN),
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
        [
            *((name,) for name in ("schema", "device", "entries", "sittings", "machines", "versions")),
            *((*HELD, name) for name in ("recorded", "revision", "machine", "versions", "system", "rates")),
            *(RECORDS, ENTRY, (*ENTRY, "processes"), FIRST),
        ]
    ),
    to=json_documents,
)
def test_whatever_a_value_is_replaced_by_the_file_loads_or_says_what_is_wrong(where: tuple[Any, ...], to: Any) -> None:
    try:
        store.loads(edited(*where, to=to), "m.json")
    except BaselineError as error:
        assert_one_line(error, "m.json: ")


OLD_RECORD = ("entries", case(), 0)
OLD_HELD = ("environments", "aaaaaaaaaaaa")


@given(
    where=st.sampled_from(
        [
            *((name,) for name in old_file(4)),
            *((*OLD_RECORD, name) for name in old_record("", "", barrier=None)),
            *((*OLD_HELD, name) for name in OLD_ENVIRONMENTS["aaaaaaaaaaaa"]),
            *(OLD_RECORD, OLD_RECORD[:-1], (*OLD_RECORD, "invocations", 0), OLD_HELD),
        ]
    ),
    to=json_documents,
)
def test_so_does_an_old_file(where: tuple[Any, ...], to: Any) -> None:
    try:
        store.loads(json.dumps(broken(*where, to=to)), "m.json")
    except BaselineError as error:
        assert_one_line(error, "m.json: ")


# Profiles

PHASE = "5 ms; 10% host; 80% 30 mm; 10% 30 copy_; 0% 0 other operators "


def profiled(*keys: str, sitting: Sitting = SITTING, phase: str = PHASE) -> Baseline:
    found = {key.rpartition("/")[0]: (Profiled(sitting.id, {"decode": phase}),) for key in keys}
    return replace(of(*keys, sitting=sitting), profiles=found)


def test_the_newest_profile_of_every_machine_is_kept() -> None:
    key, name = case(), case().rpartition("/")[0]
    held = store.merge(None, profiled(key))
    held = store.merge(held, profiled(key, sitting=OTHER))
    newer = store.merge(held, profiled(key, sitting=LATER, phase=PHASE.replace("mm", "addmm")), [SITTING.id])
    assert {one.sitting for one in newer.profiles[name]} == {LATER.id, OTHER.id}
    text = store.dumps(newer)
    assert store.dumps(store.loads(text)) == text
    here, there = (newer.profile(name, one.fingerprint)["decode"].rows for one in (LATER, OTHER))
    assert ("addmm" in here, "addmm" in there) == (True, False)
    assert newer.profile(case(batch=2).rpartition("/")[0], LATER.fingerprint) == {}


def test_a_profile_goes_with_the_last_case_that_it_is_of() -> None:
    first, second = case("ttft"), case("tpot")
    held = store.merge(None, profiled(first, second))
    assert store.without(held, SITTING.fingerprint, [first]).profiles == held.profiles
    assert store.without(held, SITTING.fingerprint, [first, second]).profiles == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"decode": "5 ms; 10% host"}, "is no profile of a step"),
        ({"decode": 5}, "wrong type"),
        ({"sitting": "nobody"}, "unknown sitting"),
        ({"other": PHASE}, "too many"),
    ],
)
def test_a_profile_that_is_none_is_refused(change: dict[str, Any], said: str) -> None:
    data = json.loads(store.dumps(store.merge(None, profiled(case()))))
    data["profiles"][case().rpartition("/")[0]][0] |= change
    with pytest.raises(BaselineError, match=said):
        store.loads(json.dumps(data))
