"""A worker's first code: it decides where to import from. Any interpreter runs it, so it needs only Python's library.

In a worker of a named revision, as of base, modules of the tree come from the revision's checkout instead. A module
that is not there cannot be imported: a base that ran head's code would never differ from head.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Collection, Sequence
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit


class Guard:
    """A finder before all others. It refuses modules of the tree under test, and modules installed from it.

    Args:
        root: the tree.
        copies: files that were installed from it.
    """

    def __init__(self, root: Path, copies: Collection[str]) -> None:
        self._root = root
        self._copies = copies

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        others: list[Any] = [finder for finder in sys.meta_path if finder is not self]
        spec: ModuleSpec | None = next(
            (one for finder in others if (one := finder.find_spec(name, path, target))), None
        )
        if spec is None or not spec.has_location or not spec.origin:
            return spec
        has_none = f"this revision has no {name} of its own"
        if spec.origin in self._copies:
            raise ImportError(f"{has_none}: {spec.origin} was installed from the tree", name=name)
        if own(Path(spec.origin), self._root):
            raise ImportError(f"{has_none}: it would be the tree's, {spec.origin}", name=name)
        return spec


def own(path: Path, root: Path) -> bool:
    """Whether a file or folder is the tree's own and not of an environment that lies in it.

    Links are followed; otherwise head's code would be taken for another's. An environment does not count if it is the
    tree, or if the tree lies in it, as /usr/src/app lies in the /usr of a system's Python.
    """
    root, environments = _tree(root)
    path = path.resolve()
    if not path.is_relative_to(root) or "site-packages" in path.relative_to(root).parts:
        return False
    return not any(path.is_relative_to(environment) for environment in environments)


@cache  # asked of every module that a worker of base imports
def _tree(root: Path) -> tuple[Path, tuple[Path, ...]]:
    """The tree without links, and the environments that lie in it."""
    root = root.resolve()
    prefixes = (Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix))
    return root, tuple(prefix for prefix in prefixes if root in prefix.parents)


def counterpart(path: Path, root: Path, folder: Path) -> Path:
    """Where a path of the tree is in the base's checkout."""
    return folder / path.resolve().relative_to(_tree(root)[0])


def copies(root: Path, folder: Path) -> set[str]:
    """Files that ``pip install .`` copied from the tree, and those of a wheel in the tree that base does not have."""
    from importlib import metadata  # a third of what a worker imports, and only base needs it

    found: set[str] = set()
    for distribution in metadata.distributions():
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")  # PEP 610
        path = Path(unquote(urlsplit(origin.get("url", "")).path))
        if not origin.get("url", "").startswith("file:") or not own(path, root):
            continue
        directory = origin.get("dir_info")
        vendored = directory is None and counterpart(path, root, folder).exists()
        if not vendored and not (directory or {}).get("editable"):
            found.update(str(distribution.locate_file(file)) for file in distribution.files or ())
    return found


def moved(path: str, root: Path, folder: Path) -> str:
    """The path's counterpart in the base's checkout, where it has one; else the path."""
    if not own(Path(path), root):
        return path
    found = counterpart(Path(path), root, folder)
    return str(found) if found.exists() else path


def searched(search_path: Sequence[str | None], own_path: Sequence[str]) -> list[str]:
    """A search path whose None stands for the interpreter's own entries; these alone if it is empty."""
    found = [own_path if entry is None else [entry] for entry in search_path or [None]]
    return [entry for entries in found for entry in entries]


def relocate(root: Path, folder: Path) -> None:
    """Import from ``folder`` what would be imported from ``root``."""
    sys.path[:] = [moved(entry, root, folder) for entry in sys.path]
    if "PYTHONPATH" in os.environ:  # for processes that the worker starts
        entries = os.environ["PYTHONPATH"].split(os.pathsep)
        os.environ["PYTHONPATH"] = os.pathsep.join(moved(entry, root, folder) if entry else entry for entry in entries)
    for finder in sys.meta_path:  # an editable install by setuptools maps names to folders, in its module's MAPPING
        mapping = getattr(sys.modules.get(getattr(finder, "__module__", "")), "MAPPING", {})
        mapping.update({name: moved(path, root, folder) for name, path in mapping.items()})
    sys.meta_path.insert(0, Guard(root, copies(root, folder)))


def main() -> None:
    """Arguments: the tree under test and the base's checkout, both empty for head; the folder of this package; a
    search path, as `searched` takes it.
    """
    root, folder, package, search_path = sys.argv[1:5]
    del sys.argv[1:5]
    here = str(Path(__file__).parent)  # Python puts a script's folder first
    own_path = [entry for entry in sys.path if entry not in ("", here)]
    # The package is appended, not prepended: an interpreter that has its own copy uses that, and the folder that holds
    # this one (site-packages, often) shadows nothing of the other environment.
    sys.path[:] = [*searched(json.loads(search_path), own_path), package]
    if folder:
        relocate(Path(root), Path(folder))
    importlib.import_module("pytest_llmperf.worker.server").main()


if __name__ == "__main__":
    main()
