"""An engine whose server may be started here. Its processes and its memory are then the engine's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pytest_llmperf.backends.base import LoadObserver, OnTokens
from pytest_llmperf.served.client import Address, ServerError
from pytest_llmperf.served.engine import BATCH, ServedEngine
from pytest_llmperf.served.process import ServerProcess, free_port, healthy


def spelled(value: Any) -> str:
    """A value as a word of a command line: JSON if it is nested, else as Python has it."""
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


class StartedEngine(ServedEngine):
    """A subclass calls `start` from its `open` where no server is named. Closing the engine ends that server."""

    _process: ServerProcess | None = None

    def start(self, name: str, command: Callable[[int], Sequence[str]], environment: Mapping[str, str]) -> Address:
        """Start the server and wait until it is healthy.

        Args:
            name: what errors call it.
            command: its command line for a port of the loopback interface.
            environment: variables added to (and overriding) this process's.

        Raises:
            ServerError: it cannot be started, ends, or is not up in time.
        """
        port = free_port()
        address = Address(f"http://127.0.0.1:{port}")
        self._process = ServerProcess(name, command(port), environment)
        self._process.until(lambda: healthy(address.base), BATCH * self.spec.timeout)
        return address

    def generate(self, prompts: list[list[int]], max_new_tokens: int, on_token: OnTokens) -> None:
        """See `Engine.generate`. An error has the last lines of a server that was started here."""
        try:
            super().generate(prompts, max_new_tokens, on_token)
        except ServerError as error:
            raise ServerError(f"{error}{self._process.last_words() if self._process else ''}") from None

    def serve(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        observer: LoadObserver,
        due: list[float] | None,
        concurrency: int | None,
    ) -> None:
        """See `Servable.serve`.

        Raises:
            ServerError: a server that was started here has ended meanwhile.
        """
        super().serve(prompts, max_new_tokens, observer, due, concurrency)
        if self._process and self._process.ended():
            raise ServerError(f"the server did not survive the load{self._process.last_words()}")

    def processes(self) -> list[int]:
        """Those of the server."""
        return self._process.pids() if self._process else super().processes()

    def resident(self) -> list[int]:
        """The processes whose memory is the engine's: those of a server that was started here."""
        return self._process.pids() if self._process else []

    def close(self) -> None:
        """Close every connection, and stop the server if it was started here."""
        super().close()
        if self._process is not None:
            self._process.stop()
