"""Standard output that can't be written: a full disk, a closed window."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress

# What a write to a stream fails with; errors that concern a file also name it.
FAILED_WRITES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}


def is_about_output(error: Exception) -> bool:
    """Return True if an error means that standard output, or standard error, is not to be had."""
    return isinstance(error, OSError) and error.filename is None and error.errno in FAILED_WRITES


def discard_output() -> None:
    """Drop what could not be written, which Python would try, and complain of, once more."""
    for stream in (sys.stdout, sys.stderr):
        # Standard error is only in the way if it fails, too.
        with suppress(OSError, ValueError, AttributeError):
            try:
                stream.flush()
            except OSError:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)


def is_standard_output(path: str | os.PathLike[str]) -> bool:
    """Return True if a path leads to where standard output goes, as ``/dev/stdout`` does."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError, AttributeError):
        return False
