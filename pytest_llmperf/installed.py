"""What a Python has installed, without importing any of it. Also run as a script, by another interpreter.

Uses the standard library alone, so that any Python from 3.10 on can run it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: Changed versions that a reason names.
NAMED = 3
#: What git tells its hooks of the repository that it works on, which is not the one of the folder that is asked about.
OF_A_HOOK = {"GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_PREFIX"}


def distributions() -> dict[str, dict[str, str]]:
    """Each installed distribution by its normalized name (PEP 503).

    Returns:
        ``version``; ``folder`` of one that is used from a folder in place (editable, or a build's metadata beside its
        code); ``revision`` of one whose code the version does not tell (PEP 610): the commit of version control, the
        commit of the folder's repository, or a digest of the files that a folder was installed as. A plus sign ends the
        revision of a folder with changed files, or of one that no git knows. Python itself has the empty name.
    """
    found = {"": {"version": platform.python_version()}}
    for one in metadata.distributions():  # the first of a name is the one that is imported
        name = normal(one.metadata["Name"] or "?")
        if name not in found:
            found[name] = {"version": one.version or "?", **_origin(one)}
    return found


def normal(name: str) -> str:
    """A distribution's name as PEP 503 normalizes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def changes(recorded: Mapping[str, str], now: Mapping[str, str], first: Collection[str] = ()) -> str:
    """The distributions whose versions differ, a few by name; empty if none does.

    What was installed in place from files that differed from their revision is never the same.

    Args:
        recorded: versions by name.
        now: likewise.
        first: names that are said before others.
    """
    found = []
    for name in sorted(recorded.keys() | now.keys(), key=lambda name: (name not in first, name)):
        old, new = recorded.get(name, "missing"), now.get(name, "missing")
        if old != new:
            found.append(f"{name} {old} -> {new}")
        elif new.endswith("+)"):
            found.append(f"{name} {new}, whose files differ from that revision")
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return ", ".join(found[:NAMED]) + more


def _origin(distribution: metadata.Distribution) -> dict[str, str]:
    """Where a distribution came from, as far as `distributions` tells it."""
    here = Path(str(distribution.locate_file(""))).resolve()
    installed = any(here.is_relative_to(Path(prefix).resolve()) for prefix in (sys.prefix, sys.base_prefix))
    if not installed and distribution.read_text("SOURCES.txt"):  # setuptools wrote it beside the code
        return _in_place(here)
    try:
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        directory, commit = origin.get("dir_info"), origin.get("vcs_info", {}).get("commit_id")
    except (AttributeError, ValueError):
        return {}
    if commit:
        return {"revision": str(commit)}
    if not isinstance(directory, dict):
        return {}
    if directory.get("editable"):
        return _in_place(Path(unquote(urlsplit(origin.get("url", "")).path)).resolve())
    files = distribution.read_text("RECORD") or ""
    return {"revision": hashlib.sha256(files.encode()).hexdigest()[:12]}


def _in_place(folder: Path) -> dict[str, str]:
    """Code that is used from a folder."""
    revision = _git(folder, "rev-parse", "HEAD") or "unknown"
    changed = revision == "unknown" or _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"folder": str(folder), "revision": revision + "+" * bool(changed)}


def _git(folder: Path, *arguments: str) -> str:
    """What git prints in a folder; empty where it cannot."""
    environment = {name: value for name, value in os.environ.items() if name not in OF_A_HOOK}
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30, env=environment)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


if __name__ == "__main__":
    json.dump(distributions(), sys.stdout)
