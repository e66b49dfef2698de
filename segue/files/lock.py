"""A file that one process at a time goes on with."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from ..errors import SessionLockedError
from .atomic import tag, write_all
from .json_text import printable, read_object

# What other programs wrote into a lock's file is none of our business.
LONGEST_NOTE = 1000


class _Lock:
    """A lock of this process: its descriptor, its file's device and number, how many hold it."""

    def __init__(self, descriptor: int, key: tuple[int, int]) -> None:
        self.descriptor = descriptor
        self.key = key
        self.holders = 0


# Garbage collection may release one lock while another is being made.
_guard = threading.RLock()
# By device and number of the lock's file: a folder may be renamed.
_locks: dict[tuple[int, int], _Lock] = {}


class FileLock:
    """Keeps other processes from a file until it is released, or this process ends in any way.

    Within a process, any number of these may be held on one file. The lock is on a file of its own
    beside the one it is for (``.segue-*.lock``), which says who holds it and is removed on release.
    A process that was killed leaves that file behind; nobody holds it then. Processes that are
    forked hold nothing of their parent's.

    Args:
        path: The file, which need not be there.

    Attributes:
        target: The file, links followed.

    Raises:
        SessionLockedError: Another process holds it.
        OSError: Its folder is missing, or can't be written.
        ValueError: There can't be such a file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._held = False
        self.target = Path(os.path.realpath(path))
        with _guard:
            while not self._held:
                self._lock = lock = _acquire(self.target)
                # Garbage collection may have let go of it meanwhile.
                if lock.descriptor >= 0:
                    self._held, lock.holders = True, lock.holders + 1

    def release(self) -> None:
        """Let go of it; nothing more if that was done already."""
        with _guard:
            if not self._held:
                return
            # Should Ctrl-C break this off, it begins anew when the object goes.
            lock = self._lock
            if lock.holders == 1 and lock.descriptor >= 0:
                _remove(_lock_path(self.target), lock.descriptor)
                _locks.pop(lock.key, None)
                descriptor, lock.descriptor = lock.descriptor, -1
                with suppress(OSError):
                    os.close(descriptor)
            self._held, lock.holders = False, lock.holders - 1

    def __del__(self) -> None:
        self.release()


def _lock_path(target: Path) -> Path:
    return target.with_name(f".segue-{tag(target)}.lock")


def _acquire(target: Path) -> _Lock:
    """A lock that this process holds already, or a new one."""
    path = _lock_path(target)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        kept = False
        try:
            status = os.fstat(descriptor)
            key = (status.st_dev, status.st_ino)
            lock = _locks.get(key)
            if lock is None:
                # Unlike a record lock, this one stays when the process opens the file and closes
                # it, as whatever copies the folder does.
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its last holder may have removed it between these two calls.
                if not os.path.samestat(status, path.stat()):
                    continue
                _write_note(descriptor)
                lock = _Lock(descriptor, key)
                _locks[key], kept = lock, True
                return lock
            return lock
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise SessionLockedError(
                f"{target} is in use by {_holder(descriptor)}, and two would overwrite each "
                "other's turns.",
                remedy="Close it there, or go on with a copy of the file.",
            ) from None
        finally:
            if not kept:
                os.close(descriptor)


def _remove(path: Path, descriptor: int) -> None:
    # As long as it is held, nobody else makes a file of that name; but its folder may have been
    # moved, and another be in that place.
    with suppress(OSError):
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            path.unlink()


def _write_note(descriptor: int) -> None:
    # A full disk keeps nobody from holding a lock.
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        write_all(descriptor, json.dumps(_note()).encode())


def _note() -> dict[str, object]:
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    return {
        "pid": os.getpid(),
        "program": program,
        "host": platform.node(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _holder(descriptor: int) -> str:
    """Who holds a lock, by its own note."""
    try:
        note = read_object(os.pread(descriptor, LONGEST_NOTE, 0).decode(errors="replace"))
        return "process {pid} ({program}) on {host}, since {since}".format_map(
            {name: printable(str(note[name]), 100) for name in ("pid", "program", "host", "since")}
        )
    except (OSError, ValueError, LookupError):
        return "another process"


def _forget_parent() -> None:
    """A forked process holds none of its parent's locks, and keeps none alive when that ends."""
    for lock in _locks.values():
        with suppress(OSError):
            os.close(lock.descriptor)
        lock.descriptor = -1
    _locks.clear()
    _guard.release()


# No thread is half way through while a process is forked.
os.register_at_fork(
    before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_forget_parent
)
