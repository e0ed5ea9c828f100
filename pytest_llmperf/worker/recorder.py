"""The clock: stamps every token as an engine hands it over."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Sequence
from typing import Any

from pytest_llmperf.backends.base import UNKNOWN

#: The only clock that latencies are read from. A module attribute, so that a simulated engine can script it.
clock: Callable[[], float] = time.perf_counter
#: Waits, by that clock. A simulated engine can script it too.
sleep: Callable[[float], None] = time.sleep


class TokenError(ValueError):
    """An engine called ``on_token`` wrongly; one line says how."""


def rows(
    calls: Sequence[tuple[Any, Any, float]], requests: int, vocabulary: int | None = None
) -> tuple[list[list[int]], list[list[float]]]:
    """Token ids and times, a row per request, of the calls of one generation. Pure.

    Args:
        calls: request, token and time. The two numbers may be of any library's integer type.
        requests: how many were submitted.
        vocabulary: how many ids there are; None if nobody knows.

    Raises:
        TokenError: a number is no integer, or is not on the host. Or there is no such request or id.
    """
    tokens: list[list[int]] = [[] for _ in range(requests)]
    times: list[list[float]] = [[] for _ in range(requests)]
    for given, chosen, at in calls:
        request, token = whole(given, "request"), whole(chosen, "token")
        if not 0 <= request < requests:
            raise TokenError(f"on_token got the request {request}; the batch has the requests 0 to {requests - 1}")
        if token < UNKNOWN or (vocabulary is not None and token >= vocabulary):
            last = "" if vocabulary is None else f" to {vocabulary - 1}"
            raise TokenError(f"on_token got the token {token}; the model's vocabulary has the ids 0{last}")
        tokens[request].append(token)
        times[request].append(at)
    return tokens, times


def taken(value: Any) -> Any:
    """An integer on the host as an int; anything else as it is."""
    if isinstance(value, bool) or str(getattr(value, "device", "cpu")) != "cpu":
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


def whole(value: Any, what: str) -> int:
    """A number that an engine gave as ``what``, as an int. Raises TokenError."""
    if type(found := taken(value)) is int:
        return found
    if (device := str(getattr(value, "device", "cpu"))) != "cpu":
        raise TokenError(f"on_token got a {what} that is still on {device}; bring it to the host first, with int()")
    raise TokenError(f"on_token got the {what} {value!r}, a {type(value).__name__}; it takes an int")


class Recorder:
    """Collects token ids and times of one generation. An instance is the engine's ``on_token``.

    `rows` checks the calls later: that would delay the engine here.

    Args:
        requests: how many.
        pause: called after each step, while the engine waits. Its time does not count.
    """

    __slots__ = ("_calls", "_clock", "_left", "_pause", "_requests", "_started")

    def __init__(self, requests: int, pause: Callable[[], None] | None = None) -> None:
        self._clock = clock
        self._pause = pause
        self._requests = self._left = requests
        self._calls: list[tuple[Any, Any, float]] = []
        self._started = self._clock()

    def __call__(self, request: int, *tokens: int) -> None:
        """Stamp tokens that came together, in seconds since this object was made: when the batch is submitted."""
        now = self._clock() - self._started
        for token in tokens:
            # One that is no int may be a view of a buffer that the engine uses again.
            self._calls.append((request, token if type(token) is int else taken(token), now))
        if self._pause is not None:
            self._left -= len(tokens)
            if self._left <= 0:  # a step brings a token to each
                self._left = self._requests
                paused = self._clock()
                self._pause()
                self._started += self._clock() - paused

    def rows(self, vocabulary: int | None = None) -> tuple[list[list[int]], list[list[float]]]:
        """Token ids and times so far, a row per request. Raises TokenError as `rows`."""
        return rows(tuple(self._calls), self._requests, vocabulary)

    @property
    def tokens(self) -> list[list[int]]:
        """Token ids so far, a row per request."""
        return self.rows()[0]

    @property
    def times(self) -> list[list[float]]:
        """Seconds so far, a row per request."""
        return self.rows()[1]


class LoadRecorder(Recorder):
    """Also stamps when each request is sent, and keeps why a request failed. All calls must come from one thread.

    Args:
        requests: how many there are prompts for.
        wanted: how many are to be sent, those that end early left out; None for all.
    """

    __slots__ = ("_wanted", "early", "errors", "sent")

    def __init__(self, requests: int, wanted: int | None = None) -> None:
        super().__init__(requests)
        self._wanted = requests if wanted is None else wanted
        self.sent: list[float | None] = [None] * requests
        self.errors: list[str] = [""] * requests
        self.early: set[int] = set()

    @property
    def more(self) -> bool:
        """Whether another request is to be sent."""
        return sum(at is not None for at in self.sent) - len(self.early) < self._wanted

    def submitted(self, request: int) -> None:
        """Stamp the moment before a request is sent, in seconds since this object was made."""
        self.sent[request] = self._clock() - self._started

    def ended(self, request: int) -> None:
        """Note that a request ended with an end-of-sequence token before it had all tokens."""
        self.early.add(request)

    def failed(self, request: int, reason: str) -> None:
        """Note why a request failed."""
        self.errors[request] = reason


class SlowedRecorder(Recorder):
    """Makes every step longer by a known share: it sleeps before it stamps, while the engine waits for it.

    A sleep lasts some 60 us too long, which is 2 % of a step of 3 ms. The next sleeps are shorter by that.
    """

    __slots__ = ("_owed", "_share", "_stamped")

    def __init__(self, requests: int, share: float, pause: Callable[[], None] | None = None) -> None:
        super().__init__(requests, pause)
        self._owed = 0.0
        self._share = share
        self._stamped = self._started

    def __call__(self, request: int, *tokens: int) -> None:
        now = self._clock()
        self._owed += (now - self._stamped) * self._share
        if self._owed > 0:
            sleep(self._owed)
            self._owed -= self._clock() - now
        super().__call__(request, *tokens)
        self._stamped = self._clock()
