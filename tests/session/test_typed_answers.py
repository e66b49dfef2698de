"""Answers of a given form: values in, exact history and caches out."""

from __future__ import annotations

from enum import Enum
from typing import Literal

import pytest
from pydantic import BaseModel

import segue
from kit.probe import held
from kit.sessions import Thinking, check_ledger
from segue import (
    AnswerError,
    ChatSession,
    ConfigurationError,
    Lark,
    Message,
    Regex,
    TextKind,
    UnsupportedFeatureError,
)
from segue.testing import BareEngine, FakeEngine


class Recipe(BaseModel):
    name: str
    minutes: int
    steps: list[str] = []


class Mood(Enum):
    FINE = "just fine"
    BAD = "bad"


RECIPE = '{"name": "bread", "minutes": 40, "steps": ["mix", "bake"]}'
ASKED = [
    (Recipe, RECIPE, Recipe(name="bread", minutes=40, steps=["mix", "bake"])),
    (int, "-12", -12),
    (list[int], "[1, 2, 3]", [1, 2, 3]),
    (Literal["yes", "no"], "no", "no"),
    (Mood, "just fine", Mood.FINE),
    ({"type": "object", "properties": {"a": {"type": "boolean"}}}, '{"a": true}', {"a": True}),
    (Regex(r"20\d\d"), "2026", "2026"),
    (Lark('start: "a" | "b"'), "b", "b"),
]


def session_of(*script, **kwargs):
    tokenizer = kwargs.pop("tokenizer", None)
    return ChatSession(FakeEngine(script, tokenizer=tokenizer), **kwargs)


@pytest.mark.parametrize(("schema", "said", "value"), ASKED)
def test_an_answer_is_a_value_and_its_text_is_history(schema, said, value):
    session = session_of(said, "fine", said)
    assert session.respond("Tell me.", schema=schema) == value
    assert session.history == (Message.user("Tell me."), Message.assistant(said))
    check_ledger(session)
    assert session.respond("And?") == "fine"
    with session.stream("Again.", schema=schema) as reply:
        text = "".join(response.text for response in reply)
    assert (text, reply.text, reply.value) == (said, said, value)
    assert reply.usage.fed_tokens < 30
    check_ledger(session)


@pytest.mark.parametrize(("schema", "said", "value"), ASKED)
def test_what_a_model_says_otherwise_is_held_to_the_form(schema, said, value):
    session = session_of("I would rather not say.")
    with session.stream("Tell me.", schema=schema, max_tokens=200) as reply:
        list(reply)
    assert type(reply.value) is type(value)
    check_ledger(session)


@pytest.mark.parametrize("opens", [False, True])
@pytest.mark.parametrize("thought", ['I {"think": 1}.\nSo é', ""])
@pytest.mark.parametrize(("schema", "said", "value"), ASKED)
def test_a_thought_is_free_and_the_answer_is_not(schema, said, value, thought, opens):
    reply = ("" if opens else "<think>\n") + f"{thought}\n</think>\n\n{said}"
    session = session_of(reply, tokenizer=Thinking(opens=opens))
    with session.stream("Tell me.", schema=schema) as live:
        kinds = [response.kind for response in live if response.text]
    assert live.value == value
    assert session.history[-1] == Message.assistant(said, reasoning=thought or None)
    assert (TextKind.REASONING in kinds) == bool(thought)
    check_ledger(session)


def test_a_model_that_may_think_need_not():
    session = session_of(RECIPE, tokenizer=Thinking())
    assert session.respond("Tell me.", schema=Recipe).minutes == 40


@pytest.mark.parametrize("tokens", [1, 5, 20])
def test_an_answer_that_is_cut_is_an_error_with_its_text(tokens):
    session = session_of(RECIPE, RECIPE)
    with pytest.raises(AnswerError, match="isn't whole") as failure:
        session.respond("Tell me.", schema=Recipe, max_tokens=tokens)
    assert RECIPE.startswith(failure.value.text)
    assert session.history[-1].text == failure.value.text
    check_ledger(session)
    assert session.retry(schema=Recipe).name == "bread"
    assert len(session.history) == 2


def test_a_value_is_there_once_the_reply_is_over():
    session = session_of("12", "12")
    with session.stream("Tell me.", schema=int) as reply:
        next(reply)
        with pytest.raises(AnswerError, match="being said"):
            _ = reply.value
    with pytest.raises(AnswerError, match="was cut"):
        _ = reply.value
    with session.stream("Tell me.") as reply:
        list(reply)
    with pytest.raises(ConfigurationError, match="schema"):
        _ = reply.value


@pytest.mark.parametrize(
    "schema", [set[int], {"type": "array", "uniqueItems": True}, Lark("start: nowhere"), "int", 5]
)
def test_what_is_no_form_is_refused_before_anything_changes(schema):
    session = session_of("hello", "fine")
    session.respond("Hi")
    before = (session.history, held(session), session.usage)
    for attempt in (session.respond, session.stream):
        with pytest.raises(ConfigurationError):
            attempt("Tell me.", schema=schema)
    for again in (session.retry, session.stream_retry):
        with pytest.raises(ConfigurationError):
            again(schema=schema)
    assert (session.history, held(session), session.usage) == before


def test_an_engine_without_grammars_says_so():
    session = ChatSession(BareEngine(["12"]))
    with pytest.raises(UnsupportedFeatureError, match="bare does not support answers"):
        session.respond("Tell me.", schema=int)
    assert session.history == ()


def test_reasoning_is_no_part_of_a_value():
    session = session_of("12")
    with pytest.raises(ConfigurationError, match="reasoning"):
        session.respond("Tell me.", schema=int, reasoning=True)
    assert session.history == ()


def test_the_types_are_public():
    assert segue.Regex("a") == Regex("a")
