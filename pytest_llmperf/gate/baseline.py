"""The store of baselines, ``baselines/<device>/<model>.json``: read, validate, merge, write atomically.

The file is made to be reviewed in a pull request: stable order, medians first, one line per invocation, six digits.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import secrets
from collections import Counter
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from pytest_llmperf import files
from pytest_llmperf.cases import METRICS
from pytest_llmperf.gate.verdict import centre
from pytest_llmperf.machine import fitness
from pytest_llmperf.machine.fingerprint import Fingerprint
from pytest_llmperf.machine.fitness import Barrier

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

#: Version of the file's layout. A file of schema 2 had one set of a case and machine, and 2 and 3 no ``barrier``. Both
#: read as they are; any other version is refused, never guessed at.
SCHEMA = 4
#: How many sets of one case the file keeps of one machine, in each state of its CPUs (`Entry.barrier`): the newest is
#: compared, all tell how much days differ.
HISTORY = 5

_REMEDY = "restore it from version control, or delete it and record again with --llm-update-baselines"


class BaselineError(ValueError):
    """A store that cannot be used: one line with the path, what is wrong and what to do."""


@dataclass(frozen=True)
class Environment:
    """What entries were measured on: the machine's fingerprint, library versions, the device's peaks. JSON values."""

    fingerprint: Mapping[str, Any]
    versions: Mapping[str, Any]
    peaks: Mapping[str, Any]

    @property
    def id(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical JSON, in which floats have 6 digits, as in the file."""
        canonical = json.dumps(_canonical(vars(self)), separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Entry:
    """One accepted set of invocations of a case, made by one machine in one run.

    Attributes:
        environment: id of what it was measured on.
        recorded: the day, YYYY-MM-DD.
        unit: of the samples, such as ``s`` or ``s/token``.
        invocations: samples of each fresh process, in the order taken; positive and finite.
        barrier: how long the threads that computed them took to meet, `Measurement.barrier`; None if unknown.
    """

    environment: str
    recorded: str
    unit: str
    invocations: tuple[tuple[float, ...], ...]
    barrier: Barrier | None = None

    @property
    def median(self) -> float:
        """The figure that the gate compares with, `verdict.centre`, in `unit`."""
        return centre(self.invocations)


@dataclass(frozen=True)
class Baseline:
    """All entries of one model on one device, and their environments, by id.

    A device is a product, and machines of one device differ: a runner's CPU is now of one kind, now of another. So a
    case, named by `Case.key`, has the entries of every machine that recorded one: machine by machine, newest first.
    """

    device: str
    model: str
    environments: Mapping[str, Environment]
    entries: Mapping[str, tuple[Entry, ...]]

    def machine(self, entry: Entry) -> Fingerprint:
        """The machine that recorded an entry."""
        return Fingerprint.from_dict(self.environments[entry.environment].fingerprint)


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
    except (TypeError, ValueError, OverflowError) as error:  # JSON allows integers that no float can hold
        raise BaselineError(f"{source}: {error}; {_REMEDY}") from None


def dumps(baseline: Baseline) -> str:
    """The text of a baseline, always the same for equal baselines, with samples to 6 significant digits.

    Raises:
        BaselineError: a value that JSON cannot hold.
    """
    try:
        document: dict[str, Any] = {"schema": SCHEMA, "device": baseline.device, "model": baseline.model}
        document["entries"] = {
            key: [_stored(entry) for entry in chain.from_iterable(_by_machine(baseline, baseline.entries[key]))]
            for key in _sorted(baseline.entries)
        }
        document["environments"] = _canonical({key: vars(value) for key, value in baseline.environments.items()})
        text = json.dumps(document, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BaselineError(f"the baseline of {baseline.model!r} cannot be stored: {error}; report this") from None
    # Lists of numbers go on one line. Inside a string a line break is escaped, so no string is touched.
    return re.sub(r'\[\n[^][{}"]*]', lambda found: f"[{' '.join(found[0][1:-1].split())}]", text) + "\n"


def merge(old: Baseline | None, new: Baseline) -> Baseline:
    """The old baseline with the entries of the new one before its own of the same case and machine.

    Of each machine and state the newest `HISTORY` entries stay, each once; environments that none needs are dropped.

    Raises:
        BaselineError: the two are of different devices or models.
    """
    old = old or Baseline(new.device, new.model, {}, {})
    if (old.device, old.model) != (new.device, new.model):
        raise BaselineError(f"{new.model!r} on {new.device!r} cannot be merged into {old.model!r} on {old.device!r}")
    held = Baseline(new.device, new.model, {**old.environments, **new.environments}, {})
    entries = dict(old.entries)
    for key, newer in new.entries.items():
        row = dict.fromkeys([*map(_rounded, newer), *entries.get(key, ())])
        entries[key] = tuple(chain.from_iterable(map(_kept, _by_machine(held, row))))
    return _holding(held, entries)


def _kept(sets: Iterable[Entry]) -> list[Entry]:
    """Of one machine's sets, newest first, those that stay."""
    kept: list[Entry] = []
    for one in sets:
        if sum(not fitness.moved(one.barrier, other.barrier) for other in kept) < HISTORY:
            kept.append(one)
    return kept


def without(baseline: Baseline, machine: Fingerprint, keys: Collection[str]) -> Baseline:
    """The baseline without a machine's entries of some cases; other machines' and other cases' stay."""
    entries = {
        key: tuple(entry for entry in row if key not in keys or machine.difference(baseline.machine(entry)))
        for key, row in baseline.entries.items()
    }
    return _holding(baseline, {key: row for key, row in entries.items() if row})


def _holding(baseline: Baseline, entries: Mapping[str, tuple[Entry, ...]]) -> Baseline:
    """The baseline with these entries and the environments that they need."""
    used = {entry.environment for row in entries.values() for entry in row}
    return replace(baseline, environments={key: baseline.environments[key] for key in used}, entries=entries)


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


def check_writable(folder: Path) -> None:
    """Make the folder and try it, so that a run of an hour does not fail at its last step.

    Raises:
        BaselineError: the folder cannot be made or written to.
    """
    trial = folder / f".{secrets.token_hex(4)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.touch(exist_ok=False)
        trial.unlink()
    except OSError as error:
        raise BaselineError(f"{folder}: cannot be written to ({error}); choose another folder") from None


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
    _need(data["schema"] in (2, 3, SCHEMA), f"has schema {data['schema']}, older than this version's {SCHEMA}")
    _fields(data, "the file", schema=int, device=str, model=str, entries=dict, environments=dict)
    environments = {key: _environment(key, value) for key, value in data["environments"].items()}
    entries = {key: _entries(f"entry {key!r}", value) for key, value in data["entries"].items()}
    baseline = Baseline(data["device"], data["model"], environments, entries)
    for key, row in entries.items():
        for entry in row:
            known = entry.environment in environments
            _need(known, f"entry {key!r} names the unknown environment {entry.environment!r}")
    return baseline


def _environment(key: str, data: Any) -> Environment:
    _fields(data, f"environment {key!r}", fingerprint=dict, versions=dict, peaks=dict)
    environment = Environment(**data)
    _need(environment.id == key, f"environment {key!r} was edited: its content has the id {environment.id!r}")
    return environment


def _entries(name: str, data: Any) -> tuple[Entry, ...]:
    _need(isinstance(data, list) and data, f"{name} is not a list of records")
    return tuple(_entry(name, record) for record in data)


def _entry(name: str, data: Any) -> Entry:
    known = {"barrier": dict} if isinstance(data, dict) and "barrier" in data else {}
    _fields(data, name, median=(int, float), unit=str, recorded=str, environment=str, invocations=list, **known)
    day = re.fullmatch("[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])", data["recorded"])
    _need(day, f"{name}: 'recorded' is {data['recorded']!r}, not a date YYYY-MM-DD")
    _need(data["invocations"], f"{name} has no invocations")
    for samples in data["invocations"]:
        _need(isinstance(samples, list) and samples, f"{name} has an invocation that is not a list of samples")
        bad = [x for x in samples if type(x) not in (int, float) or not 0 < x < math.inf]
        _need(not bad, f"{name} has the samples {bad}; samples are positive and finite numbers")
    barrier = _barrier(f"{name}: 'barrier'", data["barrier"]) if "barrier" in data else None
    invocations = tuple(tuple(map(float, samples)) for samples in data["invocations"])
    entry = Entry(data["environment"], data["recorded"], data["unit"], invocations, barrier)
    agrees = math.isclose(data["median"], entry.median, rel_tol=1e-5)  # because reviewers read the median alone
    _need(agrees, f"{name} was edited: its median is {_canonical(entry.median)}, not {data['median']}")
    return entry


def _barrier(name: str, data: Any) -> Barrier:
    _fields(data, name, seconds=(int, float), threads=int)
    _need(0 < data["seconds"] < math.inf and data["threads"] > 1, f"{name} is {data}, not of threads that meet")
    return Barrier(float(data["seconds"]), data["threads"])


def _fields(data: Any, name: str, **types: type | tuple[type, ...]) -> None:
    """Exactly these fields, of these types; an unknown one would be lost at the next update."""
    _need(isinstance(data, dict), f"{name} is not an object")
    wrong = sorted(types.keys() ^ data.keys())
    _need(not wrong, f"{name} has fields too many or too few: {wrong}")
    for field, kind in types.items():
        right = isinstance(data[field], kind) and not isinstance(data[field], bool)
        _need(right, f"{name}: {field!r} has the wrong type, {type(data[field]).__name__}")


def _need(condition: object, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _rounded(entry: Entry) -> Entry:
    """With samples as the file has them, so that what was accepted twice is known to be the same."""
    barrier = entry.barrier and replace(entry.barrier, seconds=_canonical(entry.barrier.seconds))
    return replace(entry, invocations=tuple(map(tuple, _canonical(entry.invocations))), barrier=barrier)


def _stored(entry: Entry) -> dict[str, Any]:
    """An entry as in the file; the median is that of the samples as they are stored, so it survives a round trip."""
    stored = _rounded(entry)
    known = {name: value for name, value in asdict(stored).items() if value is not None}
    return {"median": _canonical(stored.median), **known}


def _canonical(value: Any) -> Any:
    """A JSON value with sorted keys and floats of 6 significant digits."""
    if isinstance(value, dict):
        return {key: _canonical(value[key]) for key in sorted(value)}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _by_machine(baseline: Baseline, entries: Iterable[Entry]) -> list[list[Entry]]:
    """The entries of each machine, as they came; the machines in an order that new versions of a library keep."""
    machines: list[list[Entry]] = []
    for entry in entries:
        here = baseline.machine(entry)
        own = next((sets for sets in machines if not here.difference(baseline.machine(sets[0]))), None)
        if own is None:
            machines.append([entry])
        else:
            own.append(entry)
    return sorted(machines, key=lambda sets: json.dumps(baseline.machine(sets[0]).as_dict()))


def _sorted(keys: Iterable[str]) -> list[str]:
    """Keys in the order of a report: b2 before b16, and metrics in the order of `METRICS`."""

    def rank(key: str) -> tuple[object, ...]:
        case, _, metric = key.rpartition("/")
        return re.sub("[0-9]+", lambda n: n[0].zfill(12), case).split("/"), [*METRICS, metric].index(metric), key

    return sorted(keys, key=rank)


def _safe(name: str) -> str:
    parts = (re.sub(r"[^a-z0-9._-]", "-", part).strip(".-") for part in re.split(r"[/\\]", name.lower()))
    safe = "--".join(part for part in parts if part)
    if not safe:
        raise BaselineError(f"{name!r}: has no letter or digit to name a file by; choose another name")
    return safe
