"""Why verdicts are as they are, and what would settle them: each said once. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pytest_llmperf.report.document import OUTCOMES, Document, Row


@dataclass(frozen=True)
class Reason:
    """A reason that cases have in common.

    Attributes:
        outcome, said, remedy: as the first case has them, the outcome in the words of its metric.
        rows: the cases. The first one could exclude least.
    """

    outcome: str
    said: str
    remedy: str
    rows: tuple[Row, ...]

    @property
    def cases(self) -> str:
        """The first case, and how many others there are."""
        more = f" and {len(self.rows) - 1} more" if len(self.rows) > 1 else ""
        return f"{self.rows[0].label}{more}"


def of(rows: Iterable[Row]) -> list[Reason]:
    """The reasons of verdicts, the worst outcome first.

    Reasons that differ in their figures alone are one: each case's own figures are in the table.
    """
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row["verdict.reason"] and row.outcome != "accepted":
            words = re.sub(r"\d[\d.,]*", "#", row["verdict.reason"])
            words = re.sub(r"\bslower\b|\bfaster\b", "other", words, count=1)
            words = re.sub(r"\b(more|less) memory\b", "other memory", words, count=1)
            groups.setdefault((row.outcome, words, row["verdict.remedy"] or ""), []).append(row)
    found = []
    for (_, _, remedy), group in groups.items():
        group.sort(key=lambda row: -(row["verdict.not_excluded"] or 0))
        found.append(Reason(group[0].shown_outcome, group[0]["verdict.reason"], remedy, tuple(group)))
    return sorted(found, key=lambda one: (OUTCOMES.index(one.rows[0].outcome), -len(one.rows)))


def remedies(found: Iterable[Reason]) -> list[str]:
    """What would settle the cases, each step once."""
    return [one for one in dict.fromkeys(reason.remedy for reason in found) if one]


def disturbances(document: Document) -> list[Row]:
    """The first row of each backend and workload some of whose generations something disturbed, the worst first."""
    found: dict[tuple[str, str], Row] = {}
    for row in document.rows:
        if row["contamination"]:
            found.setdefault((row.backend, row.workload), row)
    return sorted(found.values(), key=lambda row: -row["contamination"])
