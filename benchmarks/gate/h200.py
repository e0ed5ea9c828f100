"""The recorded sittings of unchanged code on machines with one H200, each with each earlier one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from pytest_llmperf.cases import Case

REFERENCE = "eager"


@dataclass(frozen=True)
class Comparison:
    """One case in two sittings; figures of undisturbed processes, in seconds.

    Attributes:
        case: its key.
        earlier, later: the sittings' labels.
        sitting, head: the figures.
        over: those of eager in the same two sittings; None of eager, and where a sitting has none.
    """

    case: str
    earlier: str
    later: str
    sitting: list[float]
    head: list[float]
    over: tuple[list[float], list[float]] | None

    @property
    def metric(self) -> str:
        """Which was measured."""
        return self.case.rpartition("/")[2]


def comparisons(path: Path) -> Iterator[Comparison]:
    """Each later sitting of a case with each earlier one."""
    sittings = {one["label"]: undisturbed(one) for one in json.loads(path.read_text())["sittings"]}
    for (earlier, stored), (later, measured) in combinations(sittings.items(), 2):
        for case in (case for case in stored if case in measured):
            reference = of_reference(case)
            over = None
            if case != reference and reference in stored and reference in measured:
                over = (stored[reference], measured[reference])
            yield Comparison(case, earlier, later, stored[case], measured[case], over)


def of_reference(case: str) -> str:
    """The key of the same case with eager."""
    return replace(Case.parse("", case), backend=REFERENCE).key


def undisturbed(sitting: Mapping[str, Mapping[str, list[float]]]) -> dict[str, list[float]]:
    """The figures of a sitting's undisturbed processes, by case; only cases that have some."""
    disturbed = sitting.get("disturbed", {})
    found = {
        case: [figure for number, figure in enumerate(figures, 1) if number not in disturbed.get(case, ())]
        for case, figures in sitting["cases"].items()
    }
    return {case: figures for case, figures in found.items() if figures}
