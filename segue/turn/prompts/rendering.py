"""From a conversation to the text of its prompt, through the chat template.

*How it works.* A template takes a message's content as one string, or as a list of parts, or
either. Which one is found by trying: where a role speaks for the first time, its content is
replaced by an unlikely word, and the form in which that word is rendered is the role's form from
then on. (The first message has a form of its own, as many templates treat it in a way of its own.)
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...checks import is_encodable
from ...conversation import Conversation
from ...engine import Tokenizer, WritesDate
from ...errors import TemplateError
from ...ledger import MARK
from ...messages import Message, Role
from .contents import REPLACEMENT, Controls

# A word that no conversation has, in which templates change nothing.
WORD = "zqx{}jkv"

# What may be said after a prompt, to see what later prompts make of it.
AFTERWARDS = (Message.assistant("x"), Message.user("y"))

Slot = tuple[Role, bool]
"""A role, and whether it speaks in the first message."""


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

    def render(self, conversation: Conversation) -> str:
        """Return the text of a prompt.

        Raises:
            TemplateError: if the chat template refuses the messages, breaks on them, or renders
                nothing.
        """
        try:
            text = self.render_entries(conversation, self.entries(conversation))
        except TemplateError:
            # Some take reasoning or text beside calls, but not both: gpt-oss's makes either a
            # thought.
            joined = conversation.with_messages(map(_with_text_in_reasoning, conversation.messages))
            if joined.messages == conversation.messages:
                raise
            text = self.render_entries(joined, self.entries(joined))
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

    def form_of(self, slot: Slot) -> bool:
        """Return True if the template takes the content of a role as parts."""
        return self._parts.get(slot, False)

    def tried(
        self,
        conversation: Conversation,
        entries: Sequence[Mapping[str, Any]],
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str | None:
        """Return the text of other words, or ``None``: what is only tried fails no turn."""
        try:
            return self.render_entries(conversation, entries, template_kwargs)
        except Exception:  # a template is a program
            return None

    def render_entries(
        self,
        conversation: Conversation,
        entries: Sequence[Mapping[str, Any]],
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the text of a prompt, of messages as the template gets them.

        Args:
            conversation: The conversation: its date, and whether control tokens are allowed.
            entries: The messages; see `entries`.
            template_kwargs: Arguments of the template, if not the conversation's.

        Raises:
            TemplateError: if the chat template refuses the messages or breaks on them.
        """
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

    def entries(self, conversation: Conversation) -> list[dict[str, Any]]:
        """Return the messages, each in the form that the template takes."""
        if self._kwargs != conversation.template_kwargs:
            self._kwargs = conversation.template_kwargs
            self._parts, self._dropped = {}, set()
        messages = whole_of(conversation)
        roles = tuple(message.role for message in messages)
        unknown = {
            slot: None
            for slot, message in zip(map(slot_of, itertools.count(), roles), messages, strict=False)
            if slot not in self._parts
            and (slot, roles) not in self._dropped
            and message.text.strip()
        }
        if unknown:
            self._find_forms(conversation, messages, list(unknown))
        return [
            entry_of(message, parts=self.form_of(slot_of(position, message.role)))
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
                slot = slot_of(position, message.role)
                entry = entry_of(message, parts=forms.get(slot, False), words=words.get(slot))
                entries.append(entry)
            text = self.tried(conversation, entries)
            if text is None:
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


def whole_of(conversation: Conversation) -> tuple[Message, ...]:
    """Return the messages of a conversation, its instructions first."""
    system = conversation.system
    return conversation.messages if system is None else (system, *conversation.messages)


def _with_text_in_reasoning(message: Message) -> Message:
    """Return a message whose text beside calls is part of its reasoning, if it has all three."""
    if not (message.tool_calls and message.reasoning and message.text):
        return message
    return replace(message, content="", reasoning=f"{message.reasoning}\n\n{message.text}")


def slot_of(position: int, role: Role) -> Slot:
    """Return the slot of a message at some position of a whole conversation."""
    return role, position == 0


def entry_of(message: Message, *, parts: bool, words: str | None = None) -> dict[str, Any]:
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


def squeezed(text: str) -> str:
    """Return a text without white space, which templates trim and add."""
    return "".join(text.split())
