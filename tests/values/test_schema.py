"""Typed answers: whatever a schema's grammar allows, parses and validates."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import ipaddress
import random
import re
import typing
import uuid
from typing import Annotated, Any, Literal, NotRequired

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from segue import AnswerError, ConfigurationError
from segue.grammar.schema import Lark, Regex, answer_of
from segue.masking.matcher import GrammarCompiler
from segue.testing import ToyTokenizer

TOKENIZER = ToyTokenizer()
COMPILER = GrammarCompiler(TOKENIZER, lambda: len(TOKENIZER))
END, QUOTE = TOKENIZER.end_id, ord('"')


class Color(enum.Enum):
    RED = "red"
    GREEN = "dark green"


class Number(enum.IntEnum):
    ONE = 1
    TWO = 2


class Item(BaseModel):
    name: str
    price: float
    tags: list[str] = []
    color: Color | None = None


@dataclasses.dataclass
class Event:
    place: str
    when: datetime.date


class Options(TypedDict):
    verbose: bool
    level: NotRequired[int]


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=1, le=9)]


class Dog(BaseModel):
    kind: Literal["dog"]
    name: Annotated[str, Field(pattern=r"^[A-Z][a-z]{1,7}$")]


TYPES: list[Any] = [
    int,
    float,
    bool,
    str,
    None,
    Any,
    Literal["yes", 'it "depends"', "50/50 \\ é"],
    Literal[1, "a"],
    Color,
    Number,
    Item,
    Event,
    Options,
    Tree,
    Cat | Dog,
    Annotated[Cat | Dog, Field(discriminator="kind")],
    list[Item],
    list[list[int]],
    dict[str, int],
    tuple[int, str],
    int | str,
    typing.Optional[bool],  # noqa: UP045
    datetime.date,
    datetime.time,
    datetime.datetime,
    datetime.timedelta,
    decimal.Decimal,
    Annotated[decimal.Decimal, Field(ge=0, lt=100)],
    uuid.UUID,
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    Annotated[int, Field(ge=1, le=120)],
    Annotated[int, Field(multiple_of=5)],
    Annotated[float, Field(gt=0, lt=1)],
    Annotated[str, Field(max_length=5)],
    Annotated[list[int], Field(min_length=2, max_length=2)],
]


def walk(rules: str, seed: int, most: int = 3000) -> str | None:
    """A text that a grammar allows, chosen blindly; ``None`` if it gets too long."""
    rng = random.Random(seed)
    matcher = COMPILER.matcher(f"{rules}\nstart: answer")
    ids: list[int] = []
    while len(ids) < most:
        mask = matcher.mask()
        assert mask is not None
        allowed = np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little"))
        token = int(rng.choice(list(allowed)))
        # Short ones, mostly.
        if END in allowed and rng.random() < 0.5:
            token = END
        elif QUOTE in allowed and rng.random() < 0.3:
            token = QUOTE
        matcher.consume(token)
        if token == END:
            return TOKENIZER.decode(ids)
        ids.append(token)
    return None


@pytest.mark.parametrize("kind", TYPES)
def test_whatever_the_grammar_allows_is_a_value_of_the_type(kind):
    answer = answer_of(kind)
    read = 0
    for seed in range(40):
        text = walk(answer.rules, seed)
        if text is not None:
            answer.value(text)
            read += 1
    assert read >= 20


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["a", "the", "x-y", "naïve", "default", "properties", "enum"])
    scalars = st.sampled_from(
        [
            {"type": "string"},
            {"type": "string", "minLength": 1, "maxLength": 4},
            {"type": "string", "pattern": "^[a-f]{2,3}$"},
            {"type": "integer"},
            {"type": "integer", "minimum": -3, "maximum": 12},
            {"type": "number", "exclusiveMinimum": 0, "maximum": 2.5},
            {"type": "boolean"},
            {"type": "null"},
            {"enum": ["on", 1, None, 'o"ff\n']},
            {"const": "hello world"},
            {"type": "string", "format": "uuid"},
        ]
    )

    def grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        objects = st.dictionaries(names, inner, max_size=4).flatmap(
            lambda properties: st.sets(
                st.sampled_from(sorted(properties)) if properties else st.nothing()
            ).map(
                lambda required: {
                    "type": "object",
                    "properties": properties,
                    "required": sorted(required),
                    "additionalProperties": False,
                }
            )
        )
        arrays = st.tuples(inner, st.integers(0, 2), st.integers(2, 4)).map(
            lambda made: {
                "type": "array",
                "items": made[0],
                "minItems": made[1],
                "maxItems": made[2],
            }
        )
        return (
            objects | arrays | st.lists(inner, min_size=1, max_size=3).map(lambda of: {"anyOf": of})
        )

    return st.recursive(scalars, grown, max_leaves=6)


@settings(max_examples=150)
@given(schema=schemas(), seed=st.integers(0, 2**16))
def test_whatever_the_grammar_of_a_json_schema_allows_validates(schema, seed):
    answer = answer_of(schema)
    text = walk(answer.rules, seed)
    if text is not None:
        jsonschema.validate(answer.value(text), schema)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        (set[int], "uniqueItems"),
        (bytes, "binary"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "integer"}}, "not"),
        ({"type": "string", "pattern": "(?=a)b"}, "regex"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        (Regex("(a"), "regex"),
        (Lark("start: nowhere"), "nowhere"),
    ],
)
def test_what_grammars_can_not_say_is_refused_by_name(schema, named):
    with pytest.raises(ConfigurationError, match=named):
        COMPILER.matcher(f"{answer_of(schema).rules}\nstart: answer")


@pytest.mark.parametrize(
    "schema",
    [5, "int", object(), {"a": {1, 2}}, {"b": float("nan")}, [int], Lark("a: b")],
)
def test_what_is_no_schema_is_refused(schema):
    with pytest.raises(ConfigurationError):
        answer_of(schema)


@pytest.mark.parametrize("kind", [Regex, Lark])
@pytest.mark.parametrize("value", ["", None, 3])
def test_patterns_and_rules_are_text(kind, value):
    with pytest.raises(ConfigurationError, match="must be text"):
        kind(value)


def test_choices_among_strings_are_written_plainly():
    assert answer_of(Literal["yes", "no"]).value("no") == "no"
    assert answer_of(Color).value("dark green") is Color.GREEN


def test_a_text_that_is_refused_after_all_is_a_typed_error():
    with pytest.raises(AnswerError, match="1 validation error") as failure:
        answer_of(int).value("12a")
    assert failure.value.text == "12a"


def test_patterns_and_rules_give_their_text():
    assert re.fullmatch(r"20\d\d/0[1-9]", walk(answer_of(Regex(r"20\d\d/0[1-9]")).rules, 3))
    assert walk(answer_of(Lark('start: "a" b\nb: "c"')).rules, 3) == "ac"
