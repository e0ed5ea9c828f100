"""JSON values in one form, so that equal ones have equal text and one id. Pure."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical(value: Any) -> Any:
    """A JSON value with sorted keys and floats of 6 significant digits."""
    if isinstance(value, dict):
        return {key: canonical(value[key]) for key in sorted(value)}
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def digest(value: Any) -> str:
    """An id: the first 12 hexadecimal digits of the SHA-256 of the canonical JSON."""
    text = json.dumps(canonical(value), separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
