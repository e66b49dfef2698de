"""The form of a reply: what a model and its template write around the text of one.

Three things are not text for a person: tags around the reasoning, what stands around the answer,
and what the template has opened already when the prompt ends. The tokenizer knows the tags. The
other two are found out by rendering, with no table of models:

- *Around the answer*: an answer is rendered as part of a history. What stands between the end of
  a prompt and that answer, and between the answer and the token that ends the turn, is the
  template's (Command R7B's ``<|START_RESPONSE|>``). Tags that a template only asks for in its own
  words (Granite's ``<response>``), or takes off again, are known by name.
- *The opening*: the last message is rendered with another letter at its end. What the two prompts
  end with alike, from there on, the template wrote; whatever the message says.

What does not work: a template that shows nothing of an answer, or shows it twice. Then nothing is
taken off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from ..errors import TemplateError
from ..ledger import common_prefix
from ..messages import Message

Render = Callable[[Sequence[Message]], str]
"""Renders messages as a prompt, under the conversation's instructions and template arguments."""

# Tags that some models write around answers because they were told to, and no template writes.
ANSWER_TAGS = (("<response>", "</response>"), ("<answer>", "</answer>"))
# Texts that occur in no template.
QUESTION, ANSWER, NEXT = "Zq1", "Za2", "Zq3"
# Letters to end a message with. Of two, one at most is what stands there anyway.
LETTERS = ("x", "y")


@dataclass(frozen=True, slots=True)
class Wrapping:
    """What stands before and after an answer, white space included."""

    start: str
    end: str
    rendered: bool = True
    """True if the template writes it, so that it comes back in later prompts."""
    after_reasoning: bool = False
    """True if it is one only where reasoning came before."""


@dataclass(frozen=True, slots=True)
class ReplyForm:
    """How one reply is written."""

    tags: tuple[str, str] | None = None
    """The tags around reasoning; ``None`` if the model writes none."""
    wrapping: Wrapping | None = None
    """What stands around the answer; ``None`` if nothing does."""
    opening: str = ""
    """The end of the prompt, as far as the template wrote it and it may have opened the reply."""

    @property
    def harmony(self) -> bool:
        """True if replies are messages in channels, as gpt-oss writes them."""
        starts = (self.tags[0] if self.tags else "", self.wrapping.start if self.wrapping else "")
        return any("<|channel|>" in start and "<|message|>" in start for start in starts)


def find_wrapping(
    render: Render,
    render_bare: Render,
    *,
    tags: tuple[str, str] | None,
    ends: Collection[str],
    instructions: str | None = None,
) -> Wrapping | None:
    """Return what stands around answers; ``None`` if nothing does, or it can't be found out.

    Args:
        render: Renders under these instructions.
        render_bare: Renders without instructions, the template's reasoning turned on.
        tags: The tags around reasoning.
        ends: The texts that end a turn.
        instructions: The instructions, whose words are not the template's.
    """
    question, following = Message.user(QUESTION), Message.user(NEXT)
    try:
        asked = render((question,))
        talked = render((question, Message.assistant(ANSWER), following))
        found = _rendered_wrapping(asked, talked, tags, ends)
        if found is not None or tags is None or ANSWER not in talked:
            return found
        for start, end in ANSWER_TAGS:
            wrapped = Message.assistant(start + ANSWER + end)
            if render((question, wrapped, following)) == talked:
                return Wrapping(start, end, rendered=False)
        announced = asked.replace((instructions or "").strip() or QUESTION, "")
        for words, after_reasoning in ((announced, False), (render_bare((question,)), True)):
            for start, end in ANSWER_TAGS:
                if start in words and end in words:
                    return Wrapping(start, end, rendered=False, after_reasoning=after_reasoning)
    except TemplateError:  # it takes the conversation, but not this one
        pass
    return None


def _rendered_wrapping(
    asked: str, talked: str, tags: tuple[str, str] | None, ends: Collection[str]
) -> Wrapping | None:
    if asked.count(QUESTION) != 1 or [talked.count(t) for t in (QUESTION, ANSWER, NEXT)] != [1] * 3:
        return None
    opening = asked.partition(QUESTION)[2]
    before, _, after = talked.partition(QUESTION)[2].partition(ANSWER)
    if not before.startswith(opening) and tags is not None:  # a thought, opened or left out
        opening = opening.rpartition(tags[0])[0] or opening
    if not before.startswith(opening):
        opening = opening.rstrip()
        if not before.startswith(opening):
            return None
    start = before[len(opening) :]
    if tags is not None and tags[1] in start:
        start = start[start.rindex(tags[1]) + len(tags[1]) :]
    after = after.partition(NEXT)[0]
    offsets = [after.index(end) for end in ends if end and end in after]
    end = after[: min(offsets)] if offsets else ""
    return Wrapping(start, end) if start.strip() or end.strip() else None


def find_opening(
    render: Render, messages: Sequence[Message], text: str, *, tags: tuple[str, str] | None
) -> str:
    """Return the end of a prompt, as far as the template wrote it; empty if it opened nothing.

    Args:
        render: Renders as the prompt was rendered.
        messages: The messages of the prompt.
        text: The prompt.
        tags: The tags around reasoning.
    """
    form = ReplyForm(tags)
    opened = (
        not text.endswith("<|start|>assistant")
        if form.harmony
        else tags is not None and text.rfind(tags[0]) > text.rfind(tags[1])
    )
    return _after_messages(render, messages, text) if opened else ""


def _after_messages(render: Render, messages: Sequence[Message], text: str) -> str:
    """Return what a prompt has after the last message that it shows."""
    for index in reversed(range(len(messages))):
        message = messages[index]
        try:
            others = [
                render(
                    (
                        *messages[:index],
                        dataclasses.replace(message, content=message.text + letter),
                        *messages[index + 1 :],
                    )
                )
                for letter in LETTERS
            ]
        except TemplateError:  # it takes the message, but not with another text
            said = message.text.strip()
            return "" if said and text.rstrip().endswith(said) else text
        shared = [common_prefix(text[::-1], other[::-1]) for other in others if other != text]
        if shared:
            return text[len(text) - min(shared) :]
    return text
