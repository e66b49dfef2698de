"""What others may do in the middle: interrupt a clearing, write settings from a callback."""

from __future__ import annotations

import gc
import json
import os
import signal

import pytest

from segue import (
    ChatSession,
    ConfigurationError,
    SegueError,
    UnsupportedFeatureError,
    load_prompt_cache,
)
from segue.testing import BareEngine, FakeEngine
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


def computed(engine, since):
    return sum(map(len, engine.model.fed[since:]))


def test_what_an_engine_reused_counts_even_if_no_token_came():
    engine = BareEngine(["Hello!"] * 3)
    sessions = [ChatSession(engine, instructions="Be brief.") for _ in range(3)]
    sessions[0].prewarm()
    since = len(engine.model.fed)
    assert sessions[1].prewarm() == sessions[1].usage.prewarmed_tokens == computed(engine, since)
    since = len(engine.model.fed)
    reply = sessions[2].stream("Hi", max_tokens=0)
    assert list(reply) == []
    assert reply.usage.fed_tokens == computed(engine, since) < reply.usage.prompt_tokens


def test_a_reply_that_never_began_reports_no_earlier_reuse():
    engine = BareEngine(["Hello!"] * 3)
    session = ChatSession(engine)
    session.respond("Hi")
    reply = session.stream("And?")
    cached = reply.cached_tokens
    reply.close()
    assert reply.usage.cached_tokens == cached > 0


def test_what_an_engine_can_not_save_leaves_the_live_reply_alone(path):
    session = ChatSession(BareEngine(["one two three"]))
    reply = session.stream("Hi")
    next(reply)
    with pytest.raises(UnsupportedFeatureError):
        session.save_cache(path)
    assert not reply.ended
    assert len(list(reply)) > 1


def test_a_rewind_that_fails_leaves_the_ledger_with_what_is_held(monkeypatch):
    session = ChatSession(FakeEngine(["Hello!", "x"]))
    session.respond("Hi")
    session.instructions = "Another beginning."

    def rewind(self, offset):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(FakeContext, "rewind", rewind)
        with pytest.raises(MemoryError):
            session.respond("And?")
    assert session.respond("And?") == "x"


class WithoutForks:
    """All that a fake's context has, but forks."""

    def __init__(self, inner):
        self._inner = inner
        for name in [
            "run",
            "rewind",
            "close",
            "draft_with",
            "start_from",
            "save",
            "stored",
            "restore",
        ]:
            setattr(self, name, getattr(inner, name))

    offset = property(lambda self: self._inner.offset)
    reused = property(lambda self: self._inner.reused)
    prefix = property(lambda self: self._inner.prefix)
    acceptance = property(lambda self: self._inner.acceptance)


class EngineWithoutForks(FakeEngine):
    """A fake whose contexts can't be copied."""

    def context(self, cache):
        return WithoutForks(super().context(cache))


def test_a_fork_that_can_not_be_copied_begins_with_the_opaque_prefix(tmp_path):
    engine = EngineWithoutForks(["a", "b", "c"])
    opaque = tmp_path / "opaque"
    ids = list(engine.tokenizer.encode("secret prefix"))
    opaque.write_text(json.dumps({"ids": ids, "metadata": {}}))
    prompt_cache = load_prompt_cache(opaque, engine)
    session = ChatSession(engine, prompt_cache=prompt_cache, draft="prompt-lookup")
    session.respond("Hi")
    fork = session.fork()
    assert fork.cached_tokens == len(ids)
    assert fork.history == session.history
    assert fork.preview("x").cached_tokens == len(ids)
    fork.respond("x")
    assert fork.usage.turns[-1].cached_tokens == len(ids)


def test_nothing_runs_on_a_context_that_was_closed(monkeypatch):
    calls = []
    monkeypatch.setattr(FakeContext, "close", lambda self: calls.append("close"))
    rewind = FakeContext.rewind

    def noted(self, offset):
        calls.append("rewind")
        return rewind(self, offset)

    monkeypatch.setattr(FakeContext, "rewind", noted)
    session = ChatSession(FakeEngine(["one two three"]))
    reply = session.stream("Hi")
    next(reply)
    circle = [session, reply]
    circle.append(circle)
    calls.clear()
    del session, reply, circle
    gc.collect()
    assert calls[-1] == "close"
