"""One process measuring one workload: warm-up, samples, and the proof that the optimization ran."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import Any

from pytest_llmperf.backends.base import RequestStatistics
from pytest_llmperf.cases import METRICS, STARTS, Workload
from pytest_llmperf.explain.profiles import PHASES, Profile, parse
from pytest_llmperf.machine import fitness
from pytest_llmperf.machine.fitness import Barrier, Fitness
from pytest_llmperf.machine.memory import Memory
from pytest_llmperf.measure import sampling, trace
from pytest_llmperf.measure.trace import Trace
from pytest_llmperf.prompts import Generation

#: Generations that may end early, one after another. Where one request in ten does, a batch of 8 does half the time.
MOST_EARLY = 32
#: Why nothing is known of the memory of an older base.
OLDER = "its worker is of a version of pytest-llmperf that does not read its memory"
UNASKED = "it was not asked for"
#: What is said of more of them.
ALL_EARLY = (
    f"{MOST_EARLY} generations one after another ended with an end-of-sequence token; lower --llm-max-new-tokens"
)


class MemoryUnknownError(ValueError):
    """What a generation took of memory cannot be read; one line says why."""


@dataclass(frozen=True)
class Sample:
    """One timed generation: its trace, and what else the machine did meanwhile.

    ``statistics`` is what the engine says of each request itself; empty where it keeps none. ``culprit`` is why the
    sample is contaminated; None if it is not. ``texts`` are the tokens of each request as text, where their ids are
    unknown; empty where they are known. ``generation`` is which generation of the backend in this run it was, and so
    says which prompts it had. ``early`` is whether a request ended with an end-of-sequence token before it had all
    tokens: then the sample has no figures.
    """

    trace: Trace
    fitness: Fitness
    statistics: tuple[RequestStatistics, ...] = ()
    culprit: str | None = None
    texts: tuple[str, ...] = ()
    generation: int = 0
    early: bool = False


@dataclass(frozen=True)
class Measurement:
    """An invocation: what one fresh process measured of one workload.

    Attributes:
        load: seconds from the request to load until the engine was ready, imports included.
        warm_up: the generations before the figures settled; the first pays for compilation, tuning and caches.
        samples: the generations that count.
        settled: whether the figures settled before the samples began.
        engagement: what was seen of the optimization.
        discarded: contaminated generations that were replaced.
        early: generations that ended early and were replaced. Only parity looks at them.
        clean: whether enough generations were not contaminated. If not, contaminated ones are among the samples.
        profile: what the prefill and a decode step spent their time on; empty where the engine does not say.
        start: seconds by part, of a process that was started for its own sake; empty of any other.
        memory: what one more generation took; a line that says why, where nobody knows.
    """

    backend: str
    workload: Workload
    load: float
    warm_up: tuple[Trace, ...]
    samples: tuple[Sample, ...]
    settled: bool
    engagement: Mapping[str, Any]
    discarded: tuple[Sample, ...] = ()
    clean: bool = True
    early: tuple[Sample, ...] = ()
    profile: Profile = field(default_factory=dict)
    start: Mapping[str, float] = field(default_factory=dict)
    memory: Memory | str = UNASKED

    @property
    def compile_time(self) -> float:
        """Seconds that this shape's first generation took beyond a settled one: compilation, tuning, filling caches."""
        return max(0.0, self.warm_up[0].latency - median(self.figures("latency")))

    def figures(self, metric: str) -> list[float]:
        """The figures of a metric, in its unit: of each sample, or the one of a metric that a process has once.

        Raises:
            MemoryUnknownError: nobody knows it; one line says why.
        """
        if metric in STARTS:
            return [sum(self.start.values())]
        if not METRICS[metric].timed:
            return [bytes_of(self.memory, metric)]
        return [sample.trace.metric(metric) for sample in self.samples]

    @property
    def threads(self) -> int | None:
        """In how many threads the engine computed on a CPU; None where nobody knows."""
        return self.engagement.get("threads")

    @property
    def contamination(self) -> float:
        """Fraction of the generations after the warm-up that were contaminated."""
        return fmean(one.culprit is not None for one in (*self.samples, *self.discarded))

    @property
    def culprit(self) -> str | None:
        """What contaminated most of the generations; of equals, the first. None if nothing did."""
        return fitness.chief(one.culprit for one in (*self.discarded, *self.samples))

    @property
    def over_quota(self) -> str | None:
        """What a CPU quota did during a sample that counts, in a clause; None if nothing."""
        return next(filter(None, (one.fitness.over_quota for one in self.samples)), None)

    @property
    def barrier(self) -> Barrier | None:
        """How long the threads that computed the samples took to meet; None where that is not known."""
        soonest = (min(one.fitness.barriers, key=_seconds) for one in self.samples if one.fitness.barriers)
        return median_barrier(soonest)


def median_barrier(barriers: Iterable[Barrier | None]) -> Barrier | None:
    """The median of the known ones, the shorter of two in the middle; None if none is known."""
    known = sorted(filter(None, barriers), key=_seconds)
    return known[(len(known) - 1) // 2] if known else None


def _seconds(barrier: Barrier) -> float:
    return barrier.seconds


def generate(ask: Callable[..., Any], workload: Workload, generation: Generation) -> Sample:
    """One generation by a loaded engine, from these prompts.

    Raises:
        WorkerError: the worker failed.
        TraceError: what came back is not what was asked for.
    """
    answer = ask("generate", prompts=generation.prompts, max_new_tokens=workload.max_new_tokens)
    return sample_of(answer, workload, generation.number)


def sample_of(answer: Mapping[str, Any], workload: Workload, generation: int) -> Sample:
    """The sample in a worker's answer to ``generate``, by the generation's number. Raises TraceError as `generate`."""
    found = trace.checked(
        answer["tokens"],
        answer["times"],
        requests=workload.batch_size,
        max_new_tokens=workload.max_new_tokens,
        ended=answer.get("ended", ()),
    )
    if "fitness" not in answer:
        raise trace.TraceError(
            "its worker is of another version of pytest-llmperf and does not say who used the machine"
        )
    statistics = tuple(RequestStatistics(**one) for one in answer["statistics"])
    return Sample(
        found,
        fitness.parse(answer["fitness"]),
        statistics,
        texts=tuple(answer.get("texts", ())),
        generation=generation,
        early=any(len(row) < workload.max_new_tokens for row in found.tokens),
    )


def memory_in(evidence: Mapping[str, Any]) -> Memory | str:
    """What a generation took, in a worker's evidence; a line that says why, where nobody knows."""
    found = evidence.get("memory", OLDER)
    return found if isinstance(found, str) else Memory(**found)


def bytes_of(memory: Memory | str, metric: str) -> float:
    """The figure of ``memory`` or ``weights``. Raises MemoryUnknownError where nobody knows it."""
    if isinstance(memory, str):
        raise MemoryUnknownError(memory)
    return float(memory.beyond if metric == "memory" else memory.loaded)


def measure(
    ask: Callable[..., Any],
    *,
    backend: str,
    workload: Workload,
    generations: Iterator[Generation],
    load: float,
    bounds: sampling.Bounds,
    progress: Callable[[str], None],
) -> Measurement:
    """Measure a workload on a loaded engine.

    Args:
        ask: calls an operation of the worker.
        backend: its name.
        workload: what is generated.
        generations: the prompts of each generation. The next ones are drawn while the worker waits.
        load: the seconds that loading took.
        bounds: when to stop.
        progress: told what is being done.

    Raises:
        WorkerError: the worker failed, or the optimization did not engage.
        TraceError: a generation is not what was asked for, or the engine's own statistics contradict it.
    """
    made = 0
    early: list[Sample] = []

    def next_sample() -> Sample:
        nonlocal made
        made += 1
        progress(f"{backend} {workload}: generation {made}" + (" (warm-up)" if made == 1 else ""))
        for _ in range(MOST_EARLY):
            sample = generate(ask, workload, next(generations))
            if not sample.early:
                return sample
            early.append(sample)
        raise trace.TraceError(ALL_EARLY)

    def culprits(samples: Sequence[Sample]) -> list[str | None]:
        return fitness.culprits([sample.fitness for sample in samples])

    collected = sampling.collect(next_sample, lambda sample: sample.trace.latency, culprits, bounds)
    for sample, _ in collected.kept:  # not of the first one: engines may not count their set-up
        trace.check_statistics(sample.trace, sample.statistics)
    progress(f"{backend} {workload}: proving that the optimization ran")
    samples = tuple(replace(sample, culprit=culprit) for sample, culprit in collected.kept)
    engagement = ask("evidence")
    return Measurement(
        backend=backend,
        workload=workload,
        load=load,
        warm_up=tuple(sample.trace for sample in collected.warm_up),
        samples=samples,
        settled=collected.settled,
        engagement={name: value for name, value in engagement.items() if name not in ("profile", "memory")},
        discarded=tuple(replace(sample, culprit=culprit) for sample, culprit in collected.discarded),
        clean=collected.clean,
        early=tuple(early),
        profile=timed(engagement, samples),
        memory=memory_in(engagement),
    )


def timed(evidence: Mapping[str, Any], samples: Iterable[Sample]) -> Profile:
    """The profile in an engine's evidence, with the times of generations that were not profiled."""
    traces = [sample.trace for sample in samples]
    return {
        phase: replace(one, seconds=median(trace.metric(PHASES[phase]) for trace in traces))
        for phase, one in parse(evidence.get("profile")).items()
    }


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
