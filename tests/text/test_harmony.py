"""Replies of several messages in channels, as gpt-oss writes them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segue import FinishReason, TextKind, ToolCall
from segue.testing import ToyTokenizer
from segue.text.form import ReplyForm
from segue.text.harmony import HarmonySplitter
from segue.text.reader import ReplyReader

TAGS = (
    "<|channel|>analysis<|message|>",
    "<|end|><|start|>assistant<|channel|>final<|message|>",
)
FINAL = "<|channel|>final<|message|>"
ANALYSIS = "<|channel|>analysis<|message|>"
PREAMBLE = "<|channel|>commentary<|message|>"
NEXT = "<|end|><|start|>assistant"
CALL = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
WEATHER = ToolCall("weather", {"city": "Bonn"})
TOKENIZER = ToyTokenizer(
    ("<|return|>", "<|call|>", "<|channel|>", "<|message|>", "<|constrain|>", "hello")
)
RETURN, CALLS = TOKENIZER.encode("<|return|><|call|>")


def read(
    text: str,
    sizes: Sequence[int] = (),
    *,
    ended: bool = True,
    stop: Sequence[str] = (),
    opening: str = "",
    **settings,
) -> ReplyReader:
    """A reader that read a text in pieces of these sizes; ended by the model, or cut."""

    class Pieces:
        """Tokens are pieces of the text, by their number."""

        def add(self, token: int) -> str:
            return pieces[token]

        def finish(self) -> str:
            return ""

    pieces, at = [], 0
    for size in sizes:
        pieces.append(text[at : at + size])
        at += size
    pieces.append(text[at:])
    reader = ReplyReader(
        Pieces(),
        ends={-1},
        max_tokens=10_000,
        stop=stop,
        form=ReplyForm(TAGS, opening=opening),
        **settings,
    )
    said: dict[TextKind, str] = dict.fromkeys(TextKind, "")
    for token in [*range(len(pieces)), *([-1] if ended else [])]:
        for piece in reader.push(token):
            said[piece.kind] += piece.text
        # What is passed on is what is recorded, at every moment.
        assert (reader.text, reader.reasoning) == (
            said[TextKind.ANSWER],
            said[TextKind.REASONING],
        )
        if reader.finish_reason is not None:
            break
    reader.close()
    assert reader.text.startswith(said[TextKind.ANSWER])
    assert reader.reasoning.startswith(said[TextKind.REASONING])
    return reader


SIZES = st.lists(st.integers(1, 12), max_size=60)


@pytest.mark.parametrize(
    ("text", "reasoning", "answer", "calls"),
    [
        ("", "", "", ()),
        ("plain words", "", "plain words", ()),
        (" to be or not", "", " to be or not", ()),
        ("<|chan", "", "<|chan", ()),
        (FINAL + "yes", "", "yes", ()),
        (ANALYSIS + "hm" + NEXT + FINAL + "yes", "hm", "yes", ()),
        (ANALYSIS + "hm" + NEXT + ANALYSIS + "so" + NEXT + FINAL + "yes", "hm\n\nso", "yes", ()),
        (PREAMBLE + "I look." + NEXT + FINAL + "yes", "", "I look.\n\nyes", ()),
        (
            PREAMBLE + "I look." + NEXT + ANALYSIS + "hm" + NEXT + FINAL + "yes",
            "hm",
            "I look.\n\nyes",
            (),
        ),
        (ANALYSIS + "hm" + NEXT + CALL + '{"city": "Bonn"}', "hm", "", (WEATHER,)),
        (CALL + '{"city": "Bonn"}<|call|>', "", "", (WEATHER,)),
        (
            PREAMBLE + "I look." + NEXT + CALL + '{"city":"Bonn"}',
            "",
            "I look.",
            (WEATHER,),
        ),
        # The recipient in the role's part, and types without their mark.
        (
            " to=functions.weather<|channel|>commentary json<|message|>" + '{"city": "Bonn"}',
            "",
            "",
            (WEATHER,),
        ),
        (
            ANALYSIS
            + "hm<|end|><|start|>assistant to=functions.weather<|channel|>commentary"
            + '<|message|>{"city": "Bonn"}',
            "hm",
            "",
            (WEATHER,),
        ),
        ("<|channel|>final <|constrain|>json<|message|>{}", "", "{}", ()),
        ("<|channel|>final json<|message|>{}", "", "{}", ()),
        ("<|message|>yes", "", "yes", ()),
        (ANALYSIS + "hm<|end|><|start|>assistant<|message|>yes", "hm", "yes", ()),
        # Headers that are not quite as they should be.
        ("<|start|>assistant" + FINAL + "yes", "", "yes", ()),
        ("assistant" + FINAL + "yes", "", "yes", ()),
        ("assistants help", "", "assistants help", ()),
        ("assistant", "", "assistant", ()),
        ("<|channel|>final \n<|message|>yes", "", "yes", ()),
        (ANALYSIS + "hm<|end|>" + FINAL + "yes", "hm", "yes", ()),
        ("\n\n plain", "", "\n\n plain", ()),
        # A tool of the publisher's: thinks aloud in code.
        (
            "<|channel|>analysis to=python code<|message|>print(1)",
            "",
            "",
            (ToolCall("python", "print(1)"),),
        ),
        ("<|channel|>commentary to=functions.now<|message|>", "", "", (ToolCall("now", {}),)),
        ("<|channel|>commentary to=functions.f<|message|>{oh", "", "", (ToolCall("f", "{oh"),)),
        ("<|channel|>commentary to=user<|message|>yes", "", "yes", ()),
        # Several calls, and what comes after one.
        (
            CALL + '{"city": "Bonn"}' + NEXT + CALL + '{"city": "Rome"}',
            "",
            "",
            (WEATHER, ToolCall("weather", {"city": "Rome"})),
        ),
        (CALL + '{"city": "Bonn"}<|call|><|start|>assistant' + FINAL + "so", "", "so", (WEATHER,)),
        # An end that is none, and marks in the text.
        (FINAL + "write <|end|> there", "", "write <|end|> there", ()),
        (FINAL + "a<|start|>user<|message|>b", "", "a<|start|>user<|message|>b", ()),
        (FINAL + "a <|channel|> is a b", "", "a <|channel|> is a b", ()),
        (FINAL + "<|end|>" + NEXT + FINAL + "b", "", "<|end|>\n\nb", ()),
        (FINAL + "a<|message|>b to=c", "", "a<|message|>b to=c", ()),
        # A header without the end of the message before it.
        (ANALYSIS + "hm" + FINAL + "yes", "hm", "yes", ()),
        (ANALYSIS + "hm<|start|>assistant" + FINAL + "yes", "hm", "yes", ()),
        (ANALYSIS + "hm<|end|>\n<|start|>assistant" + FINAL + "yes", "hm", "yes", ()),
        (ANALYSIS + "hm<|return|>", "hm", "", ()),
        (FINAL + "yes" + NEXT, "", "yes", ()),
        (FINAL + "\n yes \n" + NEXT + FINAL, "", "\n yes \n", ()),
    ],
)
@given(sizes=SIZES)
def test_however_it_comes_it_is_read_the_same_way(text, reasoning, answer, calls, sizes):
    reader = read(text, sizes)
    assert (reader.reasoning, reader.text, reader.calls) == (reasoning, answer, calls)
    assert reader.finish_reason is FinishReason.STOP


@pytest.mark.parametrize(
    ("text", "reasoning", "answer", "calls"),
    [
        (ANALYSIS + "hm", "hm", "", ()),
        ("<|channel|>ana", "", "", ()),
        (ANALYSIS + "hm<|en", "hm<|en", "", ()),
        (ANALYSIS + "hm" + NEXT + "<|channel|>fin", "hm", "", ()),
        (CALL + '{"city": "Bo', "", 'to=functions.weather {"city": "Bo', ()),
        (CALL + '{"city": "Bonn"}', "", 'to=functions.weather {"city": "Bonn"}', ()),
        (CALL + '{"city": "Bonn"}<|call|>', "", "", (WEATHER,)),
        (CALL + '{"city": "Bonn"}<|end|><|start|>assis', "", "", (WEATHER,)),
        (" to=", "", " to=", ()),
        (" to=user", "", " to=user", ()),
        ("<|channel|>final to=user", "", "", ()),
        (" to=functions.weather<|channel|>comm", "", "to=functions.weather", ()),
        (
            PREAMBLE + "I look." + NEXT + " to=functions.wea",
            "",
            "I look.\n\nto=functions.wea",
            (),
        ),
        (
            PREAMBLE + "I look." + NEXT + CALL + "{",
            "",
            "I look.\n\nto=functions.weather {",
            (),
        ),
    ],
)
@given(sizes=SIZES)
def test_a_call_that_is_cut_short_is_text(text, reasoning, answer, calls, sizes):
    reader = read(text, sizes, ended=False)
    assert (reader.reasoning, reader.text, reader.calls) == (reasoning, answer, calls)
    assert reader.finish_reason is None


class Spoken(NamedTuple):
    """A message of a reply."""

    channel: str
    recipient: str
    in_role: bool
    kind: str
    body: str
    end: str

    @property
    def header(self) -> str:
        recipient = f" to={self.recipient}" if self.recipient else ""
        role, channel = (recipient, "") if self.in_role else ("", recipient)
        return f"{role}<|channel|>{self.channel}{channel}{self.kind}<|message|>"


BODIES = st.lists(
    st.sampled_from(
        ["hello", " ", "\n", "<", "<|", "<|end|>", "<|sta", "to=", "<|message|>", "{}", "é", "|>"]
    ),
    max_size=6,
).map("".join)
SPOKEN = st.builds(
    Spoken,
    channel=st.sampled_from(["analysis", "commentary", "final"]),
    recipient=st.sampled_from(["", "", "", "functions.f", "python"]),
    in_role=st.booleans(),
    kind=st.sampled_from(["", " json", " <|constrain|>json", "<|constrain|>json"]),
    body=BODIES,
    end=st.sampled_from(["<|end|>", "<|end|>\n", "<|call|>", "<|return|>", ""]),
)


@given(st.lists(SPOKEN, max_size=4), SIZES)
def test_messages_of_all_kinds_are_told_apart(messages, sizes):
    text = ""
    kinds: dict[str, list[str]] = {"analysis": [], "answer": [], "call": []}
    for n, message in enumerate(messages):
        last = n == len(messages) - 1
        text += ("" if not n else "<|start|>assistant") + message.header + message.body
        text += "" if last else message.end
        kind = "call" if message.recipient else "answer"
        if message.channel == "analysis" and not message.recipient:
            kind = "analysis"
        if message.body.rstrip().endswith("<|end|>") and (last or not message.end):
            # Its own, as far as anyone can tell.
            message = message._replace(body=message.body.rstrip().removesuffix("<|end|>"))
        kinds[kind].append(message.body)
    reader = read(text, sizes)
    assert reader.reasoning == "\n\n".join(filter(None, kinds["analysis"]))
    assert reader.text == "\n\n".join(filter(None, kinds["answer"]))
    assert len(reader.calls) == len(kinds["call"])
    for call, body in zip(reader.calls, kinds["call"], strict=True):
        assert call.arguments == ({} if not body.strip() or body == "{}" else body)


@given(
    st.lists(
        st.sampled_from(
            [
                "<|end|>",
                "<|start|>",
                "<|channel|>",
                "<|message|>",
                "<|call|>",
                "<|constrain|>",
                "assistant",
                "analysis",
                "final",
                "commentary",
                " to=functions.f",
                "user",
                "hello",
                "\n",
                " ",
                "<|",
            ]
        ),
        max_size=14,
    ).map("".join),
    SIZES,
    st.booleans(),
)
def test_whatever_is_said_can_be_rendered(text, sizes, ended):
    reader = read(text, sizes, ended=ended)
    whole = read(text, ended=ended)
    assert (reader.text, reader.reasoning, reader.calls) == (
        whole.text,
        whole.reasoning,
        whole.calls,
    )
    # gpt-oss's template refuses messages with these.
    for said in (reader.text, reader.reasoning):
        assert "<|channel|>analysis<|message|>" not in said
        assert "<|channel|>final<|message|>" not in said
    # Each word is somewhere.
    kept = " ".join([reader.text, reader.reasoning, *map(str, reader.calls)])
    assert kept.count("hello") == text.count("hello")


@pytest.mark.parametrize(
    ("opening", "text", "reasoning", "answer"),
    [
        ("<|end|><|start|>assistant", FINAL + "yes", "", "yes"),
        ("<|end|><|start|>assistant<|channel|>final<|message|>", "yes", "", "yes"),
        ("<|end|><|start|>assistant<|channel|>analysis<|message|>", "hm", "hm", ""),
        (
            "<|end|><|start|>assistant<|channel|>analysis<|message|>",
            "hm" + NEXT + FINAL + "yes",
            "hm",
            "yes",
        ),
        (
            "<|start|>assistant" + ANALYSIS + NEXT + "<|channel|>",
            "final<|message|>yes",
            "",
            "yes",
        ),
        ("nothing of it", FINAL + "yes", "", "yes"),
    ],
)
def test_a_prompt_may_have_opened_a_message(opening, text, reasoning, answer):
    reader = read(text, opening=opening)
    assert (reader.reasoning, reader.text) == (reasoning, answer)


@given(SIZES)
def test_stop_strings_watch_what_is_said_to_the_person(sizes):
    text = ANALYSIS + "final END" + NEXT + CALL + '"END"' + NEXT + FINAL + "the END of"
    reader = read(text, sizes, stop=["END", "final", "message", "assistant"])
    assert (reader.reasoning, reader.text) == ("final END", "the ")
    assert [call.arguments for call in reader.calls] == ['"END"']
    assert reader.finish_reason is FinishReason.STOP
    reader = read(text, sizes, stop=["END", "message"], stop_in_reasoning=True)
    assert (reader.reasoning, reader.text, reader.calls) == ("final ", "", ())
    assert reader.finish_reason is FinishReason.STOP


def test_no_stop_string_drops_what_was_said_of_a_cut_call():
    reader = read(CALL + '{"a": "\n\nEND', ended=False, stop=["END", "\n\n"])
    assert reader.text == 'to=functions.weather {"a": "\n\nEND'
    assert reader.finish_reason is None


def test_the_token_that_ends_a_call_completes_it():
    text = "<|channel|>commentary to=functions.f<|message|>{}"
    for end, calls, reason in (
        (CALLS, (ToolCall("f", {}),), FinishReason.STOP),
        (None, (), FinishReason.LENGTH),
    ):
        ids = TOKENIZER.encode(text) + ([] if end is None else [end])
        reader = ReplyReader(
            TOKENIZER.detokenizer(),
            ends={RETURN, CALLS},
            max_tokens=len(ids),
            form=ReplyForm(TAGS),
        )
        for token in ids:
            reader.push(token)
        assert (reader.calls, reader.finish_reason) == (calls, reason)
        assert reader.text == ("" if calls else "to=functions.f {}")


@given(st.integers(0, 60))
def test_a_reply_goes_on_where_it_was_cut(cut):
    text = ANALYSIS + "hm" + NEXT + PREAMBLE + "é" + NEXT + CALL + "{}" + NEXT + FINAL + "yes"
    ids = TOKENIZER.encode(text)
    reader = ReplyReader(
        TOKENIZER.detokenizer(), ends={RETURN}, max_tokens=200, form=ReplyForm(TAGS)
    )
    reader.resume(ids[:cut])
    for token in [*ids[cut:], RETURN]:
        reader.push(token)
    assert (reader.reasoning, reader.text) == ("hm", "é\n\nyes")
    assert reader.calls == (ToolCall("weather", {}),)
    assert reader.tokens == [*ids[cut:], RETURN]


def test_words_are_passed_on_at_once():
    splitter = HarmonySplitter(ReplyForm(TAGS))
    splitter.add(FINAL)
    for text in ("a", "é", "\n", " "):
        assert [said.text for said in splitter.add(text)] == [text]
    assert list(itertools.chain(splitter.add("<"), splitter.add("b"))) == [
        (TextKind.ANSWER, "<b", 1, True, None)
    ]
