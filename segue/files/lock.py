"""A lock on a file, so that one process at a time continues it.

*How it works.* The lock is a ``flock`` on a companion file, ``.segue-TAG.lock`` in the same folder.
The file itself would not do: each save replaces it, so a lock on it would be a lock on a file that
is gone. The system drops a ``flock`` when the process ends, however it ends, so a killed process
leaves an unlocked companion file and nothing else. The companion also says who holds the lock, for
the error that others get. Record locks (``fcntl.lockf``) would not do either: a process loses them
as soon as it closes any descriptor of the file, as a program does that copies the folder.

*Within a process.* The companion is opened once and locked once; any number of `FileLock` objects
share that, and the last one to be released removes the file. `_locks` finds it by device and inode
and not by path, so that a lock is still known after its folder was renamed.

*Races.* The last holder removes the companion while it still has the lock, so another process may
open the file just before that, and then lock a file without a name: after locking, `_acquire`
checks that the path still leads to the file that it locked, and tries again if not. Garbage
collection may call `release` at any moment, within `_acquire` of the same thread too: hence the
reentrant guard, and the loop in `FileLock`.

*Forks.* A child process inherits the descriptors, and would keep a lock alive after its parent is
gone. So it closes them, and holds no lock. The guard is taken across the fork, so that the child
never sees a table that another thread was changing.

*What does not work.* Holders in one process are not kept apart: of two sessions on one file, the
last one saved is what the file has. The lock is advice: programs that don't ask for it can write
the file. If someone deletes the companion while it is locked, the next process makes another one,
and then there are two holders. On network file systems, whether other machines see the lock depends
on the server. A child process that C code forked, past Python's hooks, keeps the locks of its
parent until it ends.
"""

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
from ..printable import printable_line
from .atomic import tag, write_all
from .json_text import read_object

# Notes are shorter; of what another program wrote into the file, no more than this is read.
LONGEST_NOTE = 1000


class _Lock:
    """A lock that this process has, shared by all holders in it.

    Args:
        descriptor: The companion file's, locked; -1 once the lock is gone.
        key: The companion file's device and inode.
    """

    def __init__(self, descriptor: int, key: tuple[int, int]) -> None:
        self.descriptor = descriptor
        self.key = key
        self.holders = 0
        """How many `FileLock` objects share the lock."""


# Garbage collection may release one lock while another is being made.
_guard = threading.RLock()
# By device and inode of the companion file.
_locks: dict[tuple[int, int], _Lock] = {}


class FileLock:
    """Keeps other processes from a file until `release`, or until this process ends in any way.

    Within a process, any number of these may lock one file. A forked process has none of the locks
    of its parent.

    Examples:
        >>> lock = FileLock("talk.segue")
        >>> lock.release()

    Args:
        path: The file, which need not exist yet.

    Raises:
        SessionLockedError: if another process has locked it.
        OSError: if its folder is missing, or can't be written.
        ValueError: if the path can't be one.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._held = False
        self.target = Path(os.path.realpath(path))
        """The file, links followed."""
        with _guard:
            while not self._held:
                self._lock = lock = _acquire(self.target)
                # Garbage collection may have released it meanwhile.
                if lock.descriptor >= 0:
                    self._held, lock.holders = True, lock.holders + 1

    def release(self) -> None:
        """Release the lock; a second call does nothing."""
        with _guard:
            if not self._held:
                return
            # If Ctrl-C breaks this off, it is done again when the object is collected.
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
    """Return the lock that this process has on a file already, or a new one."""
    path = _lock_path(target)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        kept = False
        try:
            status = os.fstat(descriptor)
            key = (status.st_dev, status.st_ino)
            lock = _locks.get(key)
            if lock is None:
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
                f"{target} is in use by {_holder(descriptor)}. Two sessions would overwrite each "
                "other's turns.",
                remedy="Close it there, or continue with a copy of the file.",
            ) from None
        finally:
            if not kept:
                os.close(descriptor)


def _remove(path: Path, descriptor: int) -> None:
    # While it is locked, nobody else makes a file of that name; but the folder may have been moved,
    # and another one may have its path now.
    with suppress(OSError):
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            path.unlink()


def _write_note(descriptor: int) -> None:
    # A lock without a note, on a full disk, is still a lock.
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
    """Return who has a lock, by its own note."""
    try:
        note = read_object(os.pread(descriptor, LONGEST_NOTE, 0).decode(errors="replace"))
        return "process {pid} ({program}) on {host}, since {since}".format_map(
            {
                name: printable_line(str(note[name]), 100)
                for name in ("pid", "program", "host", "since")
            }
        )
    except (OSError, ValueError, LookupError):
        return "another process"


def _forget_parent() -> None:
    """Close the locks of the parent in a forked process, which would keep them alive."""
    for lock in _locks.values():
        with suppress(OSError):
            os.close(lock.descriptor)
        lock.descriptor = -1
    _locks.clear()
    _guard.release()


# While a process is forked, no other thread may be changing the table.
os.register_at_fork(
    before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_forget_parent
)
