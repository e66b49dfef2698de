"""Files that are replaced whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ConfigurationError


def checked_path(path: str | os.PathLike[str]) -> Path:
    """A path as callers may give it.

    Raises:
        ConfigurationError: It is none.
    """
    try:
        return Path(path)
    except TypeError:
        raise ConfigurationError(
            f"{path!r} is not a path.", remedy="Pass a string or a pathlib.Path."
        ) from None


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file so that whoever opens it finds the old one or the new one, whole.

    Yields the path of a new, empty file in the same folder. When the block ends, that file is
    flushed to the disk and renamed over `path`; when it raises, KeyboardInterrupt included, it is
    removed and `path` stays as it was. A process that is killed may leave its temporary file
    (``.segue-*.tmp``) behind; whoever writes the same file next removes it.

    The file ends up with the permissions of the one it replaces, or with those that ``open`` would
    give it. A link at `path` stays, and what it leads to is replaced.

    Args:
        path: The file to write.

    Yields:
        The path to write to; write into this file, don't put another in its place.

    Raises:
        OSError: The folder is missing or can't be written, `path` is write-protected or no regular
            file, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    mode = _mode_of(target)
    _remove_leftovers(target)
    temporary = target.with_name(f".segue-{tag(target)}-{secrets.token_hex(4)}.tmp")
    descriptor = -1
    try:
        # Nobody else reads the new text of a private file while it is being written.
        descriptor = _create(temporary, 0o666 if mode is None else 0o600)
        yield temporary
        if mode is not None:
            os.fchmod(descriptor, mode)
        _flush(descriptor)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    finally:
        # Not before it has its name: a temporary file that nobody claims is removed.
        if descriptor >= 0:
            os.close(descriptor)
    _flush_folder(target.parent)


def _create(temporary: Path, mode: int) -> int:
    """A new file's descriptor, under a lock that tells it from what killed writers left behind.

    Raises:
        OSError: It can't be made.
    """
    while True:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            # Where a file system has no locks, leftovers stay.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Another writer may have removed it before it was locked.
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _remove_leftovers(target: Path) -> None:
    """Remove the temporary files of writers that were killed while they wrote this file."""
    ours = re.compile(rf"\.segue-{tag(target)}-[0-9a-f]{{8}}\.tmp")
    with suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            if ours.fullmatch(entry.name):
                with suppress(OSError):
                    _remove_unclaimed(target.with_name(entry.name))


def _remove_unclaimed(temporary: Path) -> None:
    """Remove a temporary file.

    Raises:
        OSError: Its writer is at work, or it is no such file.
    """
    descriptor = os.open(temporary, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        temporary.unlink()
    finally:
        os.close(descriptor)


def tag(target: Path) -> str:
    """What names of a file's companions have in common: short, whatever its own name's length."""
    return hashlib.sha256(os.fsencode(target.name)).hexdigest()[:12]


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of it, however little the system takes at a time.

    Raises:
        OSError: The disk is full, or fails.
    """
    left = memoryview(data).cast("B")
    while left:
        left = left[os.write(descriptor, left) :]


def _mode_of(target: Path) -> int | None:
    """The permissions of the file to replace; ``None`` if there is none.

    Raises:
        OSError: It is no regular file, or a plain ``open`` could not write to it.
    """
    try:
        status = target.lstat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    # A rename would put a file in the place of a device, or of one in a ring of links.
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(target))
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
    return stat.S_IMODE(status.st_mode)


def _flush(descriptor: int) -> None:
    """Bring a file to the disk itself; on macOS, fsync leaves it in the drive's memory."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
        except OSError as error:
            # Network and other file systems don't have it.
            if error.errno in (errno.EIO, errno.ENOSPC):
                raise
    os.fsync(descriptor)


def _flush_folder(folder: Path) -> None:
    """Bring a rename to the disk, where the file system has a way to: the file is there already."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
