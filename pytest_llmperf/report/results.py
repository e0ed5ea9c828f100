"""Raw results as JSON, written after every measurement, so that a later failure loses nothing."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_benchmark.utils import get_commit_info

from pytest_llmperf import files
from pytest_llmperf.devices import fingerprint
from pytest_llmperf.report.document import RESULTS_SCHEMA
from pytest_llmperf.report.terminal import verdict_line

if TYPE_CHECKING:
    from pytest_llmperf.run import Run


def finite(value: Any) -> Any:
    """The value with NaN and infinities as null, which JSON has no other word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [finite(item) for item in value]
    return value


@cache
def _commit() -> str | None:
    """The revision under test, with a plus sign where files differ from it; None outside a repository."""
    found = get_commit_info("")
    known = found["id"] not in ("unversioned", "unknown")
    return f"{found['id']}{'+' * found['dirty']}" if known else None


def of(run: Run, unmeasured: Iterable[str]) -> dict[str, Any]:
    """Everything that a run measured so far, as plain JSON values.

    Args:
        run: the run.
        unmeasured: the tests that were to gate a case and have not.
    """
    return finite(  # type: ignore[no-any-return]
        {
            "schema": RESULTS_SCHEMA,
            "device": run.device.name,
            "model": run.model.name,
            "dtype": run.dtype,
            "reference": run.settings.reference,
            "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": _commit(),
            "environment": {
                "fingerprint": fingerprint.take().as_dict(),
                "versions": fingerprint.versions(),
                "peaks": run.known_peaks,
            },
            "command_ci": bool(os.environ.get("CI")),
            "unmeasured": list(unmeasured),
            "measurements": [asdict(one) for one in run.measurements],
            "comparisons": [
                {"backend": backend, "workload": str(workload), "pairs": [asdict(pair) for pair in one.pairs]}
                for (backend, workload), one in run.beside.comparisons.items()
            ],
            "self_test": [{"case": case.key, **asdict(found)} for case, found in run.beside.assessments.items()],
            "results": [result.as_dict() | {"said": verdict_line(result)} for result in run.results.values()],
            "parity": [found.as_dict() for found in run.parities],
        }
    )


def write(path: Path, data: dict[str, Any]) -> None:
    """Replace the file. Raises OSError if its folder cannot be written to."""
    files.replace(path, json.dumps(data, indent=1))
