"""What a person typed: a message, a command, or what is neither.

A command is its exact name with what it takes, and nothing else (`Takes`):

- A command that takes nothing, or a number, has nothing else after it. "/clear the table, said the
  butler" is a message.
- A name may have several words, but it must be one: "/open the door, please" is a message.
- So is what follows the name of a setting, or is at most two words: "/set stop Human:".
- A text may have any words, and lines. All other commands are a single line.
- Everything else is a message, as it was typed: "/* adds */", "// TODO", "/etc/hosts".

A slip of the hand must not become a message. So a single word that looks like a command, or a
command with a single word that it does not take, is refused, and the answer says what may have been
meant. ``/say`` sends whatever follows it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ....errors import ConfigurationError
from ...process.input import without_mark
from ...sessions.folder import check_target
from .command import Command, Takes
from .settings import is_setting

SAY = "say"
# How other chats call these commands.
OTHER_NAMES = {"exit": "quit", "bye": "quit", "q": "quit", "?": "help", "h": "help", "new": "clear"}
LOOKS_LIKE_COMMAND = re.compile(r"[A-Za-z?-]*")


@dataclass(frozen=True, slots=True)
class Said:
    """A message."""

    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """A command, and the text after its name."""

    command: Command
    argument: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Neither of the two."""

    answer: str
    """What to tell the person."""


def read(typed: str, commands: Mapping[str, Command]) -> Said | Called | Refused:
    """Read what a person typed.

    Args:
        typed: The line, or lines.
        commands: The commands, by name.
    """
    typed = without_mark(typed)
    line = typed.strip()
    if not typed.startswith("/"):
        return Said(typed)
    name, _, verbatim = re.fullmatch(r"/(\S*)(\s?)(.*)", typed, re.DOTALL).groups()  # type: ignore[union-attr]
    argument = without_mark(verbatim.strip())
    command = commands.get(name)
    if command is None:
        if not argument and LOOKS_LIKE_COMMAND.fullmatch(name):
            return Refused(_unknown(name, commands))
        return Said(typed)
    if name == SAY:
        return Called(command, verbatim if argument else "")
    if command.takes is Takes.TEXT or not argument:
        return Called(command, argument)
    if "\n" in line:
        return Said(typed)
    one_word = len(argument.split()) == 1
    match command.takes:
        case Takes.NAME:
            return Called(command, argument) if one_word or _is_name(argument) else Said(typed)
        case Takes.SETTING:
            return Called(command, argument) if _is_setting(argument) else Said(typed)
        case Takes.NUMBER:
            return Called(command, argument) if one_word else Said(typed)
        case _:
            refused = Refused(f"/{name} takes nothing after it: {command.usage}. {_hint(line)}")
            return refused if one_word else Said(typed)


def _is_name(argument: str) -> bool:
    try:
        check_target(argument)
    except ConfigurationError:
        return False
    return True


def _is_setting(argument: str) -> bool:
    words = argument.split()
    # A value may be any text, and a name may be misspelled.
    return len(words) <= 2 or is_setting(words[0]) or _is_name(argument)


def _unknown(name: str, commands: Mapping[str, Command]) -> str:
    # Hardly anybody slips on the first letter, and many short words are alike.
    likely = [command for command in commands if command[:1] == name[:1].lower()]
    near = difflib.get_close_matches(name.lower(), likely, n=1)
    meant = OTHER_NAMES.get(name.lower()) or (near[0] if near else "")
    what = f"did you mean /{meant}?" if meant else "/help lists them."
    return f"There is no command /{name}; {what} {_hint('/' + name)}"


def _hint(line: str) -> str:
    return f"To send it as a message: /{SAY} {line}"
