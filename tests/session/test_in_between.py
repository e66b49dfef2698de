"""What others may do in the middle: interrupt a clearing, write settings from a callback."""

from __future__ import annotations

import os
import signal

import pytest

from segue import ChatSession, ConfigurationError, SegueError
from segue.testing import FakeEngine
from segue.testing.fake import FakeContext


def test_an_interrupt_while_a_session_is_cleared_waits_until_it_is(monkeypatch):
    session = ChatSession(FakeEngine(["Hello!", "x"]))
    session.respond("Hi")

    def rewind(self, offset):
        for number, layer in enumerate(self.cache):
            del layer[max(offset, self.prefix) :]
            if number == 0:
                os.kill(os.getpid(), signal.SIGINT)
        return self.offset

    with monkeypatch.context() as patch:
        patch.setattr(FakeContext, "rewind", rewind)
        with pytest.raises(KeyboardInterrupt):
            session.clear()
    assert session.history == ()
    assert session.respond("again") == "x"


@pytest.mark.parametrize(
    ("name", "value"), [("instructions", "So far: hello."), ("template_kwargs", {"a": 1})]
)
def test_what_a_callback_sets_while_a_turn_is_planned_stays(name, value):
    def on_overflow(history):
        setattr(session, name, value)
        return history[-2:]

    engine = FakeEngine(["Hello!"] * 9, context_length=120)
    session = ChatSession(engine, on_overflow=on_overflow, instructions="Old")
    for _ in range(4):
        session.respond("Hi there friend")
    assert len(session.history) < 8
    assert getattr(session, name) == value


@pytest.mark.parametrize("junk", [None, {}, "full"])
def test_a_session_opened_with_junk_for_a_cache_is_refused(path, junk):
    with ChatSession(FakeEngine(["Hello!"])) as session:
        session.respond("Hi")
        session.save(path)
    with pytest.raises(ConfigurationError):
        ChatSession.open(path, FakeEngine(), cache=junk)


def test_template_arguments_can_not_be_changed_in_place():
    session = ChatSession(FakeEngine(), template_kwargs={"a": 1})
    with pytest.raises(TypeError):
        session.template_kwargs["a"] = 2
    assert session.fork().template_kwargs == {"a": 1}


def test_a_subclass_is_opened_as_it_is_made(path):
    class Tagged(ChatSession):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.tags = []

    with Tagged(FakeEngine(["Hello!"])) as session:
        session.respond("Hi")
        session.save(path)
    with Tagged.open(path, FakeEngine(["Fine."])) as again:
        assert again.tags == []
        assert again.respond("And?") == "Fine."
        assert again.usage.turns[-1].cached_tokens > 0


@pytest.mark.parametrize("junk", [5, ["hi"], "hi"])
def test_a_preview_refuses_junk_for_a_history(junk):
    with pytest.raises(SegueError):
        ChatSession(FakeEngine()).preview("x", history=junk)
