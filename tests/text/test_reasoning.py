"""Reasoning is told apart from the answer, in streams, replies and histories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.logits import check_next_logits
from kit.models import tiny_hybrid, tiny_llama, tiny_mamba
from kit.probe import engine_of
from segue import (
    ChatSession,
    GenerationConfig,
    Message,
    MessageError,
    MlxEngine,
    TextKind,
)
from segue.testing import FakeEngine, ToyTokenizer
from segue.text.form import ReplyForm
from segue.text.tags import ReasoningSplitter

TAGS = ("<think>", "</think>")
WORDS = ("<think>", "</think>", "the", " world")


class Thinking(ToyTokenizer):
    """A thinking model's template: history keeps reasoning only behind the last question.

    Args:
        forced: Whether the generation prompt begins the reasoning.
    """

    reasoning_tags = TAGS

    def __init__(self, *, forced: bool = False) -> None:
        super().__init__(WORDS)
        self._forced = forced

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        template_kwargs: Mapping[str, Any],
    ) -> str:
        asked = max(n for n, message in enumerate(messages) if message["role"] == "user")
        shown = []
        for n, message in enumerate(messages):
            content = message["content"]
            if "reasoning_content" in message and n > asked:
                content = f"<think>\n{message['reasoning_content']}\n</think>\n\n{content}"
            shown.append({**message, "content": content})
        text = super().render(
            shown, add_generation_prompt=add_generation_prompt, template_kwargs={}
        )
        if not add_generation_prompt:
            return text
        if template_kwargs.get("enable_thinking", True):
            return text + ("<think>\n" if self._forced else "")
        return text + "<think>\n\n</think>\n\n"


def split(text: str, sizes: Sequence[int], prompt: str = "") -> tuple[str, str]:
    """Reasoning and answer of a text that comes in pieces."""
    splitter = ReasoningSplitter(ReplyForm(TAGS, opening=prompt))
    parts, at = [], 0
    for size in sizes:
        parts += splitter.add(text[at : at + size])
        at += size
    parts += [*splitter.add(text[at:]), *splitter.finish(ended=True)]
    return tuple(
        "".join(part.text for part in parts if part.kind is kind)
        for kind in (TextKind.REASONING, TextKind.ANSWER)
    )


@pytest.mark.parametrize(
    ("text", "prompt", "reasoning", "answer"),
    [
        ("<think>\nhm\n</think>\n\nyes", "", "hm", "yes"),
        ("  \n<think>hm</think>yes", "", "hm", "yes"),
        ("hm\n</think>\n\nyes", "assistant\n<think>\n", "hm", "yes"),
        ("yes", "assistant\n", "", "yes"),
        ("yes", "assistant\n<think>\n\n</think>\n\n", "", "yes"),
        ("\n\nyes <think>", "", "", "\n\nyes <think>"),
        ("<thin", "", "", "<thin"),
        ("<think>\nhm</thi", "", "hm</thi", ""),
        ("<think>\nhm\n\n", "", "hm", ""),
        ("<think>\n\n</think>\n\nyes", "", "", "yes"),
        ("<think>a\n\nb</think>c</think>d", "", "a\n\nb", "c</think>d"),
        ("", "", "", ""),
    ],
)
@given(sizes=st.lists(st.integers(1, 9), max_size=20))
def test_however_it_comes_it_is_split_the_same_way(text, prompt, reasoning, answer, sizes):
    assert split(text, sizes, prompt) == (reasoning, answer)


@given(st.text("<>/think \n", max_size=30), st.lists(st.integers(1, 5), max_size=30))
def test_where_a_model_marks_nothing_every_letter_is_passed_on_at_once(text, sizes):
    splitter = ReasoningSplitter(ReplyForm(opening="<think>"))
    at = 0
    for size in sizes:
        piece = text[at : at + size]
        assert "".join(part.text for part in splitter.add(piece)) == piece
        at += size
    assert splitter.finish(ended=True) == []


def session_of(*replies: str, forced: bool = False, **kwargs: Any) -> ChatSession:
    tokenizer = Thinking(forced=forced)
    return ChatSession(FakeEngine(replies, tokenizer=tokenizer), **kwargs)


def test_responses_say_which_kind_they_are_of():
    session = session_of("<think>\nthe world\n</think>\n\nyes")
    responses = list(session.stream("hi"))
    kinds = {kind: "".join(r.text for r in responses if r.kind is kind) for kind in TextKind}
    assert kinds == {TextKind.REASONING: "the world", TextKind.ANSWER: "yes"}
    assert session.history[-1] == Message.assistant("yes", reasoning="the world")
    assert [r.finish_reason for r in responses[:-1]] == [None] * (len(responses) - 1)


def test_respond_leaves_the_reasoning_out_unless_it_is_asked_for():
    session = session_of(*["<think>\nhm\n</think>\n\nyes"] * 2)
    assert session.respond("hi") == "yes"
    assert session.respond("hi", reasoning=True) == "hm\n\nyes"
    plain = session_of("no", "no")
    assert plain.respond("hi", reasoning=True) == "no"


@pytest.mark.parametrize("end", range(12))
def test_a_reply_cut_short_keeps_what_was_thought_and_said(end):
    session = session_of("<think>\nhm\n</think>\n\nyes")
    said = dict.fromkeys(TextKind, "")
    with session.stream("hi") as reply:
        for _, response in zip(range(end), reply, strict=False):
            said[response.kind] += response.text
    message = session.history[-1]
    assert message.content.startswith(said[TextKind.ANSWER])
    assert (message.reasoning or "").startswith(said[TextKind.REASONING])
    assert (message.content, message.reasoning or "") == (reply.text, reply.reasoning)


@pytest.mark.parametrize("forced", [False, True])
def test_history_renders_as_the_template_wants_and_settling_reads_it_in_time(forced):
    front = "" if forced else "<think>\n"
    replies = [f"{front}the world {n}\n</think>\n\nthe answer {n}" for n in range(12)]
    session = session_of(*replies, forced=forced, instructions="be brief")
    cold = session_of(*replies, forced=forced, instructions="be brief")
    tokenizer = engine_of(session).tokenizer
    for n in range(12):
        question = f"question {n}"
        reply = session.stream(question)
        fed = reply.prompt_tokens - reply.cached_tokens
        list(reply)
        assert cold.respond(question) == reply.text == f"the answer {n}"
        if n:
            # Between Enter and the first token: the message, and what the template ends it with.
            fixed = "user\n<|end|>\n<|start|>assistant\n" + ("<think>\n" if forced else "")
            assert fed <= len(tokenizer.encode(question)) + len(tokenizer.encode(fixed))
        assert session.prewarm() > 0
        assert session.prewarm() == 0
    usage, without = session.usage, cold.usage
    assert usage.prewarmed_tokens > 0
    assert usage.fed_tokens < without.fed_tokens
    assert usage.fed_tokens + usage.prewarmed_tokens <= without.fed_tokens + 12 * 8


def test_a_tool_result_finds_the_reasoning_still_in_the_cache():
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    session = session_of("<think>\nhm\n</think>\n\nlooking", "yes")
    session.respond("hi")
    held = session.cached_tokens
    reply = session.stream(Message.tool("found"))
    assert reply.cached_tokens == held
    list(reply)
    assert Message.assistant("", tool_calls=[call], reasoning="x").to_template()["thinking"] == "x"


def test_thinking_is_switched_by_template_kwargs():
    session = session_of("yes", forced=True, template_kwargs={"enable_thinking": False})
    assert session.respond("hi") == "yes"
    assert session.history[-1].reasoning is None


def test_stop_strings_end_the_reasoning_only_if_they_are_told_to():
    session = session_of(*["<think>\nhm stop\n\nso\n</think>\n\nyes stop it"] * 3)
    session.generation = GenerationConfig(stop=["stop", "\n\n", "</think>", "\n</"])
    assert session.respond("hi") == "yes "
    assert session.history[-1].reasoning == "hm stop\n\nso"
    reply = session.stream("hi", stop_in_reasoning=True)
    assert [str(response.finish_reason) for response in reply][-1] == "stop"
    assert (reply.reasoning, reply.text) == ("hm ", "")
    reply = session.stream("hi", stop="\n\n", stop_in_reasoning=True)
    assert [str(response.finish_reason) for response in reply][-1] == "stop"
    assert (reply.reasoning, reply.text) == ("hm stop", "")


def test_lengths_end_reasoning_too():
    session = session_of("<think>\nhm stop\n</think>\n\nyes")
    assert session.respond("hi", max_tokens=6) == ""
    assert session.history[-1].reasoning == "hm s"


def test_reasoning_is_text():
    with pytest.raises(MessageError, match="reasoning must be text"):
        Message.assistant("yes", reasoning=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [tiny_llama, tiny_hybrid, tiny_mamba])
def test_settling_leaves_every_kind_of_cache_exact(make):
    tokenizer = Thinking(forced=True)
    engine = MlxEngine(make(len(tokenizer)), tokenizer, name="tiny")
    config = GenerationConfig(max_tokens=30, logits_processors=(think_for(12, tokenizer),))
    session = ChatSession(engine, instructions="be brief", generation=config)
    cold = ChatSession(engine, instructions="be brief", generation=config)
    session.prewarm()
    for text in ("the world", "hello", "again"):
        assert session.respond(text) == cold.respond(text)
        assert session.history[-1].reasoning
        check_next_logits(session)
        session.prewarm()
        check_next_logits(session)
    assert session.usage.fed_tokens < cold.usage.fed_tokens
    if make is not tiny_llama:
        assert session.usage.checkpoints > 0
        assert session.usage.checkpoint_bytes > 0


def think_for(count: int, tokenizer: ToyTokenizer):
    """A processor that ends the reasoning after so many tokens."""
    (end,) = tokenizer.encode("</think>")
    begun: list[int] = []

    def process(tokens, logits):
        if not begun or len(tokens) < begun[0] or len(tokens) > begun[0] + 30:
            begun[:] = [len(tokens)]
        at_end = len(tokens) == begun[0] + count
        places = mx.arange(logits.shape[-1])
        wanted = (places == end) if at_end else (places < 256) & (places >= 97)
        return mx.where(wanted, logits, -1e9)

    return process


def test_a_question_about_the_mark_begins_no_reasoning():
    class Bare(Thinking):
        def render(self, messages, **kwargs):
            return "".join(message["content"] for message in messages)

    session = ChatSession(FakeEngine(["yes"], tokenizer=Bare()))
    assert session.respond("what is <think>") == "yes"


def test_what_a_turn_has_cost_does_not_change_later():
    session = session_of("one", "two")
    reply = session.stream("hi")
    reply.close()
    cost = reply.usage
    session.respond("ho")
    assert reply.usage == cost == session.usage.turns[0]


@pytest.mark.parametrize("question", ["", " ", "<", "hi"])
def test_whatever_is_asked_a_forced_mark_begins_the_reasoning(question):
    session = session_of("hm\n</think>\n\nyes", forced=True)
    assert session.respond(question) == "yes"
    assert session.history[-1].reasoning == "hm"
