"""Which generations count: where warm-up ends, and when there are enough samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Generic, TypeVar

T = TypeVar("T")

#: A generation this much slower than the median of those after it still belongs to the warm-up.
SETTLED = 1.10


@dataclass(frozen=True)
class Plan:
    """How many generations one process makes of a workload.

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


@dataclass(frozen=True)
class Samples(Generic[T]):
    """What a process generated: first the discarded warm-up, then the samples, in order."""

    warm_up: tuple[T, ...]
    kept: tuple[T, ...]
    settled: bool


def settled_from(latencies: Sequence[float]) -> int:
    """Index of the first generation that belongs to the steady state; always at least 1.

    The first generation of a shape is never steady (compilation, tuning, caches). A later one is still warm-up while
    it is more than 10 % slower than the median of those that follow it, so nothing is spent on generations whose only
    use is to tell that the figures have settled.
    """
    index = 1
    while index < len(latencies) - 1 and latencies[index] > SETTLED * median(latencies[index + 1 :]):
        index += 1
    return index


def collect(generate: Callable[[], T], latency: Callable[[T], float], plan: Plan) -> Samples[T]:
    """Generate until there are enough settled samples.

    Args:
        generate: makes one generation.
        latency: its duration in seconds.
        plan: when to stop.
    """
    made: list[T] = []
    while True:
        made.append(generate())
        latencies = [latency(one) for one in made]
        start = settled_from(latencies)
        kept = len(made) - start
        if kept >= plan.minimum and (kept >= plan.maximum or sum(latencies[start:]) >= plan.budget):
            return Samples(tuple(made[:start]), tuple(made[start:]), settled=True)
        if len(made) >= plan.warm_up + plan.maximum:
            return Samples(tuple(made[: plan.warm_up]), tuple(made[plan.warm_up :]), settled=False)
