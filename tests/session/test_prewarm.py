"""What comes before the first turn: `prewarm` reads what every prompt will begin with."""

from __future__ import annotations

import pytest

from kit.logits import check_next_logits
from kit.mlx_sessions import SHORT, counted
from kit.models import CHATML, byte_level_tokenizer, tiny_llama, toy_engine
from kit.probe import ids_of
from segue import (
    ChatSession,
    GenerationConfig,
    Message,
    MlxEngine,
    SessionBusyError,
)
from segue.testing import FakeEngine


def test_prewarm_reads_what_the_first_prompt_begins_with():
    engine = toy_engine()
    session = ChatSession(engine, instructions="the hello world", generation=SHORT)
    fed = session.prewarm()
    assert fed == session.cached_tokens > 10
    check_next_logits(session)
    reply = session.stream("hi")
    assert reply.cached_tokens == fed
    list(reply)
    cold = ChatSession(engine, instructions="the hello world", generation=SHORT)
    assert cold.respond("hi") == reply.text
    # What the template writes between the reply and the next question.
    assert session.prewarm() < 12
    assert session.prewarm() == 0
    check_next_logits(session)


def test_prewarm_reads_a_given_history_too():
    history = [Message.user("hello"), Message.assistant("world")]
    session = ChatSession(toy_engine(), history=history, generation=SHORT)
    session.prewarm()
    assert session.history == tuple(history)
    assert counted(session, "hi")[1] < 5 + len("assistant\nhi")


def test_a_prewarm_that_fails_half_way_leaves_what_is_true():
    def press(fed, total):
        if fed >= 8:
            raise KeyboardInterrupt

    session = ChatSession(
        toy_engine(),
        instructions="the hello world",
        generation=GenerationConfig(max_tokens=4, prefill_step_size=4),
    )
    with pytest.raises(KeyboardInterrupt):
        session.prewarm(prompt_progress_callback=press)
    assert session.cached_tokens == 8
    check_next_logits(session)
    session.respond("hi")
    check_next_logits(session)


def test_a_session_can_not_be_used_while_it_reads():
    session = ChatSession(FakeEngine(["one"]), instructions="the")

    def meddle(fed, total):
        with pytest.raises(SessionBusyError):
            session.respond("hi")
        with pytest.raises(SessionBusyError):
            session.clear()

    session.prewarm(prompt_progress_callback=meddle)
    assert session.respond("hi") == "one"


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] + '\\n' }}{% endfor %}assistant:",
        CHATML,
    ],
)
def test_a_prewarmed_prompt_has_the_ids_of_a_cold_one(template):
    tokenizer = byte_level_tokenizer(template)
    questions = ["the fox", " quick", "hello", "\n\nthe", "7", "é", "", "  the"]
    for question in questions:
        ids = []
        for warm in (False, True):
            engine = MlxEngine(tiny_llama(len(tokenizer)), tokenizer)
            session = ChatSession(engine, instructions="to the world", generation=SHORT)
            if warm:
                assert session.prewarm() > 5
            reply = session.stream(question)
            ids.append(ids_of(session))
            assert not warm or reply.cached_tokens > 5
        assert ids[0] == ids[1]
