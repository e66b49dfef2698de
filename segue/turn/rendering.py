"""From a conversation to rendered text, and what of it the chat template left out.

*How it works.* A template takes a message's content as one string, or as a list of parts, or
either. Which one is found by trying: where a role speaks for the first time, its content is
replaced by an unlikely word, and the form in which that word is rendered is the role's form from
then on. (The first message has a form of its own, as many templates treat it in a way of its own.)

*What was left out.* A template may drop a message without an error. So the rendered text is
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
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..checks import is_encodable
from ..conversation import Conversation
from ..engine import Tokenizer, WritesDate
from ..errors import LostWordsError, TemplateError
from ..ledger import MARK, common_prefix
from ..messages import Message, Role
from .contents import REPLACEMENT, Controls

# A word that no conversation has, in which templates change nothing.
WORD = "zqx{}jkv"
# Shorter texts, white space aside, may be in a prompt by chance.
CERTAIN = 24
# What templates cut an assistant's content at: tags around reasoning, of any model.
TAG = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")
# Switches that Qwen's and NVIDIA's templates take out of messages, since they obey them.
SWITCH = re.compile(r"(?<!\S)/(?:no_)?think(?!\S)")
LONGEST_QUOTE = 40

# What may be said after a prompt, to see what later prompts make of it.
AFTERWARDS = (Message.assistant("x"), Message.user("y"))

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

Slot = tuple[Role, bool]
"""A role, and whether it speaks in the first message."""


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


class Renderer:
    """Renders conversations through a model's chat template.

    Args:
        tokenizer: The engine's tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._controls = Controls.of(tokenizer)
        self.writes_date = isinstance(tokenizer, WritesDate) and tokenizer.writes_date
        """True if the template writes the date."""
        # What was found out holds for these arguments of the template.
        self._kwargs: Mapping[str, Any] | None = None
        self._parts: dict[Slot, bool] = {}
        # Slots whose words were rendered in neither form, with the roles around them.
        self._dropped: set[tuple[Slot, tuple[Role, ...]]] = set()
        self._shown: set[tuple[object, ...]] = set()

    def render(self, conversation: Conversation) -> str:
        """Return the text of a prompt.

        Raises:
            TemplateError: if the chat template refuses the messages, breaks on them, or renders
                nothing.
        """
        try:
            text = self._render(conversation, self._entries(conversation))
        except TemplateError:
            # Some take reasoning or text beside calls, but not both: gpt-oss's makes either a
            # thought.
            joined = conversation.with_messages(map(_with_text_in_reasoning, conversation.messages))
            if joined.messages == conversation.messages:
                raise
            text = self._render(joined, self._entries(joined))
        if not is_encodable(text):
            raise TemplateError(
                "The chat template rendered this conversation to text with a lone surrogate, which "
                "isn't a character.",
                remedy="Check the escapes in the arguments of tool calls.",
            )
        if not text:
            raise TemplateError(
                "The chat template rendered this conversation to nothing, so there is nothing to "
                "feed.",
                remedy="Check the messages, and the model's chat template.",
            )
        return text

    def ignored(self, conversation: Conversation, text: str) -> Iterable[str]:
        """Return the arguments with words for the model that a template does not render.

        Args:
            conversation: The conversation.
            text: What `render` returned for it.
        """
        for name in IGNORED:
            if not conversation.template_kwargs.get(name) or (name,) in self._shown:
                continue
            without = {**conversation.template_kwargs, name: None}
            try:
                if self._render(conversation, self._entries(conversation), without) == text:
                    yield name
                    continue
            except TemplateError:
                pass  # it needs them
            self._shown.add((name,))

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
                self._shown.add(_shape(messages, position))
            found += lost
        return tuple(found)

    def _return_later(self, conversation: Conversation) -> bool:
        """Return True if instructions that are left out are rendered with the next question."""
        later = conversation.extended(*AFTERWARDS)
        try:
            return all(loss.index is not None for loss in self.losses(later, self.render(later)))
        except TemplateError:
            return False

    def _render(
        self,
        conversation: Conversation,
        entries: Sequence[Mapping[str, Any]],
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        kwargs = conversation.template_kwargs if template_kwargs is None else template_kwargs
        if self.writes_date and conversation.date is not None and "strftime_now" not in kwargs:
            # As templates know it: the time where the conversation began, without its zone.
            kwargs = {**kwargs, "strftime_now": conversation.date.replace(tzinfo=None).strftime}
        controls = self._controls
        if controls is not None and not conversation.allow_control_tokens:
            entries = [controls.mark_message(entry) for entry in entries]
            kwargs = controls.mark_arguments(kwargs)
        try:
            text = self._tokenizer.render(
                entries, add_generation_prompt=True, template_kwargs=kwargs
            )
        except TemplateError as error:  # which may quote a content
            if MARK not in error.what:
                raise
            raise TemplateError(error.what.replace(MARK, ""), remedy=error.remedy) from error
        if controls is None:
            return text
        if conversation.allow_control_tokens:
            return text.replace(MARK, REPLACEMENT)
        return controls.settle(text)

    def _entries(self, conversation: Conversation) -> list[dict[str, Any]]:
        """Return the messages, each in the form that the template takes."""
        if self._kwargs != conversation.template_kwargs:
            self._kwargs = conversation.template_kwargs
            self._parts, self._dropped, self._shown = {}, set(), set()
        messages = whole_of(conversation)
        roles = tuple(message.role for message in messages)
        unknown = {
            slot: None
            for slot, message in zip(map(_slot, itertools.count(), roles), messages, strict=False)
            if slot not in self._parts
            and (slot, roles) not in self._dropped
            and message.text.strip()
        }
        if unknown:
            self._find_forms(conversation, messages, list(unknown))
        return [
            _entry(message, parts=self._parts.get(_slot(position, message.role), False))
            for position, message in enumerate(messages)
        ]

    def _find_forms(
        self, conversation: Conversation, messages: Sequence[Message], slots: Sequence[Slot]
    ) -> None:
        """Find the forms in which the template renders the content of some roles."""
        words = {slot: WORD.format(number) for number, slot in enumerate(slots)}

        def shown(parts: Iterable[Slot]) -> set[Slot] | None:
            forms = {**self._parts, **dict.fromkeys(slots, False), **dict.fromkeys(parts, True)}
            entries = []
            for position, message in enumerate(messages):
                slot = _slot(position, message.role)
                entry = _entry(message, parts=forms.get(slot, False), words=words.get(slot))
                entries.append(entry)
            try:
                text = self._render(conversation, entries)
            except TemplateError:
                return None
            return {slot for slot in slots if _is_rendered(words[slot], text)}

        best, parts = shown(()), frozenset[Slot]()
        if best is None or len(best) < len(slots):
            open_slots = [slot for slot in slots if best is None or slot not in best]
            for size in range(1, len(open_slots) + 1):
                for attempt in itertools.combinations(open_slots, size):
                    found = shown(attempt)
                    if found is not None and (best is None or len(found) > len(best)):
                        best, parts = found, frozenset(attempt)
        if best is None:
            return  # it refuses this conversation in any form, as it will say itself
        roles = tuple(message.role for message in messages)
        for slot in slots:
            if slot in best:
                self._parts[slot] = slot in parts
            else:
                self._dropped.add((slot, roles))

    def _suspects(self, messages: Sequence[Message], text: str) -> dict[int, bool]:
        """Return the messages that may be missing, and whether their words were found."""
        bare = squeezed(text)
        suspects: dict[int, bool] = {}
        after = 0
        for position, message in enumerate(messages):
            words = squeezed(message.text)
            if not words and not message.tool_calls:
                continue
            start = bare.find(words, after)
            certain = start >= 0 and len(words) >= CERTAIN and not message.tool_calls
            if start < 0:
                start = bare.find(words)
            if start >= 0:
                after = start + len(words)
            if start < 0 or not (certain or _shape(messages, position) in self._shown):
                suspects[position] = start >= 0
        return suspects

    def _probed(
        self, conversation: Conversation, positions: Sequence[int]
    ) -> Mapping[int, Sequence[bool]]:
        """Return which messages are rendered: first the content of each, then its calls."""
        entries = self._entries(conversation)
        words: dict[int, list[str]] = {}
        for position in positions:
            message = whole_of(conversation)[position]
            count = 1 + len(message.tool_calls)
            words[position] = [WORD.format(f"{position}x{number}") for number in range(count)]
            entries[position] = self._probe(position, message, words[position])
        try:
            text = self._render(conversation, entries).lower()
        except TemplateError:
            if len(positions) == 1:
                return {}  # nothing can be said of it
            alone = [self._probed(conversation, [position]) for position in positions]
            return {position: shown for one in alone for position, shown in one.items()}
        return {
            position: [word in text for word in expected] for position, expected in words.items()
        }

    def _probe(self, position: int, message: Message, words: Sequence[str]) -> dict[str, Any]:
        """Return a message whose content, and the names of whose tools, are other words."""
        parts = self._parts.get(_slot(position, message.role), False)
        entry = _entry(message, parts=parts, words=words[0] if message.text.strip() else None)
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
        entries = self._entries(conversation)
        entries[position] = self._probe(position, message, [WORD.format("y")])
        try:
            other = self._render(conversation, entries).replace(MARK, "")
        except TemplateError:
            return None
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


def whole_of(conversation: Conversation) -> tuple[Message, ...]:
    """Return the messages of a conversation, its instructions first."""
    system = conversation.system
    return conversation.messages if system is None else (system, *conversation.messages)


def _with_text_in_reasoning(message: Message) -> Message:
    """Return a message whose text beside calls is part of its reasoning, if it has all three."""
    if not (message.tool_calls and message.reasoning and message.text):
        return message
    return replace(message, content="", reasoning=f"{message.reasoning}\n\n{message.text}")


def _slot(position: int, role: Role) -> Slot:
    return role, position == 0


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


def _entry(message: Message, *, parts: bool, words: str | None = None) -> dict[str, Any]:
    """Return a message as the template gets it, with other content if there are `words`."""
    entry = message.to_template()
    if words is not None:
        entry["content"] = words
    if parts:
        # One of them: some templates render the first part alone.
        entry["content"] = [{"type": "text", "text": entry["content"]}]
    return entry


def _is_rendered(word: str, text: str) -> bool:
    """Return True if a text has a word, and not as a list of parts written out."""
    as_data = rf"""text\\*['"]\s*:\s*\\*['"]{word}"""
    return word in text.lower() and re.search(as_data, text) is None


def _escaped(content: str) -> Iterable[str]:
    """Return forms in which templates write content that they don't write as it is."""
    yield json.dumps(content, ensure_ascii=False)[1:-1]
    yield json.dumps(content)[1:-1]
    yield html.escape(content)
    yield SWITCH.sub("", content)


def squeezed(text: str) -> str:
    """Return a text without white space, which templates trim and add."""
    return "".join(text.split())
