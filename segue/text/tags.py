"""Reasoning and answer, separated by the tags that a model writes around them.

Reasoning comes first, between two tags; the first tag may be the end of the prompt. The answer may
stand in a wrapping (see `form.py`). The splitter goes through four states, in this order::

    opening --start tag--> reasoning --end tag--> before the answer --any text--> answer
       |                                                                             ^
       +-------------------- a wrapping's start, or any other text ------------------+

In a state that a tag may end, text that the tag may begin with is withheld until it is decided. The
tags themselves, and the line breaks around them, belong to neither kind of text. Of a wrapping that
the template writes, exactly what it writes is left out, so that the answer is rendered as it was
said. Its end is an end only where nothing but white space follows in the reply.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..response import TextKind
from ..tool_call import ToolCall
from .form import ReplyForm
from .matching import overlap


class TextPiece(NamedTuple):
    """Some text of a reply, all of one kind."""

    kind: TextKind
    text: str


class Said(NamedTuple):
    """Some text of a reply, and which of its messages it is part of."""

    kind: TextKind
    text: str
    message: int = 0
    """Grows with each part of a reply that is separate from the one before it."""
    watched: bool = True
    """False if no stop string is looked for in it."""
    call: ToolCall | None = None
    """A call that is complete, in place of text."""


class ReasoningSplitter:
    """Splits the text of one reply as it comes.

    Examples:
        >>> splitter = ReasoningSplitter(ReplyForm(("<think>", "</think>")))
        >>> texts = ("<thi", "nk>hm</think>", "yes")
        >>> [said.text for text in texts for said in splitter.add(text)]
        ['hm', 'yes']

    Args:
        form: How the reply is written.
    """

    def __init__(self, form: ReplyForm) -> None:
        self._start, self._end = form.tags or ("", "")
        self._wrapping = form.wrapping
        self._starts: tuple[str, ...] = ()
        self._wrapping_end = self._wrapping_tag = ""
        if form.wrapping is not None:
            start = form.wrapping.start.lstrip()
            tag = start.rstrip()
            # With the white space that the template writes after it; or without, unless it is a
            # word, which may be the beginning of another one.
            starts = (start, "" if tag[-1:].isalnum() else tag)
            self._starts = tuple(dict.fromkeys(filter(None, starts)))
            if form.wrapping.rendered:
                self._await_end()
        self._withheld = ""
        # Right after a tag, where line breaks are dropped.
        self._after_tag = False
        self._message = 0
        self._step: Callable[[list[Said]], bool] = self._read_opening
        self.kind = TextKind.ANSWER
        """The kind of the newest text."""
        if self._start and self._start in form.opening:
            thought = form.opening.rpartition(self._start)[2]
            if self._end not in thought:
                self._begin_reasoning()
                self._after_tag = not thought.strip("\n")

    def add(self, text: str) -> list[Said]:
        """Return the pieces that are now certain."""
        self._withheld += text
        said: list[Said] = []
        while self._step(said):
            pass
        return said

    def finish(self, *, ended: bool) -> list[Said]:
        """Return what is still withheld: the reply is over before it became a tag.

        Args:
            ended: Whether the model ended the reply.
        """
        said: list[Said] = []
        if self.kind is TextKind.REASONING:
            self._withheld = self._withheld.rstrip("\n")
        elif self._step != self._read_answer:
            if self._withheld.strip() in self._starts:
                self._withheld = ""
        elif self._wrapping_tag and self._withheld.strip() == self._wrapping_tag:
            self._withheld = ""
        self._pass(said, len(self._withheld))
        return said

    def _read_opening(self, said: list[Said]) -> bool:
        text = self._withheld.lstrip()
        if self._start and text.startswith(self._start):
            self._withheld = text[len(self._start) :]
            self._begin_reasoning()
            return True
        if self._start and self._start.startswith(text):
            return False
        if self._wrapping is not None and self._wrapping.after_reasoning:
            self._step = self._read_answer
            return True
        return self._read_start(said)

    def _read_reasoning(self, said: list[Said]) -> bool:
        offset = self._withheld.find(self._end)
        if offset >= 0:
            rest = self._withheld[offset + len(self._end) :]
            self._withheld = self._withheld[:offset].rstrip("\n")
            self._pass(said, len(self._withheld))
            self._withheld, self.kind, self._step = rest, TextKind.ANSWER, self._read_start
            self._after_tag = True
            self._message += 1
            return True
        certain = len(self._withheld) - overlap(self._withheld, (self._end,))
        # Line breaks may turn out to be those before the tag.
        self._pass(said, len(self._withheld[:certain].rstrip("\n")))
        return False

    def _read_start(self, said: list[Said]) -> bool:
        """Read what may stand before the answer."""
        text = self._withheld.lstrip()
        for start in self._starts:
            if text.startswith(start):
                self._withheld = text[len(start) :]
                self._after_tag = not (self._wrapping and self._wrapping.rendered)
                self._await_end()
                break
            if start.startswith(text):
                return False
        self._step = self._read_answer
        return True

    def _read_answer(self, said: list[Said]) -> bool:
        tag = self._wrapping_tag
        if not tag:
            self._pass(said, len(self._withheld))
            return False
        offset = self._withheld.find(tag)
        if offset < 0:
            length = len(self._withheld) - overlap(self._withheld, (tag, self._wrapping_end))
            self._pass(said, self._without_gap(length))
            return False
        if self._withheld[offset + len(tag) :].strip():  # it was not the end
            self._pass(said, offset + len(tag))
            return True
        self._pass(said, self._without_gap(offset))
        return False

    def _without_gap(self, length: int) -> int:
        """Return how much of what is withheld comes before white space that the end may have."""
        text = self._withheld[:length]
        if self._wrapping is not None and not self._wrapping.rendered:
            return len(text.rstrip("\n"))
        return len(text.removesuffix(self._wrapping_end.removesuffix(self._wrapping_tag)))

    def _await_end(self) -> None:
        """From now on, the wrapping's end may come."""
        if self._wrapping is not None:
            self._wrapping_end = self._wrapping.end.rstrip()
            self._wrapping_tag = self._wrapping_end.lstrip()

    def _begin_reasoning(self) -> None:
        self.kind, self._step = TextKind.REASONING, self._read_reasoning
        self._after_tag = True

    def _pass(self, said: list[Said], length: int) -> None:
        text, self._withheld = self._withheld[:length], self._withheld[length:]
        if self._after_tag:
            text = text.lstrip("\n")
        if text:
            self._after_tag = False
            said.append(Said(self.kind, text, self._message))
