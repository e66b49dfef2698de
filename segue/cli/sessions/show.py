"""A conversation as people and programs read it."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.text import Text

from ...messages import Message, Role
from ...store.texts import Conversation


def print_history(console: Console, history: Sequence[Message]) -> None:
    """Show what was said; what the model said, as the Markdown that it is."""
    for message in history:
        console.print(f"{message.role}:", style="bold")
        # Only the model writes Markdown; a person's words are shown as typed.
        said = printable(message.content)
        console.print(Markdown(said) if message.role is Role.ASSISTANT else Text(said))
        for call in message.tool_calls:
            console.print(Text(printable(_in_json(call))))


def to_text(messages: Sequence[Message]) -> str:
    """What was said, each message behind its speaker's role, nothing rendered."""
    return "\n\n".join(
        "\n".join([f"{message.role}:", message.content, *map(_in_json, message.tool_calls)])
        for message in messages
    )


def to_markdown(conversation: Conversation) -> str:
    """A conversation as Markdown: a heading for each speaker, the text as it is."""
    return "\n\n".join(map(_section, all_messages(conversation))) + "\n"


def to_json(conversation: Conversation) -> str:
    """A conversation as the messages that chat APIs take."""
    messages = []
    for message in all_messages(conversation):
        entry: dict[str, Any] = message.to_dict()
        if "reasoning" in entry:
            entry["reasoning_content"] = entry.pop("reasoning")
        messages.append(entry)
    return json.dumps({"messages": messages}, ensure_ascii=False, indent=2) + "\n"


def all_messages(conversation: Conversation) -> tuple[Message, ...]:
    """The history, the instructions in front of it as a system message."""
    if conversation.instructions is None:
        return conversation.history
    return (Message.system(conversation.instructions), *conversation.history)


def printable(text: str) -> str:
    """A text without characters that would command the terminal."""
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs")
        else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def _section(message: Message) -> str:
    name = f" ({message.name})" if message.name else ""
    parts = [f"## {message.role.capitalize()}{name}"]
    if message.reasoning:
        parts.append("> " + message.reasoning.replace("\n", "\n> "))
    if message.content:
        parts.append(message.content)
    parts += [f"```json\n{_in_json(call, indent=2)}\n```" for call in message.tool_calls]
    return "\n\n".join(parts)


def _in_json(call: Any, indent: int | None = None) -> str:
    return json.dumps(call, ensure_ascii=False, indent=indent)
