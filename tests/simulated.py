"""An engine whose token times are scripted: no model, no sleeping, milliseconds a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from pytest_llmperf import Engagement, Observation, Score
from pytest_llmperf.machine import health
from pytest_llmperf.machine import memory as meters
from pytest_llmperf.machine.fitness import Barrier, Fitness
from pytest_llmperf.worker import recorder, watch

MIB = 2**20
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


class Scripted:
    """A `Meter` that says what a script says, without a generation."""

    def __init__(self, weights: int, memory: int) -> None:
        self._took = meters.Memory(weights, weights + memory)

    def begin(self) -> None:
        pass

    def end(self, alone: bool) -> None:
        pass

    def of(self, generate: Callable[[], None]) -> meters.Memory:
        return self._took


class Simulated:
    """Emits varied tokens at scripted times on a scripted clock; scores tokens as a reference would.

    ``ttft`` and ``tpot`` are seconds, or functions of the generation's number (0 is the cold one). ``fitness`` says
    of a generation's number what is seen of the machine during it. ``weights`` are bytes in use when it is loaded, and
    ``memory`` those that a generation takes beyond them.
    """

    def __init__(
        self,
        ttft: float | Callable[[int], float] = 0.100,
        tpot: float | Callable[[int], float] = 0.010,
        cold: float = 1.0,
        wrong_from: int | None = None,
        evidence: Engagement | None = None,
        fitness: Callable[[int], Fitness] | None = None,
        pausable: bool = True,
        barrier: float | None = None,
        threads: int = 2,
        weights: int = 512 * MIB,
        memory: int = 64 * MIB,
    ) -> None:
        self.pausable = pausable
        self.now = 0.0
        self.ttft, self.tpot, self.cold, self.wrong_from = ttft, tpot, cold, wrong_from
        self._evidence = evidence or Engagement(True, "scripted")
        self.generations: Iterator[int] = count()
        recorder.clock = lambda: self.now
        recorder.sleep = self.sleep
        # A generation that takes no time cannot be disturbed, but one tick of the kernel's counters would look so.
        health.snapshot = lambda _processes: health.Snapshot(0.0, 0.0, 0.0, 0.0)
        health.busiest = lambda _processes: None
        watch.canary = lambda: 0.002
        watch.barrier = lambda: None if barrier is None else Barrier(barrier, threads)
        meters.meter = lambda _engine, _device, _tp: Scripted(weights, memory)
        if fitness is not None:
            made = count()
            watch.Watch.end = lambda _watch, _before: fitness(next(made))

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def token(self, request: int, position: int) -> int:
        right = 1 + (request * 31 + position * position * 7 + position) % 997
        return right + 1 if self.wrong_from is not None and position >= self.wrong_from else right

    def generate(self, prompts: list[list[int]], max_new_tokens: int, on_token: Any) -> None:
        number = next(self.generations)
        ttft, tpot = (at(number) if callable(at) else at for at in (self.ttft, self.tpot))
        self.now += ttft + (self.cold if number == 0 else 0.0)
        for position in range(max_new_tokens):
            self.now += tpot if position else 0.0
            for request in range(len(prompts)):
                on_token(request, self.token(request, position))

    def observe(self, prompts: list[list[int]], max_new_tokens: int, leading: int) -> list[Observation]:
        return [
            Observation([self.token(request, position) for position in range(max_new_tokens)], [], [])
            for request in range(len(prompts))
        ]

    def score(self, prompts: Any, continuations: list[list[int]], candidates: Any) -> list[Score]:
        scores = []
        for row in continuations:
            requests = range(32)
            own = next(
                ([self.token(r, p) for p in range(len(row))] for r in requests if self.token(r, 0) == row[0]), []
            )
            regret = [0.0 if mine == theirs else 5.0 for mine, theirs in zip(own, row, strict=True)]
            flat = [[1.0, 0.5, 0.0]] * len(row)
            scores.append(Score(regret, [[1, 2, 3]] * len(row), flat, [[1.01, 0.5, 0.0]] * len(row)))
        return scores

    def evidence(self) -> Engagement:
        return self._evidence

    def close(self) -> None:
        pass
