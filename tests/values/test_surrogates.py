"""Half of an emoji is refused where it comes in, by an error that says where it is."""

from __future__ import annotations

import json

import pytest

from segue import (
    ChatSession,
    ConfigurationError,
    Conversation,
    GenerationConfig,
    Message,
    MessageError,
    SegueError,
    TemplateError,
    ToolCall,
)
from segue.testing import FakeEngine, ToyTokenizer

HALF = "\ud83d"


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"city": HALF}, r"arguments\.city\."),
        ({"a": {"b": [1, {"c": f"x{HALF}"}]}}, r"arguments\.a\.b\[1\]\.c\."),
        ({"a": ({HALF: 1},)}, r"a key of arguments\.a\[0\]\."),
        ({HALF: 1}, r"a key of arguments\."),
    ],
)
def test_arguments_of_a_call(arguments, where):
    with pytest.raises(MessageError, match=f"'sky' contain a lone surrogate.* in {where}"):
        ToolCall("sky", arguments)
    with pytest.raises(MessageError, match=f"'sky' contain a lone surrogate.* in {where}"):
        ToolCall.from_dict({"name": "sky", "arguments": arguments})


def test_an_escape_in_the_text_of_arguments_is_text_and_harms_no_turn():
    text = json.dumps({"city": HALF})
    call = ToolCall.from_dict({"function": {"name": "sky", "arguments": text}})
    assert call.arguments == text
    session = ChatSession(FakeEngine(["a"]))
    asked = Message.assistant("", tool_calls=[call])
    assert session.respond([Message.user("?"), asked, Message.tool("fine", call=call)]) == "a"


def test_a_template_that_makes_one_is_refused():
    class Unescaping(ToyTokenizer):
        def render(self, messages, **arguments):
            return super().render(messages, **arguments).replace("\\ud83d", HALF)

    session = ChatSession(FakeEngine(["a"], tokenizer=Unescaping()))
    with pytest.raises(TemplateError, match="lone surrogate"):
        session.respond("\\ud83d")
    assert session.history == ()


@pytest.mark.parametrize(
    ("template_kwargs", "where"),
    [
        (
            {"tools": [{"function": {"description": f"Weather {HALF}"}}]},
            r"template_kwargs\.tools\[0\]\.function\.description\.",
        ),
        ({"tools": [{HALF: 1}]}, r"a key of template_kwargs\.tools\[0\]\."),
        ({HALF: 1}, r"a key of template_kwargs\."),
        ({"kinds": (1, HALF)}, r"template_kwargs\.kinds\[1\]\."),
        ({"kinds": {HALF}}, r"template_kwargs\.kinds\[0\]\."),
        ({"date": HALF}, r"template_kwargs\.date\."),
    ],
)
def test_arguments_of_the_template(template_kwargs, where):
    with pytest.raises(ConfigurationError, match=f"lone surrogate.* in {where}"):
        Conversation(template_kwargs=template_kwargs)
    session = ChatSession(FakeEngine(["a"]))
    with pytest.raises(ConfigurationError, match="lone surrogate"):
        session.template_kwargs = template_kwargs
    assert session.template_kwargs == {}
    assert session.respond("hi") == "a"


@pytest.mark.parametrize("stop", [HALF, ["end", f"a{HALF}"]])
def test_stop_strings(stop):
    with pytest.raises(ConfigurationError, match="contains a lone surrogate"):
        GenerationConfig(stop=stop)
    session = ChatSession(FakeEngine(["a"]))
    with pytest.raises(ConfigurationError, match="contains a lone surrogate"):
        session.respond("hi", stop=stop)
    assert session.history == ()


def test_paths(tmp_path):
    session = ChatSession(FakeEngine(["a"]))
    session.respond("hi")
    path = f"{tmp_path}/{HALF}"
    for use in (
        lambda: session.save(path),
        lambda: session.save_cache(path),
        lambda: ChatSession.open(path, FakeEngine()),
    ):
        with pytest.raises(ConfigurationError, match="path must be text") as raised:
            use()
        str(raised.value).encode()


def test_a_path_of_undecodable_bytes_is_a_path(tmp_path):
    session = ChatSession(FakeEngine(["a"]))
    try:
        session.save(f"{tmp_path}/\udcff.segue")
    except SegueError as error:  # a file system that takes UTF-8 alone
        assert not isinstance(error, ConfigurationError)  # noqa: PT017
