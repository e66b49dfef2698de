"""Replies of several messages in channels, as gpt-oss writes them (OpenAI's *harmony* format).

A message has a header and a body; the prompt ends within the first header::

    <|start|>assistant<|channel|>analysis<|message|>I need to ...<|end|>
    <|start|>assistant<|channel|>commentary<|message|>I'll look.<|end|>
    <|start|>assistant to=functions.f<|channel|>commentary json<|message|>{"n": 1}<|call|>

The header decides what the body is: with a recipient a call, in the channel ``analysis`` reasoning,
in any other (or none) text for the person. The splitter is in one of two states::

                 +----------- it is no header: text of this body -----------+
                 v                                                          |
    header --> body --<|end|>, <|return|>, <|call|>, <|start|>, <|channel|>--> header?
                 ^                                                          |
                 +------- <|message|>: body of the next message ------------+

Text that may turn out to be part of a header is withheld. A header is read wherever it stands, so a
body never has a whole one in it: gpt-oss's template refuses messages that do.

A call is complete once its message is ended. Then it is a `ToolCall`, with arguments as a mapping
if they are a JSON object and as text otherwise (Python code, broken JSON). A call that is cut short
is text of the answer, since nothing that was said is dropped; so is the recipient, if its header is
cut short.

What does not work: text of a reply that spells a header in letters is taken for one.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..response import TextKind
from ..tool_call import ToolCall
from .form import ReplyForm
from .matching import overlap
from .tags import Said

ENDS = ("<|end|>", "<|return|>", "<|call|>")
START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
RECIPIENT = "to="
# What may come after the text of a body.
MARKS = (*ENDS, START, CHANNEL)
SPEAKER = "assistant"
ANALYSIS = "analysis"
# Recipients that are no tools.
PEOPLE = ("", "user", "all", SPEAKER)

_MARK = re.compile("|".join(map(re.escape, MARKS)))
_HALF_MARK = re.compile(r"<(\|[a-z]*\|?)?\Z")
_SPACE = re.compile(r"\s*")
_CALLED = re.compile(RECIPIENT + r"([^\s<]*)")
_WORD = re.compile(r"[^\s<]*")


class Header(NamedTuple):
    """The header of a message."""

    channel: str
    recipient: str
    length: int
    """How many characters it has, the end of the message before included."""

    @property
    def is_call(self) -> bool:
        """True if the message calls a tool."""
        return self.recipient not in PEOPLE


class _UndecidedError(Exception):
    """The text ends where it may still turn out to be a header."""


class _Scanner:
    """Reads a text from its start, as long as it is decided what comes next."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def take(self, *options: str) -> str:
        """Return the option that comes next, and go past it; empty if none of them does."""
        rest = self.text[self.at :]
        for option in options:
            if rest.startswith(option):
                self.at += len(option)
                return option
        if any(option.startswith(rest) for option in options):
            raise _UndecidedError
        return ""

    def match(self, pattern: re.Pattern[str]) -> str:
        """Return what matches a pattern that matches everywhere, and go past it."""
        found = pattern.match(self.text, self.at)
        assert found is not None
        self.at = found.end()
        if self.at == len(self.text):
            raise _UndecidedError
        return found[0]


def read_header(text: str, *, opened: bool) -> Header | None:
    """Return the header that a text begins with; ``None`` if it begins with none.

    Args:
        text: The text, which may go on.
        opened: Whether the prompt has begun the header.

    Raises:
        _UndecidedError: if that depends on how the text goes on.
    """
    scanner = _Scanner(text)
    if opened:  # and yet models begin it anew at times
        scanner.match(_SPACE)
        scanner.take(START)
        scanner.take(SPEAKER)
    else:
        if scanner.take(*ENDS):
            scanner.match(_SPACE)
        if scanner.take(START):
            if not scanner.take(SPEAKER):
                return None
        elif not text.startswith(CHANNEL, scanner.at):
            # An end alone; or half a mark, which may become this one.
            scanner.take(CHANNEL)
            return None
    channel = recipient = kind = ""
    while True:
        scanner.match(_SPACE)
        mark = scanner.take(MESSAGE, CHANNEL, CONSTRAIN, RECIPIENT)
        if mark == MESSAGE:
            return Header(channel, recipient, scanner.at)
        if mark == CHANNEL:
            channel = scanner.match(_WORD)
        elif mark == RECIPIENT:
            recipient = scanner.match(_WORD)
        elif mark == CONSTRAIN:
            kind = scanner.match(_WORD)
        elif kind or not (channel or recipient):
            return None
        else:  # the type of the body, without its mark
            kind = scanner.match(_WORD)
            if not kind:
                return None


class HarmonySplitter:
    """Splits the text of one reply as it comes.

    Examples:
        >>> splitter = HarmonySplitter(ReplyForm())
        >>> said = splitter.add("<|channel|>analysis<|message|>hm<|end|>")
        >>> said += splitter.add("<|start|>assistant<|channel|>final<|message|>yes")
        >>> [(str(text.kind), text.text) for text in said]
        [('reasoning', 'hm'), ('answer', 'yes')]

    Args:
        form: How the reply is written.
    """

    def __init__(self, form: ReplyForm) -> None:
        self._withheld = ""
        # True until it is decided whether the reply begins with the rest of a header.
        self._opening = True
        self._message = 0
        # The recipient and the text of a call; none is being read while the recipient is empty.
        self._recipient, self._arguments = "", ""
        self.kind = TextKind.ANSWER
        """The kind of the newest text."""
        if START + SPEAKER in form.opening:
            self.add(form.opening.rpartition(START + SPEAKER)[2])

    def add(self, text: str) -> list[Said]:
        """Return the pieces that are now certain."""
        self._withheld += text
        said: list[Said] = []
        try:
            while self._withheld:
                self._advance(said)
        except _UndecidedError:
            pass
        return said

    def finish(self, *, ended: bool) -> list[Said]:
        """Return what is still withheld: the reply is over before it became a header.

        Args:
            ended: Whether the model ended the reply, and so its last message.
        """
        said: list[Said] = []
        rest = self._withheld
        # A mark is one token: half of one is text, and so is what it stands behind.
        header = rest.startswith(MARKS) and not _HALF_MARK.search(rest)
        called = _CALLED.search(rest) if header or self._opening else None
        if called is not None and called[1] in PEOPLE:
            called = None
        if not header and called is None:
            self._pass(said, len(rest))
        self._withheld = ""
        if self._recipient:
            if ended or header:
                self._complete_call(said)
            else:
                said.append(self._unwatched(f"{RECIPIENT}{self._recipient} {self._arguments}"))
                self._recipient = ""
        if called is not None:
            self._message += 1
            said.append(self._unwatched(called[0]))
        return said

    def _advance(self, said: list[Said]) -> None:
        """Go past a header, or pass on what is certain."""
        if self._opening:
            header = read_header(self._withheld, opened=True)
            self._opening = False
            if header is not None:
                self._begin(header, said)
            return
        found = _MARK.search(self._withheld)
        if found is None:
            self._pass(said, len(self._withheld) - overlap(self._withheld, MARKS))
            raise _UndecidedError
        self._pass(said, found.start())
        header = read_header(self._withheld, opened=False)
        if header is None:
            self._pass(said, len(found[0]))
        else:
            self._begin(header, said)

    def _begin(self, header: Header, said: list[Said]) -> None:
        """Begin a message."""
        self._complete_call(said)
        self._withheld = self._withheld[header.length :]
        self._message += 1
        self._recipient = header.recipient if header.is_call else ""
        thinks = header.channel == ANALYSIS and not header.is_call
        self.kind = TextKind.REASONING if thinks else TextKind.ANSWER

    def _pass(self, said: list[Said], length: int) -> None:
        text, self._withheld = self._withheld[:length], self._withheld[length:]
        if self._recipient:
            self._arguments += text
        elif text:
            said.append(Said(self.kind, text, self._message))

    def _complete_call(self, said: list[Said]) -> None:
        if self._recipient:
            name = self._recipient.removeprefix("functions.") or self._recipient
            call = ToolCall.from_dict({"name": name, "arguments": self._arguments})
            said.append(Said(self.kind, "", self._message, call=call))
        self._recipient, self._arguments = "", ""

    def _unwatched(self, text: str) -> Said:
        self.kind = TextKind.ANSWER
        return Said(TextKind.ANSWER, text, self._message, watched=False)
