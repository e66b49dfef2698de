"""Slash commands: what one is, the table that they are registered in, and the chat they see.

The commands and the chat that runs them would import each other. So commands know a small protocol,
`Chat`, and the chat is given its commands (see `segue.cli.chat.run`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console

    from ....engine import PrefillProgress
    from ....session import ChatSession
    from ....turn.reply import Reply
    from ..branches import Branches


class BeginReply(Protocol):
    """A function that begins a reply."""

    def __call__(self, *, prompt_progress_callback: PrefillProgress | None) -> Reply:
        """Return the reply before anything of it was read."""


class Chat(Protocol):
    """What a slash command may use of the chat that runs it."""

    @property
    def session(self) -> ChatSession:
        """The session of the current branch."""

    @property
    def branches(self) -> Branches:
        """The branches of the chat."""

    @property
    def console(self) -> Console:
        """The terminal."""

    @property
    def commands(self) -> Mapping[str, Command]:
        """All slash commands, by name."""

    @property
    def reply_complete(self) -> bool:
        """True if the last reply ended by itself, and nothing that it depends on changed since."""

    def note(self, text: str) -> None:
        """Print a quiet line."""

    def answer(self, begin: BeginReply) -> bool:
        """Show a reply; False if the person stopped it before its first token."""

    def say(self, text: str) -> None:
        """Take a turn with a message."""


Run = Callable[[Chat, str], None]
"""The code of a command. It gets the text after the command's name, without white space around it;
a message, as it is.

A `SegueError` that it raises is shown, and ends the command only; an EOFError ends the chat.
"""


class Takes(Enum):
    """What may follow a command's name, by the word for it in its usage."""

    NOTHING = ""
    NUMBER = "N"
    TEXT = "TEXT"
    NAME = "NAME"
    SETTING = "NAME VALUE"


@dataclass(frozen=True, slots=True)
class Command:
    """A slash command."""

    usage: str
    """The command as it is typed: ``"/undo [N]"``."""
    help: str
    """What the command does, as part of a sentence."""
    run: Run

    @property
    def name(self) -> str:
        """The command's name: ``"undo"``."""
        return self.usage.split()[0].removeprefix("/")

    @property
    def takes(self) -> Takes:
        """What may follow the name."""
        argument = self.usage.partition(" ")[2].strip("[]")
        return Takes(argument) if argument in {takes.value for takes in Takes} else Takes.NAME


class Commands(dict[str, Command]):
    """Slash commands by name, in the order of ``/help``.

    Examples:
        >>> commands = Commands()
        >>> @commands.add("/greet NAME", "greet somebody")
        ... def greet(chat, name):
        ...     chat.note(f"Hello, {name}!")
        >>> commands["greet"].help
        'greet somebody'
    """

    def add(self, usage: str, help: str) -> Callable[[Run], Run]:  # noqa: A002 (as click says it)
        """Register the decorated function as a command."""

        def register(run: Run) -> Run:
            name = usage.split()[0].removeprefix("/")
            self[name] = Command(usage, help, run)
            return run

        return register
