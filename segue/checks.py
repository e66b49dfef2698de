"""Checks of what callers hand over: text, mappings with known fields, engines."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

from .errors import ConfigurationError, MessageError, UnknownArgumentError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
# How like a name another must be to be what was meant.
LIKE = 0.6


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


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False.

    Raises:
        ConfigurationError: if it isn't one of them.
    """
    if not isinstance(value, bool):
        raise ConfigurationError(
            f"{name} must be True or False, not {value!r}.", remedy="Pass one of the two."
        )


def unknown_argument(
    owner: str,
    name: str,
    known: Collection[str],
    hints: Mapping[str, str] = MappingProxyType({}),
    *,
    otherwise: str = "",
) -> UnknownArgumentError:
    """Return the error for an argument that there isn't.

    Args:
        owner: What was called.
        name: The argument.
        known: The names that it takes.
        hints: What to do instead, by names that it does not take.
        otherwise: The remedy if the name is like none; by default, the names that it takes.
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=LIKE)
    near_hint = difflib.get_close_matches(name, hints, n=1, cutoff=LIKE)
    if name in hints or (near_hint and not near):
        remedy = hints[near_hint[0]]
    elif near:
        remedy = f"Did you mean {near[0]}?"
    else:
        remedy = otherwise or f"Use any of: {', '.join(known)}."
    return UnknownArgumentError(f"{owner} has no {name!r}.", remedy=remedy)


def named_arguments(
    hints: Mapping[str, str] = MappingProxyType({}), *, owner: str | None = None
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Have a function name what was meant by a keyword that it does not take.

    Its signature stays what it is. The error is a TypeError, as Python's own, and ours.

    Args:
        hints: What to do instead, by names that it does not take.
        owner: What to call it; by default its own name.
    """

    def decorate(call: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        takes = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters = inspect.signature(call).parameters.values()
        known = [each.name for each in parameters if each.kind in takes and each.name != "self"]

        @functools.wraps(call)
        def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            for name in kwargs:
                if name not in known:
                    raise unknown_argument(owner or call.__name__, name, known, hints)
            return call(*args, **kwargs)

        return checked

    return decorate
