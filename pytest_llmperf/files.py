"""Files that are replaced as a whole: whoever reads one, and whatever fails, sees all of the old text or of the new."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def replace(path: Path, text: str) -> None:
    """Write a file in one step, and make its folder where that is missing. Raises OSError."""
    # Same folder, so that the rename stays within one file system; a random name, as containers reuse process ids.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
