"""The clock: stamps every token as an engine hands it over."""

from __future__ import annotations

import time
from collections.abc import Callable

#: The only clock that latencies are read from. A module attribute, so that a simulated engine can script it.
clock: Callable[[], float] = time.perf_counter
#: Waits, by that clock. A simulated engine can script it too.
sleep: Callable[[float], None] = time.sleep


class Recorder:
    """Collects token ids and times of one generation. An instance is the engine's ``on_token``.

    Args:
        requests: how many.
        pause: called after each step, while the engine waits. Its time does not count.
    """

    __slots__ = ("_clock", "_left", "_pause", "_started", "times", "tokens")

    def __init__(self, requests: int, pause: Callable[[], None] | None = None) -> None:
        self._clock = clock
        self._pause = pause
        self._left = requests
        self.tokens: list[list[int]] = [[] for _ in range(requests)]
        self.times: list[list[float]] = [[] for _ in range(requests)]
        self._started = self._clock()

    def __call__(self, request: int, token: int) -> None:
        """Stamp one token, in seconds since this object was made, which is when the batch is submitted."""
        now = self._clock()
        self.times[request].append(now - self._started)
        self.tokens[request].append(token)
        if self._pause is not None:
            self._left -= 1
            if not self._left:  # a step brings a token to each
                self._left = len(self.tokens)
                paused = self._clock()
                self._pause()
                self._started += self._clock() - paused


class LoadRecorder(Recorder):
    """Also stamps when each request is sent, and keeps why a request failed. All calls must come from one thread."""

    __slots__ = ("errors", "sent")

    def __init__(self, requests: int) -> None:
        super().__init__(requests)
        self.sent: list[float] = [0.0] * requests
        self.errors: list[str] = [""] * requests

    def submitted(self, request: int) -> None:
        """Stamp the moment before a request is sent, in seconds since this object was made."""
        self.sent[request] = self._clock() - self._started

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

    def __call__(self, request: int, token: int) -> None:
        now = self._clock()
        self._owed += (now - self._stamped) * self._share
        if self._owed > 0:
            sleep(self._owed)
            self._owed -= self._clock() - now
        super().__call__(request, token)
        self._stamped = self._clock()
