"""A server as an engine: a batch is so many concurrent streams. `completions` and `tgi` are the kinds of servers."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pytest_llmperf import stamps
from pytest_llmperf.backends.base import Engagement, EngineSpec, LoadObserver, OnTokens, RequestStatistics
from pytest_llmperf.served import metrics
from pytest_llmperf.served.client import Address, Client, ServerError
from pytest_llmperf.served.process import listening, on_this_machine
from pytest_llmperf.served.reply import Reply, ReplyError

T = TypeVar("T")

#: Of the time that a request to the worker may take: after so much without a byte a stream has stalled, and after so
#: much a batch has taken too long, and then the metrics have what is left. The worker says so before the parent takes
#: it for hung.
STALL, BATCH, METRICS = 0.5, 0.9, 0.05


async def submit(client: Client, path: str, body: bytes, reply: Reply) -> Mapping[str, str]:
    """Submit one request and stream it to its end. Returns the response's headers.

    Raises:
        ServerError: as in `Client.stream`, `Reply` and `Reply.finished`; it says which server.
    """
    try:
        headers = await client.stream(path, body, reply)
        reply.finished()
    except ReplyError as error:
        raise client.failure(path, error.what, error.quoted) from None
    return headers


async def together(requests: Sequence[Coroutine[Any, Any, T]], seconds: float) -> list[T]:
    """The results of a batch. When one fails, or time is over, the others are cancelled and awaited.

    Raises:
        ServerError: of the first request that failed, by its index, with that index.
    """
    tasks = [asyncio.ensure_future(request) for request in requests]
    try:
        _, waiting = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        failed = [(index, task.exception()) for index, task in enumerate(tasks) if task.done() and task.exception()]
        if failed:
            index, error = failed[0]
            if isinstance(error, ServerError):
                raise ServerError(f"request {index}: {error}", refusal=error.refusal) from None
            assert error is not None
            raise error
        if waiting:
            raise ServerError(f"{len(waiting)} of {len(tasks)} requests were not complete within {seconds:g} s")
        return [task.result() for task in tasks]
    finally:
        await cancelled(tasks)


async def cancelled(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks, as far as they are not done, and wait until they are."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def unusable(reply: Reply, wanted: int) -> str:
    """Why a request that was answered under load has no figures; empty if it has."""
    if reply.tokens < wanted:
        return f"{reply.tokens} of {wanted} tokens came"
    if reply.cached_tokens:
        return f"{reply.cached_tokens} prompt tokens came from a prefix cache"
    if reply.arrivals == 1 < wanted:
        return f"all {wanted} tokens came at one instant"
    return stamps.untimed(reply.untimed, wanted)


class ServedEngine:
    """Greedy generation by a server. Tokens are stamped when their event has been read, those of one read together.

    A subclass says what a request looks like, and reads what the server says of itself.
    """

    #: Where requests are posted to, and where the server counts what it did (empty if it does not).
    path = ""
    metrics_path = ""
    #: The metrics that are read: histograms of seconds by what the evidence calls them, and counters.
    histograms: Mapping[str, str] = {}
    counters: tuple[str, ...] = ()
    reply: type[Reply]
    #: What a reply says of its end where the model chose end-of-sequence.
    end = "stop"

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self._loop = asyncio.new_event_loop()
        self._client: Client | None = None
        #: Of the last generation.
        self.replies: list[Reply] = []
        self.headers: list[Mapping[str, str]] = []
        self._before: dict[str, float] = {}
        self._after: dict[str, float] = {}
        try:
            self.address = self.open()
            self._client = self._wait(self._connect())
            self.prepare()
            self._after = self._wait(self._metrics())
        except BaseException:
            self.close()
            raise

    # What a kind of server decides

    def open(self) -> Address:
        """Where the server is; it is started here if it is ours."""
        return Address.of(self.spec.server, self.spec.headers)

    def prepare(self) -> None:
        """Ask the server what it is."""

    def body(self, prompt: list[int], max_new_tokens: int) -> dict[str, Any]:
        """The JSON of a request."""
        raise NotImplementedError

    def seen(self) -> dict[str, Any]:
        """What the evidence shows of the server."""
        return {}

    # The engine

    def generate(self, prompts: list[list[int]], max_new_tokens: int, on_token: OnTokens) -> None:
        """See `Engine.generate`. Fewer tokens than asked for, as after an early stop, are handed over as they came."""
        self.replies = [
            self.reply(index, len(prompt), max_new_tokens, on_token) for index, prompt in enumerate(prompts)
        ]
        bodies = [json.dumps(self.body(prompt, max_new_tokens)).encode() for prompt in prompts]
        self.headers = self._wait(self._batch(bodies))

    async def _batch(self, bodies: Sequence[bytes]) -> list[Mapping[str, str]]:
        # A connection that the server has closed meanwhile is seen to be so before it is used.
        for _ in range(3):
            await asyncio.sleep(0)
        requests = [
            submit(self.client, self.path, body, reply) for body, reply in zip(bodies, self.replies, strict=True)
        ]
        return await together(requests, BATCH * self.spec.timeout)

    def serve(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        observer: LoadObserver,
        due: list[float] | None,
        concurrency: int | None,
    ) -> None:
        """See `Servable.serve`."""
        bodies = [json.dumps(self.body(prompt, max_new_tokens)).encode() for prompt in prompts]
        replies = [self.reply(index, len(prompt), max_new_tokens, observer) for index, prompt in enumerate(prompts)]

        limit, unfinished = BATCH * self.spec.timeout, set(range(len(prompts)))

        async def one(index: int) -> None:
            observer.submitted(index)
            try:
                await submit(self.client, self.path, bodies[index], replies[index])
                reply = replies[index]
                if reply.tokens < max_new_tokens and reply.finish == self.end:
                    observer.ended(index)
                elif reason := unusable(reply, max_new_tokens):
                    observer.failed(index, reason)
            except ServerError as error:
                observer.failed(index, str(error))
            unfinished.discard(index)

        under_way: set[asyncio.Task[None]] = set()

        async def load() -> None:
            start = self._loop.time()
            for index in range(len(prompts)):
                if due is not None:
                    await asyncio.sleep(start + due[index] - self._loop.time())
                most = concurrency or 1 if due is None else math.inf
                while under_way and (len(under_way) >= most or not observer.more):
                    done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                    under_way.difference_update(done)
                    await asyncio.gather(*done)
                if not observer.more:
                    break
                under_way.add(asyncio.ensure_future(one(index)))
            await asyncio.gather(*under_way)

        try:
            self._wait(asyncio.wait_for(load(), limit))
        except (TimeoutError, asyncio.TimeoutError):  # what was answered is kept
            for index in unfinished:
                observer.failed(index, f"not complete when the load had taken {limit:g} s")
        finally:
            self._wait(cancelled(under_way))

    def ended(self) -> list[bool]:
        """See `Ending.ended`."""
        return [reply.finish == self.end for reply in self.replies]

    def statistics(self) -> list[RequestStatistics]:
        """See `Timekeeper.statistics`: what was found in a cache, by each request's usage and the server's metrics.

        The server's times leave out what is between it and its client, so they are no check of the stamps.
        """
        self._before, self._after = self._after, self._wait(self._metrics())
        cached = [reply.cached_tokens for reply in self.replies]
        hits, lost = (self.grown(name) for name in ("vllm:prefix_cache_hits_total", "vllm:num_preemptions_total"))
        if hits and not any(cached):
            cached[0] = int(hits)
        preempted = [int(lost or 0), *[0] * (len(cached) - 1)]
        return [
            RequestStatistics(None, None, cached_tokens=found, preemptions=often, untimed=reply.untimed)
            for found, often, reply in zip(cached, preempted, self.replies, strict=True)
        ]

    def grown(self, name: str) -> float | None:
        """By how much a counter of the server's grew in the last generation; None where it has none."""
        return metrics.grown(self._before, self._after, name)

    def texts(self) -> list[str]:
        """What the server says of each request's tokens as text; nothing where it gives their ids."""
        return [reply.text for reply in self.replies]

    def evidence(self) -> Engagement:
        """See `Engine.evidence`: the server's own account of the last generation."""
        tokens = sum(reply.tokens for reply in self.replies)
        reads = sum(reply.arrivals for reply in self.replies)
        chunks = {"gaps": f"between chunks (ICL): {reads} reads brought {tokens} tokens"} if reads < tokens else {}
        return Engagement(
            engaged=tokens > 0,
            expected="a stream of the tokens asked for",
            seen={
                "server": str(self.address),
                **self.seen(),
                "finish": ", ".join(sorted({reply.finish for reply in self.replies})),
                **metrics.seconds(self._before, self._after, self.histograms),
                **chunks,
            },
        )

    def processes(self) -> list[int]:
        """The processes of the server, if it is on this machine: their CPU time is the engine's own."""
        parts = urlsplit(self.address.base)
        if not on_this_machine(parts.hostname or ""):
            return []
        return listening(parts.port or {"http": 80, "https": 443}[parts.scheme])

    def close(self) -> None:
        """Close every connection."""
        if not self._loop.is_closed():
            if self._client is not None:
                self._loop.run_until_complete(self._client.close())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    # Talking

    @property
    def client(self) -> Client:
        assert self._client is not None
        return self._client

    async def _connect(self) -> Client:
        return Client(self.address, STALL * self.spec.timeout)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    def ask(self, path: str) -> Any:
        """The JSON value at a path.

        Raises:
            ServerError: there is none.
        """
        answer = self._wait(self.client.ask(path))
        if answer.status != 200:
            raise self.client.refusal(path, answer.status, answer.body)
        try:
            return answer.json()
        except (ValueError, RecursionError):
            raise self.client.failure(path, "answered with something that is no JSON") from None

    async def _metrics(self) -> dict[str, float]:
        """The server's counts now; nothing where it has none, or does not want to say."""
        if not self.metrics_path:
            return {}
        try:
            answer = await self.client.ask(self.metrics_path, METRICS * self.spec.timeout)
        except ServerError:
            return {}
        names = [f"{name}_{suffix}" for name in self.histograms.values() for suffix in ("sum", "count")]
        text = answer.body.decode(errors="replace") if answer.status == 200 else ""
        return metrics.parse(text, [*names, *self.counters])
