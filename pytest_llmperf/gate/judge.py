"""Judges a case: screens it against the stored baseline, and compares it beside base where that settles too little.

1. `Judge.screen`: the interval of the stored sittings, if this machine is in the state in which they were recorded.
2. `Judge.base_of`: the code to compare with: ``--llm-base``, or the code that recorded the baseline.
3. `Beside.compare`: pairs of fresh processes of base and head, in turns.
4. `Judge._by_fresh_processes`: where base cannot be had, fresh processes in turns with the reference's.

Every interval goes through `rule.decide`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from time import monotonic
from typing import TYPE_CHECKING

from pytest_llmperf.gate import checkout, rule, stored
from pytest_llmperf.gate.checkout import Base, BaseError
from pytest_llmperf.gate.rule import Interval, Outcome, Verdict
from pytest_llmperf.machine.rates import moved

if TYPE_CHECKING:
    from pytest_llmperf.cases import Case
    from pytest_llmperf.gate.baseline import Entry, Sitting
    from pytest_llmperf.gate.beside import Beside
    from pytest_llmperf.machine.rates import Machine
    from pytest_llmperf.measure.measurements import Measurements
    from pytest_llmperf.measure.process import Measurement
    from pytest_llmperf.plan import Allowed, Plan

RECORD = "accept the figures with --llm-update-baselines"
SITTING = "record another sitting with --llm-update-baselines, or compare beside a revision with --llm-base=REVISION"
QUIETER = "run this test alone on a quieter machine, with --llm-compare=always"


class Judge:
    """Judges the cases of a run.

    Args:
        plan: the baseline, the base and the options.
        machine: this machine and its rates.
        measurements: what was measured, and what measures more.
        beside: compares with base in pairs.
    """

    def __init__(self, plan: Plan, machine: Machine, measurements: Measurements, beside: Beside) -> None:
        self._plan = plan
        self._machine = machine
        self._measurements = measurements
        self._beside = beside
        self._fresh_seconds = 0.0

    def judge(self, case: Case, first: Measurement, allowed: Allowed) -> Verdict:
        """The verdict of a case that one process has measured.

        Args:
            case: which.
            first: what this run's engine measured.
            allowed: the slowdown that it is allowed.

        Raises:
            WorkerError, TraceError: a further process of head failed.
            BaseError: git could not check out a base that somebody named.
        """
        screened = self.screen(case, first, allowed.usual)
        if not self._compares(case, screened):
            return screened
        base = self.base_of(case, screened)
        if isinstance(base, Verdict):
            return base
        if isinstance(base, str):
            return self._by_fresh_processes(case, screened, allowed.stored, base)
        if self.time_is_up and not self._beside.begun(case, base):
            return self._out_of_time(screened)
        try:
            found = self._beside.compare(case, base, allowed.usual)
        except BaseError as error:
            if self._plan.base is not None:  # somebody asked for it
                raise
            return self._by_fresh_processes(case, screened, allowed.stored, str(error))
        if found.basis != "base" and self._plan.own(case):  # a base that broke is no reason to let a slowdown pass
            return self._by_fresh_processes(case, screened, allowed.stored, found.reason)
        return self._explained(found, screened)

    # The stored baseline

    def screen(self, case: Case, first: Measurement, tolerance: float) -> Verdict:
        """What one process says against the stored baseline; never a regression."""
        own = self._plan.own(case)
        if not own:
            return rule.nothing(Outcome.NO_BASELINE, self._no_baseline(case), RECORD)
        alike = self._in_this_state(own, first)
        figures = [median(first.figures(case.metric))]
        found = self._decided(case, alike or own, figures, tolerance)
        if not alike:
            state = f"this machine is not in the state in which the baseline was recorded: {self._state(own[0], first)}"
            return replace(found, outcome=Outcome.INCONCLUSIVE, reason=state, remedy=SITTING, other_state=True)
        if found.outcome is Outcome.FASTER and (doubt := disturbed([first])):
            faster = f"{rule.change_of(found.ratio)} than the baseline in 1 process"
            return replace(found, outcome=Outcome.INCONCLUSIVE, reason=f"{faster}, but {doubt}", remedy=QUIETER)
        return found if found.outcome is not Outcome.INCONCLUSIVE else replace(found, remedy=SITTING)

    def _no_baseline(self, case: Case) -> str:
        held = self._plan.stored
        if held is None:
            return f"{self._plan.shown_path} does not exist"
        others = held.entries.get(case.key, ())
        if not others:
            return "this case is new to the baseline"
        difference = self._machine.fingerprint.difference(held.sitting(others[0]).fingerprint)
        return f"the baseline is of another machine ({difference[0]} there)"

    def _in_this_state(self, entries: Sequence[Entry], first: Measurement) -> list[Entry]:
        """The entries whose sitting was recorded while the machine was as it is now."""
        return [one for one in entries if self._state(one, first) is None]

    def _state(self, entry: Entry, measured: Measurement) -> str | None:
        """How the machine differs from its state in an entry's sitting, in a clause; None if it does not."""
        assert self._plan.stored is not None
        return moved(measured.barrier, entry.barrier) or self._machine.differs(self._plan.stored.sitting(entry).rates)

    def _has_rates(self, entries: Sequence[Entry]) -> bool:
        """Whether the machine's state was recorded with every entry: a rate that is measured now too."""
        assert self._plan.stored is not None
        return all(self._plan.stored.sitting(one).rates.keys() & self._machine.rates.keys() for one in entries)

    def _decided(
        self, case: Case, entries: Sequence[Entry], figures: Sequence[float], tolerance: float, enough: bool = False
    ) -> Verdict:
        """The rule on the stored interval."""
        found = stored.interval([one.processes for one in entries], figures, self._plan.prior(case))
        return rule.decide(replace(found, enough=enough), tolerance)

    # Whether and with what to compare

    def _compares(self, case: Case, screened: Verdict) -> bool:
        """Whether a screened case is compared beside base, by ``--llm-compare``."""
        which = self._plan.settings.compare
        if which in ("never", "always"):
            return which == "always"
        if screened.outcome is Outcome.NO_BASELINE:
            return self._plan.base is not None or which == "unresolved"
        if screened.questionable or screened.suspicious or screened.other_state:
            return True
        return which == "unresolved" and screened.outcome not in (Outcome.OK, Outcome.FASTER)

    def base_of(self, case: Case, screened: Verdict) -> Base | str | Verdict:
        """The code to compare a case with; why there is none; or the verdict, where the code has not changed."""
        plan = self._plan
        if plan.attached(plan.registry[case.backend]):
            return "a server that runs already answers both base and head"
        if plan.base is not None:
            return plan.base
        sitting = self._recorded_by(case)
        if sitting is None:
            return "no baseline names a revision"
        if sitting.revision is None:
            return "the baseline names no revision: files were changed when it was recorded, or its file is old"
        if changed := changes(sitting.versions, plan.installed(case.backend)):
            return f"versions differ from the baseline's ({changed})"
        if checkout.is_at(sitting.revision, plan.root, plan.apart):
            return self._of_the_machine(screened)
        base = checkout.recorded(sitting.revision, plan.root)
        return base or f"git does not have {sitting.revision[:12]}, which recorded the baseline (a shallow clone?)"

    def _recorded_by(self, case: Case) -> Sitting | None:
        """The newest sitting of a case: this machine's, else another one's."""
        held = self._plan.stored
        if held is None:
            return None
        entries = self._plan.own(case) or held.entries.get(case.key, ())
        return max((held.sitting(one) for one in entries), key=lambda one: one.recorded, default=None)

    def _of_the_machine(self, screened: Verdict) -> Verdict:
        """Code that has not changed cannot have regressed."""
        if screened.outcome in (Outcome.OK, Outcome.NO_BASELINE):
            return screened
        open_ = f"; a slowdown of {screened.not_excluded:.1%} cannot be excluded" if screened.not_excluded else ""
        said = "code and versions are those of the baseline, so a change is the machine's"
        state = f"{screened.reason}; " if screened.other_state else ""
        return replace(screened, outcome=Outcome.INCONCLUSIVE, reason=f"{state}{said}{open_}", remedy=SITTING)

    # Where base cannot be had

    def _by_fresh_processes(self, case: Case, screened: Verdict, tolerance: float, why: str) -> Verdict:
        """Judge a case by fresh processes in turns with the reference's, against the stored figures.

        Where the baseline has the reference, the smaller change counts: in absolute terms, or over the reference. What
        changes both is the machine. Without the reference and without rates, nothing tells the machine from the code.
        """
        plan, reference = self._plan, self._plan.settings.reference
        why_not = f"base cannot be had: {why}"
        if screened.other_state or screened.outcome is Outcome.NO_BASELINE:
            return replace(screened, reason=f"{screened.reason}; {why_not}")
        if self.time_is_up:
            return self._out_of_time(screened)
        entries = plan.own(case)
        witnesses = {one.sitting: one for one in plan.own(replace(case, backend=reference))}
        beside = case.backend != reference and all(one.sitting in witnesses for one in entries)
        began = monotonic()
        made, others = self._measurements.in_turns(
            case.backend, case.workload, reference if beside else None, stored.FEWEST_TO_FAIL
        )
        self._fresh_seconds += monotonic() - began
        entries = [one for one in entries if all(self._state(one, measured) is None for measured in made)]
        doubt = disturbed([*made, *others]) or ("" if entries else "the machine changed meanwhile")
        if doubt:
            reason = "; ".join(filter(None, [screened.reason, why_not, doubt]))
            return replace(screened, outcome=Outcome.INCONCLUSIVE, reason=reason, remedy=QUIETER)
        figures, over = ([median(one.figures(case.metric)) for one in row] for row in (made, others))
        told = beside or self._has_rates(entries)
        found = self._decided(case, entries, figures, tolerance, enough=told)
        if found.outcome is Outcome.INCONCLUSIVE and not told:
            why_not += "; the baseline has nothing that tells slow code from a slow machine"
        if beside:
            scale = stored.centre(over)
            relative = stored.interval(
                [stored.over_reference(one.processes, witnesses[one.sitting].processes) for one in entries],
                stored.over_reference(figures, over),
                plan.prior(case),
            )
            found = _smaller(found, rule.decide(_in_seconds(relative, scale), tolerance))
            why_not = f"beside {reference}; {why_not}"
        remedy = SITTING if found.outcome is Outcome.INCONCLUSIVE else ""
        return replace(found, reason="; ".join(filter(None, [found.reason, why_not])), remedy=remedy)

    # How long comparing may take

    @property
    def time_is_up(self) -> bool:
        """Whether comparing has taken as long as ``--llm-budget`` allows."""
        return self._beside.spent + self._fresh_seconds >= self._plan.settings.budget

    def _out_of_time(self, screened: Verdict) -> Verdict:
        if screened.outcome is Outcome.OK:
            return screened
        said = f"not compared: comparing has taken --llm-budget={self._plan.settings.budget:g} s in this run"
        said = "; ".join(filter(None, [screened.reason, said]))
        return replace(screened, reason=said, remedy="raise --llm-budget, or run this test alone")

    def _explained(self, found: Verdict, screened: Verdict) -> Verdict:
        """A verdict beside base, with what the stored baseline had said otherwise."""
        if found.outcome is Outcome.OK and screened.suspicious:
            slower = rule.change_of(screened.ratio)
            return replace(found, reason=f"{slower} than the baseline, but not than base: the machine is slower")
        if found.outcome is Outcome.INCONCLUSIVE:
            return replace(found, remedy=QUIETER)
        return found


def disturbed(measured: Sequence[Measurement]) -> str | None:
    """Why processes tell too little: others used the machine, or the figures were still changing; None if they do."""
    unsettled = sum(not one.settled for one in measured)
    if unsettled:
        return f"the figures of {unsettled} of {len(measured)} processes never settled"
    affected = [one for one in measured if not one.clean]
    if not affected:
        return None
    of = f"{len(affected)} of {len(measured)} processes" if len(measured) > 1 else "the process"
    return f"too few samples of {of} were undisturbed: {affected[0].culprit}"


NAMED = 3  #: Changed versions that a reason names.


def changes(recorded: Mapping[str, str], now: Mapping[str, str]) -> str:
    """The distributions whose versions differ, the first few by name; empty if none does.

    What was installed in place from files that differed from their revision is never the same.
    """
    found = []
    for name in sorted(recorded.keys() | now.keys()):
        old, new = recorded.get(name, "missing"), now.get(name, "missing")
        if old != new:
            found.append(f"{name} {old} -> {new}")
        elif new.endswith("+)"):
            found.append(f"{name} {new}, whose files differ from that revision")
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return ", ".join(found[:NAMED]) + more


def _in_seconds(relative: Interval, scale: float) -> Interval:
    """An interval of figures over the reference's, with these in seconds again and enough processes to fail."""
    return replace(relative, head=relative.head * scale, baseline=relative.baseline * scale, enough=True)


def _smaller(absolute: Verdict, relative: Verdict) -> Verdict:
    """The smaller slowdown or gain of the two. Where one is slower and the other faster, neither is said."""
    least, most = sorted((absolute, relative), key=lambda one: one.ratio)
    if least.outcome is not Outcome.FASTER:
        return least
    return replace(most, outcome=Outcome.INCONCLUSIVE) if most.outcome is Outcome.REGRESSION else most
