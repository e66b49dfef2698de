"""What becomes of a conversation that does not fit into the model's context any more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.probe import engine_of, ids_of
from segue import (
    ChatSession,
    ConfigurationError,
    ContextLengthError,
    FinishReason,
    GenerationConfig,
    Message,
    MessageError,
    Role,
    SessionBusyError,
)
from segue.testing import FakeEngine
from segue.turn.overflow import dropped_from, split_turns, without_turns

LIMIT = 160


def session_of(**kwargs) -> ChatSession:
    engine = FakeEngine(lambda ids: 97 + len(ids) % 7, context_length=LIMIT)
    kwargs.setdefault("generation", GenerationConfig(max_tokens=10))
    return ChatSession(engine, **kwargs)


def fill(session: ChatSession) -> None:
    while session.cached_tokens < LIMIT - 40:
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
        text = engine_of(session).tokenizer.decode(ids_of(session))
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


@given(ROLES, ROLES.filter(bool), st.integers(0, 8))
def test_only_whole_turns_go_and_never_a_system_message(roles, new, count):
    history = [Message(role, str(n)) for n, role in enumerate(roles)]
    messages = [Message(role, f"new {n}") for n, role in enumerate(new)]
    turns = split_turns([*history, *messages])
    assert [message for turn in turns for message in turn] == [*history, *messages]
    for turn in turns[1:]:
        assert turn[0].role is Role.USER
        # Once it is answered, a turn has no more questions.
        answered = [message.role not in (Role.USER, Role.SYSTEM) for message in turn]
        if any(answered):
            rest = turn[answered.index(True) :]
            assert all(message.role is not Role.USER for message in rest)
    kept = without_turns(history, messages, count)
    system = [message for message in history if message.role is Role.SYSTEM]
    assert [message for message in kept if message.role is Role.SYSTEM] == system
    gone = [message for message in history if message not in kept]
    for turn in turns:
        spoken = [message for message in turn if message.role is not Role.SYSTEM]
        assert all(message in gone for message in spoken) or not any(m in gone for m in spoken)
    goes_on = next(turn for turn in turns if messages[0] in turn)
    assert not any(message in gone for message in goes_on)
    assert dropped_from(history, kept) == tuple(gone)


def test_a_call_is_never_dropped_before_its_result():
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    history = [
        Message.user("old"),
        Message.assistant("said"),
        Message.user("q" * 30),
        Message.assistant("", tool_calls=[call]),
    ]
    for limit in range(100, 400, 10):
        engine = FakeEngine(["ok"], context_length=limit)
        session = ChatSession(engine, history=history, on_overflow="drop-oldest")
        try:
            session.respond(Message.tool("r" * 60, name="f"))
        except ContextLengthError:
            assert list(session.history) == history
            continue
        assert list(session.history[-4:-1]) == [*history[2:], Message.tool("r" * 60, name="f")]


def test_a_callable_that_uses_the_session_is_refused():
    def meddle(history):
        with pytest.raises(SessionBusyError):
            session.respond("summarize")
        with pytest.raises(SessionBusyError):
            session.clear()
        return history[-2:]

    session = session_of(on_overflow=meddle)
    fill(session)
    session.respond("x" * 40)
    assert len(session.history) == 4


def test_a_message_that_is_said_again_and_again_is_told_when_it_goes():
    session = session_of(on_overflow="drop-oldest")
    again = Message.user("again")
    for _ in range(20):
        before = len(session.history)
        reply = session.stream(again)
        list(reply)
        assert len(reply.dropped) == before + 2 - len(session.history)


def test_settling_leaves_a_full_context_to_the_next_turn():
    session = session_of(
        history=[Message.user("x" * 200), Message.assistant("ok")], on_overflow="drop-oldest"
    )
    assert session.prewarm() == 0
    assert session.respond("hi")


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
    assert (usage.checkpoints, usage.checkpoint_bytes) == (0, 0)
