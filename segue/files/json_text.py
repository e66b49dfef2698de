"""JSON out of files, with bounds on what parsing it may cost.

*How it works.* Brackets are counted before the text is parsed, since lists and objects take up to
thirty times the memory of their text. The count leaves strings out, because what people wrote may
well be full of brackets. After parsing, nesting is measured: Python's parser stops at its own
limit, but copying a value and writing it again need more of the stack for each level than parsing
did, and a value that was read must be writable. `check_bounds` holds the same bounds for values
that are about to be written: a file that can be written can be read.

*What does not work.* Long strings and numbers are not bounded here: they take about the memory of
their text, and whoever reads a file bounds that.
"""

from __future__ import annotations

import json
import re
from typing import Any

# Lists and objects; together they take some tens of megabytes at most.
MOST_BRACKETS = 200_000
# Levels of nesting; Python's stack would bear some hundreds when the value is copied.
DEEPEST = 100
# A string without an end takes all that follows. Possessive: nothing is matched twice.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)


def too_many_brackets(text: bytes) -> bool:
    """Return True if JSON has more lists and objects than any file of Segue needs."""
    return _brackets(text) > MOST_BRACKETS and _brackets(_STRING.sub(b"", text)) > MOST_BRACKETS


def check_bounds(text: str, value: object) -> None:
    """Refuse a value that `read_object` would refuse.

    Args:
        text: The value as JSON.
        value: The value.

    Raises:
        ValueError: if it has too many lists and objects, or they are nested too deep.
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
    """Return a JSON object.

    Examples:
        >>> read_object('{"role": "user"}')
        {'role': 'user'}

    Raises:
        ValueError: if the text isn't one, or is out of bounds.
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


def _brackets(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{")
