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

from .atomic import tag, write_all
from .errors import SessionLockedError

# What other programs wrote into a lock's file is none of our business.
LONGEST_NOTE = 1000


class _Lock:
    """A lock of this process: its descriptor, and how many hold it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.holders = 0


# Garbage collection may release one lock while another is being made.
_guard = threading.RLock()
_owner = os.getpid()
_locks: dict[Path, _Lock] = {}


class FileLock:
    """Keeps other processes from a file until it is released, or this process ends in any way.

    Within a process, any number of these may be held on one file. The lock is a POSIX record lock
    on a file of its own beside the one it is for (``.segue-*.lock``), which says who holds it and
    is removed on release. A process that was killed leaves that file behind; nobody holds it then.

    Args:
        path: The file, which need not be there.

    Attributes:
        target: The file, links followed.

    Raises:
        SessionLockedError: Another process holds it.
        OSError: Its folder is missing, or can't be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._held = False
        self.target = Path(os.path.realpath(path))
        with _guard:
            _forget_parent()
            lock = _locks.get(self.target)
            if lock is None:
                lock = _locks[self.target] = _Lock(_acquire(self.target))
            lock.holders += 1
        self._held = True

    def release(self) -> None:
        """Let go of it; nothing more if that was done already."""
        if not self._held:
            return
        self._held = False
        with _guard:
            _forget_parent()
            lock = _locks.get(self.target)
            if lock is None:  # this is a forked process
                return
            lock.holders -= 1
            if not lock.holders:
                del _locks[self.target]
                # As long as it is held, nobody else makes a file of that name.
                with suppress(OSError):
                    _lock_path(self.target).unlink()
                os.close(lock.descriptor)

    def __del__(self) -> None:
        self.release()


def _lock_path(target: Path) -> Path:
    return target.with_name(f".segue-{tag(target)}.lock")


def _acquire(target: Path) -> int:
    path = _lock_path(target)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed it between these two calls.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                os.ftruncate(descriptor, 0)
                write_all(descriptor, json.dumps(_note()).encode())
                return descriptor
        except FileNotFoundError:
            pass
        except OSError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise SessionLockedError(
                f"{target} is in use by {holder}, and two would overwrite each other's turns.",
                remedy="Close it there, or go on with a copy of the file.",
            ) from None
        os.close(descriptor)


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
        note = json.loads(os.pread(descriptor, LONGEST_NOTE, 0))
        return "process {pid} ({program}) on {host}, since {since}".format_map(
            {name: str(note[name])[:100] for name in ("pid", "program", "host", "since")}
        )
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"


def _forget_parent() -> None:
    """A forked process holds none of its parent's locks."""
    global _owner
    if _owner != os.getpid():
        _owner = os.getpid()
        for lock in _locks.values():
            with suppress(OSError):
                os.close(lock.descriptor)
        _locks.clear()
