"""The gate: a case's figures against its stored baseline. Writes the baseline file; measures nothing itself."""

from __future__ import annotations

import datetime
import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_llmperf.cases import METRICS, Case
from pytest_llmperf.gate import baseline as store
from pytest_llmperf.gate import update, verdict
from pytest_llmperf.gate.update import Change
from pytest_llmperf.gate.verdict import Outcome, Verdict
from pytest_llmperf.machine import fitness
from pytest_llmperf.machine.fingerprint import Fingerprint
from pytest_llmperf.machine.fitness import Barrier
from pytest_llmperf.measure.process import Measurement

#: Fresh processes that confirm a flagged case; of a regression one more.
CONFIRMATIONS = 2
#: Differences below this many seconds are never a regression: a token's stamp costs microseconds.
ABSOLUTE_FLOOR = 50e-6
#: A machine whose own peaks are this fraction below those recorded with a baseline is not in the same state.
SAME_STATE = 0.85
#: How often they are measured before that is said.
PROBES = 3
#: Seconds for which that is believed, so that not every case of a slow minute pays for probes.
BELIEVED = 60.0
#: How many times as much as its witness, in logarithms, a case may have been slowed by what slowed both: on two shared
#: cores sdpa's prefill of four prompts was 19 % slower one run later, and eager's 9 %.
SUSCEPTIBLE = 2
#: Said where it is in none of the processes alone.
MOVED_MEANWHILE = "the host moved its CPUs meanwhile, it seems"
#: Said of what is no slower than allowed, but too slow for a machine as much faster as the reference is.
HIDDEN = "the machine may be too, and hide a slowdown"
#: Said of a regression that had no witness, with the reference's name.
UNWITNESSED = "with no figures of {} to tell slow code from a slow machine"
#: What of a machine is looked at, by the first word of its name, and how it is called.
PEAKS = {"flops": "GEMM rate", "bandwidth": "memory bandwidth", "interpreter": "interpreter"}


def shown(path: Path) -> Path:
    """As it is said where it is below: results are shared, and need not tell where somebody's folders are."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def weaker(now: Mapping[str, float], recorded: Mapping[str, float]) -> str | None:
    """What of a machine is below `SAME_STATE` of what was recorded with a baseline, by how much; None if nothing is.

    What several threads do together can be compared only while they meet as soon: on two shared CPUs memory was read
    almost twice as fast while the host had them apart, and GEMM was 10 % slower.
    """
    moved = _moved_since(now, recorded)
    for name, before in recorded.items():
        kind = name.split()[0]
        if kind in PEAKS and not (moved and kind != "interpreter") and now.get(name, math.inf) < SAME_STATE * before:
            title = PEAKS[kind]
            return f"this machine's {title} is {1 - now[name] / before:.0%} below what it was with the baseline"
    return None


def _moved_since(now: Mapping[str, float], recorded: Mapping[str, float]) -> bool:
    """Whether by a machine's rates its CPUs are others than when it was recorded."""
    for name in recorded.keys() & now.keys():
        kind, *threads = name.split()
        if kind == "meetings":
            met = [Barrier(1 / rates[name], int(threads[0])) for rates in (now, recorded)]
            return fitness.moved(*met)
    return False


@dataclass(frozen=True)
class Gate:
    """One baseline file and the machine that compares with it.

    Attributes:
        path: of the file.
        stored: its content, or None where there is none.
        machine: this machine's fingerprint.
        reference: the backend that speedups refer to.
        measure_peaks: measures this machine's rates now, or None where its roofs come from a data sheet.
        changes: what the figures that were accepted change, by case: each of its sets.
    """

    path: Path
    stored: store.Baseline | None
    machine: Callable[[], Fingerprint]
    reference: str
    measure_peaks: Callable[[], Mapping[str, float]] | None
    changes: dict[Case, list[Change]] = field(default_factory=dict)
    _accepted: dict[Case, list[store.Entry]] = field(default_factory=dict)
    _environments: dict[str, store.Environment] = field(default_factory=dict)
    #: When this machine was found to be weaker than it was in an environment, and in what.
    _weak: dict[str, tuple[float, str]] = field(default_factory=dict)

    def judge(
        self,
        case: Case,
        first: Measurement,
        reference: Measurement | None,
        tolerance: float,
        fresh: Callable[[int], Sequence[Measurement]] | None,
        witness: Callable[[int], Measurement | None] = lambda number: None,
    ) -> Verdict:
        """Screen a case by its baseline, and confirm it in fresh processes if it was flagged.

        A slow spell of a shared machine may outlast the processes that confirm a slowdown. What would be a regression
        is one only if a further process is slow again, and the reference, measured before that, as fast as ever. And
        what is no slower than allowed is open if it is too slow for a machine as much faster as the reference is.

        Args:
            case: which.
            first: what this run's engine measured.
            reference: what the reference measured of the same workload in this run, or None; what tells of a faster
                machine, what stands in for a witness that fails, and what a speedup is over.
            tolerance: the slowdown allowed, as a fraction.
            fresh: that many measurements in fresh processes, those made before among them; None to screen only.
            witness: the reference in its first, second ... fresh process beside this case, or None if it failed.
        """
        recorded, own = self._recorded(case), self._compared_with(case, first)
        if not recorded:
            why = "this case is new to it" if self.stored else f"{shown(self.path)} does not exist"
            return verdict.nothing(Outcome.NO_BASELINE, f"{why}; accept the figures with --llm-update-baselines")
        if not own:
            return self._elsewhere(case, recorded, first, reference, tolerance)
        found = self._by_own(case, first, own, reference, tolerance, fresh, witness)
        if fresh is None:
            return found
        gain = self._gain(case, own, found, reference)
        if _hides(gain, found) and (seen := witness(1)) and seen.clean:
            gain = self._gain(case, own, found, reference, seen)  # one is a little fast by chance
        return self._unless_hidden(gain, found)

    def _by_own(
        self,
        case: Case,
        first: Measurement,
        own: Sequence[store.Entry],
        reference: Measurement | None,
        tolerance: float,
        fresh: Callable[[int], Sequence[Measurement]] | None,
        witness: Callable[[int], Measurement | None],
    ) -> Verdict:
        """`judge` a case by this machine's sets of it, whatever a faster machine may hide."""
        entry = own[0]
        found = self._screen(case, first, tolerance)
        if not found.flagged or fresh is None:
            return self._cleared(found, first)
        if found.outcome is Outcome.INCONCLUSIVE and (doubt := self._weaker(entry)):
            # Fresh processes of a slower machine would prove nothing, so none is started.
            return replace(found, reason=f"{found.reason}, but {doubt}")
        made, sets = self._in_a_known_state(case, fresh, 1)
        moved = _moved(made, entry)
        if not sets:
            return _untold(found, moved or MOVED_MEANWHILE)
        earlier = [one.invocations for one in sets]
        figures = [one.figures(case.metric) for one in made]
        cleared = verdict.clear(earlier[0], figures, tolerance, ABSOLUTE_FLOOR, earlier[1:])
        if cleared is not None and not moved and not self._disturbed(made):
            return cleared

        def confirmed(count: int) -> tuple[Verdict, str | None]:
            """What that many say; in another state than the first one they convict, but do not clear."""
            nonlocal entry
            made, sets = self._in_a_known_state(case, fresh, count)
            moved = _moved(made, own[0])
            if not sets:
                return _untold(found, moved or MOVED_MEANWHILE), None
            entry, earlier = sets[0], [one.invocations for one in sets]
            figures = [one.figures(case.metric) for one in made]
            said = verdict.confirm(earlier[0], figures, tolerance, ABSOLUTE_FLOOR, earlier[1:])
            if moved and said.outcome is not Outcome.REGRESSION:
                return _untold(found, moved), None
            return said, self._disturbed(made)

        found, doubt = confirmed(CONFIRMATIONS)
        if found.outcome is Outcome.REGRESSION and not doubt:
            doubt, seen, number = self._weaker(entry), None, 1
            if not doubt and self._witnessed(case):
                for number in (1, 2):  # one is a little slow by chance, or its CPUs were moved
                    seen = witness(number) or seen
                    doubt = self._no_witness(case, seen) or self._shared(case, seen or reference, found)
                    if not doubt:
                        break
            if not doubt:  # for each witness one more, which was made after it whichever metric asked for it first
                found, doubt = confirmed(CONFIRMATIONS + number)
                doubt = doubt or self._shared(case, seen or reference, found)
            if found.outcome is Outcome.REGRESSION and not doubt and seen is None and case.backend != self.reference:
                found = replace(found, reason=f"{found.reason}, {UNWITNESSED.format(self.reference)}")
        return verdict.contaminated(found, doubt) if doubt else found

    def judge_beside(
        self,
        case: Case,
        first: Measurement,
        reference: Measurement | None,
        tolerance: float,
        beside_base: Callable[[], Verdict],
        by_baseline: Callable[[], Verdict],
        always: bool = False,
    ) -> Verdict:
        """Compare a case with base where its baseline does not clear it, or always; by the baseline if base cannot.

        A baseline of this machine clears what is no slower than the tolerance, unless it is too slow for a machine as
        much faster as the reference is.

        Args:
            case: which.
            first: what this run's engine measured.
            reference: what the reference measured of the same workload in this run, or None.
            tolerance: the slowdown allowed beside base, as a fraction.
            beside_base: compares the case with base.
            by_baseline: judges it as `judge` does.
            always: whether even what is cleared is compared.
        """
        if self.is_new(case):
            return beside_base()
        screened = self._screen(case, first, tolerance)
        gain = self._gain(case, self._compared_with(case, first), screened, reference)
        screened = self._unless_hidden(gain, screened)
        if not (always or screened.flagged or screened.outcome is Outcome.INCONCLUSIVE):
            return self._cleared(screened, first)
        beside = beside_base()
        if beside.basis != "base":  # a base that broke is no reason to let a slowdown pass
            found = by_baseline()
            return replace(found, reason="; ".join(filter(None, [found.reason, beside.reason])))
        if beside.outcome is Outcome.OK and screened.flagged and screened.ratio > 1:
            moved = f"{verdict.change_of(screened.ratio)} than its baseline, but not than base"
            return replace(beside, reason=f"{moved}: the machine is, or base was already")
        return beside

    def _screen(self, case: Case, first: Measurement, tolerance: float) -> Verdict:
        """What one process says of a case that this machine has a baseline of."""
        entry, *others = self._compared_with(case, first)
        earlier = [one.invocations for one in others]
        figures = [first.figures(case.metric)]
        found = verdict.screen(entry.invocations, figures, tolerance, ABSOLUTE_FLOOR, earlier=earlier)
        moved = _moved([first], entry)
        return _untold(found, moved) if moved else found

    def _cleared(self, found: Verdict, first: Measurement) -> Verdict:
        """What was not flagged, unless the process was disturbed."""
        doubt = self._disturbed([first])
        return verdict.contaminated(found, doubt) if doubt else found

    def _recorded(self, case: Case) -> Sequence[store.Entry]:
        """The case's entries, of each machine the newest first."""
        return self.stored.entries.get(case.key, ()) if self.stored else ()

    def own(self, case: Case) -> list[store.Entry]:
        """What this machine recorded of a case, newest first."""
        return [entry for entry in self._recorded(case) if not self._differs(entry)]

    def like(self, case: Case, barrier: Barrier | None) -> list[store.Entry]:
        """Those that were recorded while threads met as soon as now, newest first; all where that is not known.

        Args:
            case: which.
            barrier: of what is compared, `Measurement.barrier`.
        """
        own = self.own(case)
        known = [one.barrier for one in own if one.barrier is not None]
        if barrier is None or not known:
            return own

        def distance(other: Barrier) -> tuple[bool, float]:
            return other.threads != barrier.threads, abs(math.log(other.seconds / barrier.seconds))

        nearest = min(known, key=distance)
        if fitness.moved(barrier, nearest):
            return []
        return [one for one in own if one.barrier is not None and not fitness.moved(one.barrier, nearest)]

    def _compared_with(self, case: Case, measured: Measurement) -> list[store.Entry]:
        """What a process is compared with: those, or else what is of another state, by which nothing is told."""
        own = self.own(case)
        return self.like(case, measured.barrier) or [one for one in own if one.barrier is not None] or own

    def last_recorded(self, case: Case) -> float | None:
        """What this machine recorded last of a case, in the metric's unit: the median over processes; else None."""
        own = self.own(case)
        return verdict.centre(own[0].invocations) if own else None

    def is_new(self, case: Case) -> bool:
        """Whether this machine has no record of a case."""
        return not self.own(case)

    def _differs(self, entry: store.Entry) -> str | None:
        """What is different about the machine of an entry, or None: absolute latencies may be compared."""
        assert self.stored is not None
        difference = self.machine().difference(self.stored.machine(entry))
        return difference[0] if difference else None

    def _elsewhere(
        self,
        case: Case,
        recorded: Sequence[store.Entry],
        first: Measurement,
        reference: Measurement | None,
        tolerance: float,
    ) -> Verdict:
        """Compare the speedup over the reference with one from another machine.

        A speedup depends on the machine too, so one that is missing here is a question, never a regression.
        """
        newest = sorted(recorded, key=_day, reverse=True)
        pairs = [(entry, self._relative_baseline(case, entry)) for entry in newest]
        entry, relative = next((pair for pair in pairs if pair[1] is not None), (newest[0], None))
        difference = self._differs(entry)
        if relative is None or reference is None or case.backend == self.reference:
            return verdict.nothing(
                Outcome.INCOMPARABLE,
                f"no baseline of this machine, only of another ({difference}), and there is no speedup over "
                f"{self.reference} to compare instead",
            )
        mine = verdict.speedup_invocations([reference.figures(case.metric)], [first.figures(case.metric)])
        found = verdict.screen(relative, mine, tolerance, 0.0, "speedup")
        if found.outcome is Outcome.INCONCLUSIVE:
            reason = (
                f"less speedup over {self.reference} than on another machine ({difference}), which may be the "
                "machine's doing; record a baseline here with --llm-update-baselines"
            )
            return replace(found, reason=reason)
        return replace(found, outcome=Outcome.OK, reason=f"by the speedup on another machine ({difference})")

    def _relative_baseline(self, case: Case, entry: store.Entry) -> list[list[float]] | None:
        """The entry's latencies relative to the reference's, recorded on the same machine, in the same state."""
        assert self.stored is not None
        environments = self.stored.environments
        for then in self._recorded(replace(case, backend=self.reference)):
            there = not self.stored.machine(then).difference(self.stored.machine(entry))
            versions = [
                {name: value for name, value in environments[one.environment].versions.items() if name != "devices"}
                for one in (then, entry)
            ]
            if there and versions[0] == versions[1] and not fitness.moved(then.barrier, entry.barrier):
                return verdict.speedup_invocations(then.invocations, entry.invocations)
        return None

    @staticmethod
    def _disturbed(measured: Sequence[Measurement]) -> str | None:
        """Whether the machine may be the reason for a change, or figures that were still changing."""
        unsettled = sum(not one.settled for one in measured)
        if unsettled:
            return f"the figures of {unsettled} of {len(measured)} processes never settled"
        disturbed = [one for one in measured if not one.clean]
        if not disturbed:
            return None
        of = f"{len(disturbed)} of {len(measured)} processes" if len(measured) > 1 else "the process"
        return f"too few samples of {of} were undisturbed: {disturbed[0].culprit}"

    def _in_a_known_state(
        self, case: Case, fresh: Callable[[int], Sequence[Measurement]], count: int
    ) -> tuple[list[Measurement], list[store.Entry]]:
        """Make that many undisturbed fresh processes in one state of the CPUs of which there are sets.

        At most twice as many are made, or twice as many as confirm a case. If that is not enough, disturbed ones count.

        Returns:
            Those, and the sets, newest first; or all that were made, and no sets.
        """
        made = list[Measurement]()
        for asked in range(count, 2 * max(count, CONFIRMATIONS) + 1):
            made = list(fresh(asked))
            if found := self._of_one_state(case, [one for one in made if one.clean], count):
                return found
        return self._of_one_state(case, sorted(made, key=lambda one: not one.clean), count) or (made, [])

    def _of_one_state(
        self, case: Case, made: Sequence[Measurement], count: int
    ) -> tuple[list[Measurement], list[store.Entry]] | None:
        """The first so many processes in one state of which there are sets, and those; None if there are fewer."""
        for one in made:
            alike = [other for other in made if not fitness.moved(other.barrier, one.barrier)]
            if len(alike) >= count and (sets := self.like(case, one.barrier)):
                return alike[:count], sets
        return None

    def _weaker(self, entry: store.Entry) -> str | None:
        """Whether the machine itself is slower now than when the baseline was recorded."""
        if self.measure_peaks is None:
            return None
        assert self.stored is not None
        found, known = self._weak.get(entry.environment, (-math.inf, ""))
        if time.monotonic() - found < BELIEVED:
            return known
        recorded = self.stored.environments[entry.environment].peaks
        now: dict[str, float] = {}
        rates: Mapping[str, float] = {}
        for _ in range(PROBES):  # one may itself be disturbed: the best of a few says what the machine can do now
            rates = self.measure_peaks()
            if _moved_since(rates, recorded):
                continue  # rates of two states are those of none
            now = {name: max(rate, now.get(name, 0.0)) for name, rate in rates.items()}
            if weaker(now, recorded) is None:
                return None
        below = weaker(now or rates, recorded)
        if below is not None:
            self._weak[entry.environment] = time.monotonic(), below
        return below

    def _witnessed(self, case: Case) -> bool:
        """Whether this machine recorded the reference's figures of another backend's case."""
        return case.backend != self.reference and not self.is_new(replace(case, backend=self.reference))

    def _no_witness(self, case: Case, seen: Measurement | None) -> str | None:
        """Why the reference, measured right after a case, tells nothing of the machine; None if it does, or failed."""
        if seen is None:
            return None
        moved = _moved([seen], self._compared_with(replace(case, backend=self.reference), seen)[0])
        return f"{self.reference} cannot witness it: {moved}" if moved else None

    def _shared(self, case: Case, reference: Measurement | None, found: Verdict) -> str | None:
        """Whether the reference is slower than its own baseline by so much that too little is left for this case.

        Drift outlasts a run, and slows what ran just before or after it too. What slows every backend alike, as a new
        torch may, still fails by the reference's own case, if it is more than that one is allowed. A reference that is
        a little slow, as one process in two is by chance, casts no doubt.

        Args:
            case: which.
            reference: its figures, or None.
            found: of the case.
        """
        drift = self._drift(case, reference) or 1.0
        left = found.ratio / drift**SUSCEPTIBLE
        if drift <= 1 + found.threshold * verdict.CONSISTENT or left > 1 + found.threshold:
            return None
        return f"{self.reference} is {verdict.change_of(drift)} than its baseline too, so it may be the machine"

    def _unless_hidden(self, gain: float, found: Verdict) -> Verdict:
        """A verdict, as far as a machine that is faster than it was, by `_gain`, hides nothing from it.

        The figures stay as they are, since the reference's own code may be what got faster; the resolution is larger.
        """
        if gain < 1:
            found = replace(found, resolution=(1 + found.resolution) / gain - 1)
        if not _hides(gain, found):
            return found
        return _untold(found, f"{self.reference} is {verdict.change_of(gain)} than its baseline: {HIDDEN}")

    def _gain(self, case: Case, own: Sequence[store.Entry], found: Verdict, *references: Measurement | None) -> float:
        """The reference's ratio to what was recorded of it beside a case, if it is faster than that; else 1.

        Of several processes the least fast tells. A little fast, as one process in two is by chance, is not faster.
        """
        drifts = [self._drift(case, one, own[0].recorded) for one in references]
        gain = max(filter(None, drifts), default=1.0)
        return gain if gain * (1 + found.threshold * verdict.CONSISTENT) < 1 else 1.0

    def _drift(self, case: Case, reference: Measurement | None, day: str | None = None) -> float | None:
        """The reference's ratio to its own newest baseline, or its newest of a day; None if either is not known."""
        if reference is None or not self._witnessed(case):
            return None
        like = self.like(replace(case, backend=self.reference), reference.barrier)
        beside = [one for one in like if day in (None, one.recorded)]
        return verdict.centre([reference.figures(case.metric)]) / beside[0].median if beside else None

    def accept(
        self,
        case: Case,
        environment: store.Environment,
        sets: Iterable[tuple[Iterable[Sequence[float]], Barrier | None]],
        tolerance: float | None,
        recorded: datetime.date | None = None,
    ) -> None:
        """Queue a case's figures as its new baseline, instead of what was queued for it.

        Args:
            case: which.
            environment: what they were measured on.
            sets: a row per process, in the metric's unit, of each state of the CPUs; with its barrier, `store.Entry`.
            tolerance: that of `update.change`.
            recorded: the day; None for today.
        """
        self._environments[environment.id] = environment
        day = (recorded or datetime.date.today()).isoformat()
        self._accepted[case], self.changes[case] = [], []
        for figures, barrier in sets:
            rows = tuple(tuple(row) for row in figures)
            entry = store.Entry(environment.id, day, METRICS[case.metric][1], rows, barrier)
            before, doubt = self.like(case, barrier), None
            if before and self.stored is not None:
                doubt = weaker(environment.peaks, self.stored.environments[before[0].environment].peaks)
            change = update.change(case, [one.invocations for one in before], rows, tolerance, ABSOLUTE_FLOOR)
            self._accepted[case].append(entry)
            self.changes[case].append(replace(change, doubt=doubt, barrier=barrier))

    def write(self, device: str, model: str, refused: Collection[Case]) -> dict[Case, list[store.Entry]]:
        """Merge what was accepted, but not the refused cases, into the file, once. Returns what was written.

        The file is read again first, since others may have written to it.

        Raises:
            BaselineError: the file cannot be read or written; the old one is untouched.
        """
        accepted, new = self._new(device, model, refused)
        if accepted:
            store.write(self.path, store.merge(store.load(self.path, device, model), new))
        return accepted

    def as_update(self, device: str, model: str, refused: Collection[Case]) -> dict[str, Any]:
        """What `write` would add to the file now, as JSON values, so that `accept` can do so elsewhere."""
        accepted, new = self._new(device, model, refused)
        return {
            "baseline": json.loads(store.dumps(new)),
            "tolerances": {case.key: self.changes[case][0].tolerance for case in accepted},
        }

    def _new(
        self, device: str, model: str, refused: Collection[Case]
    ) -> tuple[dict[Case, list[store.Entry]], store.Baseline]:
        """What was accepted, but not the refused cases, and as a baseline of nothing else."""
        accepted = {case: sets for case, sets in self._accepted.items() if case not in refused}
        entries = {case.key: tuple(sets) for case, sets in accepted.items()}
        return accepted, store.Baseline(device, model, self._environments, entries)

    def prune(self, device: str, model: str, stale: Callable[[str], bool]) -> list[str]:
        """Remove this machine's entries of the cases whose key is stale. Returns their keys, in the file's order.

        Raises:
            BaselineError: the file cannot be read or written; the old one is untouched.
        """
        held = store.load(self.path, device, model)
        if held is None:
            return []
        kept = store.without(held, self.machine(), {key for key in held.entries if stale(key)})
        removed = [key for key, row in held.entries.items() if kept.entries.get(key) != row]
        if removed:
            store.write(self.path, kept)
        return removed


def _moved(measured: Iterable[Measurement], entry: store.Entry) -> str | None:
    """Whether threads met later or sooner than with the baseline in any process.

    Either may be what made it slower or faster: apart, CPUs may have more bandwidth between them.
    """
    for one in measured:
        if fitness.moved(one.barrier, entry.barrier):
            assert one.barrier
            assert entry.barrier
            times = f"{one.barrier.seconds / entry.barrier.seconds:.1f} times"
            return f"its threads took {times} as long to meet as with the baseline: the host moved its CPUs, it seems"
    return None


def _hides(gain: float, found: Verdict) -> bool:
    """Whether what is ok or faster would be too slow for a machine as much faster than it was as the gain says."""
    slower = found.ratio > gain * (1 + found.threshold) and found.head - gain * found.baseline > ABSOLUTE_FLOOR
    return gain < 1 and slower and found.outcome in (Outcome.OK, Outcome.FASTER)


def _untold(found: Verdict, why: str) -> Verdict:
    """Neither slower, nor faster, nor as fast as ever."""
    reason = f"{found.reason}, but {why}" if found.reason else why
    return replace(found, outcome=Outcome.INCONCLUSIVE, reason=reason, flagged=False)


def _day(entry: store.Entry) -> str:
    return entry.recorded
