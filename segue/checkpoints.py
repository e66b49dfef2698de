"""Which checkpoints of a cache stay when there are too many: one policy for all engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Kept = TypeVar("Kept")


def thin_checkpoints(checkpoints: list[Kept], fit: Callable[[Sequence[Kept]], bool]) -> None:
    """Drop checkpoints from a list until the rest fit an engine's bounds.

    The first (all conversations under the same instructions rewind to it) and the newest stay
    longest; of those between them, the oldest is dropped first.

    Examples:
        >>> offsets = [10, 20, 30, 40]
        >>> thin_checkpoints(offsets, lambda kept: len(kept) <= 3)
        >>> offsets
        [10, 30, 40]

    Args:
        checkpoints: The checkpoints, or their offsets, oldest first; the list is changed.
        fit: Returns True if as many, and as large ones, may stay.
    """
    while checkpoints and not fit(checkpoints):
        del checkpoints[1 if len(checkpoints) > 2 else 0]
