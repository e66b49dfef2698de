"""Failures in every place leave history, cache and ledger in step (fake engine)."""

from __future__ import annotations

import os
import signal

import pytest

from kit.probe import held, ids_of
from kit.sessions import check_ledger, say
from segue import (
    CacheConfig,
    ChatSession,
    ConfigurationError,
    GenerationConfig,
    GenerationError,
    Message,
    MessageError,
    Role,
    SessionBusyError,
    TemplateError,
)
from segue.testing import FakeContext, FakeEngine, ToyTokenizer


@pytest.mark.parametrize("trimmable", [True, False])
@pytest.mark.parametrize("call", [1, 2, 3, 5])
@pytest.mark.parametrize("failure", [None, RuntimeError("boom"), KeyboardInterrupt()])
def test_a_model_failure_keeps_what_was_said_and_the_session_goes_on(call, failure, trimmable):
    config = GenerationConfig(max_tokens=8)
    # Where marks are needed, the prompt is read in two passes.
    fail_at = [call + (not trimmable)]
    engine = FakeEngine(say, fail_at=fail_at, failure=failure, trimmable=trimmable)
    session = ChatSession(engine, generation=config)
    streamed = ""
    with pytest.raises(type(failure) if failure else GenerationError):
        for response in session.stream("hi"):
            streamed += response.text
    assert session.history == (Message.user("hi"), Message.assistant(streamed))
    assert len(streamed) == max(call - 2, 0)
    assert session.cached_tokens == 0
    with session.stream("again") as reply:
        list(reply)
    check_ledger(session)
    fresh = ChatSession(FakeEngine(say), history=session.history[:2], generation=config)
    with fresh.stream("again") as other:
        list(other)
    assert reply.tokens == other.tokens


@pytest.mark.capable
def test_a_progress_callback_that_fails_leaves_what_was_read_in_the_cache():
    engine = FakeEngine(["hello", "fine"])
    session = ChatSession(engine, generation=GenerationConfig(prefill_step_size=4))

    def fail(fed: int, total: int) -> None:
        if fed == 8:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        session.respond("a long question", prompt_progress_callback=fail)
    assert session.cached_tokens == 8
    check_ledger(session)
    session.respond("another")
    check_ledger(session)


@pytest.mark.capable
def test_an_interrupt_between_chunks_of_prefill_leaves_what_was_read_in_the_cache():
    session = ChatSession(FakeEngine(["hello"]), generation=GenerationConfig(prefill_step_size=4))

    def press(fed: int, total: int) -> None:
        if fed == 8:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        session.respond("a long question", prompt_progress_callback=press)
    assert session.cached_tokens == 8
    assert session.history[-1] == Message.assistant("")
    check_ledger(session)


def test_a_template_that_fails_is_named_and_changes_nothing():
    engine = FakeEngine(["hello", "x"], tokenizer=ToyTokenizer(roles=("user", "assistant")))
    session = ChatSession(engine)
    session.respond("hi")
    before = (session.history, held(session), session.cached_tokens)
    with pytest.raises(TemplateError, match="chat template of the toy tokenizer") as raised:
        session.respond("result", role=Role.TOOL)
    assert raised.value.remedy
    assert (session.history, held(session), session.cached_tokens) == before
    session.respond("go on")
    check_ledger(session)


def test_a_prompt_of_the_wrong_kind_changes_nothing_and_keeps_the_live_reply():
    session = ChatSession(FakeEngine(["hello there"]))
    reply = session.stream("hi")
    next(reply)
    for wrong in (None, 3, [], ["text"], b"bytes", {"role": "user"}):
        with pytest.raises(MessageError):
            session.respond(wrong)  # type: ignore[arg-type]
    assert not reply.ended


@pytest.mark.capable
def test_a_cache_the_model_can_not_have_is_refused_at_once():
    class Refusing(FakeEngine):
        def context(self, cache):
            if cache.max_kv_size is not None:
                raise ConfigurationError("No.", remedy="Don't.")
            return super().context(cache)

    with pytest.raises(ConfigurationError):
        ChatSession(Refusing(["hello"]), cache=CacheConfig(max_kv_size=64))
    assert ChatSession(Refusing(["hello"])).respond("hi") == "hello"


@pytest.mark.capable
def test_settings_the_model_can_not_follow_change_nothing():
    class Refusing(FakeContext):
        def run(self, request):
            if request.config.top_k:
                raise ConfigurationError("No.", remedy="Don't.")
            return super().run(request)

    class Engine(FakeEngine):
        def context(self, cache):
            return Refusing(self.model, cache)

    session = ChatSession(Engine(["hello", "fine"]))
    session.respond("hi")
    before = (session.history, session.cached_tokens)
    for refused in (
        lambda: session.respond("ho", top_k=3),
        lambda: session.retry(top_k=3),
        lambda: session.preview("ho", top_k=3),
    ):
        with pytest.raises(ConfigurationError):
            refused()
        assert (session.history, session.cached_tokens) == before
    session.generation = GenerationConfig(top_k=3)
    with pytest.raises(ConfigurationError):
        session.respond("ho")
    assert (session.history, session.cached_tokens) == before
    session.generation = GenerationConfig()
    with session.stream("ho") as reply:
        list(reply)
    assert reply.cached_tokens == before[1]


def test_using_the_session_inside_its_own_turn_is_refused():
    session = ChatSession(FakeEngine(["hello", "fine"]))
    with pytest.raises(SessionBusyError, match="at this moment"):
        session.respond("hi", prompt_progress_callback=lambda *_: session.clear())
    assert session.respond("ho") == "fine"
    check_ledger(session)


def test_a_tokenizer_that_fails_changes_nothing():
    class Broken(ToyTokenizer):
        failing = False

        def detokenizer(self):
            if self.failing:
                raise RuntimeError("no detokenizer")
            return super().detokenizer()

    tokenizer = Broken()
    session = ChatSession(FakeEngine(["hello", "fine"], tokenizer=tokenizer))
    session.respond("hi")
    before = (session.history, session.cached_tokens, ids_of(session))
    tokenizer.failing = True
    for turn in (lambda: session.stream("ho"), session.stream_retry):
        with pytest.raises(RuntimeError):
            turn()
        assert (session.history, session.cached_tokens, ids_of(session)) == before
    tokenizer.failing = False
    assert session.respond("ho") == "fine"
