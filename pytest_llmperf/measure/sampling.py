"""Which generations count: where warm-up ends, which are discarded as contaminated, and when there are enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Generic, TypeVar

T = TypeVar("T")

#: A generation this much slower than the median of those after it still belongs to the warm-up.
SETTLED = 1.10


@dataclass(frozen=True)
class Bounds:
    """How many generations one process makes of a workload.

    Contaminated generations are replaced, until as many were discarded as would be enough samples.

    Attributes:
        minimum: samples at least, whatever they cost.
        maximum: samples at most.
        budget: seconds of samples after which no further one is begun.
        warm_up: generations that may be discarded before the figures count as never having settled.
    """

    minimum: int
    maximum: int
    budget: float
    warm_up: int = 6

    def enough(self, latencies: Sequence[float]) -> bool:
        """Whether these samples are enough. The same bound holds for discarded ones."""
        count = len(latencies)
        return count >= self.minimum and (count >= self.maximum or sum(latencies) >= self.budget)


@dataclass(frozen=True)
class Samples(Generic[T]):
    """What a process generated, in order: the warm-up, then the steady state.

    Attributes:
        warm_up: generations that do not count, since the figures had not settled.
        steady: the generations after it, each with the reason why it is contaminated, or None.
        settled: whether the figures settled at all.
        clean: whether enough of them are not contaminated. Then the contaminated ones are discarded, else all are kept.
    """

    warm_up: tuple[T, ...]
    steady: tuple[tuple[T, str | None], ...]
    settled: bool
    clean: bool

    @property
    def kept(self) -> tuple[tuple[T, str | None], ...]:
        return tuple((one, culprit) for one, culprit in self.steady if culprit is None or not self.clean)

    @property
    def discarded(self) -> tuple[tuple[T, str | None], ...]:
        return tuple((one, culprit) for one, culprit in self.steady if culprit is not None and self.clean)


def settled_from(latencies: Sequence[float]) -> int:
    """Index of the first generation that belongs to the steady state; always at least 1.

    The first generation of a shape is never steady (compilation, tuning, caches). A later one is still warm-up while
    it is more than 10 % slower than the median of those that follow it. So the generations that show that the figures
    have settled are samples too.
    """
    index = 1
    while index < len(latencies) - 1 and latencies[index] > SETTLED * median(latencies[index + 1 :]):
        index += 1
    return index


def collect(
    generate: Callable[[], T],
    latency: Callable[[T], float],
    culprits: Callable[[Sequence[T]], Sequence[str | None]],
    plan: Bounds,
) -> Samples[T]:
    """Generate until there are enough settled samples without contamination, or the bounds are reached.

    A generation is discarded for its culprit, never for its latency: that would make slow code look fast. Contaminated
    generations do not decide where warm-up ends, since a disturbance is no warm-up.

    Args:
        generate: makes one generation.
        latency: its duration in seconds.
        culprits: why each of the generations so far is contaminated, or None.
        plan: when to stop.
    """
    made: list[T] = []
    while True:
        made.append(generate())
        found = culprits(made)
        calm = [index for index, culprit in enumerate(found) if culprit is None or index == 0]  # 0 never counts anyway
        latencies = [latency(made[index]) for index in calm]
        spent = [latency(made[index]) for index, culprit in enumerate(found) if culprit is not None and index]
        start = settled_from(latencies)
        if plan.enough(latencies[start:]):
            return _samples(made, found, calm[start], settled=True, clean=True)
        if len(calm) >= plan.warm_up + plan.maximum:
            return _samples(made, found, calm[plan.warm_up], settled=False, clean=True)
        if plan.enough(spent):
            if len(calm) - start >= plan.minimum:
                return _samples(made, found, calm[start], settled=True, clean=True)
            first = settled_from([latency(one) for one in made])
            if len(made) - first >= plan.minimum:
                return _samples(made, found, first, settled=True, clean=False)
            if len(made) >= plan.warm_up + plan.maximum:
                return _samples(made, found, plan.warm_up, settled=False, clean=False)


def _samples(
    made: Sequence[T], culprits: Sequence[str | None], first: int, *, settled: bool, clean: bool
) -> Samples[T]:
    """The generations as `Samples`. Those from ``first`` on are steady."""
    steady = tuple(zip(made[first:], culprits[first:], strict=True))
    return Samples(tuple(made[:first]), steady, settled, clean)
