"""What a Python has installed, without importing any of it. Also run as a script, by another interpreter.

Uses the standard library alone, so that any Python from 3.10 on can run it.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit


def distributions() -> dict[str, dict[str, str]]:
    """Each installed distribution by its normalized name (PEP 503).

    Returns:
        ``version``; ``folder`` of one that is installed from a folder in place (editable); ``revision`` of one that
        was installed from version control, or of the repository that the folder is in (PEP 610). A plus sign ends the
        revision of a folder with changed files. Python itself has the empty name.
    """
    found = {"": {"version": platform.python_version()}}
    for one in metadata.distributions():  # the first of a name is the one that is imported
        name = re.sub(r"[-_.]+", "-", one.metadata["Name"] or "?").lower()
        if name not in found:
            found[name] = {"version": one.version, **_origin(one)}
    return found


def _origin(distribution: metadata.Distribution) -> dict[str, str]:
    """Where a distribution came from, as far as `distributions` tells it."""
    try:
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    except ValueError:
        return {}
    if commit := origin.get("vcs_info", {}).get("commit_id"):
        return {"revision": str(commit)}
    if not origin.get("dir_info", {}).get("editable"):
        return {}
    folder = unquote(urlsplit(origin.get("url", "")).path)
    revision = _git(folder, "rev-parse", "HEAD")
    changed = revision and _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"folder": str(Path(folder).resolve())} | ({"revision": revision + "+" * bool(changed)} if revision else {})


def _git(folder: str, *arguments: str) -> str:
    """What git prints in a folder; empty where it cannot."""
    command = ["git", "-C", folder, *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


if __name__ == "__main__":
    json.dump(distributions(), sys.stdout)
