"""The times at which one request's tokens came. Several may have come together, by one read of a socket. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

#: The share of a request's tokens that may lack a time of their own. TPOT is then wrong by no more than that.
UNTIMED = 0.05


def gaps(times: Sequence[float]) -> list[float]:
    """Between consecutive tokens that did not come together, in seconds."""
    return [later - earlier for earlier, later in pairwise(times) if later > earlier]


def first(times: Sequence[float]) -> int:
    """How many tokens came with the first, that one included."""
    return times.count(times[0])


def tpot(times: Sequence[float]) -> float:
    """Mean time per token after those that came first, in seconds. Not all of them may have come together."""
    return (times[-1] - times[0]) / (len(times) - first(times))


def untimed(tokens: int, of: int) -> str:
    """What is wrong where so many of a request's tokens have no time of their own; empty if they may."""
    if tokens <= UNTIMED * of:
        return ""
    return (
        f"{tokens} of {of} tokens have no event of their own, so nobody saw when they came: that is no TPOT; let the "
        "server give token ids, or an event for each token"
    )
