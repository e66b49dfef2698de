"""Searching text that is not complete yet."""

from __future__ import annotations

from collections.abc import Sequence


def overlap(text: str, strings: Sequence[str]) -> int:
    """Return the length of the longest suffix of `text` that a string begins with.

    As long as there is one, the text may still turn into that string. The whole of a string does
    not count: that is found already.

    Examples:
        >>> overlap("one <th", ["<think>"])
        3
    """
    longest = max(len(string) for string in strings) - 1
    for length in range(min(longest, len(text)), 0, -1):
        suffix = text[len(text) - length :]
        if any(string.startswith(suffix) for string in strings):
            return length
    return 0
