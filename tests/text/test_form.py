"""What is written around a reply's text: found out by rendering, and taken off as it comes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segue import Message, TemplateError, TextKind
from segue.text.form import ReplyForm, Wrapping, find_opening, find_wrapping
from segue.text.tags import ReasoningSplitter

TAGS = ("<think>", "</think>")
# As Command R7B's, as one with line breaks, and one that a template asks for.
COHERE = Wrapping("<|START_RESPONSE|>", "<|END_RESPONSE|>")
LINES = Wrapping("<response>\n", "\n</response>\n")
ASKED = Wrapping("<response>", "</response>", rendered=False)
# As functionary's, which names a recipient.
WORD = Wrapping("all\n", "")
LATER = Wrapping("<response>", "</response>", rendered=False, after_reasoning=True)
SIZES = st.lists(st.integers(1, 9), max_size=30)


def split(form: ReplyForm, text: str, sizes: Sequence[int]) -> tuple[str, str]:
    """Reasoning and answer of a text that comes in pieces."""
    splitter = ReasoningSplitter(form)
    said, at = [], 0
    for size in sizes:
        said += splitter.add(text[at : at + size])
        at += size
    said += [*splitter.add(text[at:]), *splitter.finish(ended=True)]
    reasoning, answer = (
        "".join(part.text for part in said if part.kind is kind)
        for kind in (TextKind.REASONING, TextKind.ANSWER)
    )
    return reasoning, answer


@pytest.mark.parametrize(
    ("wrapping", "text", "reasoning", "answer"),
    [
        (COHERE, "<|START_RESPONSE|>yes<|END_RESPONSE|>", "", "yes"),
        (COHERE, "<|START_RESPONSE|>\nyes\n<|END_RESPONSE|>", "", "\nyes\n"),
        (COHERE, "<think>hm</think><|START_RESPONSE|>yes<|END_RESPONSE|>", "hm", "yes"),
        (COHERE, "<think>hm</think>\n<|START_RESPONSE|>yes<|END_RESPONSE|>\n", "hm", "yes"),
        (COHERE, " <|START_RESPONSE|>yes", "", "yes"),
        (COHERE, "yes", "", "yes"),
        (COHERE, " yes ", "", " yes "),
        (COHERE, "yes<|END_RESPONSE|>", "", "yes"),
        (COHERE, "<|START_RESPONSE|>", "", ""),
        (COHERE, "<|START_RESPONSE|><|END_RESPONSE|>", "", ""),
        (COHERE, "<|START_RESP", "", "<|START_RESP"),
        (COHERE, "<|START_RESPONSE|>yes<|END_RESP", "", "yes<|END_RESP"),
        # An end that is none: the text goes on.
        (
            COHERE,
            "<|START_RESPONSE|>a<|END_RESPONSE|>b<|END_RESPONSE|> ",
            "",
            "a<|END_RESPONSE|>b",
        ),
        (COHERE, "say <|START_RESPONSE|>", "", "say <|START_RESPONSE|>"),
        (COHERE, "<think>hm<|START_RESPONSE|></think>yes", "hm<|START_RESPONSE|>", "yes"),
        (LINES, "<response>\nyes\n</response>\n", "", "yes"),
        (LINES, "<response>\n\nyes\n\n</response>\n", "", "\nyes\n"),
        (LINES, "<response>yes</response>", "", "yes"),
        (LINES, "<response>\nyes\n", "", "yes\n"),
        (LINES, "<response>\n", "", ""),
        (LINES, "<response>", "", ""),
        (WORD, "all\nyes", "", "yes"),
        (WORD, "all good", "", "all good"),
        (WORD, "all", "", "all"),
        (ASKED, "<think>hm</think>\n\n<response>\n\nyes\n\n</response>\n", "hm", "yes"),
        (ASKED, "<response>yes</response>", "", "yes"),
        (ASKED, "<response>yes\n\n</response> no", "", "yes\n\n</response> no"),
        (ASKED, "<response>yes\n\n", "", "yes\n\n"),
        (ASKED, "yes</response>", "", "yes</response>"),
        (ASKED, "<responses>yes", "", "<responses>yes"),
        (LATER, "<response>yes</response>", "", "<response>yes</response>"),
        (LATER, "<think>hm</think><response>yes</response>", "hm", "yes"),
        (LATER, "<think>hm</think>yes</response>", "hm", "yes</response>"),
    ],
)
@given(sizes=SIZES)
def test_what_stands_around_an_answer_is_not_the_answer(wrapping, text, reasoning, answer, sizes):
    assert split(ReplyForm(TAGS, wrapping), text, sizes) == (reasoning, answer)
    if not reasoning and not text.strip().startswith("<think>"):
        assert split(ReplyForm(None, wrapping), text, sizes) == (reasoning, answer)


@given(
    st.sampled_from([COHERE, LINES]),
    st.text("ab \n<|>/", max_size=12) | st.sampled_from(["<response>", "a<|END_RESPONSE|>b"]),
    st.booleans(),
    SIZES,
)
def test_an_answer_is_recorded_so_that_it_is_rendered_as_it_was_said(wrapping, said, thinks, sizes):
    text = wrapping.start + said + wrapping.end
    thought = "<think>hm</think>" if thinks else ""
    assert split(ReplyForm(TAGS, wrapping), thought + text, sizes)[1] == said


@given(
    st.sampled_from([None, COHERE, LINES, ASKED, LATER]),
    st.lists(
        st.sampled_from(
            [*TAGS, ASKED.start, ASKED.end, COHERE.start, COHERE.end, "a", "b", "\n", " ", "<"]
        ),
        max_size=10,
    ).map("".join),
    SIZES,
)
def test_no_word_is_lost_or_said_twice(wrapping, text, sizes):
    form = ReplyForm(TAGS, wrapping)
    reasoning, answer = split(form, text, sizes)
    assert (reasoning, answer) == split(form, text, ())
    for letter in "ab":
        spoken = text.replace("</", "").replace("<think>", "").replace("think>", "")
        spoken = spoken.replace("<response>", "").replace("response>", "")
        spoken = spoken.replace("<|START_RESPONSE|>", "").replace("<|END_RESPONSE|>", "")
        assert (reasoning + answer).count(letter) >= spoken.count(letter)


# --- finding out --------------------------------------------------------------------------------


class Template:
    """A template that writes a prompt's parts with these texts between them.

    Args:
        opening: What it ends a prompt with.
        around: What it writes before and after an answer.
        system: What it says before anything else.
        end: What ends a turn.
        takes_off: The tags that it takes off answers.
    """

    def __init__(
        self,
        opening: str = "",
        around: tuple[str, str] = ("", ""),
        *,
        system: str = "",
        end: str = "<|end|>",
        takes_off: tuple[str, ...] = (),
        refuses: bool = False,
    ) -> None:
        self.opening, self.around, self.system, self.end = opening, around, system, end
        self.takes_off, self.refuses = takes_off, refuses

    def __call__(self, messages: Sequence[Message]) -> str:
        text = self.system
        for message in messages:
            said = message.text.strip()
            if message.role == "assistant":
                if self.refuses:
                    raise TemplateError("No.", remedy="None.")
                for tag in self.takes_off:
                    said = said.replace(tag, "")
                said = said.join(self.around)
            text += f"<|{message.role}|>{said}{self.end}"
        return f"{text}<|assistant|>{self.opening}"


def found(template: Template, *, tags=TAGS, ends=("<|end|>",), bare=None, instructions=None):
    return find_wrapping(
        template, bare or template, tags=tags, ends=ends, instructions=instructions
    )


@pytest.mark.parametrize("tags", [None, TAGS])
def test_what_a_template_writes_around_answers_is_found(tags):
    assert found(Template(around=("<a>\n", "\n</a>\n")), tags=tags) == Wrapping("<a>\n", "\n</a>\n")
    assert found(Template(around=("<a>", "")), tags=tags) == Wrapping("<a>", "")
    assert found(Template(around=("", "</a>")), tags=tags) == Wrapping("", "</a>")
    assert found(Template(), tags=tags) is None
    assert found(Template(around=(" ", "\n")), tags=tags) is None
    assert found(Template(around=("<a>", "</a>"), refuses=True), tags=tags) is None


def test_what_a_template_writes_for_a_thought_is_not_around_the_answer():
    assert found(Template("<think>\n")) is None
    assert found(Template("<think>\n", ("<think>\n\n</think>\n\n", ""))) is None
    assert found(Template("<think>\n\n</think>\n\n", ("", ""))) is None
    # A thought in the middle of the prompt, as before documents.
    documents = Template("<think>hm</think><|end|><|assistant|>")
    documents.around = (documents.opening + "<|A|>", "<|B|>")
    assert found(documents) == Wrapping("<|A|>", "<|B|>")
    shown = Template("<think>\n", ("<think></think><|A|>", "<|B|>"))
    assert found(shown) == Wrapping("<|A|>", "<|B|>")
    # The prompt may have written it already.
    assert found(Template("<|A|>", ("<|A|>", "<|B|>"))) == Wrapping("", "<|B|>")


def test_where_no_token_ends_the_turn_no_end_is_found():
    wrapped = Template(around=("<a>", "</a>"), end="\n\n")
    assert found(wrapped) == Wrapping("<a>", "")
    assert found(Template(end="\n\n")) is None


def test_tags_that_a_template_asks_for_or_takes_off_are_known():
    asks = Template(system="Write between <response></response>.")
    assert found(asks) == ASKED
    assert found(asks, tags=None) is None
    assert found(Template(), bare=asks) == LATER
    # What the person asks for is the person's.
    assert found(asks, bare=Template(), instructions="Write between <response></response>.") is None
    takes = Template(takes_off=("<answer>", "</answer>"))
    assert found(takes) == Wrapping("<answer>", "</answer>", rendered=False)


def opening_of(template: Template, *texts: str, tags=TAGS) -> str:
    messages = [Message.user(text) for text in texts]
    return find_opening(template, messages, template(messages), tags=tags)


@pytest.mark.parametrize(
    "text",
    [
        *("hi", "", " ", ">", "<think>", "a <think> b", "x", "y", "xy", "<think>\n", "</think>"),
        *("<think>\n\n</think>", "<|end|><|assistant|><think>\n", "  <think>  ", "\n"),
    ],
)
def test_whatever_is_asked_the_opening_is_what_the_template_wrote(text):
    assert opening_of(Template("<think>\n"), text) == "<|end|><|assistant|><think>\n"
    for closed in ("<think>\n\n</think>\n\n", "</think>"):
        assert opening_of(Template(closed), text) == ""
    assert "<think>" not in opening_of(Template(), text)
    assert "<think>" not in opening_of(Template(), text, "hi")
    assert opening_of(Template("<think>\n"), text, tags=None) == ""


def test_a_message_that_is_not_shown_has_no_part_in_the_opening():
    class Deaf(Template):
        def __call__(self, messages):
            heard = [message for message in messages if message.role != "tool"]
            return "".join(message.text for message in heard) + self.opening

    messages = [Message.user("what is <think>"), Message.tool("nothing")]
    assert find_opening(Deaf(), messages, Deaf()(messages), tags=TAGS) == ""
    # Nobody said anything that is shown: the whole is the template's.
    deaf, nothing = Deaf("<think>"), [Message.tool("x")]
    assert find_opening(deaf, nothing, deaf(nothing), tags=TAGS) == "<think>"


def test_a_message_that_takes_no_other_text_is_compared_by_its_end():
    class Strict(Template):
        def __call__(self, messages):
            if messages[-1].text not in ("", "<think>"):
                raise TemplateError("No.", remedy="None.")
            return "<|user|>" + messages[-1].text + self.opening

    for template, text, opening in (
        (Strict("<think>"), "", "<|user|><think>"),
        (Strict(""), "<think>", ""),
    ):
        messages = [Message.user(text)]
        assert find_opening(template, messages, template(messages), tags=TAGS) == opening
