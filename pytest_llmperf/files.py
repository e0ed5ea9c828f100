"""Files that runs write: replaced as a whole, so that readers see all of the old text or all of the new; and locks."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
from contextlib import suppress
from pathlib import Path

#: How many links a path may be made of, as the kernel has it.
LINKS = 40
#: Errors of a folder that takes no new file, or of a file that is a mount of its own, as containers have them.
IRREPLACEABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY}
#: Errors of a file system that has no locks.
LOCKLESS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}


def replace(path: Path, text: str) -> None:
    """Write a file in one step, and make its folder where that is missing.

    A link stays, and its target is replaced. A file that exists keeps its mode, and its owner where we may give it
    away. A stream, or a file that cannot be replaced, is written to directly.

    Raises:
        OSError: it cannot be written.
    """
    if stream(path):
        _write_into(path, text, os.O_APPEND)
        return
    target = _target(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    held = target.stat() if target.exists() else None
    temporary = _beside(target)
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            if held is not None:
                _keep(file.fileno(), held)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        if held is None or error.errno not in IRREPLACEABLE:
            raise
        _write_into(target, text, os.O_TRUNC)
    finally:
        with suppress(OSError):
            temporary.unlink()


def check(path: Path) -> None:
    """Try whether a file can be written, so that a run of an hour does not fail at its last step. Makes its folder.

    Raises:
        OSError: it cannot be written.
    """
    if not stream(path):
        path = _target(path)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        trial = _beside(path)
        try:
            trial.touch(exist_ok=False)
            trial.unlink()
            return
        except OSError:
            if not path.exists():
                raise
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def stream(path: Path) -> bool:
    """Whether a path is a device, a pipe or an open descriptor, such as ``/dev/stdout``. It has no text to replace."""
    step = path
    try:
        for _ in range(LINKS):
            if not step.is_symlink():
                break
            if Path(os.path.realpath(step.parent)).is_relative_to("/proc"):  # a descriptor, of whatever file
                return True
            step = step.parent / os.readlink(step)
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def lock(folder: Path, patience: float) -> int:
    """Lock a folder against everybody else who locks it. Nothing is written to it.

    Args:
        folder: which.
        patience: seconds to wait for another process.

    Returns:
        A descriptor. Closing it, or the end of this process, unlocks the folder.

    Raises:
        OSError: the folder cannot be opened, or it stays locked by another process.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    end = time.monotonic() + patience
    try:
        while not _locks(descriptor):
            if time.monotonic() >= end:
                said = f"another process has kept it locked for {patience:g} s"
                raise TimeoutError(errno.ETIMEDOUT, said, str(folder))
            time.sleep(0.02)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _locks(descriptor: int) -> bool:
    """Whether nobody else has it locked, and now we have."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in LOCKLESS:
            raise
    return True


def _target(path: Path) -> Path:
    """What a path leads to through links. Raises OSError where these are a circle."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


def _beside(target: Path) -> Path:
    """A new file's path in the same folder, so that a rename stays within one file system.

    The name is random, as containers reuse process ids.
    """
    return target.with_name(f".{secrets.token_hex(8)}.tmp")


def _keep(descriptor: int, held: os.stat_result) -> None:
    """Give a new file the owner, group and mode of the one that it replaces, as far as we may."""
    for owner in ((held.st_uid, -1), (-1, held.st_gid)):
        with suppress(PermissionError):
            os.fchown(descriptor, *owner)
    with suppress(PermissionError):
        os.fchmod(descriptor, stat.S_IMODE(held.st_mode))


def _write_into(path: Path, text: str, how: int) -> None:
    """Write into what is there. A pipe that nobody reads is an error; without O_NONBLOCK it would be waited for."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | how)
    os.set_blocking(descriptor, True)
    with open(descriptor, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
