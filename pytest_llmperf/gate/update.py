"""Accepting figures: what an update changes in each case's baseline, and the entries that are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pytest_llmperf.cases import METRICS, Case
from pytest_llmperf.gate import baseline as store
from pytest_llmperf.gate import stored
from pytest_llmperf.gate.baseline import Baseline, Entry, Profiled, Sitting
from pytest_llmperf.gate.priors import Prior
from pytest_llmperf.gate.rule import LARGE
from pytest_llmperf.gate.stored import Sittings
from pytest_llmperf.machine import rates

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_llmperf.machine.fitness import Barrier


@dataclass(frozen=True)
class Change:
    """A case's new sitting against those accepted before on this machine.

    Attributes:
        case: which.
        old: the figure before, in the metric's unit; None for a case that is new.
        new: the figure of the new sitting.
        sittings: how many sittings the baseline has from now on.
        not_excluded: the slowdown, a fraction, that a process as fast as this baseline could not exclude.
        tolerance: the slowdown allowed, a fraction.
        slower: whether the new sitting is slower than the tolerance allows.
        beyond_noise: whether the change is more than sittings of one code differ.
        doubt: how the machine differed from the sitting before, in a clause; None if it did not.
    """

    case: Case
    old: float | None
    new: float
    sittings: int
    not_excluded: float
    tolerance: float
    slower: bool
    beyond_noise: bool
    doubt: str | None = None

    @property
    def ratio(self) -> float | None:
        """New over old: 1.07 is 7 % slower."""
        return None if self.old is None else self.new / self.old

    @property
    def questionable(self) -> bool:
        """Whether a case became faster by more than can be taken on trust."""
        return self.ratio is not None and self.ratio < 1 - LARGE


def change(
    case: Case, before: Sittings, kept: Sittings, newest: Sequence[float], tolerance: float, prior: Prior
) -> Change:
    """What accepting a sitting changes. Pure.

    Args:
        case: which.
        before: the sittings of this machine so far, newest first.
        kept: those of them that are of the same code, and so stay.
        newest: the figures of the new sitting's processes.
        tolerance: the slowdown allowed, a fraction.
        prior: how much sittings of the case differ.

    Raises:
        ValueError: as `stored.interval`.
    """
    new = stored.centre(newest)
    old = stored.centre(before[0]) if before else None
    found = stored.interval(before, newest, prior) if before else None
    beyond = found is not None and not found.low <= 1 <= found.high
    count = 1 + len(kept)
    sittings = [newest, *kept]
    after = stored.interval(sittings, [stored.centre([stored.centre(one) for one in sittings])], prior)
    slower = old is not None and new > old * (1 + tolerance) and new - old > METRICS[case.metric].floor
    return Change(case, old, new, count, max(0.0, after.upper - 1), tolerance, slower, beyond)


@dataclass(frozen=True)
class Update:
    """The figures that are accepted into one baseline file.

    Attributes:
        path: of the file.
        held: its content, or None where there is none.
        device, model: whose file it is.
        changes: what the accepted figures change, by case.
    """

    path: Path
    held: Baseline | None
    device: str
    model: str
    changes: dict[Case, Change] = field(default_factory=dict)
    _entries: dict[Case, Entry] = field(default_factory=dict)
    _sittings: dict[str, Sitting] = field(default_factory=dict)
    _same_code: dict[str, Callable[[Sitting], bool]] = field(default_factory=dict)
    _profiles: dict[str, Profiled] = field(default_factory=dict)

    def accept(
        self,
        case: Case,
        sitting: Sitting,
        processes: Sequence[float],
        barrier: Barrier | None,
        tolerance: float,
        prior: Prior,
        same_code: Callable[[Sitting], bool],
        phases: Mapping[str, str] | None = None,
        parts: Sequence[float] = (),
    ) -> None:
        """Queue a case's figures, instead of what was queued for it.

        Args:
            case: which.
            sitting: what they were recorded with.
            processes: the figure of each process, in the metric's unit.
            barrier: how long their threads took to meet.
            tolerance: as in `change`.
            prior: as in `change`.
            same_code: whether an old sitting is of the same code.
            phases: `Phase.stored` by phase; None where nobody knows.
            parts: `Entry.parts`.
        """
        if phases:
            self._profiles[case.profile_key] = Profiled(sitting.id, phases)
        self._sittings[sitting.id] = sitting
        self._same_code[sitting.id] = same_code
        entry = Entry(sitting.id, METRICS[case.metric].unit, tuple(processes), barrier, tuple(parts))
        self._entries[case] = entry
        own = self.held.own(case.key, sitting.fingerprint) if self.held else []
        rows = [one.processes for one in own]
        same = self._of_the_same_code(self.held, sitting.id)
        kept = [one.processes for one in own if one.sitting in same][: store.HISTORY - 1]
        found = change(case, rows, kept, processes, tolerance, prior)
        if own and self.held:
            before = self.held.sitting(own[0])
            doubt = rates.other_limits(sitting.system, before.system)
            doubt = doubt or rates.difference(sitting.rates, before.rates) or rates.moved(barrier, own[0].barrier)
            found = replace(found, doubt=doubt)
        self.changes[case] = found

    def write(self, refused: Collection[Case] = ()) -> dict[Case, Entry]:
        """Merge what was accepted, but not the refused cases, into the file, once. Returns what was written.

        The file is read again first, since others may have written to it. The caller has it `store.locked`.

        Raises:
            BaselineError: the file cannot be read or written; the old one is untouched.
        """
        new = self.accepted(refused)
        written = {case: entry for case, entry in self._entries.items() if case not in refused}
        if written:
            held = store.load(self.path, self.device, self.model)
            for name in new.sittings:  # one for each interpreter, whose versions decide which code is the same
                others = [case for case, entry in written.items() if entry.sitting != name]
                held = store.merge(held, self.accepted([*refused, *others]), self._of_the_same_code(held, name))
            store.write(self.path, held or new)
        return written

    def _of_the_same_code(self, held: Baseline | None, name: str) -> list[str]:
        """Ids of the sittings of a baseline that are of the same code as one of ours."""
        return sorted(key for key, old in held.sittings.items() if self._same_code[name](old)) if held else []

    def accepted(self, refused: Collection[Case] = ()) -> Baseline:
        """What was accepted, but not the refused cases, as a baseline of nothing else."""
        entries = {case.key: (entry,) for case, entry in self._entries.items() if case not in refused}
        used = {entry.sitting for (entry,) in entries.values()}
        measured = {case.profile_key for case in self._entries if case not in refused}
        return Baseline(
            self.device,
            self.model,
            {key: one for key, one in self._sittings.items() if key in used},
            entries,
            profiles={key: (one,) for key, one in self._profiles.items() if key in measured},
        )

    def as_dict(self, refused: Collection[Case]) -> dict[str, Any]:
        """What `write` would add now, as JSON values, so that ``pytest-llmperf accept`` can do so elsewhere."""
        return {
            "baseline": json.loads(store.dumps(self.accepted(refused))),
            "tolerances": {case.key: self.changes[case].tolerance for case in self._entries if case not in refused},
            "same_code": {name: self._of_the_same_code(self.held, name) for name in self._same_code},
        }
