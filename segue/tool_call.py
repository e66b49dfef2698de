"""A model's call of a tool, with arguments that are plain JSON."""

# No postponed annotations here: type hints must resolve when a class says it is `segue`'s.

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from .checks import check_text, is_encodable, refuse_unknown, surrogate_in
from .errors import MessageError

# How deep arguments may be nested. Files take 100 levels, some of them around the call.
DEEPEST_ARGUMENTS = 90


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model's call of a tool.

    Arguments given here are what the chat template gets: most templates want a mapping, some want
    text. JSON of the OpenAI shape always has text, so `from_dict` reads it.

    Examples:
        >>> call = ToolCall("weather", {"city": "Paris"}, id="call-1")
        >>> call.arguments
        {'city': 'Paris'}

    Raises:
        MessageError: if the name, the id or the arguments have the wrong type, or if the arguments
            aren't plain JSON: ``dict`` with text keys, ``list``, ``str``, finite numbers, ``bool``
            and ``None``, nested at most 90 deep, without lone surrogates. (A tuple becomes a list.)
    """

    name: str
    """The tool's name."""
    arguments: Mapping[str, Any] | str = field(hash=False)
    """The arguments: a mapping (copied), or text, which is left as it is."""
    id: str | None = None
    """The call's id, by which a result names the call."""

    def __post_init__(self) -> None:
        check_text(self.name, "A tool call's name")
        if self.id is not None:
            check_text(self.id, f"The id of the call of {self.name!r}")
        arguments = _plain_arguments(self.name, self.arguments)
        # The dataclass is frozen: checked values go in through the base class.
        object.__setattr__(self, "arguments", arguments)

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Self:
        """Read a call from JSON of the OpenAI shape, or from the bare form of it.

        The OpenAI shape is ``{"id": ..., "type": "function", "function": {"name": ...,
        "arguments": ...}}``, the bare form ``{"name": ..., "arguments": ..., "id": ...}``.

        - Arguments may be a mapping or text. Text that holds a JSON object becomes that mapping;
          other text stays text (models write broken JSON at times). No arguments, ``null`` or empty
          text is an empty mapping.
        - ``index``, which streams number calls by, is ignored: calls are in order. So are other
          fields, if they are empty; one that says something is refused.

        Examples:
            >>> ToolCall.from_dict({"function": {"name": "clock", "arguments": '{"zone": "UTC"}'}})
            ToolCall(name='clock', arguments={'zone': 'UTC'}, id=None)

        Raises:
            MessageError: if the entry has neither of the two forms, or for the reasons of the
                constructor.
        """
        if not isinstance(entry, Mapping):
            raise MessageError(
                f"A tool call must be a ToolCall or a mapping, not {type(entry).__name__}.",
                remedy='Pass each call as a ToolCall or {"type": "function", "function": {...}}.',
            )
        kind = entry.get("type")
        if kind not in (None, "function"):
            raise MessageError(
                f"A tool call must be of type 'function', not {kind!r}.",
                remedy="Leave such calls out, or pass them as text.",
            )
        body, known = entry, ["id", "type", "index"]
        if entry.get("function") is not None:
            body = entry["function"]
            known.append("function")
            if not isinstance(body, Mapping):
                raise MessageError(
                    f"A tool call's function must be a mapping, not {type(body).__name__}.",
                    remedy='Pass {"name": ..., "arguments": ...}.',
                )
            refuse_unknown(body, ("name", "arguments"), f"The call of {body.get('name')!r}")
        else:
            known += ["name", "arguments"]
        refuse_unknown(entry, known, f"The call of {body.get('name')!r}")
        arguments = body.get("arguments")
        if isinstance(arguments, str):
            arguments = _read_arguments(arguments)
        # The constructor checks the types of all three.
        name: Any = body.get("name")
        return cls(name, {} if arguments is None else arguments, entry.get("id"))

    def to_dict(self) -> dict[str, Any]:
        """Return the call as JSON of the OpenAI shape, its arguments as text."""
        arguments = self.arguments
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        entry: dict[str, Any] = {} if self.id is None else {"id": self.id}
        function = {"name": self.name, "arguments": arguments}
        return {**entry, "type": "function", "function": function}

    def to_template(self) -> dict[str, Any]:
        """Return the mapping that chat templates read, its arguments as they are."""
        function = {"name": self.name, "arguments": copy.deepcopy(self.arguments)}
        entry: dict[str, Any] = {"type": "function", "function": function}
        return entry if self.id is None else {**entry, "id": self.id}


def _plain_arguments(name: str, arguments: object) -> dict[str, Any] | str:
    """A call's arguments as a copy of nothing but JSON's own types."""
    if isinstance(arguments, str):
        check_text(arguments, f"The text of arguments in the call of {name!r}")
        return arguments
    if not isinstance(arguments, Mapping):
        raise MessageError(
            f"The arguments of the call of {name!r} must be a mapping or text, not "
            f"{type(arguments).__name__}.",
            remedy="Pass a dict of the arguments by name.",
        )
    try:
        plain: dict[str, Any] = _plain(arguments, DEEPEST_ARGUMENTS)
    except ValueError as error:
        _refuse_surrogates(name, arguments)
        raise MessageError(
            f"The arguments of the call of {name!r} must be plain JSON, but {error}.",
            remedy="Use dicts with text keys, lists, strings, finite numbers, booleans and None.",
        ) from None
    return plain


def _plain(value: object, levels: int) -> Any:
    """A copy in JSON's own types.

    Raises:
        ValueError: if the value has another type in it, or more levels.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if not is_encodable(value):
            raise ValueError("a text in them contains a lone surrogate")
        return str.__str__(value)
    if isinstance(value, int):
        try:
            str(int(value))
        except ValueError:
            raise ValueError("a number in them has more digits than can be written") from None
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a number in them is {float(value)!r}")
        return float(value)
    if not isinstance(value, Mapping | list | tuple):
        raise ValueError(f"a value in them is of type {type(value).__name__}")
    if not levels:
        raise ValueError(f"they are nested more than {DEEPEST_ARGUMENTS} deep")
    if not isinstance(value, Mapping):
        return [_plain(item, levels - 1) for item in value]
    for key in value:
        if not isinstance(key, str):
            raise ValueError(f"a key in them is of type {type(key).__name__}")
    return {_plain(key, levels): _plain(item, levels - 1) for key, item in value.items()}


def _refuse_surrogates(name: object, arguments: object) -> None:
    try:
        where = surrogate_in(arguments, "arguments")
    except RecursionError:  # deeper than arguments may be, which is another complaint
        return
    if where is not None:
        raise MessageError(
            f"The arguments of the call of {name!r} contain a lone surrogate, which isn't a "
            f"character, in {where}.",
            remedy="Decode the text with errors='replace' where it comes from.",
        )


def _read_arguments(text: str) -> Mapping[str, Any] | str:
    """The mapping that a text holds as JSON, and the text itself if it holds none."""
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
        return _plain(value, DEEPEST_ARGUMENTS) if isinstance(value, dict) else text
    except (ValueError, RecursionError):  # or what it holds isn't plain JSON, as with NaN
        return text
