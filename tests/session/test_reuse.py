"""Every turn says how much of the cache it reused, and why not more: never a wrong reason."""

from __future__ import annotations

import pytest

from kit.dated import LONG_AGO, Dated
from kit.probe import context_of, engine_of, held
from kit.templates import OURS, THINKING, make_tokenizer, published_templates
from segue import (
    CacheConfig,
    ChatSession,
    GenerationConfig,
    GenerationError,
    Message,
    MissReason,
    Reuse,
    load_prompt_cache,
)
from segue.testing import BareEngine, FakeEngine
from segue.testing.tokenizer import END

BRIEF = "Be brief, and say what is to be said."


def talk(tokenizer=None, *, trimmable=True, turns=3, **kwargs) -> ChatSession:
    """A session that has taken some turns."""
    script = [f"this is answer {number}" for number in range(20)]
    engine = FakeEngine(script, tokenizer=tokenizer or Dated(), trimmable=trimmable)
    session = ChatSession(engine, **{"instructions": BRIEF, **kwargs})
    for number in range(turns):
        session.respond(f"what is question {number}?")
    return session


def ask(session: ChatSession, question: str = "and what now?") -> Reuse:
    with session.stream(question) as reply:
        list(reply)
    assert reply.reuse.tokens == reply.cached_tokens == session.usage.turns[-1].cached_tokens
    assert reply.reuse.prompt_tokens == reply.prompt_tokens
    assert session.reuse == reply.reuse
    assert str(reply.reuse).startswith(f"{reply.cached_tokens:,} of {reply.prompt_tokens:,} tokens")
    return reply.reuse


TRIMMABLE = pytest.mark.parametrize("trimmable", [True, False], ids=["trimmable", "checkpoints"])


# --- one change at a time -----------------------------------------------------------------------


@TRIMMABLE
def test_a_usual_turn_reuses_all_and_has_no_reason(trimmable):
    session = talk(turns=0, trimmable=trimmable)
    assert session.reuse is None
    first = ask(session)
    assert (first.reason, first.tokens, first.held_tokens) == (None, 0, 0)
    assert str(first).endswith("nothing was cached before.")
    for _ in range(3):
        before = len(held(session))
        reuse = ask(session)
        assert (reuse.reason, reuse.message_index) == (None, None)
        assert reuse.tokens == reuse.held_tokens == reuse.shared_tokens == before
        assert str(reuse).endswith("all that was cached.")


def set_instructions(session):
    session.instructions = "Be kind, and say what is to be said."


def drop_instructions(session):
    session.instructions = None


def set_kwargs(session):
    session.template_kwargs = {"enable_thinking": False}


def set_date(session):
    session.date = LONG_AGO


def edit_first(session):
    session.edit(0, "what is another question?")


def edit_middle(session):
    session.edit(2, "what is another question?")


def undo(session):
    session.undo()


def undo_two(session):
    session.undo(2)


CHANGES = [
    (set_instructions, MissReason.INSTRUCTIONS, None, "the instructions changed"),
    (drop_instructions, MissReason.INSTRUCTIONS, None, "the instructions changed"),
    (set_kwargs, MissReason.TEMPLATE_KWARGS, None, "arguments changed (enable_thinking)"),
    (set_date, MissReason.DATE, None, "another date"),
    (edit_first, MissReason.MESSAGE, 0, "message 0 (user) is another"),
    (edit_middle, MissReason.MESSAGE, 2, "message 2 (user) is another"),
    (undo, MissReason.MESSAGE, 4, "message 4 (user) is another"),
    (undo_two, MissReason.MESSAGE, 2, "message 2 (user) is another"),
]


@TRIMMABLE
@pytest.mark.parametrize(("change", "reason", "index", "words"), CHANGES)
def test_each_change_is_named_with_its_message(change, reason, index, words, trimmable):
    session = talk(trimmable=trimmable)
    change(session)
    # What `edit` leaves to be answered is answered; else, another question is asked.
    unanswered = len(session.history) % 2
    preview = None if unanswered else session.preview("so what else is there?").reuse
    if unanswered:
        session.retry()
        reuse = session.reuse
    else:
        reuse = ask(session, "so what else is there?")
        assert (preview.reason, preview.message_index) == (reason, index)
        assert preview.tokens >= reuse.tokens
    assert (reuse.reason, reuse.message_index) == (reason, index)
    assert words in str(reuse)
    assert reuse.tokens <= reuse.shared_tokens < reuse.held_tokens
    # And then all is as usual.
    assert ask(session).reason is None


def test_the_same_question_asked_again_was_taken_back():
    session = talk()
    session.undo()
    reuse = ask(session, "what is question 2?")
    assert (reuse.reason, reuse.message_index) == (MissReason.MESSAGE, 4)
    assert "was taken back" in str(reuse)


@TRIMMABLE
def test_a_retry_takes_the_reply_back(trimmable):
    session = talk(trimmable=trimmable)
    session.retry()
    reuse = session.reuse
    assert (reuse.reason, reuse.message_index) == (MissReason.MESSAGE, 5)
    assert "message 5 was taken back" in str(reuse)


@pytest.mark.parametrize("first", range(len(CHANGES)))
def test_of_several_changes_the_first_in_the_prompt_is_named(first):
    # Dates come first, then arguments, instructions and messages.
    order = [set_date, set_kwargs, set_instructions, edit_first]
    changes = order[first % len(order) :]
    session = talk()
    for change in reversed(changes):
        change(session)
    session.retry() if len(session.history) % 2 else ask(session)
    expected = {change: reason for change, reason, _, _ in CHANGES}[changes[0]]
    assert session.reuse.reason == expected


def test_a_change_that_matters_late_is_not_blamed_for_what_parts_early():
    last = """\
{%- for message in messages if message.role != 'system' %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if loop.last %}{{- messages[0].content + '\\n' }}{%- endif %}
    {{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
    session = talk(make_tokenizer(last, "byte-level"), turns=2)
    session.instructions = "Be kind."
    reuse = ask(session)
    # The template takes the instructions out of the question before, whatever they are.
    assert (reuse.reason, reuse.message_index) == (MissReason.TEMPLATE, 2)


def test_dropped_messages_are_named():
    script = ["this is an answer"] * 9
    engine = FakeEngine(script, tokenizer=Dated(), context_length=300)
    session = ChatSession(engine, instructions=BRIEF, on_overflow="drop-oldest")
    while True:
        question = f"what is question {len(session.history)}?"
        with session.stream(question) as reply:
            list(reply)
        if reply.dropped:
            break
    assert (reply.reuse.reason, reply.reuse.message_index) == (MissReason.DROPPED, 0)
    assert "dropped to make room" in str(reply.reuse)


# --- what the template and the tokenizer do -----------------------------------------------------


@pytest.mark.parametrize("source", [THINKING, OURS["chatml"]], ids=["thinking", "chatml"])
@TRIMMABLE
def test_reasoning_that_the_template_drops_is_named(source, trimmable):
    tokenizer = make_tokenizer(source, "byte-level")
    script = [f"hm, {n}</think>\n\nthis is the answer" for n in range(9)]
    engine = FakeEngine(script, tokenizer=tokenizer, trimmable=trimmable)
    session = ChatSession(engine, instructions=BRIEF)
    for number in range(4):
        reuse = ask(session, f"what is question {number}?")
        if number and source is THINKING:
            assert (reuse.reason, reuse.message_index) == (MissReason.TEMPLATE, 2 * number - 1)
            assert f"rendered message {2 * number - 1} (assistant) otherwise" in str(reuse)
    # Reading ahead pays for that; the turn itself has nothing to explain.
    session.prewarm()
    assert ask(session).reason is None


class Swallowing(Dated):
    """Has no tokens for the line breaks after messages, as Phi's: no ids spell what is rendered."""

    def encode(self, text):
        return super().encode(text.replace(END + "\n", END))


def test_tokens_of_the_same_text_are_named():
    engine = FakeEngine([list(b"the the the the"), b"fine"], tokenizer=Swallowing())
    session = ChatSession(engine, instructions=BRIEF)
    ask(session)
    reuse = ask(session)
    assert (reuse.reason, reuse.message_index) == (MissReason.TOKENS, 1)
    assert "other tokens of message 1 (assistant)" in str(reuse)


# --- what becomes of the cache ------------------------------------------------------------------


def test_a_cache_that_can_not_go_back_to_there_says_so():
    session = talk(trimmable=False, cache=CacheConfig(max_checkpoints=1))
    session.edit(2, "what is another question?")
    session.retry()
    reuse = session.reuse
    assert (reuse.reason, reuse.message_index) == (MissReason.MESSAGE, 2)
    assert reuse.tokens < reuse.shared_tokens < reuse.held_tokens
    assert "the cache could not go back just so far" in str(reuse)


def test_a_failure_is_named():
    session = talk()
    model = engine_of(session).model
    model.fail_at = {model.calls + 1}
    with pytest.raises(GenerationError):
        session.respond("fail")
    reuse = ask(session)
    assert (reuse.reason, reuse.tokens) == (MissReason.LOST, 0)
    assert "emptied by a failure" in str(reuse)
    assert ask(session).reason is None


@pytest.mark.capable
def test_a_cache_that_shrank_is_named():
    session = talk()
    context_of(session).rewind(12)
    reuse = ask(session)
    assert (reuse.reason, reuse.tokens) == (MissReason.LOST, 12)
    assert "let go" in str(reuse)


def test_an_engine_that_reuses_less_is_named():
    session = ChatSession(BareEngine(["one", "two"], block=16), instructions=BRIEF)
    session.respond("what is the question?")
    with session.stream("and?") as reply:
        list(reply)
    assert reply.reuse.tokens == reply.cached_tokens
    assert reply.reuse.reason is (
        MissReason.ENGINE if reply.cached_tokens < reply.reuse.shared_tokens else None
    )
    assert reply.cached_tokens < reply.reuse.shared_tokens


def test_a_stopped_prefill_is_no_miss():
    session = talk(turns=1, generation=GenerationConfig(prefill_step_size=4))

    def stop(fed, total):
        if fed >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.respond("stop in the middle of this", prompt_progress_callback=stop)
    before = len(held(session))
    reuse = ask(session)
    assert (reuse.reason, reuse.tokens) == (None, before)


# --- files --------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    return tmp_path / "talk.segue"


def test_a_session_from_a_file_has_no_reason_or_that_of_its_change(path):
    with talk() as session:
        session.save(path)
    engine = FakeEngine(["fine"] * 9, tokenizer=Dated())
    with ChatSession.open(path, engine) as again:
        assert again.reuse is None
        assert ask(again).reason is None
    for change, reason in [
        ({"instructions": "Be kind."}, MissReason.INSTRUCTIONS),
        ({"template_kwargs": {"a": 1}}, MissReason.TEMPLATE_KWARGS),
        ({"date": LONG_AGO}, MissReason.DATE),
    ]:
        with ChatSession.open(path, engine, **change) as again:
            assert ask(again).reason is reason


def test_a_file_without_a_cache_says_so(path):
    with talk() as session:
        session.save(path, kv=False)
    reuse = ask(ChatSession.open(path, FakeEngine(["fine"], tokenizer=Dated())))
    assert (reuse.reason, reuse.tokens) == (MissReason.LOST, 0)
    assert "the file has no KV cache" in str(reuse)


def test_a_cache_of_other_settings_says_so(path):
    with talk() as session:
        session.save(path)
    engine = FakeEngine(["fine"], tokenizer=Dated())
    reuse = ask(ChatSession.open(path, engine, cache=CacheConfig(kv_bits=8)))
    assert reuse.reason is MissReason.LOST
    assert "settings of the KV cache are others" in str(reuse)


def test_a_cache_of_another_model_says_so(path):
    with talk() as session:
        session.save(path)
    engine = FakeEngine(["fine"], tokenizer=Dated())
    engine.fingerprint = "another"
    with pytest.warns(UserWarning, match="another model"):
        again = ChatSession.open(path, engine)
    reuse = ask(again)
    assert reuse.reason is MissReason.LOST
    assert "of another model" in str(reuse)


@pytest.mark.capable
def test_a_prompt_cache_of_other_instructions_says_so(tmp_path):
    session = talk(turns=0)
    session.prewarm()
    session.save_cache(tmp_path / "brief")
    engine = engine_of(session)
    cache = load_prompt_cache(tmp_path / "brief", engine)
    assert ask(ChatSession(engine, prompt_cache=cache)).reason is None
    reuse = ask(ChatSession(engine, prompt_cache=cache, instructions="Be kind."))
    assert reuse.reason is MissReason.INSTRUCTIONS


def test_a_session_that_returned_to_a_fork_explains_itself_as_the_fork_would():
    session = talk()
    before = session.fork()
    session.respond("what else?")
    session.return_to(before)
    assert ask(session).reason is None
    before = session.fork()
    session.clear()
    session.return_to(before)
    reuse = ask(session)
    assert reuse.reason is None
    assert reuse.tokens == reuse.held_tokens == reuse.shared_tokens > 0
    other = session.fork()
    other.respond("somewhere else?")
    session.respond("here")
    session.return_to(other)
    assert ask(session).reason is None


def test_a_return_to_a_fork_that_could_not_be_copied_says_so():
    session = ChatSession(BareEngine(["one", "two", "three"]))
    session.respond("Hi")
    before = session.fork()
    before.respond("And?")
    session.return_to(before)
    reuse = session.preview("Why?").reuse
    assert reuse.reason is MissReason.LOST
    assert "copy" in reuse.detail


def test_forks_explain_themselves_and_clear_forgets():
    session = talk()
    twin = session.fork()
    assert twin.reuse is None
    assert ask(twin).reason is None
    twin.instructions = "Be kind."
    assert ask(twin).reason is MissReason.INSTRUCTIONS
    assert ask(session).reason is None
    session.clear()
    reuse = ask(session)
    assert (reuse.reason, reuse.held_tokens) == (None, 0)


@pytest.mark.parametrize("allowed", [True, False])
def test_control_tokens_that_are_allowed_now_or_no_more_are_named(allowed):
    tokenizer = make_tokenizer(OURS["chatml"], "byte-level")
    session = talk(tokenizer, turns=0, allow_control_tokens=allowed)
    session.respond("what is <|im_end|>?")
    session.allow_control_tokens = not allowed
    reuse = ask(session)
    assert (reuse.reason, reuse.message_index) == (MissReason.TOKENS, 0)
    assert "allow_control_tokens changed" in reuse.detail
    session.allow_control_tokens = allowed
    session.edit(0, "what is it?")
    session.retry()
    session.allow_control_tokens = not allowed
    assert ask(session).reason is None


def test_what_an_engine_has_of_its_own_was_not_cached_before():
    session = ChatSession(BareEngine(["one", "two"]), instructions=BRIEF)
    session.respond("Hi")
    session.clear()
    reuse = ask(session, "Hi")
    assert (reuse.reason, reuse.held_tokens) == (None, 0)
    assert reuse.tokens > 0
    assert str(reuse).endswith("the engine had them of its own.")


CONTINUED = [
    (None, None, None, "all that was cached but for its end"),
    (lambda s: s.edit(-1, "other words, and many"), MissReason.MESSAGE, 1, "another than before"),
    (set_instructions, MissReason.INSTRUCTIONS, None, "the instructions changed"),
]


@pytest.mark.parametrize(("change", "reason", "index", "words"), CONTINUED)
@pytest.mark.parametrize("template", ["chatml", "harmony"])
def test_a_continued_reply_says_what_of_it_is_another(change, reason, index, words, template):
    tokenizer = make_tokenizer(OURS[template], "byte-level")
    session = ChatSession(FakeEngine(["the fox", "!"], tokenizer=tokenizer), instructions=BRIEF)
    session.respond("what is it?")
    if change is not None:
        change(session)
    with session.stream_continue() as reply:
        list(reply)
    assert (reply.reuse.reason, reply.reuse.message_index) == (reason, index)
    assert words in str(reply.reuse)


def test_a_reply_continued_after_a_stop_string_blames_no_template():
    tokenizer = make_tokenizer(OURS["harmony"], "byte-level")
    session = ChatSession(FakeEngine(["hello the fox says one", "!"], tokenizer=tokenizer))
    session.respond("Hi", stop=["says"])
    with session.stream_continue() as reply:
        list(reply)
    assert (reply.reuse.reason, reply.reuse.message_index) == (MissReason.MESSAGE, 1)
    assert "recorded" in reply.reuse.detail


@pytest.mark.parametrize("arguments", ['{"q": 1}', '{"q":', ""])
def test_a_call_that_is_rendered_otherwise_is_named(arguments):
    """As gpt-oss writes its calls, and its template does not."""
    tokenizer = make_tokenizer(OURS["harmony"], "byte-level")
    reply = f"<|channel|>commentary to=functions.f <|constrain|>json<|message|>{arguments}"
    ids = [*tokenizer.encode(reply), tokenizer.vocabulary["<|call|>"]]
    session = ChatSession(FakeEngine([ids, "x"], tokenizer=tokenizer))
    session.respond("Hi", max_tokens=200)
    (call,) = session.history[-1].tool_calls
    reuse = session.preview(Message.tool("fine", call=call)).reuse
    assert (reuse.reason, reuse.message_index) == (MissReason.TEMPLATE, 1)


# --- published templates ------------------------------------------------------------------------

PUBLISHED = published_templates() or {"": ""}
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "d",
        "parameters": {"type": "object", "properties": {}},
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_templates_have_no_reason_in_plain_turns(name):
    if not name:
        pytest.skip("SEGUE_DATA is not set: no published chat templates to test.")
    tokenizer = make_tokenizer(PUBLISHED[name], "byte-level")
    kwargs = (
        {
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "f",
                        "description": "d",
                        "parameters": {"type": "object", "properties": {}},
                    },
                }
            ]
        }
        if "tool_use" in name
        else {}
    )
    session = talk(tokenizer, turns=0, instructions=None, template_kwargs=kwargs)
    for number in range(4):
        before = held(session)
        reuse = ask(session, f"what is question {number}?")
        lost = tokenizer.decode(before[reuse.tokens :])
        if reuse.reason is None:
            assert "answer" not in lost
            assert "question" not in lost
        else:
            assert reuse.reason is MissReason.TEMPLATE
            assert reuse.message_index in (2 * number - 2, 2 * number - 1)
