"""Baselines from a results file: of a machine that cannot commit them, or of a run that was stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from pytest_llmperf.cases import Case
from pytest_llmperf.gate import baseline as store
from pytest_llmperf.gate.judge import Gate


@dataclass(frozen=True)
class Update:
    """What a run with ``--llm-update-baselines`` would have written when its results file was.

    Attributes:
        when: that moment.
        reference: the backend that speedups refer to.
        baseline: what it accepted.
        sets: likewise, by case: one of each state of the CPUs.
        tolerances: the slowdown allowed, a fraction, by `Case.key`; None for what is never gated.
        refused: why the other cases were not accepted, likewise.
        unmeasured: how many tests have no figure.
    """

    when: datetime
    reference: str
    baseline: store.Baseline
    sets: Mapping[Case, Sequence[store.Entry]]
    tolerances: Mapping[str, float | None]
    refused: Mapping[str, str]
    unmeasured: int


def parse(results: Mapping[str, Any]) -> Update | None:
    """The update of a results file; None if it is of a run without.

    Raises:
        KeyError, TypeError, ValueError: it is no results file; the message says of what.
    """
    if results["update"] is None:
        return None
    baseline = _baseline(results["update"]["baseline"])
    found = Update(
        when=datetime.fromisoformat(results["when"]).astimezone(),
        reference=results["reference"],
        baseline=baseline,
        sets={Case.parse(baseline.model, key): row for key, row in baseline.entries.items()},
        tolerances=dict(results["update"]["tolerances"]),
        refused=dict(results["update"]["refused"]),
        unmeasured=len(results["unmeasured"]),
    )
    if any(len({(one.environment, one.recorded) for one in row}) > 1 for row in baseline.entries.values()):
        raise ValueError("it has sets of one case that are of several days or machines")
    if found.tolerances.keys() != baseline.entries.keys():
        raise ValueError("its tolerances are of other cases than its figures")
    return found


def _baseline(data: Any) -> store.Baseline:
    try:
        return store.loads(json.dumps(data))
    except store.BaselineError as error:  # whose remedy is for the file
        raise ValueError(str(error).partition(";")[0]) from None


def queue(update: Update, gate: Gate) -> dict[str, str]:
    """Have the gate accept it, all but what it has already, or has of a later day.

    Args:
        update: what is to be accepted.
        gate: of its device and model, and of the machine that it is of.

    Returns:
        Why cases are left out, by `Case.key`.
    """
    left = dict(update.refused)
    for case, row in update.sets.items():
        why, taken = "", []
        for entry in row:
            own = gate.like(case, entry.barrier)
            if any(entry.invocations == one.invocations for one in own):
                why = "it is accepted already"
            elif own and own[0].recorded > entry.recorded:
                why = f"that machine has figures of {own[0].recorded}, and these are of {entry.recorded}"
            else:
                taken.append((entry.invocations, entry.barrier))
        if taken:
            environment, day = update.baseline.environments[row[0].environment], date.fromisoformat(row[0].recorded)
            gate.accept(case, environment, taken, update.tolerances[case.key], day)
        else:
            left[case.key] = why
    return left
