"""The wire between parent and worker: one JSON object a line, over pipes that libraries' prints never touch."""

from __future__ import annotations

import json
import os
from typing import Any

from pytest_llmperf.secret import Secret

#: The variable that tells a worker its backend's name, for its messages.
BACKEND_VARIABLE = "LLMPERF_BACKEND"
#: A reply longer than this is garbage, not a reply: the largest real one is a batch's tokens and times.
LONGEST_LINE = 64 * 2**20


def send(descriptor: int, message: dict[str, Any]) -> None:
    """Write one whole message. Here, and nowhere else, a secret is revealed.

    Raises:
        OSError: the other side is gone.
    """
    write(descriptor, encoded(message))


def encoded(message: dict[str, Any]) -> bytes:
    """A message as it is sent. Raises TypeError or ValueError if it is no JSON."""
    return json.dumps(message, separators=(",", ":"), default=_plain).encode() + b"\n"


def write(descriptor: int, data: bytes) -> None:
    """Write all of an encoded message. Raises OSError as `send`."""
    while data:
        data = data[os.write(descriptor, data) :]


def _plain(value: Any) -> Any:
    """What JSON cannot write: a secret, and the numbers of numpy and torch, alone or in arrays."""
    if isinstance(value, Secret):
        return value.reveal()
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON value")


def parse(line: bytes) -> dict[str, Any]:
    """The message on a line. Raises ValueError if the line is no JSON object."""
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message
