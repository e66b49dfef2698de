"""Chats whose person has typed everything already."""

from __future__ import annotations

import io
import re

from rich.console import Console

from kit.probe import engine_of
from segue import ChatSession, GenerationConfig
from segue.cli.chat.branches import Branch, Branches
from segue.cli.chat.chat import TerminalChat
from segue.cli.chat.commands import COMMANDS
from segue.cli.chat.start import Opener, Start
from segue.config import CacheConfig
from segue.testing import FakeEngine

COSTS = re.compile(r" tokens? read · [\d,]+ reused")


class Typed:
    """A prompter whose person has typed everything; what is no text is called, or raised."""

    def __init__(self, *lines):
        self._lines = iter(lines)

    def ask(self):
        line = next(self._lines, EOFError())
        if isinstance(line, BaseException):
            raise line
        if callable(line):
            line()
            return ""
        return line


def alone(session):
    """A chat that has no other branch yet."""
    return Branches(Branch(session), Opener(engine_of(session), {}, {}))


def chat_of(branches, *lines) -> TerminalChat:
    console = Console(file=io.StringIO(), width=2000, force_terminal=False)
    return TerminalChat(branches, console, Typed(*lines), COMMANDS, read_ahead=False)


def converse(*lines, script=("hello", "fine", "well"), **kwargs) -> tuple[str, ChatSession]:
    session = ChatSession(FakeEngine(script, **kwargs))
    chat = chat_of(alone(session), *lines)
    chat.console.width = 80
    chat.run()
    return chat.console.file.getvalue(), session


def told(chat: TerminalChat) -> list[str]:
    """The lines of a chat, those that have times in them left out."""
    lines = (line.strip() for line in chat.console.file.getvalue().splitlines())
    return [line for line in lines if line and not COSTS.search(line)]


def talk(*lines, engine=None, generation=GenerationConfig(), cache=CacheConfig(), **start):  # noqa: B008
    """A chat that begins as the command line says, and is over."""
    begin = Start(**start)
    claim = begin.claim()
    branches = begin.branches(engine or FakeEngine(letters()), generation, cache, claim)
    chat = chat_of(branches, *lines)
    chat.run()
    return chat


def letters() -> list[str]:
    """What a model says: a, b, c ..."""
    return [chr(letter) for letter in range(ord("a"), ord("z") + 1)]


def contents(messages) -> list[str]:
    return [message.content for message in messages]
