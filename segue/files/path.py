"""Paths as callers give them, and what to do if one can't be written."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ConfigurationError


def checked_path(path: str | os.PathLike[str]) -> Path:
    """Return a path, with ``~`` or ``~user`` at its start expanded if there is such a user.

    Raises:
        ConfigurationError: if it isn't a string or a path, or has a character that no path can.
    """
    try:
        checked = Path(os.path.expanduser(Path(path)))
        os.fsencode(checked)
    except UnicodeEncodeError:
        raise ConfigurationError(
            f"A path must be text that a file system can have, not {os.fspath(path)!r}.",
            remedy="Pass the path as the system has it, without lone surrogates.",
        ) from None
    except TypeError:
        raise ConfigurationError(
            f"A path must be a string or a pathlib.Path, not {path!r}.",
            remedy="Pass the file's path.",
        ) from None
    return checked


def writing_remedy(error: Exception) -> str:
    """What to do about an error that kept a file from being written.

    Examples:
        >>> writing_remedy(IsADirectoryError())
        'Name a file in that folder.'
    """
    if isinstance(error, IsADirectoryError):
        return "Name a file in that folder."
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "Make its folder first, or write to another."
    return "Check that its folder can be written, and has room."
