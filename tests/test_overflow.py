"""What becomes of a conversation that does not fit into the model's context any more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segue import (
    ChatSession,
    ConfigurationError,
    ContextLengthError,
    FinishReason,
    GenerationConfig,
    Message,
    MessageError,
    Role,
)
from segue.overflow import split_turns
from segue.testing import FakeEngine

LIMIT = 160


def session_of(**kwargs) -> ChatSession:
    engine = FakeEngine(lambda ids: 97 + len(ids) % 7, context_length=LIMIT)
    kwargs.setdefault("generation", GenerationConfig(max_tokens=10))
    return ChatSession(engine, **kwargs)


def fill(session: ChatSession) -> None:
    while session._cache.offset < LIMIT - 40:
        session.respond("more")


def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers():
    session = session_of()
    session.respond("more")
    session.respond("more")
    before = (session.history, session.cached_tokens, session.usage)
    with pytest.raises(ContextLengthError, match=r"\d+ tokens.* holds 160"):
        session.respond("x" * 120)
    assert (session.history, session.cached_tokens, session.usage) == before
    assert session.respond("x")


def test_a_reply_ends_where_the_context_does():
    session = session_of(generation=GenerationConfig(max_tokens=1000))
    reply = session.stream("hi")
    list(reply)
    assert reply.finish_reason is FinishReason.LENGTH
    assert reply.prompt_tokens + len(reply.tokens) == LIMIT == session.cached_tokens


def test_the_oldest_turns_are_dropped_and_told():
    session = session_of(instructions="be kind", on_overflow="drop-oldest")
    for n in range(30):
        before = session.history
        reply = session.stream(f"turn {n}")
        list(reply)
        assert reply.prompt_tokens + 10 <= LIMIT
        assert (*reply.dropped, *session.history[:-2]) == before
        assert len(reply.dropped) % 2 == 0
        assert session.history[-2].content == f"turn {n}"
        text = session._engine.tokenizer.decode(session._cache.ledger.ids)
        assert text.startswith("<|start|>system\nbe kind<|end|>")
        # What is still in the prompt was read before, up to where the two part.
        assert reply.cached_tokens >= (len("<start>system\nbe kind") if n else 0)
    assert session.usage.turns


def test_a_message_that_never_fits_changes_nothing():
    session = session_of(on_overflow="drop-oldest")
    fill(session)
    before = session.history
    with pytest.raises(ContextLengthError):
        session.respond("x" * LIMIT)
    assert session.history == before


def test_a_callable_says_what_to_go_on_with():
    told = []

    def summarize(history):
        told.append(history)
        return [Message.user("so far"), Message.assistant("so good")]

    session = session_of(on_overflow=summarize)
    while not told:
        session.respond("a longer message")
    assert session.history[:2] == (Message.user("so far"), Message.assistant("so good"))
    assert len(session.history) == 4


@pytest.mark.parametrize(
    ("result", "error"), [(lambda h: h, ContextLengthError), (lambda h: ["x"], MessageError)]
)
def test_a_callable_that_does_not_help_changes_nothing(result, error):
    session = session_of(on_overflow=result)
    fill(session)
    before = session.history
    with pytest.raises(error):
        session.respond("x" * 60)
    assert session.history == before


@pytest.mark.parametrize("policy", ["drop", None, 3])
def test_other_policies_are_refused(policy):
    with pytest.raises(ConfigurationError, match="on_overflow"):
        session_of(on_overflow=policy)


def test_prewarming_too_much_is_refused():
    session = session_of(instructions="x" * LIMIT)
    with pytest.raises(ContextLengthError):
        session.prewarm()
    assert not session.has_cache


ROLES = st.lists(st.sampled_from(list(Role)), max_size=20)


@given(ROLES)
def test_turns_are_whole(roles):
    history = [Message(role, str(n)) for n, role in enumerate(roles)]
    turns = split_turns(history)
    assert [message for turn in turns for message in turn] == history
    for turn in turns:
        assert turn
        # A system message stands alone; a tool result is never the first of a turn that has a call.
        assert len(turn) == 1 or all(message.role is not Role.SYSTEM for message in turn)
        first_answer = next(
            (n for n, message in enumerate(turn) if message.role is not Role.USER), len(turn)
        )
        assert all(message.role is not Role.USER for message in turn[first_answer:])


def test_usage_adds_up():
    session = session_of(instructions="be kind")
    session.prewarm()
    for text in ("hi", "ho"):
        session.respond(text)
    usage = session.usage
    assert len(usage.turns) == 2
    assert usage.generated_tokens == 20
    assert usage.prompt_tokens == usage.cached_tokens + usage.fed_tokens
    held = usage.prewarmed_tokens + usage.fed_tokens + usage.generated_tokens
    assert held == session.cached_tokens
    assert usage.prefill_seconds >= 0
    assert usage.decode_seconds > 0
    assert (usage.marks, usage.mark_bytes) == (0, 0)
