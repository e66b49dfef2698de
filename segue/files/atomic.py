"""Files that are replaced whole or not at all.

*How it works.* The new content goes into a temporary file in the same folder (only within one file
system is a rename a single step), which is flushed to the disk and then renamed over the old file;
last, the folder is flushed. So at any moment, after a kill or a power cut too, the path leads to
the old file or to the new one, each whole.

*Leftovers.* A writer that is killed leaves its temporary file, ``.segue-TAG-RANDOM.tmp``, where TAG
stands for the name of the file being written. Whoever writes the same file next removes it, but
must not remove that of a writer still at work. So each writer holds a lock (``flock``) on its
temporary file until after the rename, and a leftover is a file that can be locked. There is one
race: between creating the file and locking it, another writer may take it for a leftover. Hence a
writer looks, once it has the lock, whether its file still has a name, and begins again if not.

*What does not work.* Two writers of one path don't see each other: the last rename wins
(`segue.files.lock` is for that). The new file is another inode: hard links to the old one keep the
old content, and of its attributes only the permissions are carried over. Old and new need space on
the disk at the same time. Where a file system has no locks, leftovers stay.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Paths of files that this process has open already.
_OPEN_FILES = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/self/fd/")
_CHUNK_BYTES = 2**20


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file so that whoever opens it finds the old one or the new one, whole.

    Yields the path of a new, empty file in the same folder. When the block ends, that file is
    flushed to the disk and renamed over `path`; when the block raises, KeyboardInterrupt included,
    the new file is removed and `path` stays as it was. A process that is killed may leave its
    temporary file (``.segue-*.tmp``); whoever writes the same file next removes it.

    The file gets the permissions of the one it replaces, or those that ``open`` would give it. A
    symbolic link at `path` stays, and the file that it leads to is replaced.

    Examples:
        >>> with replacing("notes.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> Path("notes.txt").read_text()
        'whole'

    Args:
        path: The file to write.

    Yields:
        The path to write to. Write into this file; don't replace it by another.

    Raises:
        OSError: if the folder is missing or can't be written, `path` is write-protected or not a
            regular file, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    mode = _mode_of(target)
    _remove_leftovers(target)
    temporary = target.with_name(f".segue-{tag(target)}-{secrets.token_hex(4)}.tmp")
    descriptor = -1
    try:
        # Nobody else may read the new content of a private file while it is being written.
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
        # Only after the rename: closing drops the lock, and then the file would be a leftover.
        if descriptor >= 0:
            os.close(descriptor)
    _flush_folder(target.parent)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file as `replacing` does, or fill what can't be replaced: a pipe, a device.

    What is written for such a path comes together in a temporary file, and goes through when the
    block ends; when the block raises, nothing does. ``/dev/stdout`` is such a path even where it
    leads to a file, since more may be written to that.

    Examples:
        >>> with writing("notes.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> Path("notes.txt").read_text()
        'whole'

    Args:
        path: The file, pipe or device to write to.

    Yields:
        The path to write to.

    Raises:
        OSError: if `path` can't be written.
    """
    if not is_written_in_place(path):
        with replacing(path) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory(prefix="segue-") as folder:
        temporary = Path(folder) / "content"
        temporary.touch()
        yield temporary
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            with temporary.open("rb") as content:
                while chunk := content.read(_CHUNK_BYTES):
                    write_all(descriptor, chunk)
        finally:
            os.close(descriptor)


def is_written_in_place(path: str | os.PathLike[str]) -> bool:
    """Return True if a path leads to a pipe or a device, or to an open file of this process."""
    if os.fspath(path).startswith(_OPEN_FILES):
        return os.path.exists(path)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _create(temporary: Path, mode: int) -> int:
    """Return a new file's descriptor, locked: a leftover is not.

    Raises:
        OSError: if the file can't be made.
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
    """Remove a leftover.

    Raises:
        OSError: if its writer is at work, or if it isn't a regular file.
    """
    descriptor = os.open(temporary, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        temporary.unlink()
    finally:
        os.close(descriptor)


def tag(target: Path) -> str:
    """Return what the names of a file's companions share: short, however long its own name is."""
    return hashlib.sha256(os.fsencode(target.name)).hexdigest()[:12]


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write all data, however little of it the system takes at a time.

    Raises:
        OSError: if the disk is full, or fails.
    """
    left = memoryview(data).cast("B")
    while left:
        left = left[os.write(descriptor, left) :]


def _mode_of(target: Path) -> int | None:
    """Return the permissions of the file to replace; ``None`` if it does not exist.

    Raises:
        OSError: if it isn't a regular file, or a plain ``open`` could not write to it.
    """
    try:
        status = target.lstat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    # A rename would replace a device by a file, or break a ring of links.
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(target))
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
    return stat.S_IMODE(status.st_mode)


def _flush(descriptor: int) -> None:
    """Flush a file to the disk itself; on macOS, fsync leaves it in the drive's memory."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
        except OSError as error:
            # Some file systems, those of networks among them, don't have it.
            if error.errno in (errno.EIO, errno.ENOSPC):
                raise
    os.fsync(descriptor)


def _flush_folder(folder: Path) -> None:
    """Flush a rename to the disk, where the file system can; the file itself is there already."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
