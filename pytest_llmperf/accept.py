"""Baselines from a results file: of a machine that cannot commit them, or of a run that was stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from typing import Any

from pytest_llmperf import baseline as store
from pytest_llmperf.cases import Case
from pytest_llmperf.gate import Gate


def queue(results: Mapping[str, Any], gate: Gate) -> dict[str, str]:
    """Queue in the gate what an update had measured by the time its results file was written.

    Args:
        results: the file, as read.
        gate: of the results' device and model, and of the machine that they are of.

    Returns:
        Why the others of its cases are left out, by `Case.key`.

    Raises:
        BaselineError: what it would have written is no baseline.
        KeyError, TypeError, ValueError: it is no results file.
    """
    update = results.get("update")
    left = {one["case"]: "it was not accepted there" for one in results["results"]}
    if update is None:
        return left
    found = store.loads(json.dumps(update["baseline"]), "its update")
    for key, row in found.entries.items():
        case = Case.parse(found.model, key)
        left.pop(key, None)
        for entry in row:
            own = gate.own(case)
            if any(entry.invocations == one.invocations for one in own):
                left[key] = "it is accepted already"
            elif own and own[0].recorded > entry.recorded:
                left[key] = f"this machine has figures of {own[0].recorded}, and these are of {entry.recorded}"
            else:
                environment, day = found.environments[entry.environment], date.fromisoformat(entry.recorded)
                gate.accept(case, environment, entry.invocations, update["tolerances"][key], day)
    return left
