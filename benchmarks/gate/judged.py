"""Recorded decisions by the present rule. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.gate.h200 import Comparison
from benchmarks.gate.records import OTHER_STATE, Decision, Trial
from pytest_llmperf.gate import pairs, rule, stored
from pytest_llmperf.gate.pairs import Pairs
from pytest_llmperf.gate.priors import CPU, Prior, prior_of
from pytest_llmperf.gate.rule import Outcome, Verdict

#: The tolerance on an accelerator where nobody states one.
ON_H200 = 0.05


@dataclass(frozen=True)
class Judged:
    """A recorded decision by the present rule.

    Attributes:
        verdict: beside base, or of the screening.
        tolerance: the slowdown that was allowed.
        fresh: the verdict of three fresh processes; None where there were fewer, or the machine was disturbed.
        decision: what was recorded; None on the H200.
    """

    verdict: Verdict
    tolerance: float
    fresh: Verdict | None = None
    decision: Decision | None = None

    @property
    def slowed(self) -> bool:
        """Whether head was slower than base by what the trial added."""
        return self.decision is not None and self.decision.slowed

    @property
    def compared(self) -> bool:
        """Whether the default flow would compare the screened case in pairs."""
        return self.verdict.suspicious or self.verdict.questionable or self.verdict.other_state

    @property
    def right(self) -> bool:
        """Whether an ``ok`` excludes a slowdown of the tolerance."""
        return self.verdict.outcome is not Outcome.OK or self.verdict.not_excluded < self.tolerance


def beside(found: Pairs, tolerance: float) -> Verdict:
    """The verdict of recorded pairs, looked at after each one until it is final."""
    verdict = replace(rule.nothing(Outcome.INCONCLUSIVE, "too few undisturbed pairs"), basis="base")
    for count in range(2, len(found) + 1):
        verdict, final = pairs.compare(found[:count], tolerance)
        if final:
            break
    return verdict


def screen(sitting: Sequence[float], head: float, prior: Prior, tolerance: float, other_state: bool = False) -> Verdict:
    """The verdict of one process against one sitting; inconclusive if the machine was in another state."""
    verdict = rule.decide(stored.interval([sitting], [head], prior), tolerance)
    return replace(verdict, outcome=Outcome.INCONCLUSIVE, other_state=True) if other_state else verdict


def by_fresh(
    sitting: Sequence[float],
    head: Sequence[float],
    prior: Prior,
    tolerance: float,
    over: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Verdict:
    """The verdict of fresh processes, which may be a regression.

    Args:
        sitting: the figures of the baseline's processes.
        head: those of head's.
        prior: how much sittings differ.
        tolerance: the slowdown allowed.
        over: the reference's processes in the sitting and beside head. Of the absolute slowdown and the one over the
            reference the smaller counts.
    """
    found = [stored.interval([sitting], head, prior)]
    if over is not None:
        scale = stored.centre(over[1])
        rows = [stored.over_reference(figures, beside) for figures, beside in zip((sitting, head), over, strict=True)]
        relative = stored.interval(rows[:1], rows[1], prior)
        found.append(replace(relative, head=relative.head * scale, baseline=relative.baseline * scale))
    nearest = min(found, key=lambda one: one.ratio)
    return rule.decide(replace(nearest, enough=True), tolerance)


def trial(recorded: Trial) -> list[Judged]:
    """Every decision of a trial."""
    return [(by_sitting if recorded.stored else by_pairs)(one) for one in recorded.decisions()]


def by_pairs(decision: Decision) -> Judged:
    """A decision beside base."""
    return Judged(beside(decision.pairs, decision.tolerance), decision.tolerance, decision=decision)


def by_sitting(decision: Decision) -> Judged:
    """A decision by a stored baseline of one sitting, on a CPU."""
    sitting, head = decision.processes("base"), decision.processes("head")
    verdict = screen(sitting, head[0], CPU, decision.tolerance, decision.flag == OTHER_STATE)
    fresh = None
    if len(head) >= stored.FEWEST_TO_FAIL and decision.flag is None:
        over = ([1.0], [decision.drift]) if decision.drift else None
        fresh = by_fresh(sitting, head[-stored.FEWEST_TO_FAIL :], CPU, decision.tolerance, over)
    return Judged(verdict, decision.tolerance, fresh, decision)


def on_h200(found: Comparison) -> Judged:
    """A later sitting by an earlier one. Nobody recorded whether the machine was in the same state."""
    prior = prior_of("cuda", found.metric)
    fresh = None
    if len(found.head) >= stored.FEWEST_TO_FAIL:
        fresh = by_fresh(found.sitting, found.head[: stored.FEWEST_TO_FAIL], prior, ON_H200, found.over)
    return Judged(screen(found.sitting, found.head[0], prior, ON_H200), ON_H200, fresh)
