"""What an update does to a case's baseline: old, new, and whether the change is more than noise. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_llmperf.cases import Case
from pytest_llmperf.gate.verdict import LARGE, Invocations, centre, noise_floor
from pytest_llmperf.machine.fitness import Barrier


@dataclass(frozen=True)
class Change:
    """A case's newest set of invocations against those accepted before on this machine.

    Attributes:
        case: which.
        old: the centre of the set before, in the metric's unit; None for a case that is new.
        new: the centre of the newest set.
        noise: the noise floor of the sets before, a fraction; 0 without any.
        resolution: the smallest slowdown, a fraction, that the gate can detect against the new entry: the largest of
            the case's tolerance, its noise floor and what never counts; None for a metric that is never gated.
        tolerance: the slowdown allowed, a fraction; None for a metric that is never gated.
        slower: whether the newest set is slower than the gate would have allowed.
        doubt: why the machine may be slower than it was for the set before, so that figures of it hide slowdowns.
        barrier: of the newest set, which was compared with those of its state.
    """

    case: Case
    old: float | None
    new: float
    noise: float
    resolution: float | None
    tolerance: float | None
    slower: bool
    doubt: str | None = None
    barrier: Barrier | None = None

    @property
    def ratio(self) -> float | None:
        """New over old: 1.07 is 7 % slower."""
        return None if self.old is None else self.new / self.old

    @property
    def questionable(self) -> bool:
        """Whether a gated case became faster by more than can be taken on trust, as `Verdict.questionable`."""
        return self.resolution is not None and self.ratio is not None and self.ratio < 1 - LARGE

    @property
    def beyond_noise(self) -> bool:
        """Whether the centre moved, up or down, by more than the noise floor."""
        return self.old is not None and max(self.new, self.old) > min(self.new, self.old) * (1 + self.noise)


def change(
    case: Case, before: Sequence[Invocations], newest: Invocations, tolerance: float | None, floor: float
) -> Change:
    """What accepting a set changes.

    Args:
        case: which.
        before: the sets of this machine, newest first.
        newest: the set to accept.
        tolerance: the slowdown allowed, a fraction; None for a metric that is never gated.
        floor: the slowdown in seconds that never counts.
    """
    new = centre(newest)
    old = centre(before[0]) if before else None
    noise = noise_floor(before[0], before[1:]) if before else 0.0
    if tolerance is None:
        return Change(case, old, new, noise, None, None, slower=False)
    slower = old is not None and new > old * (1 + max(tolerance, noise)) and new - old > floor
    resolution = max(tolerance, noise_floor(newest, before), floor / new)
    return Change(case, old, new, noise, resolution, tolerance, slower)
