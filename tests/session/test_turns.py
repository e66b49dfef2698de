"""What a session holds, what a turn feeds, and what it takes (fake engine)."""

from __future__ import annotations

import pytest

from kit.probe import engine_of, forget_history, held
from kit.sessions import check_ledger, rendered, say
from segue import (
    CacheConfig,
    ChatSession,
    ConfigurationError,
    GenerationConfig,
    Message,
    MessageError,
    Role,
)
from segue.testing import FakeEngine, ScriptedModel, ToyTokenizer


def test_no_cache_before_the_first_turn():
    session = ChatSession(FakeEngine(["hello"]))
    assert not session.has_cache
    assert session.cached_tokens == 0


def test_no_cache_before_the_first_turn_with_a_history():
    session = ChatSession(
        FakeEngine(["hello"]), history=[Message.user("a"), Message.assistant("b")]
    )
    assert not session.has_cache
    session.respond("c")
    assert session.has_cache


def test_clear_drops_cache_and_history_and_keeps_instructions_and_settings():
    config = GenerationConfig(max_tokens=5)
    session = ChatSession(
        FakeEngine(["hello", "again"]),
        instructions="Be kind.",
        generation=config,
        template_kwargs={"tools": "none"},
    )
    session.respond("hi")
    session.clear()
    assert not session.has_cache
    assert session.cached_tokens == 0
    assert session.history == ()
    assert session.instructions == "Be kind."
    assert session.generation is config
    assert session.template_kwargs == {"tools": "none"}
    assert session.respond("hi") == "again"
    check_ledger(session)


def test_clear_closes_the_live_reply_first():
    session = ChatSession(FakeEngine(["hello"]))
    reply = session.stream("hi")
    next(reply)
    session.clear()
    assert reply.ended
    assert session.history == ()


def test_turn_two_feeds_exactly_its_new_suffix_and_history_grows_by_two():
    engine = FakeEngine(["hello", "fine"])
    session = ChatSession(engine, instructions="Be brief.")
    session.respond("hi")
    before, fed_before = held(session), len(engine.model.fed)
    history = session.history

    with session.stream("how are you?") as reply:
        responses = list(reply)

    assert len(session.history) == len(history) + 2
    whole = engine.tokenizer.encode(rendered(session, session.history[:-1], prompt=True))
    assert engine.model.fed[fed_before] == tuple(whole[len(before) :])
    assert responses[0].prompt_tokens == len(whole)
    assert responses[0].cached_tokens == len(before)
    assert held(session)[: len(before)] == before


def test_sampled_ids_stand_although_their_text_encodes_to_others():
    tokenizer = ToyTokenizer()
    pieces = [tokenizer.encode(letter)[0] for letter in "thehe"]
    assert tokenizer.encode("thehe") != pieces
    engine = FakeEngine([pieces, "ok"])
    session = ChatSession(engine)
    assert session.respond("say thehe") == "thehe"
    before = session.cached_tokens
    with session.stream("again") as reply:
        list(reply)
    assert reply.cached_tokens == before
    check_ledger(session)


def test_a_prompt_that_the_cache_holds_whole_feeds_one_token():
    engine = FakeEngine(["", "x"], tokenizer=ToyTokenizer())
    session = ChatSession(engine, generation=GenerationConfig(max_tokens=0))
    session.respond("hi")
    whole = session.cached_tokens
    # Taking the turn back makes the next prompt the very one that the cache holds.
    forget_history(session)
    with session.stream("hi") as reply:
        list(reply)
    assert reply.cached_tokens == whole - 1


def test_changed_instructions_give_the_same_tokens_as_a_fresh_session_with_them():
    config = GenerationConfig(max_tokens=12)
    session = ChatSession(FakeEngine(say), instructions="Be brief.", generation=config)
    session.respond("hi")
    history = session.history
    session.instructions = "Be long."
    with session.stream("and now?") as reply:
        list(reply)

    fresh = ChatSession(
        FakeEngine(say), instructions="Be long.", history=history, generation=config
    )
    with fresh.stream("and now?") as other:
        list(other)
    assert reply.tokens == other.tokens
    # What both prompts begin with is reused all the same.
    assert reply.cached_tokens > 0
    check_ledger(session)


def test_instructions_can_be_removed():
    session = ChatSession(FakeEngine(["a", "b"]), instructions="Be brief.")
    session.respond("hi")
    session.instructions = None
    session.respond("ho")
    assert "Be brief." not in engine_of(session).tokenizer.decode(held(session))
    check_ledger(session)


def test_a_context_that_can_not_trim_is_rebuilt_from_the_history():
    engine = FakeEngine(["a", "b"], trimmable=False)
    session = ChatSession(engine, instructions="one")
    session.respond("hi")
    session.instructions = "two"
    with session.stream("ho") as reply:
        list(reply)
    assert reply.cached_tokens == 0
    check_ledger(session)


@pytest.mark.capable
def test_a_session_has_one_context_for_life_whatever_its_replies_ask_for():
    engine = FakeEngine(["a", "b", "c"])
    session = ChatSession(engine, cache=CacheConfig(kv_bits=8))
    session.respond("hi")
    session.generation = GenerationConfig(temperature=1.0)
    with session.stream("he") as reply:
        list(reply)
    assert reply.cached_tokens > 0
    session.clear()
    session.respond("he")
    assert len(engine.contexts) == 1


@pytest.mark.capable
def test_prefill_goes_in_chunks_and_reports_progress():
    engine = FakeEngine(["ok"])
    session = ChatSession(engine, generation=GenerationConfig(prefill_step_size=4))
    seen: list[tuple[int, int]] = []
    session.respond("a long question", prompt_progress_callback=lambda *at: seen.append(at))
    total = seen[-1][1]
    assert seen == [*((fed, total) for fed in range(0, total, 4)), (total, total)]


def test_several_messages_make_one_turn():
    session = ChatSession(FakeEngine(["sunny, and warm"]))
    results = [Message.tool("sunny", name="sky"), Message.tool("30", name="heat", tool_call_id="2")]
    session.respond(results)
    assert session.history == (*results, Message.assistant("sunny, and warm"))


def test_a_role_for_a_mere_text():
    session = ChatSession(FakeEngine(["noted"]))
    session.respond("rain", role=Role.TOOL)
    assert session.history[0] == Message.tool("rain")


def test_history_is_seeded_read_in_the_first_turn_and_kept():
    engine = FakeEngine(["hello"])
    seed = (Message.system("Be kind."), Message.user("a"), Message.assistant("b"))
    session = ChatSession(engine, history=seed)
    assert session.history == seed
    assert engine.model.calls == 0
    session.respond("c")
    assert session.history == (*seed, Message.user("c"), Message.assistant("hello"))
    assert held(session) == (
        *engine.tokenizer.encode(rendered(session, session.history[:-1], prompt=True)),
        *engine.tokenizer.encode("hello<|end|>"),
    )


def test_the_instructions_are_not_in_the_history():
    session = ChatSession(FakeEngine(["hello"]), instructions="Be kind.")
    session.respond("hi")
    assert all(message.role is not Role.SYSTEM for message in session.history)


def test_template_arguments_reach_the_template():
    session = ChatSession(FakeEngine(["hello"]), template_kwargs={"mode": "quiet"})
    session.respond("hi")
    assert "<|start|>mode\nquiet<|end|>" in engine_of(session).tokenizer.decode(held(session))


@pytest.mark.parametrize(
    "arguments",
    [
        {"instructions": 3},
        {"generation": {"max_tokens": 3}},
        {"template_kwargs": 5},
        {"template_kwargs": [1]},
    ],
)
def test_arguments_of_the_wrong_type_are_refused(arguments):
    with pytest.raises(ConfigurationError):
        ChatSession(FakeEngine(), **arguments)


def test_a_history_of_something_else_is_refused():
    with pytest.raises(MessageError):
        ChatSession(FakeEngine(), history=["hi"])  # type: ignore[list-item]


def test_sessions_on_one_engine_do_not_disturb_each_other():
    config = GenerationConfig(max_tokens=6)
    engine = FakeEngine(say)
    sessions = [ChatSession(engine, instructions=str(n), generation=config) for n in range(3)]
    for _ in range(3):
        replies = [session.stream("go") for session in sessions]
        for _ in range(6):
            for reply in replies:
                next(reply)
    for n, session in enumerate(sessions):
        alone = ChatSession(FakeEngine(say), instructions=str(n), generation=config)
        for _ in range(3):
            alone.respond("go")
        assert session.history == alone.history
        check_ledger(session)


@pytest.mark.capable
def test_response_figures_are_consistent():
    session = ChatSession(FakeEngine(["hello there"]))
    with session.stream("hi") as reply:
        responses = list(reply)
    assert [response.generation_tokens for response in responses] == list(
        range(1, len(responses) + 1)
    )
    assert [response.token for response in responses] == list(reply.tokens)
    for response in responses:
        assert response.prompt_tokens == reply.prompt_tokens
        assert response.cached_tokens == 0
        assert response.prompt_tps > 0
        assert response.peak_memory > 0
        assert response.from_draft is False
        assert response.logprobs is None
    assert responses[-1].generation_tps > 0


def test_the_fake_model_records_what_it_was_fed():
    model = ScriptedModel(["hi"])
    cache: list[list[int]] = [[], [], []]
    model.forward(cache, [1, 2])
    assert cache == [[1, 2]] * 3
    assert model.fed == [(1, 2)]


def test_something_that_is_no_engine_is_refused():
    with pytest.raises(ConfigurationError, match="must be an engine"):
        ChatSession("smollm2")  # type: ignore[arg-type]


def test_a_history_that_is_no_sequence_is_refused():
    with pytest.raises(MessageError, match="sequence of Messages"):
        ChatSession(FakeEngine(), history=None)  # type: ignore[arg-type]


def test_a_progress_callback_that_is_none_is_refused_before_anything_changes():
    session = ChatSession(FakeEngine(["hello"]))
    with pytest.raises(ConfigurationError, match="must be callable"):
        session.respond("hi", prompt_progress_callback=5)  # type: ignore[arg-type]
    assert session.history == ()


def test_template_arguments_are_copied():
    given = {"tools": ["sky"]}
    session = ChatSession(FakeEngine(["hello"]), template_kwargs=given)
    given["tools"].append("sea")
    assert session.template_kwargs == {"tools": ["sky"]}
