"""A conversation as text, Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console

from ...conversation import Conversation
from ...messages import Message, Role
from ...tool_call import ToolCall
from ..output.screen import show_markdown, show_remark, show_text


def print_history(console: Console, history: Sequence[Message]) -> None:
    """Show messages, with styles where the model wrote Markdown."""
    for message in history:
        show_remark(console, f"{message.role}:", "bold")
        # Only the model writes Markdown.
        show = show_markdown if message.role is Role.ASSISTANT else show_text
        if message.text:
            show(console, message.text)
        for call in message.tool_calls:
            show_text(console, _in_json(call))


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
    """A conversation as JSON of the OpenAI shape; `Message.from_dict` reads its messages."""
    messages = [message.to_dict() for message in all_messages(conversation)]
    return json.dumps({"messages": messages}, ensure_ascii=False, indent=2) + "\n"


def all_messages(conversation: Conversation) -> tuple[Message, ...]:
    """The history, with the instructions before it as a system message."""
    if conversation.instructions is None:
        return conversation.messages
    return (Message.system(conversation.instructions), *conversation.messages)


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
