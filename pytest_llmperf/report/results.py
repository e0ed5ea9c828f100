"""Raw results as JSON, written after every measurement, so that a later failure loses nothing."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Container, Iterable
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmperf import files
from pytest_llmperf.machine import fingerprint
from pytest_llmperf.report.document import RESULTS_SCHEMA
from pytest_llmperf.report.terminal import verdict_line

if TYPE_CHECKING:
    from pytest_llmperf.cases import Case
    from pytest_llmperf.session import Run


def finite(value: Any) -> Any:
    """The value with NaN and infinities as null, which JSON has no other word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [finite(item) for item in value]
    return value


def of(run: Run, unmeasured: Iterable[str], accepted: Container[Case] = ()) -> dict[str, Any]:
    """Everything that a run measured so far, as plain JSON values.

    Args:
        run: the run.
        unmeasured: the tests that were to gate a case and have not.
        accepted: the cases whose figures were written to the baseline.
    """
    return finite(  # type: ignore[no-any-return]
        {
            "schema": RESULTS_SCHEMA,
            "device": run.device.name,
            "model": run.model.name,
            "dtype": run.dtype,
            "reference": run.settings.reference,
            "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": run.scope.commit,
            "environment": {
                "fingerprint": fingerprint.take().as_dict(),
                "versions": fingerprint.versions(),
                "peaks": run.known_peaks,
            },
            "findings": [asdict(one) for one in run.findings if one.level != "ok"],
            "command_ci": bool(os.environ.get("CI")),
            "unmeasured": list(unmeasured),
            "measurements": [asdict(one) for one in run.measurements],
            "witnesses": [
                {"beside": backend} | asdict(one)
                for (backend, _), made in run.witnesses.items()
                for one in made
                if one is not None
            ],
            "comparisons": [
                {"backend": backend, "workload": str(workload), "pairs": [asdict(pair) for pair in one.pairs]}
                for (backend, workload), one in run.beside.comparisons.items()
            ],
            "self_test": [{"case": case.key, **asdict(found)} for case, found in run.beside.assessments.items()],
            "results": [
                result.as_dict() | {"said": verdict_line(result), "accepted": case in accepted}
                for case, result in run.results.items()
            ],
            "update": run.update(),
            "parity": [found.as_dict() for found in run.parities],
            "load": [asdict(one) for one in run.loads],
        }
    )


def write(path: Path, data: dict[str, Any]) -> None:
    """Replace the file. Raises OSError if its folder cannot be written to."""
    files.replace(path, json.dumps(data, indent=1))
