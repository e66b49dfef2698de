"""Roles and messages."""

from __future__ import annotations

import dataclasses
import threading
from types import MappingProxyType

import pytest

from segue import Message, MessageError, Role


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
    assert Message.assistant("a", tool_calls=[call]).tool_calls == (call,)
    assert Message.tool("a", name="sky", tool_call_id="1") == Message(
        Role.TOOL, "a", name="sky", tool_call_id="1"
    )
    assert Message("user", "a").role is Role.USER


def test_messages_are_immutable():
    call = {"function": {"name": "sky"}}
    message = Message.assistant("a", tool_calls=[call])
    call["function"]["name"] = "changed"
    assert message.tool_calls[0]["function"]["name"] == "sky"
    message.to_template()["tool_calls"][0]["function"]["name"] = "changed"
    assert message.tool_calls[0]["function"]["name"] == "sky"
    with pytest.raises(dataclasses.FrozenInstanceError):
        message.content = "b"  # type: ignore[misc]


def test_templates_see_the_fields_that_are_set_and_no_others():
    assert Message.user("a").to_template() == {"role": "user", "content": "a"}
    assert Message.tool("a", name="sky", tool_call_id="1").to_template() == {
        "role": "tool",
        "content": "a",
        "name": "sky",
        "tool_call_id": "1",
    }
    assert type(Message.user("a").to_template()["role"]) is str


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"role": "narrator", "content": ""}, "system, user, assistant, tool"),
        ({"role": "user", "content": None}, "Pass a string"),
        ({"role": "user", "content": ["parts"]}, "Pass a string"),
        ({"role": "user", "content": "", "name": 3}, "Pass name as a string"),
        ({"role": "tool", "content": "", "tool_call_id": 3}, "Pass tool_call_id as a string"),
        ({"role": "assistant", "content": "", "tool_calls": {}}, "one mapping for each call"),
        ({"role": "assistant", "content": "", "tool_calls": 3}, "one mapping for each call"),
        ({"role": "assistant", "content": "", "tool_calls": ["x"]}, "Pass each call as"),
    ],
)
def test_wrong_fields_are_refused(arguments, told):
    with pytest.raises(MessageError, match=told):
        Message(**arguments)


def test_text_that_is_no_text_is_refused():
    with pytest.raises(MessageError, match="no text"):
        Message.user("\udcff")


def test_tool_calls_may_be_any_mappings():
    call = MappingProxyType({"function": {"name": "sky"}})
    assert Message.assistant("", tool_calls=[call]).tool_calls == ({"function": {"name": "sky"}},)
    with pytest.raises(MessageError, match="can't be copied"):
        Message.assistant("", tool_calls=[{"lock": threading.Lock()}])
    with pytest.raises(MessageError, match="one mapping for each call"):
        Message.assistant("", tool_calls=5)  # type: ignore[arg-type]
