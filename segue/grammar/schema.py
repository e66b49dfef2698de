"""Typed answers: from a type or a schema to a grammar, and from the answer's text to its value.

How it works: pydantic turns a type into a JSON schema, llguidance turns the schema into a grammar,
and pydantic reads what the model wrote under that grammar. Some details are settled here:

- JSON is written as chat templates and `json.dumps` write it: ``", "`` and ``": "`` between values,
  and no other white space. Where any is allowed, small models get stuck in it.
- Objects are closed: pydantic leaves them open, and a model then goes on to invent keys.
- A choice among strings is written plainly, without quotes.
- Dates, times and spans of time must exist: the grammar of ``format: date`` alone would allow 30
  February.

What does not work: whatever llguidance can't express (unique items, lookarounds in patterns, names
of properties by pattern). It is refused before anything is fed, and the error names it.
"""

# No postponed annotations here: type hints must resolve when a class says it is `segue`'s.

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

from ..errors import AnswerError, ConfigurationError

T = TypeVar("T")

LARGEST_DECIMAL = 10**15
# How JSON is written: as `json.dumps` writes it.
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Dates that exist.
_LEAP = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29"
_YEAR = r"(?:\d{3}[1-9]|\d\d[1-9]0|\d[1-9]00|[1-9]000)"
_DAY = (
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    r"|02-(?:0[1-9]|1\d|2[0-8]))"
)
_DATE = rf"(?:{_YEAR}-{_DAY}|{_LEAP})"
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?"
_CLOCK = r"T(?:\d{1,4}H(?:\d{1,2}M)?(?:\d{1,2}S)?|\d{1,2}M(?:\d{1,2}S)?|\d{1,2}S)"
_ZONE = r"(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
FORMATS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}{_ZONE}?$",
    "date-time": f"^{_DATE}T{_TIME}{_ZONE}$",
    "duration": rf"^P(?:{_CLOCK}|\d{{1,8}}D(?:{_CLOCK})?)$",
}


@dataclass(frozen=True, slots=True)
class Regex:
    """An answer that matches a regular expression, as a whole.

    Examples:
        >>> Regex(r"[0-9]{4}").pattern
        '[0-9]{4}'

    Raises:
        ConfigurationError: if the pattern isn't text.
    """

    pattern: str
    """The expression, in the syntax of Rust's regex crate: no lookarounds, no back references."""

    def __post_init__(self) -> None:
        _check_text("The pattern of a Regex", self.pattern)


@dataclass(frozen=True, slots=True)
class Lark:
    """An answer that matches a grammar, as a whole.

    Examples:
        >>> Lark('start: "yes" | "no"').rules
        'start: "yes" | "no"'

    Raises:
        ConfigurationError: if the rules aren't text.
    """

    rules: str
    """Rules in llguidance's dialect of Lark
    (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md); the answer matches
    ``start``."""

    def __post_init__(self) -> None:
        _check_text("The rules of a Lark grammar", self.rules)


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """An answer's form: the grammar of its text, and how that text becomes a value."""

    rules: str
    """The grammar; the text must match its rule ``answer``."""
    read: Callable[[str], T]
    """Returns the value of a text that matches; raises ValueError if it is refused all the same."""

    def value(self, text: str) -> T:
        """Return the value of an answer.

        Raises:
            AnswerError: if it isn't one.
        """
        try:
            return self.read(text)
        except ValueError as error:
            raise AnswerError(
                f"The answer isn't of the form that was asked for ({_first_line(error)}).",
                remedy="Ask again, or allow more of it in the schema.",
                text=text,
            ) from error


def answer_of(schema: Any) -> Answer[Any]:
    """Return the form of an answer.

    Args:
        schema: A type that pydantic knows (a model, dataclass, TypedDict, ``list[...]``,
            ``Literal``, an enum, a number), a JSON schema as a mapping, a `Regex`, or a `Lark`.

    Raises:
        ConfigurationError: if it is none of these.
    """
    if isinstance(schema, Regex):
        return Answer(f"answer: {_regex(schema.pattern)}", str)
    if isinstance(schema, Lark):
        return Answer(_renamed(schema.rules), str)
    if isinstance(schema, Mapping):
        return Answer(_json_rule(dict(schema)), json.loads)
    choices = _text_choices(schema)
    if choices:
        literals = " | ".join(json.dumps(text, ensure_ascii=False) for text in choices)
        return Answer(f"answer: {literals}", choices.__getitem__)
    return _typed(schema)


def _typed(schema: Any) -> Answer[Any]:
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError
    from pydantic.json_schema import GenerateJsonSchema

    class Describe(GenerateJsonSchema):
        """Pydantic's own, but decimal numbers are numbers: as text, any text would do.

        And finite: a JSON number with a large exponent is read as infinity.
        """

        def decimal_schema(self, schema: Any) -> dict[str, Any]:
            bounded: Any = {"ge": -LARGEST_DECIMAL, "le": LARGEST_DECIMAL, **schema}
            return self.float_schema(bounded)

    try:
        if isinstance(schema, str):
            raise TypeError("it is text")
        adapter: TypeAdapter[Any] = TypeAdapter(schema)
        described = adapter.json_schema(schema_generator=Describe)
    except (PydanticUserError, TypeError, NameError, AttributeError) as error:
        raise ConfigurationError(
            f"schema must be a type that pydantic can describe, a JSON schema, a Regex or a Lark, "
            f"not {schema!r} ({_first_line(error)}).",
            remedy="Use a pydantic model, a dataclass, a TypedDict, list[...], Literal, or a dict.",
        ) from error
    return Answer(_json_rule(_closed(described), coerce_one_of=True), adapter.validate_json)


def _json_rule(schema: dict[str, Any], **options: Any) -> str:
    try:
        plain = json.loads(json.dumps(schema, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"A JSON schema must be plain JSON, and this one isn't: {error}.",
            remedy="Use strings, numbers, lists and dicts.",
        ) from None
    plain["x-guidance"] = {**SPACING, **options}
    return f"answer: %json {json.dumps(plain)}"


def _closed(schema: Any) -> Any:
    """Return a schema whose objects have the properties that they name, and no others."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {
        # Names of properties may be those of keywords.
        key: {name: _closed(inner) for name, inner in value.items()}
        if key in ("properties", "$defs") and isinstance(value, dict)
        else value
        if key in ("const", "enum", "default", "examples")
        else _closed(value)
        for key, value in schema.items()
    }
    if "properties" in closed:
        closed.setdefault("additionalProperties", False)
    pattern = FORMATS.get(str(closed.get("format")))
    if closed.get("type") == "string" and pattern is not None:
        del closed["format"]
        closed["pattern"] = pattern
    return closed


def _text_choices(schema: Any) -> dict[str, Any]:
    """Return the strings of a choice among strings, and their values; nothing for other types."""
    if get_origin(schema) is Literal:
        values = get_args(schema)
        return {v: v for v in values} if all(isinstance(v, str) and v for v in values) else {}
    if isinstance(schema, type) and issubclass(schema, Enum):
        members = list(schema)
        if members and all(isinstance(member.value, str) and member.value for member in members):
            return {member.value: member for member in members}
    return {}


def _regex(pattern: str) -> str:
    """Return a regular expression as Lark writes it."""
    return "/" + pattern.replace("/", r"\/") + "/"


def _renamed(rules: str) -> str:
    """Return a grammar whose rule `start` is called `answer`."""
    renamed, count = re.subn(r"(?m)^start(?=\s*[:\[])", "answer", rules)
    if count != 1:
        raise ConfigurationError(
            f"A Lark grammar must have one rule start, not {count}.",
            remedy='Write start: "yes" | "no", say.',
        )
    return renamed


def _check_text(what: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise ConfigurationError(
            f"{what} must be text that isn't empty, not {value!r}.", remedy="Pass a string."
        )


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
