"""What is being done, while it is done."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


def position(over: int, tests: int, elapsed: float) -> str:
    """Which test of how many, and after a minute how long the others take if they take as long as those before."""
    if not tests:
        return ""
    left = elapsed / over * (tests - over) if 0 < over < tests and elapsed >= 60 else None
    expected = "" if left is None else f", {left / 60:.0f} min to go" if left >= 90 else f", {left:.0f} s to go"
    return f"  {min(over + 1, tests)}/{tests}{expected}"


class Progress:
    """Says what is being done. On a terminal one line that is rewritten; in a log, a line per long step.

    A terminal that was closed, or a pipe that nobody reads any more, costs no figure.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._started = time.monotonic()
        self._last = ""
        self._open = False
        #: Tests that are to run, and those that are over.
        self.tests = self.over = 0

    def __call__(self, text: str) -> None:
        reporter: Any = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is None or self._config.get_verbosity() < 0 or text == self._last:
            return
        self._last = text
        with contextlib.suppress(OSError), self._uncaptured():
            elapsed = time.monotonic() - self._started
            line = f"llmperf {elapsed:5.0f} s{position(self.over, self.tests, elapsed)}  {text}"
            if reporter.isatty:
                # A line that wraps cannot be rewritten.
                reporter.rewrite(line[: reporter._tw.fullwidth - 1], erase=True)
                self._open = True
            elif ": generation " not in text or "(warm-up)" in text:
                reporter.ensure_newline()
                reporter.write_line(line)

    def finish(self) -> None:
        """Leave the rewritten line behind."""
        if self._open:
            reporter: Any = self._config.pluginmanager.get_plugin("terminalreporter")
            with contextlib.suppress(OSError), self._uncaptured():
                reporter.rewrite("", erase=True)
            self._open = False

    def _uncaptured(self) -> contextlib.AbstractContextManager[None]:
        """Have the terminal see what is written, if anything is captured at all."""
        capture: Any = self._config.pluginmanager.get_plugin("capturemanager")
        return contextlib.nullcontext() if capture is None else capture.global_and_fixture_disabled()
