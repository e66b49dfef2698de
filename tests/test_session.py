"""Turns over the fake engine: what is fed, what is recorded, what survives a failure."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import pytest

from segue import (
    ChatSession,
    ConfigurationError,
    FinishReason,
    GenerationConfig,
    GenerationError,
    Message,
    MessageError,
    Role,
    SessionBusyError,
    TemplateError,
)
from segue.testing import FakeEngine, ScriptedModel, ToyTokenizer


def held(session: ChatSession) -> tuple[int, ...]:
    """The ids in the session's KV cache; every layer must hold the same."""
    context = session._context
    assert context is not None
    assert context.offset == len(context.cache[0])  # type: ignore[attr-defined]
    return tuple(context.cache[0])  # type: ignore[attr-defined]


def rendered(session: ChatSession, messages: Sequence[Message], *, prompt: bool) -> str:
    tokenizer = session._engine.tokenizer
    system = [Message.system(session.instructions)] if session.instructions is not None else []
    return tokenizer.render(
        [message.to_template() for message in [*system, *messages]],
        add_generation_prompt=prompt,
        template_kwargs=session.template_kwargs,
    )


def check_ledger(session: ChatSession) -> None:
    """The ledger invariant: what we believe the cache holds is what it holds."""
    if session.has_cache:
        assert session._ledger.ids == held(session)
        assert len(session._ledger.ids) == session.cached_tokens


# --- the cache's life ---------------------------------------------------------------------------


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


# --- what a turn feeds --------------------------------------------------------------------------


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
    session._history.clear()
    with session.stream("hi") as reply:
        list(reply)
    assert reply.cached_tokens == whole - 1


def test_changed_instructions_give_the_same_tokens_as_a_fresh_session_with_them():
    def rule(ids: Sequence[int]) -> int:
        return 97 + hash(tuple(ids)) % 26

    config = GenerationConfig(max_tokens=12)
    session = ChatSession(FakeEngine(rule), instructions="Be brief.", generation=config)
    session.respond("hi")
    history = session.history
    session.instructions = "Be long."
    with session.stream("and now?") as reply:
        list(reply)

    fresh = ChatSession(
        FakeEngine(rule), instructions="Be long.", history=history, generation=config
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
    assert "Be brief." not in session._engine.tokenizer.decode(held(session))
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


def test_settings_that_need_another_cache_get_a_new_one():
    engine = FakeEngine(["a", "b", "c"])
    session = ChatSession(engine)
    session.respond("hi")
    session.generation = GenerationConfig(kv_bits=8)
    with session.stream("ho") as reply:
        list(reply)
    assert reply.cached_tokens == 0
    assert len(engine.contexts) == 2
    session.generation = GenerationConfig(kv_bits=8, temperature=1.0)
    with session.stream("he") as reply:
        list(reply)
    assert reply.cached_tokens > 0
    assert len(engine.contexts) == 2


def test_prefill_goes_in_chunks_and_reports_progress():
    engine = FakeEngine(["ok"])
    session = ChatSession(engine, generation=GenerationConfig(prefill_step_size=4))
    seen: list[tuple[int, int]] = []
    session.respond("a long question", prompt_progress_callback=lambda *at: seen.append(at))
    total = seen[-1][1]
    assert seen == [*((fed, total) for fed in range(0, total, 4)), (total, total)]


# --- how replies end ----------------------------------------------------------------------------


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


# --- withheld tails -----------------------------------------------------------------------------

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


# --- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("trimmable", [True, False])
@pytest.mark.parametrize("call", [1, 2, 3, 5])
@pytest.mark.parametrize("failure", [None, RuntimeError("boom"), KeyboardInterrupt()])
def test_a_model_failure_keeps_what_was_said_and_the_session_goes_on(call, failure, trimmable):
    def rule(ids: Sequence[int]) -> int:
        return 97 + hash(tuple(ids)) % 26

    config = GenerationConfig(max_tokens=8)
    engine = FakeEngine(rule, fail_at=[call], failure=failure, trimmable=trimmable)
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
    fresh = ChatSession(FakeEngine(rule), history=session.history[:2], generation=config)
    with fresh.stream("again") as other:
        list(other)
    assert reply.tokens == other.tokens


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


def test_an_interrupt_between_chunks_of_prefill_leaves_what_was_read_in_the_cache():
    import os
    import signal

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


def test_settings_the_model_can_not_follow_change_nothing():
    class Refusing(FakeEngine):
        def context(self, config):
            if config.max_kv_size is not None:
                raise ConfigurationError("No.", remedy="Don't.")
            return super().context(config)

    session = ChatSession(Refusing(["hello", "fine"]))
    session.respond("hi")
    before = (session.history, session.cached_tokens)
    session.generation = GenerationConfig(max_kv_size=64)
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


# --- prompts, history, settings -----------------------------------------------------------------


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
    assert "<|start|>mode\nquiet<|end|>" in session._engine.tokenizer.decode(held(session))


@pytest.mark.parametrize(
    "arguments",
    [{"instructions": 3}, {"generation": {"max_tokens": 3}}],
)
def test_arguments_of_the_wrong_type_are_refused(arguments):
    with pytest.raises(ConfigurationError):
        ChatSession(FakeEngine(), **arguments)


def test_a_history_of_something_else_is_refused():
    with pytest.raises(MessageError):
        ChatSession(FakeEngine(), history=["hi"])  # type: ignore[list-item]


def test_sessions_on_one_engine_do_not_disturb_each_other():
    def rule(ids: Sequence[int]) -> int:
        return 97 + hash(tuple(ids)) % 26

    config = GenerationConfig(max_tokens=6)
    engine = FakeEngine(rule)
    sessions = [ChatSession(engine, instructions=str(n), generation=config) for n in range(3)]
    for _ in range(3):
        replies = [session.stream("go") for session in sessions]
        for _ in range(6):
            for reply in replies:
                next(reply)
    for n, session in enumerate(sessions):
        alone = ChatSession(FakeEngine(rule), instructions=str(n), generation=config)
        for _ in range(3):
            alone.respond("go")
        assert session.history == alone.history
        check_ledger(session)


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
