"""Checks of what callers hand over: text, mappings with known fields, engines."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from .errors import ConfigurationError, MessageError


def check_text(text: object, what: str, *, remedy: str = "Pass a string.") -> None:
    """Refuse values that aren't text.

    Args:
        text: The value.
        what: The subject of the error's sentence.
        remedy: The advice if the value isn't a string.

    Raises:
        MessageError: if the value isn't a string, or contains a lone surrogate.
    """
    if not isinstance(text, str):
        raise MessageError(f"{what} must be text, not {type(text).__name__}.", remedy=remedy)
    if not is_encodable(text):
        raise MessageError(
            f"{what} contains a lone surrogate, which isn't a character.",
            remedy="Decode the text with errors='replace' where it comes from.",
        )


def is_encodable(text: str) -> bool:
    """Return True if a text has no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def surrogate_in(value: object, where: str) -> str | None:
    """Return where a value has a text with a lone surrogate; ``None`` if it has none.

    Looks into mappings, their keys, lists, tuples and sets.

    Args:
        value: The value.
        where: Its name, which the answer begins with.
    """
    if isinstance(value, str):
        return None if is_encodable(value) else where
    if isinstance(value, Mapping):
        for key, item in value.items():
            if surrogate_in(key, "key"):
                return f"a key of {where}"
            if found := surrogate_in(item, f"{where}.{key}"):
                return found
    elif isinstance(value, list | tuple | set | frozenset):
        for index, item in enumerate(value):
            if found := surrogate_in(item, f"{where}[{index}]"):
                return found
    return None


def refuse_unknown(entry: Mapping[str, Any], known: Collection[str], what: str) -> None:
    """Refuse fields that aren't known, unless they are empty.

    Raises:
        MessageError: if there is one; names it, and a known one that it may be meant for.
    """
    for name, value in entry.items():
        if name not in known and value:
            near = difflib.get_close_matches(str(name), known, n=1)
            raise MessageError(
                f"{what} has a field {name!r}, which is not supported.",
                remedy=f"Is it meant to be {near[0]!r}?" if near else "Leave that field out.",
            )


def check_engine(engine: object) -> None:
    """Refuse what isn't an engine.

    Raises:
        ConfigurationError: if it isn't one.
    """
    # A class has methods, too, but no tokenizer yet.
    if not callable(getattr(engine, "context", None)) or isinstance(engine, type):
        raise ConfigurationError(
            f"engine must be an engine, not {engine!r}.",
            remedy="Pass what segue.load(...) returns, or an MlxEngine.",
        )
