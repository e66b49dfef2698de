"""Sessions over an engine that is the core alone: it owns its cache, and reports what it reused."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import segue
from kit import probe
from kit.sessions import common_prefix, rendered
from segue import (
    CacheConfig,
    ChatSession,
    GenerationConfig,
    GenerationError,
    UnsupportedFeatureError,
)
from segue.testing import BareEngine

BLOCK = 4

pytestmark = pytest.mark.capable


def say(ids) -> int:
    """A letter that depends on every id of the conversation."""
    return 97 + sum((number + 1) * token for number, token in enumerate(ids)) % 26


def test_a_reply_reports_what_the_engine_reused():
    engine = BareEngine(["hello", "fine"], block=BLOCK)
    session = ChatSession(engine)
    session.respond("hi")
    passes = len(engine.model.fed)
    reply = session.stream("how are you?")
    believed = reply.cached_tokens
    list(reply)
    assert believed - BLOCK < reply.cached_tokens <= believed
    assert reply.cached_tokens % BLOCK == 0
    assert len(engine.model.fed[passes]) == reply.usage.fed_tokens


def test_an_engine_that_forgot_reads_everything_and_says_so():
    engine = BareEngine(["hello", "fine"], block=BLOCK)
    session = ChatSession(engine)
    session.respond("hi")
    engine.forget()
    session.respond("how are you?")
    assert session.usage.turns[-1].cached_tokens == 0
    assert session.usage.turns[-1].fed_tokens == session.usage.turns[-1].prompt_tokens


def test_a_failure_leaves_the_conversation_and_the_next_turn_sends_all():
    engine = BareEngine(["hi", "fine"], fail_at=[5])
    session = ChatSession(engine)
    session.respond("hi")
    with pytest.raises(GenerationError):
        session.respond("how are you?")
    assert session.cached_tokens == 0
    assert session.retry() == "fine"


@pytest.mark.parametrize(
    ("arguments", "feature"),
    [
        ({"draft": "prompt-lookup"}, "drafts"),
        ({"cache": CacheConfig(kv_bits=8)}, "KV cache"),
        ({"cache": CacheConfig(max_kv_size=64)}, "KV cache"),
        (
            {"generation": GenerationConfig(logits_processors=[lambda tokens, logits: logits])},
            "logits processors",
        ),
    ],
)
def test_a_session_refuses_at_once_what_its_engine_lacks(arguments, feature):
    with pytest.raises(UnsupportedFeatureError) as refused:
        ChatSession(BareEngine(), **arguments)
    assert refused.value.engine == "bare"
    assert feature in refused.value.feature
    assert str(refused.value).startswith("The engine bare does not support ")


def test_a_call_refuses_what_the_engine_lacks_and_changes_nothing(tmp_path):
    session = ChatSession(BareEngine(["hello"]))
    session.respond("hi")
    history = session.history
    for call in (
        lambda: session.stream("x", logits_processors=[lambda tokens, logits: logits]),
        lambda: session.save_cache(tmp_path / "cache.safetensors"),
        lambda: segue.load_prompt_cache(tmp_path / "cache.safetensors", BareEngine()),
    ):
        with pytest.raises(UnsupportedFeatureError, match="bare"):
            call()
    assert session.history == history
    assert not list(tmp_path.iterdir())


class BareSession(RuleBasedStateMachine):
    """Whatever a session does, its engine is sent the render, and reuses the most it can."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = BareEngine(say, block=1)
        self.sessions = [
            ChatSession(
                self.engine,
                instructions="Be brief.",
                generation=GenerationConfig(max_tokens=3),
            )
        ]
        self.folder = None

    def check(self, begin, session) -> None:
        known = probe.computed_by(self.engine)
        calls = len(self.engine.model.fed)
        reply = begin()
        list(reply)
        prompt = rendered(session, session.history[:-1], prompt=True)
        assert self.engine.tokenizer.decode(self.sent(session)[: reply.prompt_tokens]) == prompt
        ids = self.sent(session)[: reply.prompt_tokens]
        best = max((common_prefix(each, ids) for each in known), default=0)
        assert reply.cached_tokens == min(best, len(ids) - 1)
        assert self.engine.model.fed[calls] == tuple(ids[reply.cached_tokens :])

    @staticmethod
    def sent(session) -> list[int]:
        return list(probe.ledger_of(session).ids)

    @rule(text=st.sampled_from(["hi", "the world", "hello"]), which=st.integers(0, 3))
    def turn(self, text, which):
        session = self.sessions[which % len(self.sessions)]
        self.check(lambda: session.stream(text), session)

    @rule(which=st.integers(0, 3))
    def retry(self, which):
        session = self.sessions[which % len(self.sessions)]
        if session.history:
            self.check(lambda: session.stream_retry(seed=1), session)

    @rule(which=st.integers(0, 3))
    def undo(self, which):
        session = self.sessions[which % len(self.sessions)]
        if session.history:
            session.undo()

    @rule(which=st.integers(0, 3))
    def edit(self, which):
        session = self.sessions[which % len(self.sessions)]
        if session.history:
            session.edit(-1, "the")

    @precondition(lambda self: len(self.sessions) < 4)
    @rule()
    def fork(self):
        self.sessions.append(self.sessions[0].fork())

    @rule()
    def prewarm(self):
        self.sessions[0].prewarm()

    @rule()
    def forget(self):
        self.engine.forget()

    @rule(count=st.integers(0, 2))
    def close_early(self, count):
        reply = self.sessions[0].stream("the")
        for _ in range(count):
            next(reply)
        reply.close()

    @invariant()
    def ledger_is_what_was_sent(self):
        for session in self.sessions:
            assert len(self.sent(session)) == session.cached_tokens


TestBareSession = BareSession.TestCase


def test_a_session_over_it_is_saved_and_opened_without_a_cache(tmp_path):
    engine = BareEngine(say)
    session = ChatSession(engine, generation=GenerationConfig(max_tokens=3))
    session.respond("hi")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.save(tmp_path / "talk.segue")
        again = ChatSession.open(tmp_path / "talk.segue", engine)
    assert again.history == session.history
    assert again.cached_tokens == 0
    # The engine owns its cache: it reuses what it has, whoever asks.
    again.respond("and?")
    assert again.usage.turns[-1].cached_tokens > 0
