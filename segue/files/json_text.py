"""JSON out of files: bounded before it is parsed, and in what it may become."""

from __future__ import annotations

import json
import re
from typing import Any

# Objects take some twenty times the memory of their text.
MOST_BRACKETS = 200_000
# Copying, and writing again, work themselves down from level to level on Python's stack.
DEEPEST = 100
# One that does not end takes all that follows; what was matched is never gone through again.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)


def too_many_brackets(text: bytes) -> bool:
    """Whether a text has more brackets, those in strings left out, than any file of ours needs."""
    return _brackets(text) > MOST_BRACKETS and _brackets(_STRING.sub(b"", text)) > MOST_BRACKETS


def check_bounds(text: str, value: object) -> None:
    """Refuse what `read_object` would not read again.

    Args:
        text: JSON.
        value: What it tells.

    Raises:
        ValueError: It has too many lists and objects, or they stand too deep in each other.
    """
    if text.count("[") + text.count("{") <= DEEPEST:
        return
    if too_many_brackets(text.encode(errors="surrogatepass")):
        raise ValueError("it has too many entries")
    level: list[dict[str, Any] | list[Any]] = [[value]]
    for _ in range(DEEPEST + 1):
        children = (item.values() if isinstance(item, dict) else item for item in level)
        level = [item for each in children for item in each if isinstance(item, dict | list)]
        if not level:
            return
    raise ValueError(f"its entries are nested more than {DEEPEST} deep")


def read_object(text: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: The text is none, or a needlessly large one.
    """
    if too_many_brackets(text.encode(errors="surrogatepass")):
        raise ValueError("it has too many entries")
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        raise ValueError("it can't be read")
    check_bounds(text, entry)
    return entry


def printable(text: str, limit: int = 200) -> str:
    """Text of a stranger, for a message: of bearable length, and nothing a terminal acts upon."""
    short = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in short)


def _brackets(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{")
