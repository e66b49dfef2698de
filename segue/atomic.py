"""Files that are replaced whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import ConfigurationError


def checked_path(path: str | os.PathLike[str]) -> Path:
    """A path as callers may give it.

    Raises:
        ConfigurationError: It is none.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigurationError(
            f"{path!r} is not a path.", remedy="Pass a string or a pathlib.Path."
        )
    return Path(path)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file so that whoever opens it finds the old one or the new one, whole.

    Yields the path of a new, empty file in the same folder. When the block ends, that file is
    flushed to the disk and renamed over `path`; when it raises, KeyboardInterrupt included, it is
    removed and `path` stays as it was. A process that is killed may leave its temporary file
    (``.segue-*.tmp``) behind, which is in nobody's way.

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
    temporary = target.with_name(f".segue-{tag(target)}-{secrets.token_hex(4)}.tmp")
    try:
        # Nobody else reads the new text of a private file while it is being written.
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600
        )
        try:
            yield temporary
            if mode is not None:
                os.fchmod(descriptor, mode)
            _flush(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _flush_folder(target.parent)


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
        # Network and other file systems don't have it.
        with suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def _flush_folder(folder: Path) -> None:
    """Bring a rename to the disk, where the file system has a way to: the file is there already."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
