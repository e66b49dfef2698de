"""Paths as callers give them."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ConfigurationError


def checked_path(path: str | os.PathLike[str]) -> Path:
    """Return a path.

    Raises:
        ConfigurationError: if it isn't a string or a path.
    """
    try:
        return Path(path)
    except TypeError:
        raise ConfigurationError(
            f"A path must be a string or a pathlib.Path, not {path!r}.",
            remedy="Pass the file's path.",
        ) from None
