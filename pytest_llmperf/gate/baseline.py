"""The store of baselines, ``baselines/<device>/<model>.json``: read, validate, merge, write atomically.

The file is made to be reviewed in a pull request: stable order, one figure for each case and sitting, six digits, and
what a sitting was recorded with said once.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmperf import files
from pytest_llmperf.cases import COLD_START, METRICS
from pytest_llmperf.explain.profiles import PHASES, Phase
from pytest_llmperf.explain.starts import PARTS
from pytest_llmperf.gate import old_schemas
from pytest_llmperf.gate.canonical import canonical, digest
from pytest_llmperf.gate.stored import centre
from pytest_llmperf.machine.fingerprint import Fingerprint
from pytest_llmperf.machine.fitness import Barrier

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from pytest_llmperf.explain.profiles import Profile

#: Version of the file's layout. `old_schemas` reads some older ones; any other is refused, never guessed at.
SCHEMA = 5
#: How many sittings of one case the file keeps of one machine, the newest.
HISTORY = 5
#: Seconds to wait for another process that changes a baseline. It reads, merges and replaces a small file.
PATIENCE = 60.0

_REMEDY = "restore it from version control, or delete it and record again with --llm-update-baselines"


class BaselineError(ValueError):
    """A store that cannot be used: one line with the path, the fault and the remedy."""


@dataclass(frozen=True)
class Sitting:
    """One run with ``--llm-update-baselines``: when it was, on which machine, and with which code. JSON values.

    Attributes:
        recorded: day and time (UTC), or the day alone.
        revision: of the repository under rootdir; None if files were changed, there was none, or nobody noted it.
        machine: its fingerprint.
        versions: of every installed distribution, by name.
        system: the kernel and drivers, the devices that were chosen, the engine's ``threads`` and ``environment``
            (variables), and what `fingerprint.limits` says. Older files lack some of it, which is then not known.
        rates: of the machine, by the names in `pytest_llmperf.machine.rates`.
    """

    recorded: str
    revision: str | None
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    system: Mapping[str, Any]
    rates: Mapping[str, float]

    @cached_property
    def id(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical JSON, in which floats have 6 digits, as in the file."""
        return digest({one.name: getattr(self, one.name) for one in fields(self)})

    @property
    def code(self) -> str | None:
        """The revision, where it and the versions say what the code was; None where files were changed."""
        changed = any(version.endswith("+)") for version in self.versions.values())
        return None if changed else self.revision

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """The machine."""
        return Fingerprint.from_dict(self.machine)


def same_code(new: Sitting, at: Callable[[str | None], bool], old: Sitting) -> bool:
    """Whether an old sitting is of the same code as a new one: the same versions, variables, and revision or tree.

    Args:
        new: a sitting.
        at: whether its tree is that of an old one's `Sitting.code`.
        old: another sitting. Variables that one of them does not state are not known, and say nothing.
    """
    variables = [one.system["environment"] for one in (new, old) if "environment" in one.system]
    return old.versions == new.versions and variables[:1] == variables[-1:] and at(old.code)


@dataclass(frozen=True)
class Entry:
    """What one sitting recorded of a case.

    Attributes:
        sitting: its id.
        unit: of the figures, such as ``s`` or ``s/token``.
        processes: the figure of each fresh process, in the order taken: the median of its samples; positive, finite.
        barrier: how long the threads that computed them took to meet; None if unknown.
        parts: of a start, the seconds of each of `pytest_llmperf.explain.starts.PARTS`, medians over the processes;
            empty of any other metric.
    """

    sitting: str
    unit: str
    processes: tuple[float, ...]
    barrier: Barrier | None = None
    parts: tuple[float, ...] = ()

    @property
    def figure(self) -> float:
        """The figure of the sitting, in `unit`: the geometric mean of the processes."""
        return centre(self.processes)


@dataclass(frozen=True)
class Profiled:
    """What the prefill and a decode step of a backend and workload spent their time on.

    Attributes:
        sitting: the id of the sitting that recorded it.
        phases: `Phase.stored` by phase.
    """

    sitting: str
    phases: Mapping[str, str]


@dataclass(frozen=True)
class Baseline:
    """All entries of one model on one device, and their sittings, by id.

    A device is a product, and machines of one device differ: a runner's CPU is now of one kind, now of another. So a
    case, named by `Case.key`, has the entries of every machine that recorded one: machine by machine, newest first.

    Attributes:
        migrated: the older schema that the file was read from; None for this version's.
        profiles: of each backend and workload, named by `Case.profile_key`, the newest one of every machine.
    """

    device: str
    model: str
    sittings: Mapping[str, Sitting]
    entries: Mapping[str, tuple[Entry, ...]]
    migrated: int | None = None
    profiles: Mapping[str, tuple[Profiled, ...]] = field(default_factory=dict)

    def sitting(self, entry: Entry | Profiled) -> Sitting:
        """The sitting that recorded an entry or a profile."""
        return self.sittings[entry.sitting]

    def own(self, key: str, machine: Fingerprint) -> list[Entry]:
        """What a machine recorded of a case, newest first."""
        return [one for one in self.entries.get(key, ()) if not machine.difference(self.sitting(one).fingerprint)]

    def profile(self, key: str, machine: Fingerprint) -> Profile:
        """What a machine recorded last of a backend and workload, by phase; empty where it has recorded none."""
        for one in self.profiles.get(key, ()):
            if not machine.difference(self.sitting(one).fingerprint):
                return {phase: Phase.from_stored(text) for phase, text in one.phases.items()}
        return {}


def path_for(folder: Path, device: str, model: str) -> Path:
    """The file of a model on a device: lower case, so that file systems that ignore case agree with those that do not.

    A slash becomes two dashes and every other character outside ``a-z 0-9 . _ -`` one: ``meta-llama/Llama-2-7b``, a hub
    id, is ``meta-llama--llama-2-7b.json``, and so for local paths. Parts like ``..`` vanish. The file holds the name in
    full, so that `load` notices should two names collide.

    Raises:
        BaselineError: nothing of the name is left.
    """
    return folder / _safe(device) / f"{_safe(model)}.json"


def load(path: Path, device: str | None = None, model: str | None = None) -> Baseline | None:
    """The baseline in a file; None where there is no file.

    Raises:
        BaselineError: the file cannot be read, is not a valid store of this `SCHEMA`, or holds another device or model.
    """
    if files.stream(path):
        raise BaselineError(f"{path}: is a device or a pipe, not a file; remove it, or choose another folder")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise BaselineError(f"{path}: cannot be read ({error}); check its permissions, or {_REMEDY}") from None
    baseline = loads(text, str(path))
    for what, asked, held in (("device", device, baseline.device), ("model", model, baseline.model)):
        if asked not in (None, held):
            raise BaselineError(f"{path}: holds {what} {held!r}, not {asked!r}; was it copied or renamed? {_REMEDY}")
    return baseline


def loads(text: str, source: str = "baseline") -> Baseline:
    """The baseline in a text, the inverse of `dumps`.

    Raises:
        BaselineError: the text is not a valid store; the message begins with the source.
    """
    try:
        return _parse(text)
    except BaselineError as error:
        raise BaselineError(f"{source}: {error}") from None
    except (KeyError, TypeError, ValueError, OverflowError) as error:  # JSON allows integers that no float can hold
        raise BaselineError(f"{source}: {error}; {_REMEDY}") from None


def dumps(baseline: Baseline) -> str:
    """The text of a baseline, always the same for equal baselines, with figures to 6 significant digits.

    Raises:
        BaselineError: a value that JSON cannot hold.
    """
    try:
        document: dict[str, Any] = {"schema": SCHEMA, "device": baseline.device, "model": baseline.model}
        document["entries"] = {
            key: [_stored(entry) for entry in chain.from_iterable(_by_machine(baseline, baseline.entries[key]))]
            for key in _sorted(baseline.entries)
        }
        if baseline.profiles:
            document["profiles"] = {
                key: [{"sitting": one.sitting, **one.phases} for one in _ordered(baseline, baseline.profiles[key])]
                for key in _sorted(baseline.profiles)
            }
        machines: dict[str, Any] = {}
        versions: dict[str, Any] = {}
        sittings: dict[str, dict[str, Any]] = {}
        for one in sorted(baseline.sittings.values(), key=lambda one: (one.recorded, one.id)):
            machine, installed = digest(one.machine), digest(one.versions)
            machines[machine], versions[installed] = one.machine, one.versions
            sittings[one.id] = {"recorded": one.recorded, "revision": one.revision, "machine": machine}
            sittings[one.id] |= {"versions": installed, "system": one.system, "rates": one.rates}
        document |= {"sittings": {key: canonical(value) for key, value in sittings.items()}}
        document |= canonical({"machines": machines, "versions": versions})
        text = json.dumps(document, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BaselineError(f"the baseline of {baseline.model!r} cannot be stored: {error}; report this") from None
    # Lists of numbers go on one line. Inside a string a line break is escaped, so no string is touched.
    return re.sub(r'\[\n[^][{}"]*]', lambda found: f"[{' '.join(found[0][1:-1].split())}]", text) + "\n"


def merge(old: Baseline | None, new: Baseline, same_code: Collection[str] = ()) -> Baseline:
    """The old baseline with the new sitting's entries.

    Of the same case and machine, an old entry stays if its sitting is of the same code, up to `HISTORY` in all. It
    goes if its sitting is of other code: figures of two codes have no common mean. Sittings that no entry needs go too.

    Args:
        old: None where there is no file.
        new: the entries of one sitting, or of several.
        same_code: ids of the old sittings that are of the same code as the new one.

    Raises:
        BaselineError: the two are of different devices or models.
    """
    old = old or Baseline(new.device, new.model, {}, {})
    if (old.device, old.model) != (new.device, new.model):
        raise BaselineError(f"{new.model!r} on {new.device!r} cannot be merged into {old.model!r} on {old.device!r}")
    held = Baseline(new.device, new.model, {**old.sittings, **new.sittings}, {})

    def elsewhere(one: Entry | Profiled, newer: Iterable[Entry | Profiled]) -> bool:
        """Whether an old one is of another machine than all newer ones."""
        return all(old.sitting(one).fingerprint.difference(new.sitting(two).fingerprint) for two in newer)

    entries = dict(old.entries)
    for key, newer in new.entries.items():
        kept = [one for one in entries.get(key, ()) if one.sitting in same_code or elsewhere(one, newer)]
        row = dict.fromkeys([*map(_rounded, newer), *kept])
        entries[key] = tuple(chain.from_iterable(sets[:HISTORY] for sets in _by_machine(held, row)))
    profiles = dict(old.profiles)
    for key, found in new.profiles.items():
        profiles[key] = (*found, *(one for one in profiles.get(key, ()) if elsewhere(one, found)))
    return _holding(replace(held, profiles=profiles), entries)


def without(baseline: Baseline, machine: Fingerprint, keys: Collection[str]) -> Baseline:
    """The baseline without a machine's entries of some cases; other machines' and other cases' stay."""
    entries = {
        key: tuple(entry for entry in row if key not in keys or machine.difference(baseline.sitting(entry).fingerprint))
        for key, row in baseline.entries.items()
    }
    return _holding(baseline, {key: row for key, row in entries.items() if row})


def _holding(baseline: Baseline, entries: Mapping[str, tuple[Entry, ...]]) -> Baseline:
    """The baseline with these entries, the sittings that they need, and the profiles of both."""
    used = {entry.sitting for row in entries.values() for entry in row}
    sittings = {key: one for key, one in baseline.sittings.items() if key in used}
    measured = {key.rpartition("/")[0] for key in entries}
    profiles = {
        key: kept
        for key, row in baseline.profiles.items()
        if key in measured and (kept := tuple(one for one in row if one.sitting in used))
    }
    return replace(baseline, sittings=sittings, entries=entries, profiles=profiles)


def unused(baseline: Baseline, keys_run: Iterable[str]) -> list[str]:
    """Keys of the entries that no case of this run has, in the file's order."""
    return _sorted(baseline.entries.keys() - set(keys_run))


def write(path: Path, baseline: Baseline) -> None:
    """Replace a file in one step.

    Raises:
        BaselineError: the baseline is not valid, or the file cannot be written. The old file is as it was.
    """
    text = dumps(baseline)
    try:
        _parse(text)
    except ValueError as error:
        raise BaselineError(f"{path}: not written, as it could not be read again: {error}; report this") from None
    try:
        files.replace(path, text)
    except OSError as error:
        raise BaselineError(f"{path}: cannot be written ({error}); check the folder and the disk") from None


def check_writable(path: Path) -> None:
    """Try whether a file can be written, so that a run of an hour does not fail at its last step. Makes its folder.

    Raises:
        BaselineError: it cannot.
    """
    try:
        files.check(path)
    except OSError as error:
        raise BaselineError(f"{path}: cannot be written ({error}); choose another place, or change it") from None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep others from changing a file between our reading it and our replacing it.

    Its folder is made and locked, so nothing is left beside the file.

    Raises:
        BaselineError: the folder cannot be made or opened, or another process keeps it locked.
    """
    folder = Path(os.path.realpath(path)).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = files.lock(folder, PATIENCE)
    except OSError as error:
        raise BaselineError(f"{path}: cannot be changed ({error}); check its folder, and try again") from None
    try:
        yield
    finally:
        os.close(lock)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. A key that occurs twice, as after a botched merge, would silently hide the first value."""
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    _need(not twice, f"holds a key twice: {twice}")
    return dict(pairs)


def _parse(text: str) -> Baseline:
    try:
        data = json.loads(text, object_pairs_hook=_object)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error})") from None
    _need(isinstance(data, dict) and type(data.get("schema")) is int, "is not a JSON object with a schema number")
    if data["schema"] > SCHEMA:
        raise BaselineError(f"has schema {data['schema']}, newer than this version's {SCHEMA}; upgrade pytest-llmperf")
    migrated = data["schema"] if data["schema"] in old_schemas.READABLE else None
    if migrated is not None:
        try:
            data = old_schemas.migrated(data)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"is no valid file of schema {migrated} ({type(error).__name__}: {error})") from None
    _need(data["schema"] == SCHEMA, f"has schema {data['schema']}, older than this version's {SCHEMA}")
    data = {"profiles": {}} | data  # files without any are older
    parts = dict.fromkeys(("entries", "sittings", "machines", "versions", "profiles"), dict)
    _fields(data, "the file", schema=int, device=str, model=str, **parts)
    sittings = {key: _sitting(key, value, data) for key, value in data["sittings"].items()}
    rows = {key: value for key, value in data["entries"].items() if not _of_old_start(key, value)}
    entries = {key: _entries(f"entry {key!r}", value) for key, value in rows.items()}
    for key, row in entries.items():
        for entry in row:
            _need(entry.sitting in sittings, f"entry {key!r} names the unknown sitting {entry.sitting!r}")
    profiles = {key: _profiles(f"profile {key!r}", value, sittings) for key, value in data["profiles"].items()}
    return Baseline(data["device"], data["model"], sittings, entries, migrated, profiles)


def _profiles(name: str, data: Any, sittings: Collection[str]) -> tuple[Profiled, ...]:
    _need(isinstance(data, list) and data, f"{name} is not a list of records")
    for record in data:
        _fields(record, name, sitting=str, **dict.fromkeys(record.keys() & PHASES, str))
        _need(record["sitting"] in sittings, f"{name} names the unknown sitting {record['sitting']!r}")
        for phase in record.keys() & PHASES:
            Phase.from_stored(record[phase])
    return tuple(Profiled(one["sitting"], {phase: one[phase] for phase in PHASES if phase in one}) for one in data)


def _sitting(key: str, data: Any, file: Mapping[str, Any]) -> Sitting:
    name = f"sitting {key!r}"
    _fields(data, name, recorded=str, revision=(str, type(None)), machine=str, versions=str, system=dict, rates=dict)
    _need(_DAY.match(data["recorded"]), f"{name}: 'recorded' is {data['recorded']!r}, not a date YYYY-MM-DD")
    for what in ("machine", "versions"):
        held = file["machines" if what == "machine" else "versions"].get(data[what])
        _need(isinstance(held, dict), f"{name} names the unknown {what} {data[what]!r}")
        data = data | {what: held}
    bad = {rate: value for rate, value in data["rates"].items() if type(value) not in (int, float) or value <= 0}
    _need(not bad, f"{name} has the rates {bad}; rates are positive numbers")
    sitting = Sitting(**data)
    _need(sitting.id == key, f"{name} was edited: its content has the id {sitting.id!r}")
    return sitting


def _of_old_start(key: str, records: Any) -> bool:
    """Whether records are of what older versions called a cold start: a load and a generation with caches as they were.

    They say nothing of a start, so they are left out, and the next update does not write them.
    """
    whole = isinstance(records, list) and all(isinstance(one, dict) and "parts" not in one for one in records)
    return key.rpartition("/")[2] == COLD_START and whole


def _entries(name: str, data: Any) -> tuple[Entry, ...]:
    _need(isinstance(data, list) and data, f"{name} is not a list of records")
    return tuple(_entry(name, record) for record in data)


def _entry(name: str, data: Any) -> Entry:
    barrier = None
    known: dict[str, Any] = {"figure": (int, float), "unit": str, "sitting": str, "processes": list}
    if isinstance(data, dict) and "barrier" in data:
        known |= {"barrier": (int, float), "threads": int}
    if isinstance(data, dict) and "parts" in data:
        known |= {"parts": list}
    _fields(data, name, **known)
    parts = data.get("parts", [0.0] * len(PARTS))
    good = len(parts) == len(PARTS) and all(type(x) in (int, float) and 0 <= x < math.inf for x in parts)
    _need(good, f"{name} has the parts {parts}; a start has {len(PARTS)}, in seconds")
    if "barrier" in data:
        seconds, threads = data["barrier"], data["threads"]
        _need(0 < seconds < math.inf and threads > 1, f"{name} has a barrier that is not of threads that meet")
        barrier = Barrier(float(seconds), threads)
    figures = _figures(f"{name}: 'processes'", data["processes"])
    entry = Entry(data["sitting"], data["unit"], figures, barrier, tuple(data.get("parts", ())))
    agrees = math.isclose(data["figure"], entry.figure, rel_tol=1e-5)  # because reviewers read this figure alone
    _need(agrees, f"{name} was edited: its figure is {canonical(entry.figure)}, not {data['figure']}")
    return entry


def _figures(name: str, data: Any) -> tuple[float, ...]:
    _need(isinstance(data, list) and data, f"{name} is not a list of figures")
    bad = [x for x in data if type(x) not in (int, float) or not 0 < x < math.inf]
    _need(not bad, f"{name} has {bad}; figures are positive and finite numbers")
    return tuple(map(float, data))


_DAY = re.compile("[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])(T[0-9:]+Z)?$")


def _fields(data: Any, name: str, **types: type | tuple[type, ...]) -> None:
    """Exactly these fields, of these types; an unknown one would be lost at the next update."""
    _need(isinstance(data, dict), f"{name} is not an object")
    wrong = sorted(types.keys() ^ data.keys())
    _need(not wrong, f"{name} has fields too many or too few: {wrong}")
    for one, kind in types.items():
        right = isinstance(data[one], kind) and not isinstance(data[one], bool)
        _need(right, f"{name}: {one!r} has the wrong type, {type(data[one]).__name__}")


def _need(condition: object, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _rounded(entry: Entry) -> Entry:
    """With figures as the file has them, so that the same entry, accepted twice, is known to be the same."""
    barrier = entry.barrier and replace(entry.barrier, seconds=canonical(entry.barrier.seconds))
    parts = tuple(canonical(entry.parts))
    return replace(entry, processes=tuple(canonical(entry.processes)), barrier=barrier, parts=parts)


def _stored(entry: Entry) -> dict[str, Any]:
    """An entry as in the file; its figure is that of the processes as they are stored, so it survives a round trip."""
    stored = _rounded(entry)
    found = {"figure": canonical(stored.figure), "sitting": stored.sitting, "unit": stored.unit}
    met = {} if stored.barrier is None else {"barrier": stored.barrier.seconds, "threads": stored.barrier.threads}
    return {**found, "processes": stored.processes, **met, **({"parts": stored.parts} if stored.parts else {})}


def _ordered(baseline: Baseline, profiles: Iterable[Profiled]) -> list[Profiled]:
    """The profiles, the machines in the order of `_by_machine`."""
    return sorted(profiles, key=lambda one: json.dumps(baseline.sitting(one).fingerprint.as_dict()))


def _by_machine(baseline: Baseline, entries: Iterable[Entry]) -> list[list[Entry]]:
    """The entries of each machine, as they came; the machines in an order that new versions of a library keep."""
    machines: list[list[Entry]] = []
    for entry in entries:
        here = baseline.sitting(entry).fingerprint
        own = next((sets for sets in machines if not here.difference(baseline.sitting(sets[0]).fingerprint)), None)
        if own is None:
            machines.append([entry])
        else:
            own.append(entry)
    return sorted(machines, key=lambda sets: json.dumps(baseline.sitting(sets[0]).fingerprint.as_dict()))


def _sorted(keys: Iterable[str]) -> list[str]:
    """Keys in the order of a report: b2 before b16, and metrics in the order of `METRICS`."""

    def rank(key: str) -> tuple[object, ...]:
        case, _, metric = key.rpartition("/")  # of a profile the last part is the workload, which is no metric
        padded = re.sub("[0-9]+", lambda n: n[0].zfill(12), key if metric not in METRICS else case)
        return padded.split("/"), [*METRICS, metric].index(metric), key

    return sorted(keys, key=rank)


def _safe(name: str) -> str:
    parts = (re.sub(r"[^a-z0-9._-]", "-", part).strip(".-") for part in re.split(r"[/\\]", name.lower()))
    safe = "--".join(part for part in parts if part)
    if not safe:
        raise BaselineError(f"{name!r}: has no letter or digit to name a file by; choose another name")
    return safe
