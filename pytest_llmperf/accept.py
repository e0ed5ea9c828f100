"""Baselines from a results file: of a machine that cannot commit them, or of a run that was stopped. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import date, datetime
from typing import Any

from pytest_llmperf import baseline as store
from pytest_llmperf.cases import Case, Workload
from pytest_llmperf.gate import Gate
from pytest_llmperf.trace import Trace
from pytest_llmperf.verdict import Outcome

#: Processes that a baseline is made of, at least.
FEWEST = 3


def queue(results: Mapping[str, Any], gate: Gate) -> dict[str, str]:
    """Queue the figures of a results file in the gate, to be written.

    A case has to have been judged, with enough processes that nothing disturbed and that were not started because the
    first one was slow or fast, and its backend's tokens must not be wrong.

    Args:
        results: the file, as read.
        gate: of the results' device and model, and of the machine that they are of.

    Returns:
        Why the other cases are left out, by `Case.key`.
    """
    left = {}
    wrong = {one["backend"] for one in results["parity"] if not one["passed"]}
    day = datetime.fromisoformat(results["when"]).date()
    for result in results["results"]:
        _, backend, workload, metric = result["case"].split("/")
        processes = [one for one in _processes(results, backend, workload) if one["clean"] and one["settled"]]
        verdict = result["verdict"]
        if backend in wrong:
            left[result["case"]] = "not in parity"
        elif verdict["outcome"] == Outcome.REGRESSION.value:
            left[result["case"]] = f"a regression: {verdict['reason']}"
        elif verdict["basis"] == "latency" and verdict["processes"] > 1:  # an update screens, and confirms nothing
            left[result["case"]] = "further processes were started because the first one was slow or fast"
        elif len(processes) < FEWEST:
            few = f"{len(processes)} undisturbed process{'es' * (len(processes) != 1)}, and {FEWEST} are needed"
            left[result["case"]] = f"{few}: measure it with --llm-update-baselines"
        else:
            case = Case(results["model"], results["dtype"], backend, Workload.parse(workload), metric)
            environment = _environment(results, backend, result["devices"])
            _accept(gate, case, environment, processes, result["tolerance"], day)
    return left


def _processes(results: Mapping[str, Any], backend: str, workload: str) -> list[Mapping[str, Any]]:
    """The measurements of a backend and workload: one for each process."""
    return [
        one
        for one in results["measurements"]
        if (one["backend"], str(Workload(**one["workload"]))) == (backend, workload)
    ]


def _environment(results: Mapping[str, Any], backend: str, devices: str) -> store.Environment:
    """As `Run.environment` had it there."""
    found = results["environment"]
    versions = found.get("interpreters", {}).get(backend, found["versions"])
    return store.Environment(
        found["fingerprint"], versions | ({"devices": devices} if devices else {}), found["peaks"] or {}
    )


def _accept(
    gate: Gate,
    case: Case,
    environment: store.Environment,
    processes: list[Mapping[str, Any]],
    tolerance: float,
    day: date,
) -> None:
    figures = [[Trace(**sample["trace"]).metric(case.metric) for sample in one["samples"]] for one in processes]
    gate.accept(case, environment, figures, tolerance, day)
    cold = [[one["load"] + Trace(**one["warm_up"][0]).latency] for one in processes]
    gate.accept(replace(case, metric="cold-start"), environment, cold, None, day)
