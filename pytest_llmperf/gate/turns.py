"""How two processes take turns: step by step where both can wait, else generation by generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from pytest_llmperf.cases import Workload
from pytest_llmperf.gate.pairs import Block
from pytest_llmperf.machine import fitness
from pytest_llmperf.measure.process import ALL_EARLY, MOST_EARLY, Sample, generate, sample_of
from pytest_llmperf.measure.trace import TraceError
from pytest_llmperf.measure.worker_pool import Side, no_room_for_both
from pytest_llmperf.measure.worker_process import SameCodeError, WorkerError, unable
from pytest_llmperf.prompts import Generation

#: Generations that each process makes before its turns begin: the first pays for compilation, tuning and caches.
WARM_UP = 2


@dataclass(frozen=True)
class Turn:
    """Samples of two arms next to each other in time.

    In step: one generation of each, which compute their steps in turns. If an engine cannot be paused: whole
    generations of base, head, head, base, or the other way round. Both have the same prompts, new ones in each
    generation.

    Attributes:
        samples: of each arm, by its name, in the order taken.
        culprit: what disturbed one of them; None if nothing did.
        in_step: whether they were generated in step.
    """

    samples: Mapping[str, tuple[Sample, ...]]
    culprit: str | None
    in_step: bool = False

    @classmethod
    def of(cls, samples: Mapping[str, Sequence[Sample]], in_step: bool = False) -> Turn:
        """A turn, judged by itself: a clock that is low in all of it disturbs no comparison.

        Canaries and meetings of threads are not judged. When a neighbour on a core's other hardware thread came and
        went, they ruled out more than half of the turns, and two or three pairs of four were left. Changes within a
        turn are left to the statistics, which see them in how pairs differ.
        """
        records = [replace(sample.fitness, canaries=None, barriers=None) for arm in samples.values() for sample in arm]
        culprit = next(filter(None, fitness.culprits(records)), None)
        return cls({name: tuple(arm) for name, arm in samples.items()}, culprit, in_step)

    def block(self, metric: str, base: str, head: str) -> Block:
        """The best of each arm: a neighbour makes a sample slower, never faster."""
        best = [min(sample.trace.metric(metric) for sample in self.samples[arm]) for arm in (base, head)]
        return Block(*best)


class Turns:
    """Two processes of one workload.

    Args:
        arms: how to ask ``base`` and the others. Several of the others may be one process.
        workload: what is generated.
        generations: the prompts of each generation.
        progress: told what is being done.

    Attributes:
        kinds: how many turns `take` takes: one for each arm beside base.
    """

    def __init__(
        self,
        arms: Mapping[str, Side],
        workload: Workload,
        generations: Iterator[Generation],
        progress: Callable[[str], None],
    ) -> None:
        self._arms = arms
        self._workload = workload
        self._generations = generations
        self._progress = progress
        self._made = 0
        self._pausable = all(side.pausable for side in arms.values())
        # Arms of one process take no turn together: it would have the same prompts twice.
        self._pairings = [("base", name) for name in arms if name != "base"]
        self.kinds = len(self._pairings)

    def warm_up(self) -> None:
        """Generations that do not count. Raises as `take`."""
        for name in self._arms:
            for _ in range(WARM_UP):
                self._sample(name, next(self._generations))
        for name in ("base", "head"):
            with self._side(name) as side:  # its code is loaded by now
                side.check_code()

    def take(self, base_first: bool) -> list[Turn]:
        """A turn of each kind.

        Raises:
            BaseUnableError: base failed.
            WorkerError, TraceError: head did.
        """
        turns = []
        for arms in self._pairings:
            order = arms if base_first else arms[::-1]
            turns.append(Turn.of(self._samples(*order), self._pausable))
        return turns

    def prove(self) -> dict[str, dict[str, Any]]:
        """Check that the optimization ran in both. Returns the evidence of each. Raises as `take`."""
        evidence = {}
        for name in ("base", "head"):  # a base that fell back to a slow path would hide a slowdown of head
            self._progress(f"{name}: proving that the optimization ran")
            with self._side(name) as side:
                evidence[name] = side.prove()
        return evidence

    @contextmanager
    def _side(self, name: str) -> Iterator[Side]:
        """How to ask an arm. What fails meanwhile is this arm's failure."""
        try:
            yield self._arms[name]
        except (WorkerError, TraceError) as error:
            if lost := no_room_for_both(error):
                raise lost from error
            if name != "base" or isinstance(error, SameCodeError):
                raise
            raise unable(error) from error

    def _sample(self, name: str, generation: Generation) -> Sample:
        self._made += 1
        self._progress(f"{name}: generation {self._made}")
        with self._side(name) as side:
            return generate(side, self._workload, generation)

    def _samples(self, first: str, second: str) -> dict[str, list[Sample]]:
        """Generations of both in turns; others if one of them ends early."""
        for _ in range(MOST_EARLY):
            samples = self._in_step(first, second) if self._pausable else self._whole(first, second)
            if not any(sample.early for arm in samples.values() for sample in arm):
                return samples
        raise TraceError(ALL_EARLY)

    def _whole(self, first: str, second: str) -> dict[str, list[Sample]]:
        """Two generations of each: in this order, then the other way round."""
        samples: dict[str, list[Sample]] = {first: [], second: []}
        for order in ((first, second), (second, first)):
            generation = next(self._generations)
            for name in order:
                samples[name].append(self._sample(name, generation))
        return samples

    def _in_step(self, first: str, second: str) -> dict[str, list[Sample]]:
        """One generation of each: a step of the first, two of the second, two of the first, and so on."""
        self._made += 1
        self._progress(f"{first} and {second} in step: generation {self._made}")
        generation = next(self._generations)
        waiting: list[str] = []
        for name, other in ((first, second), (second, first)):
            with self._side(name) as side:
                request = {"prompts": generation.prompts, "max_new_tokens": self._workload.max_new_tokens}
                if side.begin("generate", self._arms[other], **request):
                    waiting.append(name)
        while waiting:
            waiting.reverse()
            for name in list(waiting):
                with self._side(name) as side:
                    if not side.resume("generate"):
                        waiting.remove(name)
        samples = {}
        for name in (first, second):
            with self._side(name) as side:
                samples[name] = [sample_of(side.answer("generate"), self._workload, generation.number)]
        return samples
