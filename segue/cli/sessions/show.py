"""A conversation as text, Markdown and JSON."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.text import Text

from ...conversation import Conversation
from ...messages import Message, Role
from ...tool_call import ToolCall


def print_history(console: Console, history: Sequence[Message]) -> None:
    """Print messages, the model's rendered as Markdown."""
    for message in history:
        console.print(f"{message.role}:", style="bold")
        # Only the model writes Markdown; a person's words appear as typed.
        text = printable(message.text)
        console.print(Markdown(text) if message.role is Role.ASSISTANT else Text(text))
        for call in message.tool_calls:
            console.print(Text(printable(_in_json(call))))


def to_text(messages: Sequence[Message]) -> str:
    """Messages as plain text, each after its speaker's role."""
    return "\n\n".join(
        "\n".join([f"{message.role}:", message.text, *map(_in_json, message.tool_calls)])
        for message in messages
    )


def to_markdown(conversation: Conversation) -> str:
    """A conversation as Markdown: a heading for each speaker, then the text unchanged."""
    return "\n\n".join(map(_section, all_messages(conversation))) + "\n"


def to_json(conversation: Conversation) -> str:
    """A conversation as JSON, with messages as chat APIs take them."""
    messages = []
    for message in all_messages(conversation):
        entry: dict[str, Any] = message.to_dict()
        if message.tool_calls:
            entry["tool_calls"] = [call.to_template() for call in message.tool_calls]
        messages.append(entry)
    return json.dumps({"messages": messages}, ensure_ascii=False, indent=2) + "\n"


def all_messages(conversation: Conversation) -> tuple[Message, ...]:
    """The history, with the instructions before it as a system message."""
    if conversation.instructions is None:
        return conversation.messages
    return (Message.system(conversation.instructions), *conversation.messages)


def printable(text: str) -> str:
    """A text without the characters that control a terminal."""
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs")
        else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def _section(message: Message) -> str:
    name = f" ({message.name})" if message.name else ""
    pieces = [f"## {message.role.capitalize()}{name}"]
    if message.reasoning:
        pieces.append("> " + message.reasoning.replace("\n", "\n> "))
    if message.text:
        pieces.append(message.text)
    pieces += [f"```json\n{_in_json(call, indent=2)}\n```" for call in message.tool_calls]
    return "\n\n".join(pieces)


def _in_json(call: ToolCall, indent: int | None = None) -> str:
    return json.dumps(call.to_template(), ensure_ascii=False, indent=indent)
