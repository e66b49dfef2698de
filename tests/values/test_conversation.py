"""A conversation as one value, its turns, and its JSON in files."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import threading
import typing
from types import MappingProxyType

import pytest
from hypothesis import given

from kit.values import CONVERSATIONS
from segue import (
    ConfigurationError,
    Conversation,
    HistoryError,
    Message,
    MessageError,
    Text,
    ToolCall,
)
from segue.conversation import checked_index, last_turn, split_turns, start_of_turns, turns_taken
from segue.store.texts import conversation_from_json, conversation_to_json

CALL = ToolCall("clock", {"zone": "é"}, "7")
S, U, A = Message.system("s"), Message.user("u"), Message.assistant("a")
CALLED, RESULT = Message.assistant("", tool_calls=[CALL]), Message.tool("noon", call=CALL)


def test_a_conversation_is_made_of_three_things():
    empty = Conversation()
    assert (empty.instructions, empty.messages, empty.template_kwargs) == (None, (), {})
    assert empty.system is None
    said = Conversation("Be brief.", [U, A], {"enable_thinking": False})
    assert said.messages == (U, A)
    assert said.system == Message.system("Be brief.")
    assert said == Conversation("Be brief.", (U, A), MappingProxyType({"enable_thinking": False}))
    assert said != Conversation("Be brief.", (U, A))
    assert Conversation("").system == Message.system("")


def test_a_conversation_is_immutable_and_holds_copies():
    messages, kwargs = [U], {"tools": [{"name": "clock"}]}
    said = Conversation(None, messages, kwargs)
    messages.append(A)
    kwargs["tools"].append({})
    assert said == Conversation(None, [U], {"tools": [{"name": "clock"}]})
    with pytest.raises(dataclasses.FrozenInstanceError):
        said.messages = ()  # type: ignore[misc]
    for twin in (copy.copy(said), copy.deepcopy(said), pickle.loads(pickle.dumps(said))):
        assert twin == said
        assert hash(twin) == hash(said)


def test_a_conversation_goes_on_as_another_one():
    said = Conversation("Be brief.", [U], {"tools": []})
    more = said.with_messages([U, A])
    assert more == Conversation("Be brief.", [U, A], {"tools": []})
    assert said.messages == (U,)
    assert dataclasses.replace(said, instructions=None) == Conversation(None, [U], {"tools": []})
    with pytest.raises(MessageError):
        said.with_messages([U, "a"])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"instructions": 3}, ConfigurationError, "must be text or None, not int"),
        ({"instructions": Message.system("a")}, ConfigurationError, "not Message"),
        ({"instructions": "\udcff"}, MessageError, "lone surrogate"),
        ({"messages": ["hi"]}, MessageError, "Messages alone, not str"),
        ({"messages": [{"role": "user", "content": "hi"}]}, MessageError, "not dict"),
        ({"messages": 3}, MessageError, "a sequence of Messages, not int"),
        ({"messages": None}, MessageError, "a sequence of Messages, not NoneType"),
        ({"template_kwargs": []}, ConfigurationError, "a mapping of names to values, not list"),
        ({"template_kwargs": {1: 2}}, ConfigurationError, "names in template_kwargs.*not 1"),
        ({"template_kwargs": {"a": threading.Lock()}}, ConfigurationError, "can be copied"),
    ],
)
def test_what_a_conversation_refuses(arguments, error, words):
    with pytest.raises(error, match=words) as caught:
        Conversation(**arguments)
    assert caught.value.remedy


def test_type_hints_resolve_under_another_module_name(monkeypatch):
    monkeypatch.setattr(Conversation, "__module__", "segue")
    assert typing.get_type_hints(Conversation)["messages"] == tuple[Message, ...]
    assert typing.get_type_hints(Conversation.__init__)


# Turns


def test_a_turn_is_what_the_person_says_and_all_that_follows_it():
    messages = (S, U, A, U, CALLED, RESULT, A)
    assert Conversation(None, messages).turns == ((U, A), (U, CALLED, RESULT, A))
    assert Conversation(None, [S]).turns == Conversation().turns == ()
    assert split_turns(messages) == [[S], [U, A], [U, CALLED, RESULT, A]]
    assert turns_taken(messages) == [[U, A], [U, CALLED, RESULT, A]]
    # Several messages of a person are one turn, and so is a system message among them.
    assert Conversation(None, [U, U, A]).turns == ((U, U, A),)
    assert Conversation(None, [U, S, U, A]).turns == ((U, S, U, A),)
    assert Conversation(None, [A, U]).turns == ((A,), (U,))


def test_the_last_turn_is_cut_before_its_reply():
    assert last_turn([U, A, U, A]) == ((U, A), (U,))
    assert last_turn([U, A, U]) == ((U, A), (U,))
    assert last_turn([U, CALLED, RESULT, A]) == ((), (U, CALLED, RESULT))
    for history in ([], [S], [A], [S, A]):
        with pytest.raises(HistoryError, match="no question"):
            last_turn(history)


def test_where_the_last_turns_begin():
    history = [S, U, A, U, CALLED, RESULT, A]
    assert [start_of_turns(history, count) for count in (1, 2)] == [3, 1]
    for count in (0, -1, 3, 1.0, True, "1", None):
        with pytest.raises(HistoryError, match="must be from 1 to 2, not"):
            start_of_turns(history, count)
    with pytest.raises(HistoryError, match="no turn"):
        start_of_turns([S], 1)


def test_an_index_counts_from_either_end():
    assert [checked_index([U, A], index) for index in (0, 1, -1, -2)] == [0, 1, 1, 0]
    for index in (2, -3, 1.0, True, None):
        with pytest.raises(HistoryError, match="must be from 0 to 1, not"):
            checked_index([U, A], index)
    with pytest.raises(HistoryError, match="no messages"):
        checked_index([], 0)


# JSON in files


@given(CONVERSATIONS)
def test_a_conversation_comes_back_from_a_file(said):
    text = conversation_to_json(said)
    again = conversation_from_json(text)
    assert again == said
    assert conversation_to_json(again) == text


def test_the_form_in_files_is_that_of_version_0_1():
    thought = Message.assistant([Text("b")], tool_calls=[CALL], reasoning="hm")
    text = conversation_to_json(Conversation("Be brief.", [U, thought, RESULT], {"n": None}))
    assert json.loads(text) == {
        "instructions": "Be brief.",
        "history": [
            {"role": "user", "content": "u"},
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "b"}],
                "reasoning": "hm",
                "tool_calls": [
                    {
                        "type": "function",
                        "function": {"name": "clock", "arguments": {"zone": "é"}},
                        "id": "7",
                    }
                ],
            },
            {"role": "tool", "content": "noon", "name": "clock", "tool_call_id": "7"},
        ],
        "template_kwargs": {"n": None},
    }


def read(*messages):
    return conversation_from_json(json.dumps({"history": messages})).messages


def test_files_of_version_0_1_have_calls_of_any_form():
    for call, expected in (
        ({"function": {"name": "f"}}, ToolCall("f", {})),
        ({"name": "f", "arguments": {"a": 1}, "id": "1"}, ToolCall("f", {"a": 1}, "1")),
        ({"function": {"name": "f", "arguments": '{"a":1}'}, "x": 2}, ToolCall("f", '{"a":1}')),
    ):
        message = {"role": "assistant", "content": "", "tool_calls": [call]}
        assert read(message) == (Message.assistant("", tool_calls=[expected]),)


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_calls": {}},
        {"tool_calls": None},
        {"tool_calls": ["f"]},
        {"tool_calls": [{}]},
        {"tool_calls": [{"function": "f"}]},
        {"tool_calls": [{"name": "f", "arguments": [1]}]},
        {"content": None},
        {"content": [{"type": "image"}]},
        {"role": "developer"},
        {"wit": "dry"},
    ],
)
def test_messages_of_another_form_are_refused(fields):
    with pytest.raises(ValueError, match="not of the form"):
        read({"role": "assistant", "content": "", **fields})


@pytest.mark.parametrize("value", [(1, 2), {1: 2}, float("nan"), {1, 2}])
def test_template_arguments_that_json_can_not_express_are_refused(value):
    with pytest.raises(ValueError, match="JSON can't express"):
        conversation_to_json(Conversation(template_kwargs={"a": value}))


def test_arguments_of_any_depth_that_is_allowed_can_be_saved():
    arguments = {}
    for _ in range(89):
        arguments = {"a": arguments}
    said = Conversation(messages=[Message.assistant("", tool_calls=[ToolCall("f", arguments)])])
    assert conversation_from_json(conversation_to_json(said)) == said
    with pytest.raises(MessageError):
        ToolCall("f", {"a": arguments})
