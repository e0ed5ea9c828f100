"""Which timed rows are judged. Nobody knows it before they were timed. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterable

#: Rows that are judged, at least: of a batch of one, as many generations.
FEWEST_ROWS = 4


def drawn(generations: Iterable[int], requests: int, seed: str) -> list[tuple[int, int]]:
    """The rows of the timed generations that parity judges, as (generation, request).

    Each request of the batch is judged, each from a generation of its own draw. A generation's place in the draw
    depends on nothing but the seed. So of two backends with the same generations the same rows are judged, and the
    reference scores equal tokens once.

    Args:
        generations: the numbers of those that were timed.
        requests: of each generation.
        seed: of the run, the backend's workload included.
    """
    timed = sorted(set(generations))
    ranked = [
        sorted(timed, key=lambda one: random.Random(f"{seed} {request} {one}").random()) for request in range(requests)
    ]
    turns = -(-FEWEST_ROWS // requests)
    return [(order[turn], request) for turn in range(min(turns, len(timed))) for request, order in enumerate(ranked)]
