"""Where what outlives a run is kept, and what workers are told of it, whatever home the user has."""

from __future__ import annotations

import getpass
import os
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from platformdirs import user_cache_path

from pytest_llmperf import models

NAME = "pytest-llmperf"
#: The variables that say where engines and their libraries keep what they compiled or tuned, and a folder for each.
COMPILED = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "TORCH_EXTENSIONS_DIR": "extensions",
    "PYTORCH_KERNEL_CACHE_PATH": "kernels",
    "VLLM_CACHE_ROOT": "vllm",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "CUDA_CACHE_PATH": "cuda",
    "AMD_COMGR_CACHE_DIR": "comgr",
    "MIOPEN_CUSTOM_CACHE_DIR": "miopen",
    "MIOPEN_USER_DB_PATH": "miopen-tuned",
}
REMEDY = "set XDG_CACHE_HOME to a folder that can be written"


class FolderError(ValueError):
    """No folder can be written; one line says which were tried and what to set."""


@dataclass(frozen=True)
class Cache:
    """A folder for models, compiled kernels and tuned ones.

    Attributes:
        folder: it can be written.
        instead: the folder, and why it is not the user's own; empty where it is.
    """

    folder: Path
    instead: str = ""


def cache() -> Cache:
    """The user's cache folder; one in the folder of temporary files where the user's own cannot be written.

    Raises:
        FolderError: neither can.
    """
    try:
        own = user_cache_path(NAME)
        if not own.is_absolute():  # the standard ignores such an XDG_CACHE_HOME
            own = Path(os.path.expanduser("~"), ".cache", NAME)
        why = unwritable(own)
    except RuntimeError as error:  # no HOME, and a user without a name
        why = str(error)
    if why is None:
        return Cache(own)
    why = f"the user's cache folder cannot be used ({why})"
    try:
        other = _temporary(tempfile.gettempdir())
    except OSError as error:
        raise FolderError(f"{why}, nor can the folder of temporary files ({error}); {REMEDY}") from None
    return Cache(other, f"{other}, since {why}")


def unwritable(folder: Path) -> str | None:
    """Why nothing can be written to a folder, which is made if it is not there; None if something can."""
    try:
        if not folder.is_absolute():
            return f"{folder} is no absolute path"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)  # a full disk takes the file's name and not its content
    except OSError as error:
        return str(error)
    return None


def _temporary(root: str) -> Path:
    """A folder of this user's own in one of temporary files, where others may write too. Raises OSError."""
    found = Path(root, f"{NAME}-{os.getuid()}")
    found.mkdir(mode=0o700, exist_ok=True)
    if found.is_symlink() or found.stat().st_uid != os.getuid():
        raise OSError(f"{found} is another user's")
    if why := unwritable(found):
        raise OSError(why)
    return found


def breaks_commands(path: str | Path) -> bool:
    """Whether a path falls apart in inductor's C++ command, which is one string: for a blank, a quote, a backslash."""
    try:
        return shlex.split(str(path)) != [str(path)]
    except ValueError:
        return True


def compiled(cache: Path) -> Path:
    """Where compiled kernels are kept: in the cache, unless its path breaks the command that compiles them."""
    if breaks_commands(cache):
        for root in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
            with suppress(OSError):
                if not breaks_commands(root):
                    return _temporary(root)
    return cache


@contextmanager
def emptied(cache: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A new folder beside what is compiled, for the caches of one process; removed afterwards.

    Inductor keeps compiled headers in the folder of temporary files, whatever its variable says. So that is new too. It
    lies in the usual one: sockets in it have short paths.

    Returns:
        The folder, and the variables of a worker that keeps what it compiles in it, whatever else the user has set.
    """
    parent = compiled(cache)
    parent.mkdir(parents=True, exist_ok=True)
    new = partial(tempfile.TemporaryDirectory, prefix="cold-", ignore_cleanup_errors=True)
    with new(dir=parent) as folder, new() as temporary:
        for name in COMPILED.values():
            Path(folder, name).mkdir()
        caches = {variable: str(Path(folder, name)) for variable, name in COMPILED.items()}
        yield Path(folder), caches | {"TMPDIR": temporary}


def of_workers(cache: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables of every worker: where libraries keep what they compile, and a home and a name where the user has none.

    A variable that is set keeps its value, unless nothing can be written there.
    """
    kernels, home = compiled(cache), cache / "home"
    found = {"TORCHINDUCTOR_CACHE_DIR": str(kernels / "inductor")}
    own = Path(os.path.expanduser("~"), ".cache")
    base = environ.get("XDG_CACHE_HOME") or str(own)
    stead = {"HOME": str(home)} if unwritable(own) else {}
    if unwritable(Path(os.path.abspath(base))):
        stead["XDG_CACHE_HOME"] = str(home / ".cache")
    if stead:
        (home / ".cache").mkdir(parents=True, exist_ok=True)
        found["HF_HUB_CACHE"] = str(models.hub_cache(environ))  # what is there already can be read
    if stead or breaks_commands(base):
        found["VLLM_CACHE_ROOT"] = str(kernels / "vllm")
    try:
        getpass.getuser()
    except (KeyError, OSError):
        found["USER"] = f"user-{os.getuid()}"
    return {name: value for name, value in found.items() if name not in environ} | stead
