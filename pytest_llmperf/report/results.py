"""Raw results as JSON, written after every measurement, so that a later failure loses nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmperf import files
from pytest_llmperf.explain.profiles import plain
from pytest_llmperf.machine import fingerprint
from pytest_llmperf.report.document import RESULTS_SCHEMA
from pytest_llmperf.report.text import verdict_line
from pytest_llmperf.settings import in_ci

if TYPE_CHECKING:
    from pytest_llmperf.cases import Case
    from pytest_llmperf.result import Result
    from pytest_llmperf.session import Session


def finite(value: Any) -> Any:
    """The value with NaN and infinities as null, which JSON has no other word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [finite(item) for item in value]
    return value


def shown(run: Session, unmeasured: Iterable[str], accepted: Container[Case] = ()) -> dict[str, Any]:
    """What reports show of a run so far, as plain JSON values.

    Args:
        run: the run.
        unmeasured: the tests that were to gate a case and have not.
        accepted: the cases whose figures were written to the baseline.
    """
    commit, no_commit = run.plan.commit
    return finite(  # type: ignore[no-any-return]
        {
            "schema": RESULTS_SCHEMA,
            "device": run.device.name,
            "model": run.model.name,
            "dtype": run.dtype,
            "reference": run.settings.reference,
            "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": commit,
            "no_commit": no_commit,
            "environment": {
                "fingerprint": fingerprint.take().as_dict(),
                "versions": fingerprint.versions(),
                "peaks": run.known_peaks,
                "rates": run.machine.looks[0] if run.machine.looks else None,
                "limits": run.machine.limits,
                "seed": run.runtime.seed,
            },
            "findings": [asdict(one) for one in run.findings if one.level != "ok"],
            "unmeasured": list(unmeasured),
            "results": [_case(result, case in accepted) for case, result in run.results.items()],
            "parity": [found.as_dict() for found in run.parities],
            "load": [asdict(one) for one in run.loads],
        }
    )


def _case(result: Result, accepted: bool) -> dict[str, Any]:
    """A case's result. If its figures were written to the baseline, nothing is left to do about it."""
    found = result.as_dict()
    if not accepted:
        return found | {"said": verdict_line(result), "accepted": False}
    written = {"said": f"{result.case}: accepted", "accepted": True}
    return found | written | {"verdict": found["verdict"] | {"remedy": ""}}


def of(
    run: Session, unmeasured: Iterable[str], narrowed: Iterable[str], accepted: Container[Case] = ()
) -> dict[str, Any]:
    """Everything that a run measured so far: `shown`, and what that is made of.

    Args:
        run: the run.
        unmeasured: as in `shown`.
        narrowed: what hid tests from the run.
        accepted: as in `shown`.
    """
    return shown(run, unmeasured, accepted) | finite(  # type: ignore[no-any-return]
        {
            "command_ci": in_ci(),
            "narrowed": list(narrowed),
            "measurements": [asdict(one) | {"profile": plain(one.profile)} for one in run.measurements],
            "comparisons": [
                {
                    "base": "" if base is None else str(base),
                    "backend": backend,
                    "workload": str(workload),
                    "pairs": [
                        asdict(pair) | {"profiles": {arm: plain(found) for arm, found in pair.profiles.items()}}
                        for pair in one.pairs
                    ],
                }
                for (base, backend, workload), one in run.beside.comparisons.items()
            ],
            "starts": [
                {
                    "case": case.key,
                    "base": str(base),
                    "pairs": [{arm: dict(measured.start) for arm, measured in pair.items()} for pair in one.pairs],
                }
                for (case, base), one in run.beside.started.items()
            ],
            "self_test": [{"case": case.key, **asdict(found)} for case, found in run.beside.assessments.items()],
            "update": run.update(),
        }
    )


def merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the processes of a parallel run have measured, each as `of`. They have machine and settings in common."""
    measured = ("results", "parity", "load", "measurements", "comparisons", "starts", "self_test")
    told = ("unmeasured", "narrowed")  # all of them know of every test
    return (
        parts[0]
        | {name: [one for part in parts for one in part[name]] for name in measured}
        | {name: list(dict.fromkeys(one for part in parts for one in part[name])) for name in told}
    )


def write(path: Path, data: dict[str, Any]) -> None:
    """Replace the file. Raises OSError if its folder cannot be written to."""
    files.replace(path, json.dumps(data, indent=1))
