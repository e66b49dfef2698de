"""How replies end, and that nothing said is lost (fake engine)."""

from __future__ import annotations

import gc

import pytest

from kit.sessions import check_ledger
from segue import (
    ChatSession,
    FinishReason,
    GenerationConfig,
    GenerationError,
    Message,
)
from segue.testing import FakeEngine


def test_streaming_and_non_streaming_agree():
    script = ["hello there, world", "and again"]
    one, other = ChatSession(FakeEngine(script)), ChatSession(FakeEngine(script))
    for prompt in ("hi", "ho"):
        with other.stream(prompt) as reply:
            streamed = "".join(response.text for response in reply)
        assert one.respond(prompt) == streamed
    assert one.history == other.history


def test_streamed_text_equals_recorded_text():
    session = ChatSession(FakeEngine(["naïve 😀 世界"]))
    with session.stream("hi") as reply:
        streamed = "".join(response.text for response in reply)
    assert streamed == session.history[-1].content == reply.text == "naïve 😀 世界"


@pytest.mark.parametrize(
    ("config", "reason", "text"),
    [
        (GenerationConfig(), FinishReason.STOP, "hello there"),
        (GenerationConfig(max_tokens=3), FinishReason.LENGTH, "hello the"),
        (GenerationConfig(stop=("lo th",)), FinishReason.STOP, "hel"),
        (GenerationConfig(stop="e"), FinishReason.STOP, "h"),
        (GenerationConfig(stop=("hello",)), FinishReason.STOP, ""),
        (GenerationConfig(stop=("hello there",)), FinishReason.STOP, ""),
        (GenerationConfig(stop=("there!",)), FinishReason.STOP, "hello there"),
        (GenerationConfig(stop=("there!",), max_tokens=4), FinishReason.LENGTH, "hello ther"),
        (GenerationConfig(stop=(" t",), max_tokens=3), FinishReason.STOP, "hello"),
    ],
)
def test_exactly_one_finish_reason_on_the_last_response(config, reason, text):
    session = ChatSession(FakeEngine(["hello there", "more"]), generation=config)
    with session.stream("hi") as reply:
        responses = list(reply)
    assert [response.finish_reason for response in responses] == [None] * (len(responses) - 1) + [
        reason
    ]
    assert reply.finish_reason is reason
    assert "".join(response.text for response in responses) == text
    assert session.history[-1] == Message.assistant(text)
    check_ledger(session)
    before = session.cached_tokens
    with session.stream("and then?") as reply:
        list(reply)
    if reason is not FinishReason.STOP or text == "hello there":
        assert reply.cached_tokens == before
    check_ledger(session)


def test_a_stop_string_behind_the_last_token_of_the_detokenizer_still_counts():
    lead = "é".encode()[0]
    session = ChatSession(FakeEngine([[104, lead]]), generation=GenerationConfig(stop=("h\ufffd",)))
    with session.stream("hi") as reply:
        responses = list(reply)
    assert reply.text == ""
    assert responses[-1].finish_reason is FinishReason.STOP


def test_zero_tokens_generate_nothing_and_record_an_empty_reply():
    session = ChatSession(FakeEngine(["hello"]), generation=GenerationConfig(max_tokens=0))
    with session.stream("hi") as reply:
        assert list(reply) == []
    assert session.history == (Message.user("hi"), Message.assistant(""))
    assert reply.finish_reason is FinishReason.LENGTH
    assert session.cached_tokens == reply.prompt_tokens
    assert session.respond("ho") == ""
    check_ledger(session)


def test_a_reply_closed_early_is_recorded_in_part_and_the_next_turn_is_incremental():
    session = ChatSession(FakeEngine(["hello there", "more"]))
    with session.stream("hi") as reply:
        for response in reply:
            assert response.finish_reason is None
            if " t" in reply.text:
                break
    assert reply.finish_reason is None
    assert session.history[-1] == Message.assistant("hello the")
    before = session.cached_tokens
    check_ledger(session)
    with session.stream("and then?") as reply:
        list(reply)
    assert reply.cached_tokens == before
    check_ledger(session)


def test_a_reply_closed_before_it_began_is_recorded_as_empty():
    session = ChatSession(FakeEngine(["hello", "more"]))
    session.stream("hi").close()
    assert session.history == (Message.user("hi"), Message.assistant(""))
    assert session.cached_tokens == 0
    session.respond("ho")
    check_ledger(session)


def test_closing_twice_records_once():
    session = ChatSession(FakeEngine(["hello"]))
    reply = session.stream("hi")
    next(reply)
    reply.close()
    reply.close()
    with pytest.raises(StopIteration):
        next(reply)
    assert len(session.history) == 2


def test_another_turn_closes_the_live_reply_which_records_it():
    session = ChatSession(FakeEngine(["hello there", "more"]))
    reply = session.stream("hi")
    next(reply)
    assert session.respond("wait") == "more"
    assert reply.ended
    assert [message.content for message in session.history] == ["hi", "hello", "wait", "more"]
    check_ledger(session)


def test_a_reply_that_is_garbage_collected_unclosed_is_recorded():
    session = ChatSession(FakeEngine(["hello there", "more"]))
    reply = session.stream("hi")
    next(reply)
    del reply
    gc.collect()
    assert session.history[-1] == Message.assistant("hello")
    session.respond("ho")
    check_ledger(session)


def test_a_reply_in_a_reference_cycle_is_recorded():
    session = ChatSession(FakeEngine(["hello there"]))
    reply = session.stream("hi")
    next(reply)
    cycle = [reply]
    cycle.append(cycle)  # type: ignore[arg-type]
    del cycle, reply
    gc.collect()
    assert session.history[-1] == Message.assistant("hello")


def test_a_reply_outlives_its_session():
    reply = ChatSession(FakeEngine(["hello there"])).stream("hi")
    gc.collect()
    assert "".join(response.text for response in reply) == "hello there"


LEAD = "é".encode()[0]


def test_a_withheld_tail_is_flushed_on_early_close():
    session = ChatSession(FakeEngine([[104, LEAD, 105], "ok"]))
    with session.stream("hi") as reply:
        assert next(reply).text == "h"
        assert next(reply).text == ""
    assert reply.text == "h\ufffd"
    assert session.history[-1] == Message.assistant("h\ufffd")
    before = session.cached_tokens
    with session.stream("go on") as reply:
        list(reply)
    assert reply.cached_tokens == before
    check_ledger(session)


def test_a_withheld_tail_is_flushed_on_an_error():
    session = ChatSession(FakeEngine([[104, LEAD, 105]], fail_at=[4]))
    with pytest.raises(GenerationError):
        session.respond("hi")
    assert session.history[-1] == Message.assistant("h\ufffd")


@pytest.mark.parametrize("max_tokens", [2, 3])
def test_a_withheld_tail_is_flushed_at_eos_and_at_length(max_tokens):
    session = ChatSession(
        FakeEngine([[104, LEAD]]), generation=GenerationConfig(max_tokens=max_tokens)
    )
    with session.stream("hi") as reply:
        texts = [response.text for response in reply]
    assert "".join(texts) == "h\ufffd" == session.history[-1].content
    assert texts[-1] == "\ufffd"


def test_text_held_back_for_a_stop_string_is_not_lost_on_early_close():
    session = ChatSession(FakeEngine(["hello there"]), generation=GenerationConfig(stop=("lol",)))
    with session.stream("hi") as reply:
        assert next(reply).text == "hel"
    assert session.history[-1] == Message.assistant("hello")
