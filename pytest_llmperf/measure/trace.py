"""What one generation returns: token ids and times per request, and the latencies that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from pytest_llmperf import stamps
from pytest_llmperf.backends.base import RequestStatistics
from pytest_llmperf.cases import LATENCIES

#: How far the stamped TTFT or TPOT of a request may be from the engine's own: this share of it plus these seconds.
#: Handing a batch over takes a moment that the engine does not count.
AGREEMENT, HANDING_OVER = 0.02, 1e-3


class TraceError(ValueError):
    """A generation that does not count: tokens fewer or more than asked, or times that run backwards."""


@dataclass(frozen=True)
class Trace:
    """One generation of a batch.

    Attributes:
        tokens: output token ids, one row per request, each of ``max_new_tokens``. A row that ended early is shorter;
            then the trace has no figures.
        times: when each token was on the host, in seconds since the batch was submitted; the shape of ``tokens``.
    """

    tokens: tuple[tuple[int, ...], ...]
    times: tuple[tuple[float, ...], ...]

    @property
    def ttft(self) -> float:
        """Mean over the requests of the time to the first token, in seconds."""
        return fmean(row[0] for row in self.times)

    @property
    def tpot(self) -> float:
        """Mean over the requests of (last - first token time) / (n - 1), in seconds per token.

        The definition of MLPerf Inference and of vLLM's serving benchmark: TTFT is excluded. Where several tokens came
        with the first, only those after them were made in that time, so n - 1 is the number of these.
        """
        return fmean(map(stamps.tpot, self.times))

    @property
    def latency(self) -> float:
        """Mean over the requests of the time to the last token, in seconds: TTFT + TPOT * (n - 1)."""
        return fmean(row[-1] for row in self.times)

    @property
    def itl(self) -> list[float]:
        """Every gap between consecutive tokens of a request that did not come together, in seconds."""
        return [gap for row in self.times for gap in stamps.gaps(row)]

    @property
    def arrivals(self) -> int:
        """How often tokens came, over all requests: fewer times than there are tokens if some came together."""
        return sum(len(set(row)) for row in self.times)

    @property
    def first(self) -> float:
        """Mean over the requests of how many tokens came with the first, that one included."""
        return fmean(map(stamps.first, self.times))

    @property
    def output_tokens(self) -> int:
        return sum(len(row) for row in self.tokens)

    @property
    def throughput(self) -> float:
        """Output tokens per second of latency."""
        return self.output_tokens / self.latency

    def metric(self, name: str) -> float:
        """The figure of a metric (``ttft``, ``tpot`` or ``latency``), in seconds."""
        if name not in LATENCIES:
            raise KeyError(f"{name!r} is not a metric of a generation; known: {', '.join(LATENCIES)}")
        return float(getattr(self, name))


def check_tokens(
    tokens: Sequence[Sequence[int]], *, requests: int, max_new_tokens: int, ended: Sequence[bool] = ()
) -> None:
    """Raise TraceError unless there is a row for every request, of exactly the tokens asked for.

    A row may be shorter if ``ended`` says of it that it ended with an end-of-sequence token.
    """
    if len(tokens) != requests:
        raise TraceError(f"{requests} requests were submitted, {len(tokens)} came back")
    for index, row in enumerate(tokens):
        early = any(ended[index : index + 1]) and 0 < len(row) < max_new_tokens
        if len(row) != max_new_tokens and not early:
            raise TraceError(f"request {index}: {len(row)} tokens came back, {max_new_tokens} were asked for")


def checked(
    tokens: Sequence[Sequence[int]],
    times: Sequence[Sequence[float]],
    *,
    requests: int,
    max_new_tokens: int,
    ended: Sequence[bool] = (),
) -> Trace:
    """A trace of exactly what was asked for, but for rows that ended early.

    Raises:
        TraceError: a request is missing, has fewer or more tokens than asked, has a token without a time, or a time
            that is not after the submission or runs backwards. Each would make some latency too good.
    """
    check_tokens(tokens, requests=requests, max_new_tokens=max_new_tokens, ended=ended)
    if len(times) != requests:
        raise TraceError(f"{requests} requests were submitted, {len(times)} came back with times")
    for index, (row, came) in enumerate(zip(tokens, times, strict=True)):
        if len(came) != len(row):
            raise TraceError(f"request {index}: {len(row)} tokens have {len(came)} times")
        if not came[0] > 0 or any(not later >= earlier for earlier, later in pairwise(came)):
            raise TraceError(f"request {index}: token times do not run forward from the submission")
        if len(row) == max_new_tokens and not came[-1] > came[0]:
            raise TraceError(f"request {index}: all {max_new_tokens} tokens came at one instant, so TPOT would be 0")
    return Trace(tuple(tuple(row) for row in tokens), tuple(tuple(came) for came in times))


def check_statistics(found: Trace, statistics: Sequence[RequestStatistics]) -> None:
    """Raise TraceError if an engine's own statistics, a record per request or none, contradict the stamps.

    They do if a prompt was found in a prefix cache or computed twice, or if too many of a request's tokens have no
    time. They also do if a request's time is further from the stamped one than `AGREEMENT` and `HANDING_OVER`
    allow: time passed outside the engine, or it counts wrongly.
    """
    if not statistics:
        return
    if len(statistics) != len(found.tokens):
        raise TraceError(f"{len(found.tokens)} requests were submitted, the engine has statistics of {len(statistics)}")
    if cached := sum(one.cached_tokens for one in statistics):
        raise TraceError(f"{cached} prompt tokens came from a prefix cache: that is no prefill")
    if reason := stamps.untimed(max(one.untimed for one in statistics), len(found.tokens[0])):
        raise TraceError(reason)
    if preempted := sum(one.preemptions for one in statistics):
        raise TraceError(f"out of KV space: requests lost their cache {preempted} times and were computed again")
    for request, (row, one) in enumerate(zip(found.times, statistics, strict=True)):
        for name, stamped, own in (("ttft", row[0], one.ttft), ("tpot", stamps.tpot(row), one.tpot)):
            if own is not None and abs(stamped - own) > AGREEMENT * own + HANDING_OVER:
                apart = f"{abs(stamped - own) * 1e3:.3f} ms"
                where = "passed outside the engine" if stamped > own else "of its account did not pass"
                raise TraceError(
                    f"request {request}: {name} was stamped as {stamped * 1e3:.3f} ms, but is {own * 1e3:.3f} ms by "
                    f"the engine's own account: {apart} {where}"
                )
