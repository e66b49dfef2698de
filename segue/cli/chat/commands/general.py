"""Commands about the chat itself: help, statistics, and the way out."""

from __future__ import annotations

from rich.table import Table

from ...output.screen import show_table
from ..statistics import usage_table
from .command import Chat, Commands

COMMANDS = Commands()


@COMMANDS.add("/help", "list the commands")
def show_help(chat: Chat, _: str) -> None:
    """List the commands."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for command in chat.commands.values():
        table.add_row(command.usage, command.help)
    table.add_row("//...", "send a message that begins with a slash")
    show_table(chat.console, table)


@COMMANDS.add("/stats", "show what the conversation has cost")
def show_statistics(chat: Chat, _: str) -> None:
    """Show what the conversation has cost."""
    show_table(chat.console, usage_table(chat.session))


@COMMANDS.add("/quit", "leave the chat, as Ctrl-D does")
def leave(chat: Chat, _: str) -> None:
    """Leave the chat."""
    raise EOFError
