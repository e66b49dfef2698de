"""Commands about the chat itself: help, statistics, and the way out."""

from __future__ import annotations

from rich.table import Table

from ...output.screen import show_remark, show_table
from ..statistics import usage_table
from .command import Chat, Commands

COMMANDS = Commands()


@COMMANDS.add("/help", "list the commands")
def show_help(chat: Chat, _: str) -> None:
    """List the commands."""
    table = Table(show_header=False, box=None, pad_edge=False)
    # In a narrow terminal, what is too long for its column goes on in the next line.
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for command in chat.commands.values():
        table.add_row(command.usage, command.help)
    show_table(chat.console, table)


@COMMANDS.add("/say TEXT", "send a message, even one that looks like a command")
def say(chat: Chat, text: str) -> None:
    """Send a message."""
    if not text:
        show_remark(chat.console, "Give the message: /say TEXT")
        return
    chat.say(text)


@COMMANDS.add("/stats", "show what the conversation has cost")
def show_statistics(chat: Chat, _: str) -> None:
    """Show what the conversation has cost."""
    show_table(chat.console, usage_table(chat.session))


@COMMANDS.add("/quit", "leave the chat, as Ctrl-D does")
def leave(chat: Chat, _: str) -> None:
    """Leave the chat."""
    raise EOFError
