"""Text that no report, log or traceback may show: it says what it is only where it goes over a worker's pipe."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from urllib.parse import parse_qsl, unquote, urlsplit

#: What stands for it.
HIDDEN = "***"
#: A shorter piece is no secret, and leaving it out would spoil every text that it happens to be in.
SHORTEST = 4


class Secret:
    """A URL or a header's value. Nothing prints it, and `json` refuses it; `reveal` says it.

    Args:
        value: the whole text.
        pieces: what of it is secret, so that it can be left out of texts that others wrote.
    """

    __slots__ = ("_pieces", "_value")

    def __init__(self, value: str, pieces: Iterable[str]) -> None:
        self._value = value
        whole = [piece for piece in pieces if len(piece) >= SHORTEST]
        self._pieces = frozenset([*whole, *(json.dumps(piece)[1:-1] for piece in whole)])  # as a server may quote it

    @classmethod
    def url(cls, value: str) -> Secret:
        """A URL, in which name and password, and the values of the query, are secret."""
        parts = urlsplit(value)
        userinfo = parts.netloc.rpartition("@")[0]
        pieces = [userinfo, *userinfo.split(":"), *unquote(userinfo).split(":")]
        pieces += [field.partition("=")[2] for field in parts.query.split("&")]
        pieces += [text for _, text in parse_qsl(parts.query)]
        if userinfo:
            pieces.append(base64.b64encode(unquote(userinfo).encode()).decode())  # as HTTP's basic authorization
        return cls(value, pieces)

    @classmethod
    def header(cls, value: str) -> Secret:
        """A header's value: all of it, and what follows a scheme such as ``Bearer``."""
        return cls(value, [value, value.split()[-1]] if value.split() else [])

    def reveal(self) -> str:
        return self._value

    @property
    def pieces(self) -> frozenset[str]:
        return self._pieces

    def __repr__(self) -> str:
        return f"Secret({HIDDEN})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)


def scrubbed(text: str, pieces: Iterable[str]) -> str:
    """A text without the secret pieces; the longest first, since one may be part of another."""
    for piece in sorted(pieces, key=len, reverse=True):
        text = text.replace(piece, HIDDEN)
    return text


def pieces_in(value: object) -> set[str]:
    """The secret pieces of every secret in plain values."""
    if isinstance(value, Secret):
        return set(value.pieces)
    if isinstance(value, dict):
        value = list(value.values())
    return {piece for one in value for piece in pieces_in(one)} if isinstance(value, list | tuple) else set()
