"""Judges a case: screens it against the stored baseline, and compares it beside base where that settles too little.

1. `Judge.screen`: the interval of the stored sittings, if this machine is in the state in which they were recorded.
2. `Judge.base_of`: the code to compare with: ``--llm-base``, or the code that recorded the baseline.
3. `Beside.compare`: pairs of fresh processes of base and head, in turns.
4. `Judge._by_fresh_processes`: where base cannot be had, fresh processes in turns with the reference's.

Every interval goes through `rule.decide`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from time import monotonic
from typing import TYPE_CHECKING

from pytest_llmperf.cases import METRICS
from pytest_llmperf.gate import checkout, rule, stored
from pytest_llmperf.gate.checkout import Base, BaseError
from pytest_llmperf.gate.rule import Interval, Outcome, Verdict
from pytest_llmperf.machine.rates import difference, moved, other_limits
from pytest_llmperf.measure.process import disturbed
from pytest_llmperf.measure.worker_process import SameCodeError

if TYPE_CHECKING:
    from pytest_llmperf.cases import Case, Metric
    from pytest_llmperf.gate.baseline import Entry, Sitting
    from pytest_llmperf.gate.beside import Beside
    from pytest_llmperf.machine.rates import Machine
    from pytest_llmperf.measure.measurements import Measurements
    from pytest_llmperf.measure.process import Measurement
    from pytest_llmperf.plan import Allowed, Plan

RECORD = "accept the figures with --llm-update-baselines"
COMPARE = "run with --llm-compare=unresolved"
SITTING = "record another sitting of the baseline's code, with --llm-update-baselines at its revision"
ANOTHER = "name another revision with --llm-base, or leave it out"
QUIETER = "run this test alone on a quieter machine, with --llm-compare=always"
OTHER_STATE = "this machine is not in the state in which the baseline was recorded"
CHANGED = "the machine changed meanwhile"
NOTHING = "the worker imports nothing of this repository"
SAME = "are those of the baseline: it is the machine"


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
        """
        screened = self.screen(case, first, allowed.usual)
        if not self._compares(case, screened):
            return screened
        base = self.base_of(case, screened)
        if isinstance(base, Verdict):
            return base
        alone = self._plan.base is None and screened.compared and not screened.other_state
        if alone and not METRICS[case.metric].timed:
            found = self._by_themselves(case, screened, allowed.stored)
            if found.outcome is not Outcome.INCONCLUSIVE or isinstance(base, str):
                return found
        if isinstance(base, str):
            return self._by_fresh_processes(case, screened, allowed.stored, base)
        if self.time_is_up and not self._beside.begun(case, base):
            return self._out_of_time(screened)
        try:
            found = self._beside.compare(case, base, allowed.usual)
        except SameCodeError:
            return self._unchanged(case, screened, f"{NOTHING}, and versions {SAME}")
        except BaseError as error:
            return self._by_fresh_processes(case, screened, allowed.stored, str(error))
        if found.basis != "base" and self._plan.own(case):  # a base that broke is no reason to let a slowdown pass
            return self._by_fresh_processes(case, screened, allowed.stored, found.reason)
        return self._explained(found, screened, base, METRICS[case.metric])

    # The stored baseline

    def screen(self, case: Case, first: Measurement, tolerance: float) -> Verdict:
        """What one process says against the stored baseline; never a regression."""
        own = self._plan.own(case)
        if not own:
            return rule.nothing(Outcome.NO_BASELINE, self._no_baseline(case), RECORD)
        metric = METRICS[case.metric]
        alike = self._in_this_state(own, first, metric)
        figures = [median(first.figures(case.metric))]
        found = self._decided(case, alike or own, figures, tolerance)
        if not alike:
            state = f"{OTHER_STATE}: {self._state(own[0], first, metric)}"
            return replace(found, outcome=Outcome.INCONCLUSIVE, reason=state, remedy=COMPARE, other_state=True)
        if found.outcome is Outcome.FASTER and metric.timed and (doubt := disturbed([first])):
            faster = f"{rule.change_of(found.ratio)} than the baseline in 1 process"
            return replace(found, outcome=Outcome.INCONCLUSIVE, reason=f"{faster}, but {doubt}", remedy=QUIETER)
        return found if found.outcome is not Outcome.INCONCLUSIVE else replace(found, remedy=COMPARE)

    def _no_baseline(self, case: Case) -> str:
        held = self._plan.stored
        if held is None:
            return f"{self._plan.shown_path} does not exist"
        others = held.entries.get(case.key, ())
        if not others:
            return "this case is new to the baseline"
        differs = self._machine.fingerprint.difference(held.sitting(others[0]).fingerprint)
        return f"the baseline is of another machine; here {differs[0]}"

    def _in_this_state(self, entries: Sequence[Entry], first: Measurement, metric: Metric) -> list[Entry]:
        """The entries whose sitting was recorded while the machine was as it is now."""
        return [one for one in entries if self._state(one, first, metric) is None]

    def _state(self, entry: Entry, measured: Measurement, metric: Metric) -> str | None:
        """How the machine differs from its state in an entry's sitting, in a clause; None if it does not."""
        sitting = self._plan.sitting(entry)
        # A variable of the backend that changed is a change of its code, and the threads may follow from it.
        comparable = self._plan.same_variables(measured.backend, sitting)
        now = {**self._machine.limits, "threads": measured.threads if comparable else None}
        if not metric.timed:  # however fast it is; but engines that have room for other cases keep other memory
            return other_limits(now, sitting.system) or self._plan.other_cases(measured.backend, sitting)
        return (
            other_limits(now, sitting.system)
            or measured.over_quota  # before the host is blamed, since threads that are stopped meet late
            or moved(measured.barrier, entry.barrier)
            or self._machine.differs(sitting.rates)
        )

    def _decided(
        self, case: Case, entries: Sequence[Entry], figures: Sequence[float], tolerance: float, enough: bool = False
    ) -> Verdict:
        """The rule on the stored interval."""
        found = stored.interval([one.processes for one in entries], figures, self._plan.prior(case))
        return rule.decide(replace(found, enough=enough), tolerance, METRICS[case.metric])

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
        asked = which == "unresolved" or self._plan.base is not None
        return asked and screened.outcome not in (Outcome.OK, Outcome.FASTER)

    def base_of(self, case: Case, screened: Verdict) -> Base | str | Verdict:
        """The code to compare a case with; why there is none; or the verdict, where the code has not changed."""
        plan = self._plan
        if plan.attached(plan.registry[case.backend]):
            return "a server that runs already answers both base and head"
        if plan.base is not None and plan.base_is_head:
            head = f"base, {plan.base}, is head, so nothing is compared with it"
            return self._unchanged(case, screened, head, ANOTHER)
        if plan.base is not None:
            return plan.base
        sitting = self._recorded_by(case)
        if sitting is None:
            return "no baseline names a revision"
        if sitting.revision is None:
            return "the baseline names no revision: files were changed when it was recorded, or its file is old"
        if changed := plan.changed(case.backend, sitting):
            return f"versions differ from the baseline's ({changed})"
        if plan.is_at(sitting.revision):
            return self._unchanged(case, screened, f"code and versions {SAME}")
        base = checkout.recorded(sitting.revision, plan.root)
        return base or f"git does not have {sitting.revision[:12]}, which recorded the baseline (a shallow clone?)"

    def _recorded_by(self, case: Case) -> Sitting | None:
        """The newest sitting of a case that names a revision, else the newest: this machine's, else another one's."""
        held = self._plan.stored
        if held is None:
            return None
        entries = self._plan.own(case) or held.entries.get(case.key, ())
        sittings = (held.sitting(one) for one in entries)
        return max(sittings, key=lambda one: (one.revision is not None, one.recorded), default=None)

    def _unchanged(self, case: Case, screened: Verdict, why: str, remedy: str = SITTING) -> Verdict:
        """The verdict of code that has not changed, which cannot have regressed. ``why`` says what has not changed."""
        if screened.outcome in (Outcome.OK, Outcome.NO_BASELINE):
            return screened
        said = [screened.reason if screened.other_state else "", why]
        if screened.not_excluded:
            said.append(f"{METRICS[case.metric].growth} of {screened.not_excluded:.1%} cannot be excluded")
        return replace(screened, outcome=Outcome.INCONCLUSIVE, reason="; ".join(filter(None, said)), remedy=remedy)

    # Where base cannot be had, or is not needed

    def _by_themselves(self, case: Case, screened: Verdict, tolerance: float, why_not: str = "") -> Verdict:
        """Judge bytes by fresh processes against the stored figures. No slow machine is in them."""
        if self.time_is_up:
            return self._out_of_time(screened)
        began, metric = monotonic(), METRICS[case.metric]
        made = self._measurements.as_sitting(case.backend, case.workload, stored.FEWEST_TO_FAIL)
        self._fresh_seconds += monotonic() - began
        entries = [one for one in self._plan.own(case) if all(self._state(one, each, metric) is None for each in made)]
        if not entries:
            return replace(screened, outcome=Outcome.INCONCLUSIVE, reason=CHANGED, remedy=QUIETER)
        figures = [median(one.figures(case.metric)) for one in made]
        found = self._decided(case, entries, figures, tolerance, enough=True)
        reason = "; ".join(filter(None, [found.reason, why_not]))
        return replace(found, reason=reason, remedy=SITTING if found.outcome is Outcome.INCONCLUSIVE else "")

    def _by_fresh_processes(self, case: Case, screened: Verdict, tolerance: float, why: str) -> Verdict:
        """Judge a case by fresh processes in turns with the reference's, against the stored figures.

        Where the baseline has the reference, the smaller change counts: in absolute terms, or over the reference. What
        changes both is the machine. Without the reference and without rates, nothing tells the machine from the code.
        """
        plan, reference = self._plan, self._plan.settings.reference
        why_not = f"base cannot be had: {why}"
        if screened.other_state or screened.outcome is Outcome.NO_BASELINE:
            remedy = SITTING if screened.other_state else screened.remedy
            return replace(screened, reason=f"{screened.reason}; {why_not}", remedy=remedy)
        if not METRICS[case.metric].timed:
            return self._by_themselves(case, screened, tolerance, why_not)
        if self.time_is_up:
            return self._out_of_time(screened)
        entries = plan.own(case)
        # A backend with an interpreter or devices of its own has another sitting of the same moment.
        of_reference = {plan.sitting(one).recorded: one for one in plan.own(replace(case, backend=reference))}
        beside = case.backend != reference and all(plan.sitting(one).recorded in of_reference for one in entries)
        began = monotonic()
        made, others = self._measurements.in_turns(
            case.backend, case.workload, reference if beside else None, stored.FEWEST_TO_FAIL, case.start
        )
        look = self._machine.measure()  # a host that became busy meanwhile shows in no later look of this run
        self._fresh_seconds += monotonic() - began
        entries = [
            one
            for one in entries
            if difference(look, plan.sitting(one).rates) is None
            and all(self._state(one, measured, METRICS[case.metric]) is None for measured in made)
        ]
        doubt = disturbed([*made, *others]) or ("" if entries else CHANGED)
        if doubt:
            reason = "; ".join(filter(None, [screened.reason, why_not, doubt]))
            return replace(screened, outcome=Outcome.INCONCLUSIVE, reason=reason, remedy=QUIETER)
        figures, over = ([median(one.figures(case.metric)) for one in row] for row in (made, others))
        told = beside or all(plan.sitting(one).rates.keys() & self._machine.rates.keys() for one in entries)
        found = self._decided(case, entries, figures, tolerance, enough=told)
        if found.outcome is Outcome.INCONCLUSIVE and not told:
            why_not += "; the baseline has nothing that tells slow code from a slow machine"
        if beside:
            scale = stored.centre(over)
            theirs = [of_reference[plan.sitting(one).recorded].processes for one in entries]
            relative = stored.interval(
                [stored.over_reference(one.processes, other) for one, other in zip(entries, theirs, strict=True)],
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

    def _explained(self, found: Verdict, screened: Verdict, base: Base, metric: Metric) -> Verdict:
        """A verdict beside base, with the base, and where the stored baseline had said otherwise."""
        if found.outcome is Outcome.REGRESSION:
            return replace(found, reason=f"{found.reason}; base is {base}")
        if found.outcome is Outcome.OK and screened.suspicious:
            slower = f"{rule.change_of(screened.ratio, metric)} than the baseline, but not than base"
            return replace(found, reason=f"{slower}: the machine is {'slower' if metric.timed else 'another'}")
        if found.outcome is Outcome.INCONCLUSIVE:
            return replace(found, remedy=QUIETER)
        return found


def _in_seconds(relative: Interval, scale: float) -> Interval:
    """An interval of figures over the reference's, with these in seconds again and enough processes to fail."""
    return replace(relative, head=relative.head * scale, baseline=relative.baseline * scale, enough=True)


def _smaller(absolute: Verdict, relative: Verdict) -> Verdict:
    """The smaller slowdown or gain of the two; inconclusive where only one is ok, or one is slower and one faster."""
    least, most = sorted((absolute, relative), key=lambda one: one.ratio)
    if least.outcome is Outcome.OK and most.outcome is not Outcome.OK:
        beside = "and so is the reference" if most is absolute else "but the reference is faster"
        said = f"{rule.change_of(absolute.ratio)} than the baseline, {beside}: the machine, or both"
        return replace(absolute, outcome=Outcome.INCONCLUSIVE, reason=said)
    if least.outcome is not Outcome.FASTER:
        return least
    return replace(most, outcome=Outcome.INCONCLUSIVE) if most.outcome is Outcome.REGRESSION else most
