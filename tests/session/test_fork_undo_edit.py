"""Fork, undo, edit and regenerate: the history goes back, and the cache with it."""

from __future__ import annotations

import copy
import pickle

import pytest

from kit.chats import contents
from kit.probe import engine_of, held, ids_of
from kit.sessions import SHORT, check_ledger, rendered, say, talk
from segue import (
    CacheConfig,
    ChatSession,
    ConfigurationError,
    ContextLengthError,
    GenerationConfig,
    GenerationError,
    HistoryError,
    Message,
    MessageError,
    TemplateError,
    ToolCall,
)
from segue.testing import FakeEngine


def fresh(session):
    """The same conversation, read in one go."""
    return ChatSession(
        FakeEngine(say),
        instructions=session.instructions,
        history=session.history,
        generation=session.generation,
    )


@pytest.mark.parametrize("trimmable", [True, False])
def test_a_fork_is_a_way_back_on_which_nothing_is_read_again(trimmable):
    session = talk("one", "two", trimmable=trimmable, instructions="Be brief.")
    before, cached, turns = session.conversation, held(session), session.usage.turns
    fork = session.fork()
    session.clear()
    session.instructions = "Be kind."
    session.respond("three")
    session.return_to(fork)
    assert session.conversation == fork.conversation == before
    assert held(session) == held(fork) == cached
    assert session.usage.turns[:2] == turns
    assert len(session.usage.turns) == 3
    check_ledger(session)
    again = fresh(session).respond("four")
    with session.stream("four") as reply:
        assert "".join(response.text for response in reply) == again
    assert reply.cached_tokens == len(cached)
    # The fork is not the session's other half.
    assert fork.conversation == before
    assert held(fork) == cached


def test_a_session_returns_from_a_live_reply_to_a_fork_with_one():
    session = talk("one")
    fork = session.fork()
    live, other = session.stream("two"), fork.stream("three")
    next(live)
    next(other)
    session.return_to(fork)
    assert live.ended
    assert other.ended
    assert contents(session.history) == contents(fork.history)
    assert session.history[-2].text == "three"
    check_ledger(session)


def test_a_session_returns_to_none_of_another_kind():
    session = talk("one")
    before = held(session)
    others = [talk("one"), ChatSession(engine_of(session), cache=CacheConfig(max_kv_size=64)), None]
    for other in others:
        with pytest.raises(ConfigurationError, match="same engine and kind of cache"):
            session.return_to(other)
    assert held(session) == before


def test_a_conversation_that_is_set_is_read_as_far_as_the_cache_lacks_it():
    session = talk("one", "two", instructions="Be brief.")
    before = session.conversation
    session.undo()
    live = session.stream("three")
    next(live)
    session.conversation = before
    assert live.ended
    assert session.conversation == before
    again = fresh(session).respond("four")
    with session.stream("four") as reply:
        assert "".join(response.text for response in reply) == again
    assert 0 < reply.cached_tokens < reply.prompt_tokens
    check_ledger(session)
    with pytest.raises(ConfigurationError, match="must be a Conversation, not list"):
        session.conversation = []


def test_what_is_done_about_a_full_context_can_be_changed():
    session = ChatSession(FakeEngine(say, context_length=90), generation=SHORT)
    session.respond("one " * 5)
    fork = session.fork()
    with pytest.raises(ContextLengthError):
        session.respond("two " * 12)
    session.on_overflow = "drop-oldest"
    session.respond("two " * 12)
    assert session.on_overflow == "drop-oldest"
    assert len(session.history) == 2
    assert fork.on_overflow == "error"
    with pytest.raises(ContextLengthError):
        fork.respond("two " * 12)
    with pytest.raises(ConfigurationError, match="on_overflow must be"):
        session.on_overflow = "sometimes"
    assert session.on_overflow == "drop-oldest"


@pytest.mark.parametrize("trimmable", [True, False])
def test_undo_takes_back_whole_turns_and_what_the_cache_holds_of_them(trimmable):
    session = talk("one", "two", "three", trimmable=trimmable, instructions="Be brief.")
    before = session.history
    assert session.undo(2) == before[2:]
    assert session.history == before[:2]
    check_ledger(session)
    assert "two" not in engine_of(session).tokenizer.decode(held(session))
    again = fresh(session).respond("four")
    with session.stream("four") as reply:
        assert "".join(response.text for response in reply) == again
    if trimmable:
        # Of what stayed, nothing was read again.
        kept = rendered(session, before[:2], prompt=False)
        assert reply.cached_tokens >= len(engine_of(session).tokenizer.encode(kept))
    check_ledger(session)


def test_undo_of_everything_leaves_the_instructions():
    session = talk("one", "two", instructions="Be brief.")
    session.undo(2)
    assert session.history == ()
    assert session.cached_tokens > 0
    with session.stream("one") as reply:
        list(reply)
    assert reply.cached_tokens > len("Be brief.")


def test_a_tool_exchange_is_part_of_its_turn():
    call = {"type": "function", "function": {"name": "clock", "arguments": {}}}
    asked = [
        Message.user("hi"),
        Message.assistant("hello"),
        Message.user("what time is it?"),
        Message.assistant("", tool_calls=[call]),
        Message.tool("noon", name="clock"),
        Message.assistant("It is noon."),
    ]
    session = talk(history=asked)
    assert session.undo() == tuple(asked[2:])
    assert session.history == tuple(asked[:2])


@pytest.mark.parametrize("turns", [0, -1, 3, 1.0, True, "1", None])
def test_turns_that_are_not_there_are_refused(turns):
    session = talk("one", "two")
    before, cached = session.history, held(session)
    with pytest.raises(HistoryError):
        session.undo(turns)
    assert (session.history, held(session)) == (before, cached)


def test_an_empty_history_has_nothing_to_take_back_edit_or_answer():
    session = talk(instructions="Be brief.")
    for attempt in (session.undo, session.retry, lambda: session.edit(0, "x")):
        with pytest.raises(HistoryError) as caught:
            attempt()
        assert isinstance(caught.value, LookupError)


def test_a_system_message_in_front_of_the_history_is_no_turn():
    system = Message.system("Be brief.")
    session = talk(history=[system, Message.user("one"), Message.assistant("1")])
    session.undo()
    assert session.history == (system,)
    with pytest.raises(HistoryError):
        session.undo()
    with pytest.raises(HistoryError):
        session.retry()


def test_undo_closes_a_live_reply_and_takes_it_back():
    session = talk("one")
    reply = session.stream("two")
    next(reply)
    assert contents(session.undo())[0] == "two"
    assert reply.ended
    assert contents(session.history)[:1] == ["one"]
    check_ledger(session)


def test_another_reply_replaces_the_last_one_and_reads_next_to_nothing():
    session = talk("hi", script=["first", "second", "third"], generation=GenerationConfig())
    assert session.retry() == "second"
    assert contents(session.history) == ["hi", "second"]
    assert session.usage.turns[-1].fed_tokens == 1
    with session.stream_retry() as reply:
        assert "".join(response.text for response in reply) == "third"
    assert contents(session.history) == ["hi", "third"]
    check_ledger(session)


def test_overrides_are_for_one_reply():
    session = talk("hi")
    assert len(session.retry(max_tokens=2)) < 5
    assert session.usage.turns[-1].generated_tokens == 2
    assert session.generation == SHORT
    session.respond("ho")
    assert session.usage.turns[-1].generated_tokens == 5


@pytest.mark.parametrize("overrides", [{"wit": 3}, {"max_tokens": -1}, {"temperature": "hot"}])
def test_bad_overrides_change_nothing(overrides):
    session = talk("hi")
    before = session.history
    with pytest.raises(ConfigurationError):
        session.retry(**overrides)
    assert session.history == before
    check_ledger(session)


def test_the_old_reply_comes_back_where_nothing_new_was_said():
    session = talk("hi")
    before = session.history
    model = engine_of(session).model
    model.fail_at = {model.calls + 1}
    with pytest.raises(GenerationError):
        session.retry()
    assert session.history == before
    session.stream_retry().close()
    assert session.history == before
    assert session.respond("ho") == fresh_reply(before, "ho")


def fresh_reply(history, text, instructions=None):
    return talk(history=history, instructions=instructions).respond(text)


def test_a_reply_to_a_tool_s_result_is_replaced_alone():
    asked = [
        Message.user("time?"),
        Message.assistant("", tool_calls=[ToolCall("clock", {})]),
        Message.tool("noon"),
    ]
    session = talk(history=[*asked, Message.assistant("It is noon.")])
    said = session.retry()
    assert session.history == (*asked, Message.assistant(said))


def test_a_regenerated_turn_counts_as_one_turn():
    session = talk("one", "two")
    session.retry()
    assert len(session.history) == 4
    session.undo()
    assert contents(session.history)[0] == "one"
    assert len(session.history) == 2


@pytest.mark.parametrize("trimmable", [True, False])
def test_an_edited_question_is_answered_anew(trimmable):
    session = talk("one", "two", "three", trimmable=trimmable)
    before = session.history
    assert session.edit(2, "twelve") == before[2:]
    assert session.history == (*before[:2], Message.user("twelve"))
    check_ledger(session)
    assert "three" not in engine_of(session).tokenizer.decode(held(session))
    again = ChatSession(FakeEngine(say), history=before[:2], generation=SHORT).respond("twelve")
    assert session.retry() == again
    assert session.history == (*before[:2], Message.user("twelve"), Message.assistant(again))
    check_ledger(session)


def test_what_an_edited_question_begins_with_is_not_read_again():
    session = talk("what is this?")
    prompt = session.usage.turns[-1].prompt_tokens
    session.edit(-2, "what is that?")
    session.retry()
    shared = len(engine_of(session).tokenizer.encode("what is th"))
    assert session.usage.turns[-1].cached_tokens >= shared
    assert session.usage.turns[-1].fed_tokens < prompt - shared


def test_an_edited_reply_is_what_the_conversation_goes_on_from():
    session = talk("one", "two")
    message = session.history[1]
    session.edit(-3, "changed")
    assert session.history == (session.history[0], Message.assistant("changed"))
    assert message.content != "changed"
    assert session.respond("three") == fresh_reply(session.history[:2], "three")


def test_an_edit_keeps_the_other_fields():
    session = talk(history=[Message.user("hi", name="Ada"), Message.assistant("x", reasoning="y")])
    session.edit(1, "z")
    assert session.history[1] == Message.assistant("z", reasoning="y")
    session.edit(0, "ho")
    assert session.history == (Message.user("ho", name="Ada"),)


@pytest.mark.parametrize(("index", "content"), [(4, "x"), (-5, "x"), ("0", "x"), (True, "x")])
def test_messages_that_are_not_there_can_not_be_edited(index, content):
    session = talk("one", "two")
    before, cached = session.history, held(session)
    with pytest.raises(HistoryError):
        session.edit(index, content)
    with pytest.raises(MessageError):
        session.edit(0, 3)
    assert (session.history, held(session)) == (before, cached)


def test_forks_go_their_own_ways():
    session = talk("one", instructions="Be brief.")
    twin = session.fork()
    assert (twin.history, twin.instructions) == (session.history, session.instructions)
    assert held(twin) == held(session)
    assert twin.usage.turns == ()
    alone = fresh(session)
    twin.respond("two")
    session.instructions = "Be long."
    assert session.history == twin.history[:2]
    check_ledger(session)
    check_ledger(twin)
    assert twin.usage.turns[-1].cached_tokens > 0
    assert twin.history[-1].content == alone.respond("two")
    assert twin.instructions == "Be brief."
    session.respond("three")
    assert contents(twin.history)[2] == "two"
    check_ledger(twin)


def test_a_fork_of_a_fork_with_marks_and_a_live_reply():
    session = talk("one", trimmable=False)
    reply = session.stream("two")
    next(reply)
    twin = session.fork()
    assert reply.ended
    other = twin.fork()
    other.undo()
    twin.respond("three")
    for each in (session, twin, other):
        check_ledger(each)
    assert len(session.history) == 4
    assert len(other.history) == 2
    assert other.respond("x") == fresh_reply(other.history[:2], "x")


def test_a_fork_before_anything_was_said():
    session = talk(instructions="Be brief.")
    twin = session.fork()
    assert twin.respond("one") == session.respond("one")


def test_what_the_template_refuses_after_an_edit_is_forgotten_all_the_same():
    session = talk("one", "two", instructions="Be brief.")
    tokenizer = engine_of(session).tokenizer
    render = tokenizer.render

    def refusing(messages, **kwargs):
        if any(message["content"] == "bad" for message in messages):
            raise TemplateError("No.", remedy="Say something else.")
        return render(messages, **kwargs)

    tokenizer.render = refusing
    session.edit(2, "bad")
    assert "two" not in tokenizer.decode(ids_of(session))
    with pytest.raises(TemplateError):
        session.retry()
    session.edit(2, "three")
    assert session.retry() == fresh_reply(session.history[:2], "three", session.instructions)


def test_instructions_that_are_no_text_are_refused_at_once():
    session = talk("one")
    with pytest.raises(MessageError):
        session.instructions = "a\ud800"
    assert session.instructions is None
    assert len(session.undo()) == 2


def test_another_reply_that_says_nothing_gives_dropped_turns_back():
    engine = FakeEngine(lambda ids: 97, context_length=100)
    session = ChatSession(engine, generation=SHORT, on_overflow="drop-oldest")
    for text in ("one", "two", "three"):
        session.respond(text)
    before = session.history

    def fail(fed, total):
        raise ValueError

    reply = session.stream_retry(max_tokens=25, prompt_progress_callback=fail)
    assert reply.dropped
    with pytest.raises(ValueError):
        list(reply)
    assert session.history == before


def test_a_question_that_gets_no_answer_stays_one():
    session = talk("one")
    session.edit(0, "two")
    session.stream_retry().close()
    assert session.history == (Message.user("two"),)
    assert session.retry() == fresh_reply((), "two")


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copies_that_are_no_forks_are_refused(way):
    with pytest.raises(ConfigurationError, match="fork"):
        way(talk("one"))


def test_forks_are_of_the_session_s_own_class():
    class Named(ChatSession):
        name = "x"

    session = Named(FakeEngine(say), generation=SHORT)
    session.name = "y"
    assert isinstance(session.fork(), Named)
    assert session.fork().name == "y"
