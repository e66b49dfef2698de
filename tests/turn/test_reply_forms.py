"""Conversations with models that write more than their answer: channels, wrappings, openings.

Whatever a reply was made of, later turns render it, keep what was read of it, and read no word of
it as something else. The oracle: what is fed is the template's own render, over ids that the fake
engine checks against its cache; and what a turn reads again is counted here.
"""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.logits import check_next_logits
from kit.models import tiny_hybrid, tiny_llama
from kit.probe import engine_of, held
from kit.sessions import check_ledger, common_prefix, rendered
from kit.templates import (
    KINDS,
    all_templates,
    can_spell,
    in_pieces,
    make_tokenizer,
    our_templates,
)
from segue import (
    ChatSession,
    GenerationConfig,
    Message,
    MlxEngine,
    Reply,
    TemplateError,
    TextKind,
    ToolCall,
)
from segue.ledger import MARK
from segue.testing import FakeEngine
from segue.tokenizers.hugging_face import HuggingFaceTokenizer
from segue.turn.prompts.rendering import Renderer

# Some of the templates leave out calls, which is said, and tried elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore::segue.TemplateWarning")

LONG = GenerationConfig(max_tokens=400)
cached_tokenizer = lru_cache(make_tokenizer)


def templates(*names: str):
    """Parameters: these templates, where they are at hand, with every kind of tokenizer."""
    found = [case for case in all_templates() if case.id in (*names, None)]
    kinds = pytest.mark.parametrize("kind", KINDS)
    cases = pytest.mark.parametrize(("name", "source"), found)
    return lambda test: kinds(cases(test))


def tokenizer_of(source: str, kind: str) -> HuggingFaceTokenizer:
    if not can_spell(kind, source):
        pytest.skip("The template has underscores, which SentencePiece takes for spaces.")
    return cached_tokenizer(source, kind)


class Talk:
    """A session whose model says what it is told to, by ids that nobody would encode."""

    def __init__(self, source: str, kind: str, *, trimmable: bool = True, **settings) -> None:
        self.tokenizer = tokenizer_of(source, kind)
        self.ids: list[list[int]] = []
        engine = FakeEngine(self._next, tokenizer=self.tokenizer, trimmable=trimmable)
        self.session = ChatSession(engine, **{"generation": LONG, **settings})
        self.reread = 0
        self._left: list[int] = []

    def _next(self, _: object) -> int:
        return self._left.pop(0)

    def say(
        self,
        prompt,
        reply: str,
        *,
        take: int | None = None,
        end: str = "",
        natural: bool = False,
        **kw,
    ) -> Reply:
        """A turn with this reply; left after `take` tokens.

        Args:
            end: The token that ends it; by default the tokenizer's own.
            natural: Whether its ids are those that the tokenizer would encode.
        """
        tokenizer, session = self.tokenizer, self.session
        last = tokenizer.vocabulary[end] if end else tokenizer.wrapped.eos_token_id
        ids = tokenizer.encode(reply) if natural else in_pieces(tokenizer, reply)
        self._left = [*ids, last]
        before = held(session) if session.cached_tokens else ()
        said = dict.fromkeys(TextKind, "")
        with session.stream(prompt, **kw) as live:
            for count, response in enumerate(live, start=1):
                said[response.kind] += response.text
                if count == take:
                    break
        check_ledger(session)
        prompt_ids = held(session)[: live.prompt_tokens]
        message = session.history[-1]
        assert tokenizer.decode(prompt_ids) in (render_of(session), marked_render_of(session))
        assert (live.text, live.reasoning) == (message.text, message.reasoning or "")
        if live.finish_reason is None:
            assert live.text.startswith(said[TextKind.ANSWER])
            assert live.reasoning.startswith(said[TextKind.REASONING])
        else:
            assert (live.text, live.reasoning) == tuple(said.values())
        if engine_of(session).trimmable:
            best = min(common_prefix(before, prompt_ids), len(prompt_ids) - 1)
            assert live.cached_tokens == best
        self.reread = len(before) - common_prefix(before, prompt_ids)
        return live


def marked_render_of(session: ChatSession) -> str:
    """The same, where the template looks for something in contents that are only text."""
    asked = session.conversation.with_messages(session.history[:-1])
    return Renderer(engine_of(session).tokenizer).render(asked).replace(MARK, "")


def render_of(session: ChatSession) -> str:
    """The prompt of the latest reply, as the template renders it; what it refuses, joined."""
    messages = session.history[:-1]
    try:
        return rendered(session, messages, prompt=True)
    except TemplateError:
        joined = [
            Message.assistant(
                "",
                tool_calls=message.tool_calls,
                reasoning=f"{message.reasoning}\n\n{message.text}",
            )
            if message.tool_calls and message.reasoning and message.text
            else message
            for message in messages
        ]
        return rendered(session, joined, prompt=True)


# --- channels -----------------------------------------------------------------------------------

channels = templates("harmony", "openai-gpt-oss-120b")
FINAL = "<|channel|>final<|message|>"
ANALYSIS = "<|channel|>analysis<|message|>"
PREAMBLE = "<|channel|>commentary<|message|>"
NEXT = "<|end|><|start|>assistant"
CALL = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
ARGUMENTS = '{"city": "Bonn"}'
WEATHER = ToolCall("weather", {"city": "Bonn"})
# As the template writes a call.
WRITTEN = " to=functions.weather<|channel|>commentary json<|message|>" + ARGUMENTS


@channels
def test_an_answer_without_analysis_is_not_read_again(name, source, kind):
    talk = Talk(source, kind)
    for question in ("Hello", "And now?", "Well?"):
        assert talk.say(question, FINAL + "the fox").text == "the fox"
        assert talk.session.history[-1] == Message.assistant("the fox")
        # The template ends earlier replies otherwise than the model does: a token.
        assert talk.reread == (0 if question == "Hello" else 1)


@channels
@pytest.mark.parametrize(
    ("reply", "reasoning", "answer"),
    [
        (ANALYSIS + "hm" + NEXT + ANALYSIS + "so" + NEXT + FINAL + "yes", "hm\n\nso", "yes"),
        (PREAMBLE + "I look." + NEXT + FINAL + "yes", "", "I look.\n\nyes"),
        (ANALYSIS + "hm" + NEXT + PREAMBLE + "I look.", "hm", "I look."),
        (
            PREAMBLE + "I look." + NEXT + ANALYSIS + "hm" + NEXT + FINAL + "yes",
            "hm",
            "I look.\n\nyes",
        ),
        ("<|channel|>final <|constrain|>json<|message|>{}", "", "{}"),
        (FINAL + "write <|end|> there", "", "write <|end|> there"),
        (ANALYSIS + "hm" + FINAL + "yes", "hm", "yes"),
        ("the fox", "", "the fox"),
        ("", "", ""),
    ],
)
def test_a_reply_of_several_messages_is_read_as_such(name, source, kind, reply, reasoning, answer):
    talk = Talk(source, kind)
    for question in ("Hello", "And now?", "Well?"):
        live = talk.say(question, reply)
        assert (live.reasoning, live.text) == (reasoning, answer)
    session = talk.session
    session.undo()
    talk.say("Well then?", reply)
    branch = session.fork()
    talk.session = branch
    talk.say("A branch", reply)


@channels
@pytest.mark.parametrize("thought", [False, True])
@pytest.mark.parametrize("preamble", [False, True])
@pytest.mark.parametrize("header", [CALL + ARGUMENTS, WRITTEN], ids=["marked", "written"])
def test_a_tool_call_is_a_call_and_its_result_finds_it(
    name, source, kind, header, preamble, thought
):
    talk = Talk(source, kind)
    for question in ("What is the weather?", "And now?"):
        parts = [ANALYSIS + "hm"] * thought + [PREAMBLE + "I look."] * preamble + [header]
        # Of what is rendered otherwise, only natural ids before it can be kept.
        live = talk.say(question, NEXT.join(parts), end="<|call|>", natural=header is not WRITTEN)
        message = talk.session.history[-1]
        assert message == Message.assistant(
            "I look." if preamble else "",
            tool_calls=[WEATHER],
            reasoning="hm" if thought else None,
        )
        assert str(live.finish_reason) == "stop"
        live = talk.say(Message.tool("fine", call=WEATHER), FINAL + "It is fine.")
        if header is WRITTEN and not preamble:
            assert talk.reread == 0
        elif header is not WRITTEN and not preamble:  # no more than the call
            assert 0 < talk.reread <= len(talk.tokenizer.encode(header)) + 1
        assert live.text == "It is fine."
    # A call that nobody answers is no obstacle either.
    talk.say("What is the weather?", header, end="<|call|>")
    talk.say("Never mind.", FINAL + "Well.")


@channels
def test_a_call_that_is_no_json_is_a_call_too(name, source, kind):
    talk = Talk(source, kind)
    for reply, call in (
        ("<|channel|>analysis to=python code<|message|>print(1)", ToolCall("python", "print(1)")),
        ("<|channel|>commentary to=functions.now<|message|>", ToolCall("now", {})),
    ):
        talk.say("Go", reply, end="<|call|>")
        assert talk.session.history[-1] == Message.assistant("", tool_calls=[call])
        talk.say(Message.tool("1", call=call), FINAL + "one")


REPLY = (
    ANALYSIS + "hm" + NEXT + PREAMBLE + "I é." + NEXT + CALL + ARGUMENTS + NEXT + FINAL + "the fox"
)


@channels
@pytest.mark.parametrize("trimmable", [True, False])
def test_a_reply_cut_at_any_token_is_kept_and_talked_on(name, source, kind, trimmable):
    talk = Talk(source, kind, trimmable=trimmable)
    count = len(in_pieces(talk.tokenizer, REPLY))
    for take in range(1, count, 3):
        live = talk.say("Hello", REPLY, take=take)
        told = live.text + live.reasoning + str(talk.session.history[-1].tool_calls)
        for word, needed in (("hm", ANALYSIS + "hm"), ("I ", PREAMBLE + "I "), ("Bo", '"Bo')):
            if in_pieces(talk.tokenizer, REPLY)[:take] > in_pieces(
                talk.tokenizer, REPLY[: REPLY.index(needed) + len(needed)]
            ) and take > len(in_pieces(talk.tokenizer, REPLY[: REPLY.index(needed) + len(needed)])):
                assert word in told
        talk.say("And now?", FINAL + "yes")
        talk.session.clear()


@channels
def test_the_ids_that_end_a_reply_are_not_those_that_end_a_message(name, source, kind):
    tokenizer = tokenizer_of(source, kind)
    vocabulary = tokenizer.vocabulary
    assert tokenizer.eos_token_ids == {vocabulary["<|return|>"], vocabulary["<|call|>"]}
    # Whoever loads it may take any token for an end.
    tokenizer.wrapped.add_eos_token("<|end|>")
    try:
        assert vocabulary["<|end|>"] not in tokenizer.eos_token_ids
    finally:
        tokenizer.wrapped.eos_token_ids = {tokenizer.wrapped.eos_token_id}


@channels
def test_a_stop_string_ends_the_answer_and_nothing_before_it(name, source, kind):
    talk = Talk(source, kind, generation=GenerationConfig(max_tokens=400, stop=["\n\n", "final"]))
    reply = ANALYSIS + "a\n\nb final" + NEXT + FINAL + "the fox\n\nand more"
    for _ in range(2):
        live = talk.say("Hello", reply)
        assert (live.reasoning, live.text) == ("a\n\nb final", "the fox")
        assert str(live.finish_reason) == "stop"
    live = talk.say("Hello", reply, stop_in_reasoning=True)
    assert (live.reasoning, live.text) == ("a", "")
    talk.say("And now?", reply)


PARTS = st.lists(
    st.sampled_from(
        [
            *(ANALYSIS, FINAL, PREAMBLE, CALL, NEXT, "<|end|>", "<|start|>", "<|message|>"),
            *("<|call|>", " to=functions.f", "<|channel|>", "<|start|>user", "hm", "{}", "\n"),
            *(" ", "é"),
        ]
    ),
    max_size=8,
).map("".join)


@pytest.mark.parametrize(
    "source",
    [case.values[1] for case in all_templates() if case.id in ("harmony", "openai-gpt-oss-120b")],
)
@settings(deadline=None)
@given(replies=st.lists(st.tuples(PARTS, st.none() | st.integers(1, 30)), min_size=1, max_size=3))
def test_whatever_is_said_later_turns_go_on(source, replies):
    talk = Talk(source, "byte-level")
    for reply, take in replies:
        talk.say("Hello", reply, take=take)
        calls = talk.session.history[-1].tool_calls
        if calls:
            talk.say(Message.tool("fine", call=calls[0]), reply, take=take)
    talk.say("The end", FINAL + "yes")


# --- what stands around the answer --------------------------------------------------------------

wrapped = templates("wrapped", "CohereForAI-c4ai-command-r7b-12-2024-tool_use")


def around(name: str, answer: str) -> str:
    gap = "\n" if name == "wrapped" else ""
    return f"<|START_RESPONSE|>{gap}{answer}{gap}<|END_RESPONSE|>"


@wrapped
@pytest.mark.parametrize("answer", ["the fox", " the fox\n", "a<|END_RESPONSE|>b", ""])
def test_what_the_template_writes_around_an_answer_is_neither_shown_nor_read_again(
    name, source, kind, answer
):
    talk = Talk(source, kind)
    for _ in range(4):
        live = talk.say("Hello", around(name, answer))
        assert live.text == answer == talk.session.history[-1].text
        assert talk.reread == 0
    prompt = talk.tokenizer.decode(held(talk.session)[: live.prompt_tokens])
    assert prompt.count("<|START_RESPONSE|>") == 3
    assert prompt.count("<|END_RESPONSE|>") == 3 * (1 + answer.count("<|END_RESPONSE|>"))


@templates("CohereForAI-c4ai-command-r7b-12-2024-tool_use")
def test_documents_that_the_template_thinks_about_change_nothing(name, source, kind):
    talk = Talk(source, kind, template_kwargs={"documents": [{"text": "a fox"}], "tools": []})
    for _ in range(3):
        assert talk.say("Hello", around(name, "the fox")).text == "the fox"
        assert talk.reread == 0


@wrapped
def test_an_answer_in_tags_that_is_cut_is_kept(name, source, kind):
    talk = Talk(source, kind)
    reply = around(name, "the fox")
    for take in range(1, len(in_pieces(talk.tokenizer, reply)) + 1):
        live = talk.say("Hello", reply, take=take)
        assert "the fox".startswith(live.text.strip("\n"))
        talk.say("And now?", reply)
    live = talk.say("Hello", around(name, "the END fox"), stop="END")
    assert live.text == "the "
    assert talk.say("Hello", "no tags").text == "no tags"
    talk.say("And now?", reply)


@wrapped
def test_a_thought_before_an_answer_in_tags(name, source, kind):
    talk = Talk(source, kind)
    start, end = talk.tokenizer.reasoning_tags
    for _ in range(3):
        live = talk.say("Hello", f"{start}hm{end}{around(name, 'the fox')}")
        assert (live.reasoning, live.text) == ("hm", "the fox")


@templates("ibm-granite-granite-3.3-2B-Instruct")
@pytest.mark.parametrize("instructions", [None, "Be brief."])
@pytest.mark.parametrize("thinking", [False, True])
def test_tags_that_the_template_asks_for_are_not_the_answer(
    name, source, kind, thinking, instructions
):
    arguments = {"thinking": True} if thinking else {}
    talk = Talk(source, kind, instructions=instructions, template_kwargs=arguments)
    for _ in range(3):
        live = talk.say("Hello", "<think>hm</think>\n<response>\nthe fox\n</response>")
        assert (live.reasoning, live.text) == ("hm", "the fox")
    prompt = talk.tokenizer.decode(held(talk.session)[: live.prompt_tokens])
    assert "<response>\nthe fox" not in prompt
    assert "<response>the fox" not in prompt
    plain = talk.say("Write XML", "<response>the fox</response>")
    asked = thinking and instructions is None
    assert plain.text == ("the fox" if asked else "<response>the fox</response>")


# --- over real caches ---------------------------------------------------------------------------


def say(ids: list[int]):
    """A processor that has a model say these ids."""
    begun: list[int] = []

    def process(tokens, logits):
        begun[:] = begun or [len(tokens)]
        # The engine asks for one more before the reply is known to be over.
        wanted = (ids + ids[-1:])[len(tokens) - begun[0]]
        return mx.where(mx.arange(logits.shape[-1]) == wanted, logits, -1e9)

    return process


@pytest.mark.parametrize("make", [tiny_llama, tiny_hybrid])
@pytest.mark.parametrize(
    ("name", "replies"),
    [
        (
            "harmony",
            [
                (ANALYSIS + "hm" + NEXT + PREAMBLE + "I look." + NEXT + WRITTEN, "<|call|>"),
                (ANALYSIS + "so" + NEXT + FINAL + "the fox", "<|return|>"),
                (FINAL + "é", "<|return|>"),
            ],
        ),
        (
            "wrapped",
            [
                ("<|START_RESPONSE|>\nthe fox\n<|END_RESPONSE|>", "<|END_OF_TURN_TOKEN|>"),
                (
                    "<think>hm</think><|START_RESPONSE|>\né\n<|END_RESPONSE|>",
                    "<|END_OF_TURN_TOKEN|>",
                ),
            ],
        ),
    ],
)
def test_the_cache_is_that_of_a_fresh_prefill(make, name, replies):
    tokenizer = cached_tokenizer(our_templates()[name], "byte-level")
    model = make(max(tokenizer.vocabulary.values()) + 1)
    session = ChatSession(MlxEngine(model, tokenizer, name="tiny"), instructions="Be brief.")
    for reply, end in replies * 2:
        calls = session.history[-1].tool_calls if session.history else ()
        prompt = Message.tool("fine", call=calls[0]) if calls else "Hello"
        ids = [*in_pieces(tokenizer, reply), tokenizer.vocabulary[end]]
        session.respond(prompt, max_tokens=200, logits_processors=[say(ids)])
        check_next_logits(session)
        assert session.history[-1].text in ("I look.", "the fox", "é")
        session.prewarm()
        check_next_logits(session)


# --- openings -----------------------------------------------------------------------------------

# What each template does with the start of a reply: it opens a thought, or doesn't.
OPENS = {
    "thinking": ("<think>", "</think>", True),
    "NVIDIA-Nemotron-Nano-v2": ("<think>", "</think>", True),
    "Qwen3.5-4B": ("<think>", "</think>", True),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": ("<think>", "</think>", True),
    "nemotron3nano": ("<think>", "</think>", True),
    "Qwen-Qwen3-0.6B": ("<think>", "</think>", False),
    "ByteDance-Seed-OSS": ("<seed:think>", "</seed:think>", False),
    "gemma4_e2b": ("<|channel>thought", "<channel|>", False),
    "wrapped": ("<think>", "</think>", False),
}
SWITCHED_OFF = ("thinking", "Qwen3.5-4B", "nemotron3nano", "Qwen-Qwen3-0.6B")


def messages_about(start: str, end: str, whole: str) -> list[str]:
    return [
        *("hi", ">", "", " ", "\n", start, f"{start}\n", f" {start} ", f"what is {start}?", end),
        *(f"{start}\n\n{end}\n\n", f"{start}hm{end}", whole, f"x{whole}", f"{whole}x", "x", "y"),
    ]


@templates(*OPENS)
def test_whatever_is_asked_a_thought_is_a_thought(name, source, kind):
    start, end, opens = OPENS[name]
    for instructions in (None, "Be brief."):
        session = Talk(source, kind, instructions=instructions).session
        whole = rendered(session, [Message.user("Zq")], prompt=True).partition("Zq")[2]
        for text in messages_about(start, end, whole):
            talk = Talk(source, kind, instructions=instructions)
            live = talk.say(text, ("" if opens else start) + f"hm{end}the fox")
            assert (live.reasoning, live.text.strip()) == ("hm", "the fox"), text
            live = talk.say(text, ("" if opens else start) + f"hm{end}the fox")
            assert (live.reasoning, live.text.strip()) == ("hm", "the fox"), text
            if not opens:
                assert talk.say(text, "the fox").text == "the fox", text


@templates(*SWITCHED_OFF)
def test_whatever_is_asked_an_answer_is_an_answer_where_thinking_is_off(name, source, kind):
    start, end, _ = OPENS[name]
    for text in messages_about(start, end, "<|im_end|>\n<|im_start|>assistant\n<think>\n"):
        talk = Talk(source, kind, template_kwargs={"enable_thinking": False})
        for _ in range(2):
            live = talk.say(text, "the fox")
            assert (live.reasoning, live.text) == ("", "the fox"), text


@templates("Qwen3.5-4B", "NVIDIA-Nemotron-Nano-v2", "nemotron3nano", "thinking")
def test_whatever_a_tool_answers_a_thought_is_a_thought(name, source, kind):
    call = ToolCall("look", {"at": "it"}, id="call00001")
    for text in messages_about("<think>", "</think>", "<|im_end|>\n<|im_start|>assistant\n<think>"):
        talk = Talk(source, kind)
        asked = [Message.user("hi"), Message.assistant("", tool_calls=[call])]
        live = talk.say([*asked, Message.tool(text, call=call)], "hm</think>the fox")
        assert (live.reasoning, live.text.strip()) == ("hm", "the fox"), text
