"""The slash commands of the chat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from ..messages import Role
from .statistics import usage_table

if TYPE_CHECKING:
    from .chat import TerminalChat


@dataclass(frozen=True, slots=True)
class Command:
    """A slash command: how it is written, what it does, and the code that does it."""

    usage: str
    help: str
    run: Callable[[TerminalChat, str], None]


def _help(chat: TerminalChat, _: str) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    for command in COMMANDS.values():
        table.add_row(command.usage, command.help)
    table.add_row("//...", "say something that begins with a slash")
    chat.console.print(table)


def _clear(chat: TerminalChat, _: str) -> None:
    chat.session.clear()
    chat.console.print("The conversation is forgotten; the system message stays.", style="dim")


def _system(chat: TerminalChat, text: str) -> None:
    if text:
        chat.session.instructions = text
        chat.console.print("The system message changes with your next message.", style="dim")
    else:
        chat.console.print(chat.session.instructions or "There is no system message.", markup=False)


def _history(chat: TerminalChat, _: str) -> None:
    if not chat.session.history:
        chat.console.print("Nothing has been said yet.", style="dim")
    for message in chat.session.history:
        chat.console.print(f"{message.role}:", style="bold")
        # Only the model writes Markdown; a person's words are shown as typed.
        spoken = message.role is Role.ASSISTANT
        chat.console.print(Markdown(message.content) if spoken else Text(message.content))


def _stats(chat: TerminalChat, _: str) -> None:
    chat.console.print(usage_table(chat.session))


def _save_cache(chat: TerminalChat, path: str) -> None:
    if not path:
        chat.console.print("Name the file: /save-cache PATH", markup=False)
        return
    try:
        place = Path(path).expanduser()
    except RuntimeError:  # no such user
        place = Path(path)
    chat.session.save_cache(place)
    told = f"{chat.session.cached_tokens:,} tokens are in {place}; --cache takes them up again."
    chat.console.print(told, style="dim", markup=False)


def _quit(chat: TerminalChat, _: str) -> None:
    raise EOFError  # as Ctrl-D does


COMMANDS = {
    "help": Command("/help", "list the commands", _help),
    "clear": Command("/clear", "forget the conversation, keep the system message", _clear),
    "system": Command("/system [TEXT]", "set the system message, or show it", _system),
    "history": Command("/history", "show what was said", _history),
    "save-cache": Command("/save-cache PATH", "keep the KV cache in a file", _save_cache),
    "stats": Command("/stats", "show what the conversation has cost", _stats),
    "quit": Command("/quit", "leave (as Ctrl-D does)", _quit),
}
