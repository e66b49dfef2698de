"""Conversations over every chat template: what is fed is its render, and no more than is new.

Replies are scripted as models write them for that template, ended, cut short and left, with ids
that no one would encode; tools are called and answer. After each turn, what the cache holds is
compared with the template's own render of the history, and what was fed with the optimum.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import pytest

from kit.probe import context_of, held
from kit.sessions import common_prefix, rendered
from kit.templates import (
    KINDS,
    PUBLISHED,
    all_templates,
    can_spell,
    in_pieces,
    make_tokenizer,
    our_templates,
    published_templates,
    renders,
)
from segue import ChatSession, GenerationConfig, Message, TemplateError, TemplateWarning, ToolCall
from segue.testing import FakeEngine
from segue.tokenizers.hugging_face import HuggingFaceTokenizer

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Which city."}},
            "required": ["city"],
        },
    },
}
# Templates that fail without tools, as their name says.
NEED_TOOLS = ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use",)


class Traits(NamedTuple):
    """What a template takes, and how models speak under it."""

    system: bool = True
    strict: bool = False
    """Whether users and assistants must take turns."""
    tools: bool = False
    """Whether it writes calls and results."""
    several: bool = False
    """Whether a message may call several tools."""
    as_text: bool = False
    """Whether a call's arguments are a string of JSON."""
    ignores_tools: bool = False
    """Whether it writes no descriptions of tools."""
    briefs_last: bool = False
    """Whether it writes the system message before the last message alone, if that is a user's."""
    reply: str = "{answer}"
    """A whole reply, the end-of-turn token left out."""


THINK = "<think>\n{thought}\n</think>\n\n{answer}"
CLOSE = "{thought}\n</think>\n\n{answer}"
HARMONY = (
    "<|channel|>analysis<|message|>{thought}<|end|>"
    "<|start|>assistant<|channel|>final<|message|>{answer}"
)
TRAITS = {
    "chatml": Traits(),
    "thinking": Traits(reply=CLOSE),
    "one-line": Traits(reply=" {answer}"),
    "headings": Traits(),
    "strict": Traits(system=False, strict=True),
    "tools": Traits(tools=True),
    "harmony": Traits(tools=True, ignores_tools=True, reply=HARMONY),
    "wrapped": Traits(
        reply="<think>{thought}</think><|START_RESPONSE|>\n{answer}\n<|END_RESPONSE|>"
    ),
    "ByteDance-Seed-OSS": Traits(
        tools=True, several=True, reply="<seed:think>{thought}</seed:think>\n{answer}"
    ),
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": Traits(
        tools=True, several=True, reply="<|START_RESPONSE|>{answer}<|END_RESPONSE|>"
    ),
    "Mistral-Small-3.2-24B-Instruct-2506": Traits(strict=True, tools=True, several=True),
    "NVIDIA-Nemotron-Nano-v2": Traits(tools=True, several=True, reply=CLOSE),
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": Traits(tools=True, several=True),
    "Qwen-Qwen2.5-7B-Instruct": Traits(tools=True, several=True),
    "Qwen-Qwen3-0.6B": Traits(tools=True, several=True, reply=THINK),
    "Qwen3.5-4B": Traits(tools=True, several=True, reply=CLOSE),
    # It writes calls only of messages without content, and ours have one.
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": Traits(reply=CLOSE),
    "deepseek-ai-DeepSeek-V3.1": Traits(tools=True, several=True, as_text=True, ignores_tools=True),
    "gemma4_e2b": Traits(
        tools=True, several=True, reply="<|channel>thought\n{thought}\n<channel|>{answer}"
    ),
    "google-gemma-2-2b-it": Traits(system=False, strict=True),
    "ibm-granite-granite-3.3-2B-Instruct": Traits(
        reply="<think>{thought}</think><response>{answer}</response>"
    ),
    "llama-2-chat": Traits(strict=True, reply=" {answer}"),
    "meta-llama-Llama-3.1-8B-Instruct": Traits(tools=True),
    "microsoft-Phi-3.5-mini-instruct": Traits(reply=" {answer}"),
    "mistralai-Mistral-Nemo-Instruct-2407": Traits(
        strict=True, tools=True, several=True, briefs_last=True, reply=" {answer}"
    ),
    "moonshotai-Kimi-K2": Traits(tools=True, several=True),
    "nemotron3nano": Traits(tools=True, several=True, reply=CLOSE),
    "openai-gpt-oss-120b": Traits(tools=True, reply=HARMONY),
    "vicuna": Traits(strict=True, reply=" {answer}"),
    "zephyr": Traits(strict=True),
}
CASES = pytest.mark.parametrize(("name", "source"), all_templates())
KIND = pytest.mark.parametrize("kind", KINDS)
LONG = GenerationConfig(max_tokens=400)
TRIMMABLE = pytest.mark.parametrize("trimmable", [True, False], ids=["trimmable", "marks"])


def make(source: str, kind: str) -> HuggingFaceTokenizer:
    if not can_spell(kind, source):
        pytest.skip("The template has underscores, which SentencePiece takes for spaces.")
    return cached_tokenizer(source, kind)


cached_tokenizer = lru_cache(make_tokenizer)


class Talk:
    """A session whose model follows a script; checks every turn that it takes."""

    def __init__(
        self,
        tokenizer: HuggingFaceTokenizer,
        *,
        trimmable: bool = True,
        **kwargs: Any,
    ) -> None:
        self.tokenizer = tokenizer
        self._said: Iterator[int] = iter(())
        self.prompt: tuple[int, ...] = ()
        self.spoken: tuple[int, ...] = ()
        end = tokenizer.wrapped.eos_token_id
        self.engine = FakeEngine(
            lambda _: next(self._said, end), tokenizer=tokenizer, trimmable=trimmable
        )
        self.session = ChatSession(self.engine, generation=LONG, **kwargs)

    def cache(self) -> tuple[int, ...]:
        return () if context_of(self.session) is None else held(self.session)

    def turn(
        self,
        prompt: str | Message | list[Message],
        ids: list[int],
        *,
        take: int | None = None,
        goes_back_to_prompt: bool = True,
    ) -> str:
        """A turn whose reply is these ids, the end-of-turn token behind; left after `take`.

        If it can't keep the last reply, a cache with marks goes back to the end of its prompt.
        """
        before = self.cache()
        marks = self.engine.contexts[-1].checkpoints.offsets if self.engine.contexts else ()
        self._said = iter(ids)
        fed_before = len(self.engine.model.fed)
        with self.session.stream(prompt) as reply:
            for count, _ in enumerate(reply, start=1):
                if count == take:
                    break
        said = len(reply.tokens)
        prompt_ids = self.cache()[: reply.prompt_tokens]
        fed = [token for chunk in self.engine.model.fed[fed_before:] for token in chunk]
        render = rendered(self.session, self.session.history[:-1], prompt=True)
        assert self.tokenizer.decode(prompt_ids) == render
        assert len(fed) - said == reply.prompt_tokens - reply.cached_tokens
        assert self.cache() == (*prompt_ids, *reply.tokens)
        best = min(common_prefix(before, prompt_ids), len(prompt_ids) - 1)
        if self.engine.trimmable or best == len(before):
            assert reply.cached_tokens == best
        else:
            assert reply.cached_tokens == max((m for m in marks if m <= best), default=0)
            if goes_back_to_prompt:
                # All that the two prompts share, as far as it is still held.
                assert reply.cached_tokens == min(best, common_prefix(self.prompt, prompt_ids))
        # Wherever the render goes on from what is held, all of that stands.
        held = self.tokenizer.decode(before)
        if render.startswith(held):
            assert reply.cached_tokens == min(len(before), reply.prompt_tokens - 1)
        # White space at the end of a reply, which many templates trim, costs no more than itself.
        if self.spoken and render.startswith(self.tokenizer.decode(self.spoken)):
            assert best >= len(self.spoken)
        self.last, self.before, self.prompt = reply, before, prompt_ids
        spoken = list(reply.tokens)
        while spoken and not self.tokenizer.decode(spoken[-1:]).strip():
            spoken.pop()
        self.spoken = (*prompt_ids, *spoken) if spoken == ids[: len(spoken)] else ()
        return reply.text


def begin(name: str, source: str, kind: str, trimmable: bool = True, **kwargs: Any) -> Talk:
    """A conversation under a template, with a system message if it takes one."""
    tokenizer = make(source, kind)
    kwargs.setdefault("instructions", "Be brief." if TRAITS[name].system else None)
    if name in NEED_TOOLS:
        kwargs.setdefault("template_kwargs", {"tools": [TOOL]})
    return Talk(tokenizer, trimmable=trimmable, **kwargs)


def in_form(name: str, answer: str, thought: str = "the lazy fox") -> str:
    return TRAITS[name].reply.format(answer=answer, thought=thought)


@CASES
@KIND
@TRIMMABLE
def test_plain_replies_cut_short_or_not(name, source, kind, trimmable):
    talk = begin(name, source, kind, trimmable)
    pieces = in_pieces(talk.tokenizer, "hello to the world")
    assert pieces != talk.tokenizer.encode("hello to the world")
    talk.turn("What is the weather in Paris?", pieces)
    talk.turn("And the fox?", pieces, take=7)
    talk.session.generation = replace(LONG, max_tokens=5)
    talk.turn("Go on.", pieces)
    talk.session.generation = LONG
    talk.turn("Hello there", in_pieces(talk.tokenizer, "the é and 世 😀"))
    talk.turn("é", list(talk.tokenizer.encode("the brown fox")))
    talk.turn("The end.", [])
    # Seed writes a message without content in a way of its own, which no probe foresees.
    talk.turn("One more.", pieces, goes_back_to_prompt=name != "ByteDance-Seed-OSS")


@CASES
@KIND
@TRIMMABLE
@pytest.mark.parametrize("text", [" the fox", "  the fox", "\nthe fox", "the fox ", "the fox\n\n"])
def test_replies_that_begin_or_end_with_white_space(name, source, kind, trimmable, text):
    talk = begin(name, source, kind, trimmable)
    for take in (None, None, len(text)):
        talk.turn("Hello?", in_pieces(talk.tokenizer, text), take=take)


@KIND
@TRIMMABLE
@pytest.mark.parametrize("text", [" the fox", "  the fox", " ", "the fox", " é", ""])
@pytest.mark.parametrize("name", ["one-line", "headings", "chatml", "strict"])
def test_the_space_before_a_reply_is_whose_the_template_says(name, kind, trimmable, text):
    talk = begin(name, our_templates()[name], kind, trimmable)
    for prompt in ("Hello?", "And now?", "Well?"):
        said = talk.turn(prompt, in_pieces(talk.tokenizer, text))
        if name in ("one-line", "strict"):  # one writes the space, the other trims
            assert said == text.removeprefix(" ")
        else:
            assert said == text
        assert talk.session.history[-1].content == said
    if name == "chatml" or (name == "one-line" and text.startswith(" ")):
        # Nothing of what was said is read again.
        assert talk.last.cached_tokens == len(talk.before)


@CASES
@KIND
@TRIMMABLE
def test_replies_in_the_form_that_the_model_writes(name, source, kind, trimmable):
    talk = begin(name, source, kind, trimmable)
    # Nemotron 3 writes a thought that is closed in the content, but was not opened there, unlike
    # any other reply.
    back = name != "nemotron3nano"
    for answer in ("hello to the world", "the fox says: é"):
        reply = in_pieces(talk.tokenizer, in_form(name, answer))
        talk.turn("What is the weather?", reply, goes_back_to_prompt=back)
        talk.turn("And now?", reply, take=len(reply) // 2, goes_back_to_prompt=back)
        talk.turn("Well?", reply, take=len(reply) - 1, goes_back_to_prompt=back)


def call(name: str, number: int, city: str) -> ToolCall:
    arguments = {"city": city}
    given = json.dumps(arguments) if TRAITS[name].as_text else arguments
    return ToolCall("weather", given, id=f"call0000{number}")


def result(number: int, text: str) -> Message:
    return Message.tool(text, name="weather", tool_call_id=f"call0000{number}")


@CASES
@KIND
@TRIMMABLE
def test_tools_are_called_and_answer(name, source, kind, trimmable):
    traits = TRAITS[name]
    if not traits.tools:
        assert not knows_tools(name, make(source, kind)), "the template knows tools after all"
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_tools(name, begin(name, source, kind, trimmable, template_kwargs={"tools": [TOOL]}))
    told = sorted(str(warning.message).split(",")[0] for warning in caught)
    assert all(warning.category is TemplateWarning for warning in caught)
    assert told == [
        *(["The chat template ignores tools"] if traits.ignores_tools else []),
        *(["The chat template leaves out the instructions"] if traits.briefs_last else []),
    ]


def check_tools(name: str, talk: Talk) -> None:
    traits = TRAITS[name]
    # Some write calls and results otherwise once they are answered.
    said = in_pieces(talk.tokenizer, "the fox")
    talk.turn("Hello", said, goes_back_to_prompt=False)
    asked = (
        [call(name, 1, "Paris"), call(name, 2, "Rome")]
        if traits.several
        else [call(name, 1, "Paris")]
    )
    answers = [result(1, "fine é"), result(2, "rain")] if traits.several else [result(1, "fine")]
    # The model's call, taken apart by whoever runs the tools.
    question = [Message.user("What is the weather?"), Message.assistant("", tool_calls=asked)]
    talk.turn([*question, *answers], said, goes_back_to_prompt=False)
    talk.turn("Thanks!", said, take=3, goes_back_to_prompt=False)
    # One result after the other, each answered.
    call_again = Message.assistant("", tool_calls=[call(name, 3, "Bonn")])
    talk.turn(
        [Message.user("And Bonn?"), call_again, result(3, "snow")], said, goes_back_to_prompt=False
    )
    talk.turn("Well.", said, goes_back_to_prompt=False)
    assert "Bonn" in talk.tokenizer.decode(talk.cache())


def knows_tools(name: str, tokenizer: HuggingFaceTokenizer) -> bool:
    """Whether a template writes calls and results."""
    talked = [
        Message.user("What is the weather?"),
        Message.assistant("", tool_calls=[call(name, 1, "Paris")]),
        result(1, "fine there"),
    ]
    text = renders(tokenizer, [message.to_template() for message in talked], tools=[TOOL])
    return "Paris" in text and "fine there" in text


@CASES
def test_what_a_template_takes_is_what_is_written_here(name, source):
    tokenizer = make(source, "byte-level")
    tools = [TOOL] if name in NEED_TOOLS else None
    user = {"role": "user", "content": "Hi"}
    assistant = {"role": "assistant", "content": "Ho"}
    system = {"role": "system", "content": "Be brief."}
    traits = TRAITS[name]
    assert renders(tokenizer, [user, assistant, user], tools=tools)
    assert ("Be brief." in renders(tokenizer, [system, user], tools=tools)) == traits.system
    assert (not renders(tokenizer, [user, user], tools=tools)) == traits.strict
    assert knows_tools(name, tokenizer) == traits.tools
    several = Message.assistant("", tool_calls=[call(name, 1, "Paris"), call(name, 2, "Rome")])
    called = [user, several.to_template(), result(1, "fine").to_template()]
    text = renders(tokenizer, called, tools=[TOOL])
    assert ("Paris" in text and "Rome" in text) == traits.several


@CASES
@pytest.mark.parametrize("instructions", [None, "Be brief."])
def test_a_refusal_names_the_template_s_own_words_and_changes_nothing(name, source, instructions):
    traits = TRAITS[name]
    tokenizer = make(source, "byte-level")
    talk = begin(name, source, "byte-level", instructions=None)
    talk.turn("Hello", in_pieces(tokenizer, "the fox"))
    session = talk.session
    before = (session.history, session.cached_tokens, talk.cache())
    session.instructions = instructions
    refused = []
    if instructions is not None and not traits.system:
        refused.append("And now?")
    if traits.strict:
        refused += [[Message.user("One"), Message.user("Two")], Message.assistant("I go on")]
    for prompt in refused:
        with pytest.raises(TemplateError) as caught:
            session.stream(prompt)
        # What the template says through raise_exception.
        assert any(said in str(caught.value) for said in REFUSALS), caught.value
        assert (session.history, session.cached_tokens, talk.cache()) == before
    session.instructions = None
    talk.turn("Goodbye", in_pieces(tokenizer, "the dog"))


REFUSALS = (
    "There is no system here",
    "User and assistant take turns",
    "System role not supported",
    "onversation roles must alternate user/assistant/user/assistant/...",
)


def test_every_published_template_is_here():
    assert our_templates().keys() <= TRAITS.keys()
    if "SEGUE_DATA" not in os.environ:
        pytest.skip("SEGUE_DATA is not set: no published chat templates to test.")
    assert len(published_templates()) == PUBLISHED
    assert TRAITS.keys() == {*our_templates(), *published_templates()}
