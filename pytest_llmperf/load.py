"""A server under load: when requests are sent, and what became of them. Pure; nothing is sent here.

Open loop (Poisson arrivals at a rate) shows what independent users will see. Closed loop (a fixed number of requests at
a time) shows what the server can do. A request's time counts from when it was due, not from when the client sent it. A
client that waits for a slow answer before it sends the next request would hide the queue ("coordinated omission").
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from pytest_llmperf import stamps
from pytest_llmperf.spread import quantile

#: The percentiles that are shown of every figure.
PERCENTILES = (0.50, 0.90, 0.99)
#: The figures of a request that an objective can be stated for.
METRICS = ("ttft", "itl", "latency")
#: The share of all requests, failed ones included, that has to meet every objective.
ATTAINMENT = 0.99


@dataclass(frozen=True, order=True)
class Traffic:
    """How requests arrive: exactly one of the two is set.

    Attributes:
        concurrency: how many at a time; the next one is sent as soon as one is done.
        rate: requests per second on average, as a Poisson process, whatever the server does.
    """

    concurrency: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        return f"c{self.concurrency}" if self.rate is None else f"r{self.rate:g}"


def arrivals(rate: float, count: int, seed: int = 0) -> list[float]:
    """When each request of a Poisson process is due, in seconds from the start; the same for the same seed."""
    draw = random.Random(seed)
    due, found = 0.0, []
    for _ in range(count):
        due += draw.expovariate(rate)
        found.append(due)
    return found


@dataclass(frozen=True)
class Served:
    """One request under load. Times in seconds from the start of the load.

    Attributes:
        due: when it was to be sent. sent: when it was.
        times: when each of its tokens came; empty where it failed.
        error: why it failed; empty if it did not.
        early: whether it ended with an end-of-sequence token before it had all tokens, and was replaced by another.
    """

    due: float
    sent: float
    times: Sequence[float] = ()
    error: str = ""
    early: bool = False

    @property
    def gaps(self) -> list[float]:
        """Between its tokens that did not come together, in seconds."""
        return stamps.gaps(self.times)

    @property
    def ttft(self) -> float:
        return self.times[0] - self.due

    @property
    def latency(self) -> float:
        return self.times[-1] - self.due


@dataclass(frozen=True)
class LoadResult:
    """What a server did under one kind of traffic.

    Attributes:
        requests, failed: how many were sent, and how many of them failed; early ends are not among them.
        seconds: from the first one due to the last token.
        percentiles: of each metric, by `PERCENTILES`, in seconds; ITL's over every gap of every request.
        throughput: output tokens per second. rate: requests per second that were answered.
        goodput: requests per second that met every objective; None without one.
        met: the share of all requests that did; None likewise.
        lag: the largest delay of the client itself, in seconds: requests sent later than due though nothing held them.
        errors: why requests failed, each reason once.
        tokens, arrivals: how many tokens came, and how often some came: fewer times if several came together.
        first: tokens that came with a request's first one, that one included, on average.
        early: further requests, which ended early. They were part of the traffic and give no figures.
    """

    requests: int
    failed: int
    seconds: float
    percentiles: Mapping[str, tuple[float, ...]]
    throughput: float
    rate: float
    goodput: float | None
    met: float | None
    lag: float
    errors: tuple[str, ...]
    tokens: int = 0
    arrivals: int = 0
    first: float = 1.0
    early: int = 0


@dataclass(frozen=True)
class LoadRecord:
    """A load of this run: the backend, its requests, how they arrived, their objectives, and the result.

    ``served`` names the model that a server had which was running already, and where; empty for any other.
    """

    backend: str
    workload: str
    traffic: str
    objectives: Mapping[str, float]
    result: LoadResult
    served: str = ""


def summarize(served: Sequence[Served], objectives: Mapping[str, float], open_loop: bool) -> LoadResult:
    """The figures of a load.

    Args:
        served: every request; at least one that did not end early.
        objectives: the longest that ``ttft``, ``itl`` (mean over a request's gaps) and ``latency`` may be, in seconds.
        open_loop: whether requests were due at times of their own, so that a late one is the client's lag.
    """
    early = [one for one in served if one.early]
    served = [one for one in served if not one.early]
    answered = [one for one in served if not one.error]
    start = min(one.due for one in served)
    end = max((one.times[-1] for one in answered), default=max(one.sent for one in served))
    seconds = max(end - start, 1e-9)
    found = {
        "ttft": [one.ttft for one in answered],
        "itl": [gap for one in answered for gap in one.gaps],
        "latency": [one.latency for one in answered],
    }
    good = sum(meets(one, objectives) for one in answered)
    return LoadResult(
        requests=len(served),
        failed=len(served) - len(answered),
        seconds=seconds,
        percentiles={
            name: tuple(quantile(values, at) if values else math.nan for at in PERCENTILES)
            for name, values in found.items()
        },
        throughput=sum(len(one.times) for one in (*answered, *early)) / seconds,
        rate=len(answered) / seconds,
        goodput=good / seconds if objectives else None,
        met=good / len(served) if objectives else None,
        lag=max(one.sent - one.due for one in served) if open_loop else 0.0,
        errors=tuple(dict.fromkeys(one.error for one in served if one.error)),
        tokens=sum(len(one.times) for one in answered),
        arrivals=sum(len(one.gaps) + 1 for one in answered),
        first=fmean(stamps.first(one.times) for one in answered) if answered else 1.0,
        early=len(early),
    )


def meets(one: Served, objectives: Mapping[str, float]) -> bool:
    """Whether an answered request met every objective: its TTFT, its mean ITL, its latency, in seconds.

    Tokens that came together have no gap between them, and a request without any gap shows no ITL.
    """
    own = {"ttft": one.ttft, "itl": fmean(one.gaps or [math.inf]), "latency": one.latency}
    return all(own[name] <= limit for name, limit in objectives.items())


def attained(met: float | None) -> bool:
    """Whether this share of the requests is enough. Without an objective there is no share, and nothing to attain."""
    return met is None or met >= ATTAINMENT


def missed(result: LoadResult, objectives: Mapping[str, float]) -> list[str]:
    """What is wrong with the result, a clause each: requests that failed, too few that met the objectives."""
    said = []
    if result.failed:
        said.append(f"{result.failed} of {result.requests} requests failed: {'; '.join(result.errors[:3])}")
    if result.met is not None and not attained(result.met):
        asked = ", ".join(f"{name} {limit * 1e3:g} ms" for name, limit in objectives.items())
        seen = ", ".join(f"{name} {result.percentiles[name][-1] * 1e3:.1f} ms" for name in objectives)
        said.append(f"{result.met:.1%} of the requests met {asked}, and {ATTAINMENT:.0%} must; p99: {seen}")
    return said
