"""Which of a row of candidates is the first slower one, and what to compare next. Pure.

The candidates are revisions or environments, in order. The first one is good, and the last one is slower than it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any

from pytest_llmperf.gate.rule import Outcome

#: Outcomes of a case that is not slower.
PASSED = {Outcome.OK, Outcome.FASTER}


class Found(str, Enum):
    """What a comparison of a candidate with the good one came to."""

    GOOD = "good"
    BAD = "bad"
    OPEN = "inconclusive"
    UNABLE = "cannot run"

    def __str__(self) -> str:
        return self.value


def judged(verdicts: Mapping[str, Mapping[str, Any]], cases: Collection[str]) -> Found:
    """What the verdicts of a candidate say together.

    Args:
        verdicts: of its cases beside the good one, as in the results file.
        cases: those that are slower in the last candidate.
    """
    outcomes = {Outcome(verdicts[case]["outcome"]) for case in cases if case in verdicts}
    if Outcome.REGRESSION in outcomes:
        return Found.BAD
    if not verdicts.keys() >= set(cases):
        return Found.UNABLE
    return Found.GOOD if outcomes <= PASSED else Found.OPEN


def bounds(last: int, decided: Mapping[int, Found]) -> tuple[int, int]:
    """The newest good candidate before the first bad one, and that one, by their index.

    Args:
        last: index of the last candidate, which is bad. The first one, 0, is good.
        decided: what was found of those compared.
    """
    bad = min((one for one, found in decided.items() if found is Found.BAD), default=last)
    good = max((one for one, found in decided.items() if found is Found.GOOD and one < bad), default=0)
    return good, bad


def following(last: int, decided: Mapping[int, Found]) -> int | None:
    """The candidate to compare next; None if none is left that could tell more.

    It is in the middle between the newest good and the first bad one. Where that one told nothing, it is beside it: on
    either side, then twice as far, and so on, since a commit that cannot run often has neighbours that cannot either.

    Args:
        last: as in `bounds`.
        decided: likewise.
    """
    good, bad = bounds(last, decided)
    middle = (good + bad) // 2
    steps = [0, *(2**power for power in range((bad - good).bit_length()))]
    nearest_first = [middle + side * step for step in steps for side in (1, -1)]
    row = range(good + 1, bad)
    return next((one for one in [*nearest_first, *row] if one in row and one not in decided), None)
