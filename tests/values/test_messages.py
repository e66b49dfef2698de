"""Roles, messages, parts of content and calls of tools."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import threading
import typing
from enum import StrEnum
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.values import CALLS, MESSAGES
from segue import Message, MessageError, Role, Text, ToolCall

CALL = {"type": "function", "function": {"name": "sky", "arguments": {"at": [1, None]}}, "id": "7"}
NAN = float("nan")


def nested(levels, innermost=0):
    return {"a": nested(levels - 1)} if levels else innermost


def test_role_values_are_the_keys_of_templates():
    assert {role.name: role.value for role in Role} == {
        "SYSTEM": "system",
        "USER": "user",
        "ASSISTANT": "assistant",
        "TOOL": "tool",
    }
    assert Role.USER == "user"


def test_constructors():
    call = {"type": "function", "function": {"name": "sky", "arguments": {}}}
    assert Message.system("a") == Message(Role.SYSTEM, "a")
    assert Message.user("a", name="Ann") == Message(Role.USER, "a", name="Ann")
    assert Message.assistant("a", tool_calls=[call]).tool_calls == (ToolCall("sky", {}),)
    assert Message.tool("a", name="sky", tool_call_id="1") == Message(
        Role.TOOL, "a", name="sky", tool_call_id="1"
    )
    assert Message("user", "a").role is Role.USER


def test_messages_are_immutable():
    call = {"function": {"name": "sky", "arguments": {"of": ["blue"]}}}
    message = Message.assistant("a", tool_calls=[call])
    same = Message.assistant("a", tool_calls=[copy.deepcopy(call)])
    call["function"]["name"] = "changed"
    call["function"]["arguments"]["of"].append("changed")
    assert message == same
    entry = message.to_template()["tool_calls"][0]["function"]
    entry["name"] = "changed"
    entry["arguments"]["of"].append("changed")
    assert message == same
    with pytest.raises(dataclasses.FrozenInstanceError):
        message.content = "b"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        message.tool_calls[0].name = "b"  # type: ignore[misc]


def test_messages_can_be_copied_pickled_hashed_and_replaced():
    message = Message.assistant([Text("a")], tool_calls=[CALL], reasoning="r")
    for twin in (copy.copy(message), copy.deepcopy(message), pickle.loads(pickle.dumps(message))):
        assert twin == message
        assert hash(twin) == hash(message)
    assert dataclasses.replace(message, content="b") == Message.assistant(
        "b", tool_calls=[CALL], reasoning="r"
    )


def test_type_hints_resolve_under_another_module_name(monkeypatch):
    for value in (Message, Text, ToolCall):
        monkeypatch.setattr(value, "__module__", "segue")
        assert typing.get_type_hints(value)
        assert typing.get_type_hints(value.__init__)
    assert typing.get_type_hints(Message)["role"] is Role


# Content


def test_content_is_text_or_parts():
    parts = (Text("a"), Text("b"))
    assert Message.user("ab").content == Message.user("ab").text == "ab"
    for given_parts in (parts, list(parts), [Text("a"), {"type": "text", "text": "b"}]):
        message = Message.user(given_parts)
        assert message.content == parts
        assert message.text == "ab"
        assert message.to_template() == {"role": "user", "content": "ab"}
    assert Message.user([]).content == ()
    assert Message.user([]).text == ""


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, "'image_url'"),
        ({"type": ["text"], "text": "a"}, r"\['text'\]"),
        ({"text": "a"}, "type 'text', not None"),
        ({"type": "text"}, "must be text, not NoneType"),
        ({"type": "text", "text": 3}, "must be text, not int"),
        ({"type": "text", "text": "\udcff"}, "lone surrogate"),
        ({"type": "text", "text": "a", "cache_control": {"type": "x"}}, "'cache_control'"),
        (3, "must be a Text or a mapping, not int"),
        (None, "must be a Text or a mapping, not NoneType"),
    ],
)
def test_parts_that_are_refused(part, words):
    with pytest.raises(MessageError, match=words):
        Message.user([Text("a"), part])


def test_empty_fields_of_a_part_are_ignored():
    part = {"type": "text", "text": "a", "annotations": [], "cache_control": None}
    assert Message.user([part]).content == (Text("a"),)


@pytest.mark.parametrize("text", [None, 3, b"a", "\ud800"])
def test_a_part_s_text_is_text(text):
    with pytest.raises(MessageError):
        Text(text)


# What is refused


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"role": "narrator", "content": ""}, "system, user, assistant, tool"),
        ({"role": ["user"], "content": ""}, "system, user, assistant, tool"),
        ({"role": "user", "content": None}, "Pass a string"),
        ({"role": "user", "content": ["parts"]}, "Pass a string"),
        ({"role": "user", "content": {"type": "text", "text": "a"}}, "Pass a string"),
        ({"role": "user", "content": b"a"}, "Pass a string"),
        ({"role": "user", "content": "", "name": 3}, "Pass name as a string"),
        ({"role": "tool", "content": "", "tool_call_id": 3}, "Pass tool_call_id as a string"),
        ({"role": "tool", "content": "", "reasoning": []}, "Pass reasoning as a string"),
        ({"role": "assistant", "content": "", "tool_calls": {}}, "one mapping for each call"),
        ({"role": "assistant", "content": "", "tool_calls": 3}, "one mapping for each call"),
        ({"role": "assistant", "content": "", "tool_calls": "x"}, "one mapping for each call"),
        ({"role": "assistant", "content": "", "tool_calls": ["x"]}, "Pass each call as"),
    ],
)
def test_wrong_fields_are_refused(arguments, told):
    with pytest.raises(MessageError, match=told):
        Message(**arguments)


@pytest.mark.parametrize("field", ["content", "name", "tool_call_id", "reasoning"])
def test_text_with_a_lone_surrogate_is_refused(field):
    with pytest.raises(MessageError, match=f"{field} contains a lone surrogate"):
        Message(**{"role": "user", "content": "a", field: "\udcff"})


# Calls of tools


def test_a_call_takes_arguments_as_they_are_given():
    assert ToolCall("sky", {"at": 1}).arguments == {"at": 1}
    # A template that wants text gets this very text.
    text = '{"at":1}'
    assert ToolCall("sky", text).arguments == text
    (entry,) = Message.assistant("", tool_calls=[ToolCall("sky", text)]).to_template()["tool_calls"]
    assert entry == {"type": "function", "function": {"name": "sky", "arguments": text}}
    assert ToolCall("sky", text) != ToolCall("sky", {"at": 1})


def test_calls_may_be_mappings_of_any_kind_in_two_forms():
    call = ToolCall("sky", {"at": 1}, "7")
    for entry in (
        {"id": "7", "type": "function", "function": {"name": "sky", "arguments": {"at": 1}}},
        {"id": "7", "function": MappingProxyType({"name": "sky", "arguments": '{"at": 1}'})},
        {"name": "sky", "arguments": MappingProxyType({"at": 1}), "id": "7"},
        {"name": "sky", "arguments": ' {"at":1}\n', "id": "7", "type": "function"},
    ):
        assert ToolCall.from_dict(MappingProxyType(entry)) == call
        assert Message.assistant("", tool_calls=(entry,)).tool_calls == (call,)
    assert Message.assistant("", tool_calls=iter([call, CALL])).tool_calls[0] is call
    with pytest.raises(MessageError, match="one mapping for each call"):
        Message.assistant("", tool_calls=5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        '"a"',
        "3",
        "null",
        "city=Paris",
        '{"at": 1',
        '{"at": NaN}',
        '{"at": 1e999}',
        '{"at": "\\ud800"}',
        pytest.param('{"at": ' + "9" * 5000 + "}", id="digits"),
        pytest.param(json.dumps(nested(91)), id="deep"),
        pytest.param("[" * 100_000, id="brackets"),
    ],
)
def test_text_of_arguments_that_is_not_an_object_of_plain_json_stays_text(text):
    call = ToolCall.from_dict({"name": "sky", "arguments": text})
    assert call.arguments == text
    assert ToolCall.from_dict(call.to_dict()) == call


@pytest.mark.parametrize("arguments", [{}, None, "", " \n"])
def test_no_arguments_are_an_empty_mapping(arguments):
    assert ToolCall.from_dict({"name": "sky", "arguments": arguments}) == ToolCall("sky", {})
    assert ToolCall.from_dict({"function": {"name": "sky"}}) == ToolCall("sky", {})


def test_arguments_become_json_s_own_types():
    class Sky(StrEnum):
        BLUE = "blue"

    class Number(int):
        pass

    class Share(float):
        pass

    given_arguments = MappingProxyType(
        {Sky.BLUE: (Sky.BLUE, Number(3), Share(0.5), True), "b": MappingProxyType({})}
    )
    arguments = ToolCall("sky", given_arguments).arguments
    assert arguments == {"blue": ["blue", 3, 0.5, True], "b": {}}
    assert type(arguments) is dict
    assert {type(key) for key in arguments} == {str}
    assert [type(value) for value in arguments["blue"]] == [str, int, float, bool]
    assert type(arguments["b"]) is dict


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (NAN, "nan"),
        (float("-inf"), "-inf"),
        ({1, 2}, "type set"),
        (threading.Lock(), "type lock"),
        (b"a", "type bytes"),
        (1j, "type complex"),
        ({1: 2}, "key in them is of type int"),
        ({None: 2}, "key in them is of type NoneType"),
        ({"\udcff": 2}, "lone surrogate"),
        (["\udcff"], "lone surrogate"),
        pytest.param(10**5000, "digits", id="digits"),
        (nested(90), "more than 90 deep"),
    ],
)
def test_arguments_that_are_not_plain_json_are_refused_by_the_call_s_name(value, words):
    entry = {"name": "sky", "arguments": {"at": value}}
    for make in (ToolCall.from_dict, lambda entry: Message.assistant("", tool_calls=[entry])):
        with pytest.raises(MessageError, match=f"'sky'.*{words}"):
            make(entry)
    with pytest.raises(MessageError, match=f"'sky'.*{words}"):
        ToolCall("sky", {"at": value})


def test_arguments_may_be_90_deep_and_hold_themselves_never():
    assert ToolCall("sky", nested(90)).arguments == nested(90)
    ring = {}
    ring["a"] = [ring]
    with pytest.raises(MessageError, match="90 deep"):
        ToolCall("sky", ring)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({}, "name must be text, not NoneType"),
        ({"name": 3}, "name must be text, not int"),
        ({"name": "\udcff"}, "lone surrogate"),
        ({"function": {"arguments": {}}}, "name must be text"),
        ({"function": "sky"}, "function must be a mapping, not str"),
        ({"name": "sky", "arguments": 3}, "'sky' must be a mapping or text, not int"),
        ({"name": "sky", "arguments": ["a"]}, "'sky' must be a mapping or text, not list"),
        ({"name": "sky", "arguments": "\udcff"}, "'sky' contains a lone surrogate"),
        ({"name": "sky", "id": 7}, "id of the call of 'sky' must be text, not int"),
        ({"name": "sky", "id": "\udcff"}, "id of the call of 'sky' contains"),
        ({"type": "custom", "custom": {"name": "sky", "input": "a"}}, "'custom'"),
        ({"function": {"name": "sky", "argument": "{}"}}, "'sky'.*'argument'.*'arguments'"),
        ({"name": "sky", "parameters": {"at": 1}}, "'sky'.*'parameters'"),
        ({"function": {"name": "sky"}, "lock": threading.Lock()}, "'sky'.*'lock'"),
        ({"function": {"name": "sky"}, "arguments": {"at": 1}}, "'sky'.*'arguments'"),
        ("sky", "a ToolCall or a mapping, not str"),
        (None, "a ToolCall or a mapping, not NoneType"),
    ],
)
def test_calls_that_are_refused(entry, words):
    for make in (ToolCall.from_dict, lambda entry: Message.assistant("", tool_calls=[entry])):
        with pytest.raises(MessageError, match=words):
            make(entry)


def test_empty_fields_of_a_call_and_its_index_are_ignored():
    entry = {"index": 2, "custom": None, "function": {"name": "sky", "strict": False}}
    assert ToolCall.from_dict(entry) == ToolCall("sky", {})
    assert ToolCall.from_dict({"name": "sky", "function": None}) == ToolCall("sky", {})


def test_calls_as_json_of_the_openai_shape():
    call = ToolCall("sky", {"über": [1.5, None, True]}, "7")
    assert call.to_dict() == {
        "id": "7",
        "type": "function",
        "function": {"name": "sky", "arguments": '{"über": [1.5, null, true]}'},
    }
    assert ToolCall("sky", "a").to_dict() == {
        "type": "function",
        "function": {"name": "sky", "arguments": "a"},
    }


@given(CALLS)
def test_calls_come_back_from_json(call):
    again = ToolCall.from_dict(json.loads(json.dumps(call.to_dict())))
    if isinstance(call.arguments, str):
        # Text that holds an object, or nothing, is read.
        call = ToolCall.from_dict({"name": call.name, "arguments": call.arguments, "id": call.id})
    assert again == call
    assert repr(again) == repr(call)  # True is not 1


def test_a_tool_s_result_names_its_call():
    call = ToolCall("sky", {}, "7")
    assert Message.tool("blue", call=call) == Message.tool("blue", name="sky", tool_call_id="7")
    assert Message.tool("blue", call=ToolCall("sky", {})).tool_call_id is None
    # What is said besides has precedence.
    message = Message.tool("blue", name="heaven", tool_call_id="8", call=call)
    assert (message.name, message.tool_call_id) == ("heaven", "8")
    with pytest.raises(MessageError, match="must be a ToolCall, not dict"):
        Message.tool("blue", call=CALL)  # type: ignore[arg-type]


# Templates


def test_templates_see_the_fields_that_are_set_and_no_others():
    assert Message.user("a").to_template() == {"role": "user", "content": "a"}
    assert Message.tool("a", name="sky", tool_call_id="1").to_template() == {
        "role": "tool",
        "content": "a",
        "name": "sky",
        "tool_call_id": "1",
    }
    assert type(Message.user("a").to_template()["role"]) is str


def test_templates_see_calls_as_transformers_has_them():
    called = Message.assistant("", tool_calls=[CALL, ToolCall("sea", {})], reasoning="hm")
    entry = called.to_template()
    assert entry == {
        "role": "assistant",
        "content": "",
        "tool_calls": [CALL, {"type": "function", "function": {"name": "sea", "arguments": {}}}],
        "reasoning_content": "hm",
        "thinking": "hm",
    }
    # Some templates write a function as it comes.
    assert list(entry["tool_calls"][0]["function"]) == ["name", "arguments"]


# JSON of the OpenAI shape


def test_to_dict_has_the_fields_that_are_set():
    assert Message.user("a").to_dict() == {"role": "user", "content": "a"}
    assert type(Message.user("a").to_dict()["role"]) is str
    assert Message.user([Text("a")], name="Ann").to_dict() == {
        "role": "user",
        "content": [{"type": "text", "text": "a"}],
        "name": "Ann",
    }
    assert Message.assistant("", tool_calls=[CALL], reasoning="hm").to_dict() == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "7",
                "type": "function",
                "function": {"name": "sky", "arguments": '{"at": [1, null]}'},
            }
        ],
        "reasoning_content": "hm",
    }
    assert Message.tool("a", tool_call_id="7").to_dict() == {
        "role": "tool",
        "content": "a",
        "tool_call_id": "7",
    }


def test_a_response_of_an_api_is_read():
    entry = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "index": 0,
                "function": {"name": "sky", "arguments": '{"at":"dawn"}'},
            }
        ],
    }
    assert Message.from_dict(entry) == Message.assistant(
        "", tool_calls=[ToolCall("sky", {"at": "dawn"}, "call_1")]
    )


def test_no_content_is_for_assistants_that_call_or_think():
    call = {"name": "sky"}
    for content in ({}, {"content": None}):
        entry = {"role": "assistant", "tool_calls": [call], **content}
        assert Message.from_dict(entry).content == ""
        entry = {"role": "assistant", "reasoning": "hm", "tool_calls": None, **content}
        assert Message.from_dict(entry) == Message.assistant("", reasoning="hm")
        for role in Role:
            with pytest.raises(MessageError, match="must have content"):
                Message.from_dict({"role": role, **content})
        with pytest.raises(MessageError, match="must have content"):
            Message.from_dict({"role": "user", "tool_calls": [call], **content})
    assert Message.from_dict({"role": "assistant", "content": "", "tool_calls": []}).text == ""


def test_parts_are_read_and_other_kinds_refused_by_name():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert Message.from_dict({"role": "user", "content": parts}) == Message.user(
        [Text("a"), Text("b")]
    )
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    with pytest.raises(MessageError, match="'image_url'"):
        Message.from_dict({"role": "user", "content": [*parts, image]})


def test_developers_speak_for_the_system():
    assert Message.from_dict({"role": "developer", "content": "a"}) == Message.system("a")
    with pytest.raises(MessageError, match="must be one of system, user, assistant, tool, not"):
        Message.from_dict({"role": "function", "content": "a"})
    with pytest.raises(MessageError, match="must be one of"):
        Message.from_dict({"content": "a"})


def test_reasoning_has_three_names():
    said = Message.assistant("a", reasoning="hm")
    for name in ("reasoning_content", "reasoning", "thinking"):
        entry = {"role": "assistant", "content": "a", "thinking": None, name: "hm"}
        assert Message.from_dict(entry) == said
    both = {"role": "assistant", "content": "a", "reasoning": "hm", "reasoning_content": "hm"}
    assert Message.from_dict(both) == said
    assert Message.from_dict({**both, "reasoning": ""}) == said
    assert Message.from_dict({**both, "reasoning": "", "reasoning_content": ""}).reasoning == ""
    with pytest.raises(MessageError, match="one reasoning"):
        Message.from_dict({**both, "thinking": "ha"})
    with pytest.raises(MessageError, match="reasoning must be text, not dict"):
        Message.from_dict({"role": "assistant", "content": "a", "reasoning": {"a": 1}})


@pytest.mark.parametrize("value", [None, False, "", [], {}, 0])
def test_empty_unknown_fields_are_ignored(value):
    entry = {"role": "user", "content": "a", "refusal": value, "wit": value}
    assert Message.from_dict(entry) == Message.user("a")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"refusal": "I won't."}, "'refusal', which is not supported. Leave that field out"),
        ({"tool_call": [{"name": "sky"}]}, "'tool_call'.*'tool_calls'"),
        ({"contents": "b"}, "'contents'.*'content'"),
        ({"function_call": {"name": "sky", "arguments": "{}"}}, "'function_call'"),
        ({"audio": {"id": "x"}}, "'audio'"),
        ({3: "b"}, "field 3"),
    ],
)
def test_unknown_fields_that_say_something_are_refused_by_name(fields, words):
    with pytest.raises(MessageError, match=words):
        Message.from_dict({"role": "user", "content": "a", **fields})


@pytest.mark.parametrize("entry", [None, "hi", ["user", "hi"], [("role", "user")], 3])
def test_messages_are_read_from_mappings_alone(entry):
    with pytest.raises(MessageError, match="from a mapping, not"):
        Message.from_dict(entry)


@given(MESSAGES)
def test_messages_come_back_from_json(message):
    entry = message.to_dict()
    assert Message.from_dict(entry) == message
    assert Message.from_dict(json.loads(json.dumps(entry))) == message
    assert Message.from_dict(message.to_template()).text == message.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
NAMES = st.sampled_from(
    [*"abc", "role", "content", "tool_calls", "type", "function", "name", "arguments", "text", "id"]
)
SHAPES = st.recursive(
    JSON | st.sampled_from(["user", "assistant", "function", "text"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=20,
)


@given(st.dictionaries(NAMES, SHAPES))
def test_whatever_json_holds_is_a_message_or_a_message_error(entry):
    try:
        message = Message.from_dict(entry)
    except MessageError:
        return
    assert Message.from_dict(message.to_dict()) == message
