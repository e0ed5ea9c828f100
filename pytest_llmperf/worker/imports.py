"""How long imports take, wherever they stand: at the top of a module, or inside what loads an engine."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any


class ImportClock:
    """Adds up the seconds that a thread spends importing while it is inside ``with``.

    An import inside another counts once. Python goes through one function for every module that is not loaded yet. In
    a Python without that function the seconds stay 0.

    Attributes:
        seconds: so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._bootstrap: Any = sys.modules["_frozen_importlib"]
        self._find: Any = getattr(self._bootstrap, "_find_and_load", None)
        self._thread = threading.get_ident()
        self._importing = False

    def __enter__(self) -> ImportClock:
        if self._find is not None:
            self._bootstrap._find_and_load = self._timed
        return self

    def __exit__(self, *_: object) -> None:
        if self._find is not None:
            self._bootstrap._find_and_load = self._find

    def _timed(self, *arguments: Any) -> Any:
        if self._importing or threading.get_ident() != self._thread:
            return self._find(*arguments)
        self._importing, began = True, time.perf_counter()
        try:
            return self._find(*arguments)
        finally:
            self._importing = False
            self.seconds += time.perf_counter() - began
