"""What the chat template left out of a prompt.

*How it works.* A template may drop a message without an error. So the rendered text is
searched for the words of each message, white space aside. That is enough for most. What is not
found there may be escaped, and what is short may be found by chance: such messages are rendered
once more, as unlikely words. Those that are missing now were left out; of the others, the words
are searched for in the very part of the text that the unlikely word took.

*What does not work.* Noticing that a template drops a short word of a long message in one place,
if the same words are rendered in another. And reasoning is never missed: templates drop that of
earlier turns on purpose, with whatever stands before a closing tag in an assistant's content.
"""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ...conversation import Conversation
from ...errors import LostWordsError, TemplateError
from ...ledger import MARK, common_prefix
from ...messages import Message, Role
from .contents import REMEMBERED
from .rendering import AFTERWARDS, WORD, Renderer, entry_of, slot_of, squeezed, whole_of

# Shorter texts, white space aside, may be in a prompt by chance.
CERTAIN = 24
# What templates cut an assistant's content at: tags around reasoning, of any model.
TAG = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")
# Switches that Qwen's and NVIDIA's templates take out of messages, since they obey them.
SWITCH = re.compile(r"(?<!\S)/(?:no_)?think(?!\S)")
LONGEST_QUOTE = 40

INSTRUCTIONS_REMEDY = "Set instructions to None, and say it in the first message."
REMEDIES = {
    Role.USER: "Check the model's chat template.",
    Role.SYSTEM: "Say it in a message of the user, or in the instructions.",
    Role.TOOL: "Before it, pass the call: Message.assistant('', tool_calls=[call]). If this model "
    "knows no tools, say it in a message of the user.",
}
# Arguments of templates that have words for the model, and what to say if they are not rendered.
IGNORED = {
    "tools": "The chat template ignores tools, so the model does not know of them. Describe them "
    "in the instructions, or use a model that is made for tools.",
    "documents": "The chat template ignores documents, so the model does not read them. Say what "
    "is in them in a message.",
}


@dataclass(frozen=True, slots=True)
class Loss:
    """Words of a conversation that are not in its prompt."""

    index: int | None
    """The message's index in the history; ``None`` for the instructions."""
    role: Role
    """The speaker."""
    words: str
    """The words; of a call, the name of its tool."""
    whole: bool = True
    """False if only a part of the message is missing, from these words on."""
    call: bool = False
    """True if a call of a tool is missing."""

    @property
    def place(self) -> str:
        """The message in words."""
        return "the instructions" if self.index is None else f"message {self.index} ({self.role})"

    @property
    def sentence(self) -> str:
        """The loss in words."""
        if self.call:
            return (
                f"The chat template leaves out a call of {self.words} in {self.place}, so the "
                "model does not read it."
            )
        if self.whole:
            return (
                f"The chat template leaves out {self.place}, so the model does not read "
                f"{self.quote}."
            )
        return (
            f"The chat template leaves out a part of {self.place}, so the model does not read all "
            f"of {self.quote}."
        )

    @property
    def quote(self) -> str:
        """The first of the words."""
        line = " ".join(self.words.split())
        return repr(line if len(line) <= LONGEST_QUOTE else line[: LONGEST_QUOTE - 1] + "…")


class LeftOut:
    """Finds what a chat template leaves out.

    Args:
        renderer: Renders conversations.
    """

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        # What was found to be rendered, under these arguments of the template.
        self._kwargs: Mapping[str, Any] | None = None
        self._rendered: set[tuple[object, ...]] = set()
        # A history is not squeezed again in each turn.
        self._squeezed: Callable[[str], str] = lru_cache(REMEMBERED)(squeezed)

    def ignored(self, conversation: Conversation, text: str) -> Iterable[str]:
        """Return the arguments with words for the model that a template does not render.

        Args:
            conversation: The conversation.
            text: What `render` returned for it.
        """
        self._begin(conversation)
        for name in IGNORED:
            if not conversation.template_kwargs.get(name) or (name,) in self._rendered:
                continue
            without = {**conversation.template_kwargs, name: None}
            entries = self._renderer.entries(conversation)
            if self._renderer.tried(conversation, entries, without) == text:
                yield name
            else:
                self._rendered.add((name,))

    def check(self, conversation: Conversation, text: str, *, asked: int) -> tuple[str, ...]:
        """Refuse to leave out what is asked, or the instructions; return what else is left out.

        Args:
            conversation: The conversation.
            text: What `render` returned for it.
            asked: How many messages, the last ones, are said now.

        Returns:
            Sentences for warnings.

        Raises:
            LostWordsError: if the template leaves out all words of a message that is said now, of
                anyone but the model, or of the instructions.
        """
        warnings = []
        for loss in self.losses(conversation, text):
            if loss.index is None:
                refused = loss.whole and not self._return_later(conversation)
            else:
                new = loss.index >= len(conversation.messages) - asked
                refused = new and loss.whole and loss.role is not Role.ASSISTANT
            if refused:
                raise LostWordsError(
                    f"The chat template leaves out {loss.place}, so the model would not read "
                    f"{loss.quote}. Nothing was changed.",
                    remedy=INSTRUCTIONS_REMEDY if loss.index is None else REMEDIES[loss.role],
                    index=loss.index,
                )
            warnings.append(loss.sentence)
        warnings += [IGNORED[name] for name in self.ignored(conversation, text)]
        return tuple(warnings)

    def losses(self, conversation: Conversation, text: str) -> tuple[Loss, ...]:
        """Return what the template left out.

        Args:
            conversation: The conversation.
            text: What `render` returned for it.
        """
        self._begin(conversation)
        messages = whole_of(conversation)
        text = text.replace(MARK, "")
        suspects = self._suspects(messages, text)
        if not suspects:
            return ()
        found: list[Loss] = []
        first = len(messages) - len(conversation.messages)
        questions = [n for n, message in enumerate(messages) if message.role is Role.USER]
        last_question = questions[-1] if questions else -1
        for position, certain in self._probed(conversation, list(suspects)).items():
            message = messages[position]
            index = None if position < first else position - first
            lost = [
                Loss(index, message.role, call.name, call=True)
                for call, shown in zip(message.tool_calls, certain[1:], strict=True)
                if not shown
            ]
            if message.text.strip() and not certain[0]:
                if message.tool_calls and position < last_question:
                    continue  # thoughts before a call, in an earlier turn
                lost.insert(0, Loss(index, message.role, message.text))
            elif not suspects[position]:
                rest = self._missing(conversation, position, text)
                if rest is not None:
                    lost.insert(0, Loss(index, message.role, rest, whole=False))
            if not lost:
                self._rendered.add(_shape(messages, position))
            found += lost
        return tuple(found)

    def _return_later(self, conversation: Conversation) -> bool:
        """Return True if instructions that are left out are rendered with the next question."""
        later = conversation.extended(*AFTERWARDS)
        try:
            losses = self.losses(later, self._renderer.render(later))
            return all(loss.index is not None for loss in losses)
        except TemplateError:
            return False

    def _suspects(self, messages: Sequence[Message], text: str) -> dict[int, bool]:
        """Return the messages that may be missing, and whether their words were found."""
        bare = ""
        suspects: dict[int, bool] = {}
        said = [self._squeezed(message.text) for message in messages]
        times = Counter(said)
        after = 0
        for position, (message, words) in enumerate(zip(messages, said, strict=True)):
            if not words and not message.tool_calls:
                continue
            # As a rule, a message is in the text as it is, and after the one before it.
            start = text.find(message.text.strip(), after)
            found = start >= 0
            if found:
                after = start
            else:
                bare = bare or squeezed(text)
                found = words in bare
            certain = found and len(words) >= CERTAIN and times[words] == 1
            certain = certain and not message.tool_calls
            if not found or not (certain or _shape(messages, position) in self._rendered):
                suspects[position] = found
        return suspects

    def _probed(
        self, conversation: Conversation, positions: Sequence[int]
    ) -> Mapping[int, Sequence[bool]]:
        """Return which messages are rendered: first the content of each, then its calls."""
        entries = self._renderer.entries(conversation)
        words: dict[int, list[str]] = {}
        for position in positions:
            message = whole_of(conversation)[position]
            count = 1 + len(message.tool_calls)
            words[position] = [WORD.format(f"{position}x{number}") for number in range(count)]
            entries[position] = self._probe(position, message, words[position])
        text = self._renderer.tried(conversation, entries)
        if text is None:
            if len(positions) == 1:  # nothing can be said of it but by its own words
                return {positions[0]: [True] * len(words[positions[0]])}
            alone = [self._probed(conversation, [position]) for position in positions]
            return {position: shown for one in alone for position, shown in one.items()}
        return {
            position: [word in text.lower() for word in expected]
            for position, expected in words.items()
        }

    def _probe(self, position: int, message: Message, words: Sequence[str]) -> dict[str, Any]:
        """Return a message whose content, and the names of whose tools, are other words."""
        parts = self._renderer.form_of(slot_of(position, message.role))
        entry = entry_of(message, parts=parts, words=words[0] if message.text.strip() else None)
        for call, name in zip(entry.get("tool_calls", ()), words[1:], strict=True):
            call["function"]["name"] = name
        return entry

    def _missing(self, conversation: Conversation, position: int, text: str) -> str | None:
        """Return what is missing of a message that is rendered, but not as it is."""
        message = whole_of(conversation)[position]
        content = message.text
        if message.role is Role.ASSISTANT and TAG.search(content):
            return None
        bare = squeezed(text)
        if any(squeezed(form) in bare for form in _escaped(content)):
            return None
        entries = self._renderer.entries(conversation)
        parts = self._renderer.form_of(slot_of(position, message.role))
        entries[position] = entry_of(message, parts=parts, words=WORD.format("y"))
        # If it can't be tried, the words may be anywhere.
        other = (self._renderer.tried(conversation, entries) or "").replace(MARK, "")
        start = common_prefix(text, other)
        end = len(text) - common_prefix(text[::-1], other[::-1])
        # The unlikely word may begin or end as the content does.
        part = text[max(start - len(WORD), 0) : end + len(WORD)].casefold()
        after = 0
        for word in re.finditer(r"\w+", content):
            found = part.find(word[0].casefold(), after)
            if found < 0:
                return content[word.start() :]
            after = found + len(word[0].casefold())
        return None

    def _begin(self, conversation: Conversation) -> None:
        if self._kwargs != conversation.template_kwargs:
            self._kwargs, self._rendered = conversation.template_kwargs, set()


def _shape(messages: Sequence[Message], position: int) -> tuple[object, ...]:
    """Return what may decide, besides its content, if a template renders a message."""
    message = messages[position]
    before = messages[position - 1] if position else None
    after = messages[position + 1] if position + 1 < len(messages) else None
    return (
        message.role,
        before and (before.role, bool(before.tool_calls)),
        after and after.role,
        len(message.tool_calls),
        bool(message.text.strip()),
    )


def _escaped(content: str) -> Iterable[str]:
    """Return forms in which templates write content that they don't write as it is."""
    yield json.dumps(content, ensure_ascii=False)[1:-1]
    yield json.dumps(content)[1:-1]
    yield html.escape(content)
    yield SWITCH.sub("", content)
