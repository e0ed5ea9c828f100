"""Baselines from a results file: of a machine that cannot commit them, or of a run that was stopped."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from pytest_llmperf.cases import Case
from pytest_llmperf.gate import baseline as store
from pytest_llmperf.gate.baseline import Baseline, Entry, Sitting
from pytest_llmperf.gate.priors import prior_of
from pytest_llmperf.gate.update import Update
from pytest_llmperf.machine.table import kind_of


@dataclass(frozen=True)
class Accepted:
    """What a run with ``--llm-update-baselines`` would have written when its results file was.

    Attributes:
        when: that moment.
        baseline: what it accepted.
        entries: likewise, by case.
        tolerances: the slowdown allowed, a fraction, by `Case.key`.
        same_code: ids of older sittings that are of the same code, by the id of each sitting of this run.
        refused: why the other cases were not accepted, by `Case.key`.
        unmeasured: how many tests have no figure.
    """

    when: datetime
    baseline: Baseline
    entries: Mapping[Case, Entry]
    tolerances: Mapping[str, float]
    same_code: Mapping[str, tuple[str, ...]]
    refused: Mapping[str, str]
    unmeasured: int


def parse(results: Mapping[str, Any]) -> Accepted | None:
    """What a results file has to accept; None if it is of a run without ``--llm-update-baselines``.

    Raises:
        KeyError, TypeError, ValueError: it is no results file; the message says why.
    """
    if results["update"] is None:
        return None
    baseline = _baseline(results["update"]["baseline"])
    if any(len(row) > 1 for row in baseline.entries.values()):
        raise ValueError("it has several entries of one case")
    found = Accepted(
        when=datetime.fromisoformat(results["when"]).astimezone(),
        baseline=baseline,
        entries={Case.parse(baseline.model, key): row[0] for key, row in baseline.entries.items()},
        # An older version had one of the starts that it recorded, which are left out.
        tolerances={key: one for key, one in results["update"]["tolerances"].items() if one is not None},
        same_code={name: tuple(ids) for name, ids in results["update"]["same_code"].items()},
        refused=dict(results["update"]["refused"]),
        unmeasured=len(results["unmeasured"]),
    )
    if found.tolerances.keys() != baseline.entries.keys():
        raise ValueError("its tolerances are of other cases than its figures")
    return found


def _baseline(data: Any) -> Baseline:
    try:
        return store.loads(json.dumps(data))
    except store.BaselineError as error:  # whose remedy is for the file
        raise ValueError(str(error).partition(";")[0]) from None


def queue(accepted: Accepted, update: Update) -> dict[str, str]:
    """Queue what was accepted for a baseline file, all but what it has already, or has of a later sitting.

    Returns:
        Why cases are left out, by `Case.key`.
    """
    left = dict(accepted.refused)
    kind = kind_of(update.device) or "cpu"
    for case, entry in accepted.entries.items():
        sitting = accepted.baseline.sitting(entry)
        own = update.held.own(case.key, sitting.fingerprint) if update.held else []
        recorded = [update.held.sitting(one).recorded for one in own] if update.held else []
        if any(one.sitting == entry.sitting for one in own):
            left[case.key] = "it is accepted already"
        elif recorded and recorded[0] > sitting.recorded:
            left[case.key] = f"that machine has figures of {recorded[0]}, and these are of {sitting.recorded}"
        else:
            update.accept(
                case,
                sitting,
                entry.processes,
                entry.barrier,
                accepted.tolerances[case.key],
                prior_of(kind, case.metric),
                partial(_same_code, sitting, accepted.same_code.get(entry.sitting, ())),
                next((one.phases for one in accepted.baseline.profiles.get(case.profile_key, ())), None),
                entry.parts,
            )
    return left


def _same_code(new: Sitting, known: Collection[str], old: Sitting) -> bool:
    """Whether the run knew a sitting to be of the same code, or what both were recorded with says so."""
    return old.id in known or store.same_code(new, lambda code: code is not None and code == new.code, old)
