"""Reasoning and answer, separated by the tags that a model writes around its reasoning.

Reasoning comes first, between two tags; the first tag may be the end of the prompt. The splitter is
in one of three states, and goes through them once, in this order::

    undecided --start tag--> reasoning --end tag--> answer
        |                                             ^
        +-------------- any other text ---------------+

In a state that a tag may end, text that the tag may begin with is withheld until it is decided. The
tags themselves, and the line breaks around them, belong to neither kind of text.
"""

from __future__ import annotations

from typing import NamedTuple

from ..response import TextKind
from .matching import overlap


class TextPiece(NamedTuple):
    """Some text of a reply, all of one kind."""

    kind: TextKind
    text: str


class ReasoningSplitter:
    """Splits the text of one reply as it comes.

    Examples:
        >>> splitter = ReasoningSplitter(("<think>", "</think>"), "")
        >>> texts = ("<thi", "nk>hm</think>", "yes")
        >>> [piece.text for text in texts for piece in splitter.add(text)]
        ['hm', 'yes']

    Args:
        tags: The start and end tag; ``None`` if the model writes none.
        prompt: The end of the prompt, which may be the start tag.
    """

    def __init__(self, tags: tuple[str, str] | None, prompt: str) -> None:
        self._start, self._end = tags or ("", "")
        self._withheld = ""
        # Right after a tag, where line breaks are dropped.
        self._after_tag = False
        # The tag that ends the present state; empty once the answer has begun.
        self._tag = self._start
        self.kind = TextKind.ANSWER
        """The kind of the newest text."""
        if tags is not None and prompt.rstrip().endswith(self._start):
            self._begin_reasoning()

    def add(self, text: str) -> list[TextPiece]:
        """Return the pieces that are now certain."""
        self._withheld += text
        pieces: list[TextPiece] = []
        while self._tag and self._decide(pieces):
            pass
        if not self._tag:
            self._pass(pieces, len(self._withheld))
        return pieces

    def finish(self) -> list[TextPiece]:
        """Return what is still withheld: the reply ended before it became a tag."""
        pieces: list[TextPiece] = []
        if self.kind is TextKind.REASONING:
            self._withheld = self._withheld.rstrip("\n")
        self._pass(pieces, len(self._withheld))
        return pieces

    def _decide(self, pieces: list[TextPiece]) -> bool:
        """Look for the tag in what is withheld; return True if it was found."""
        if self.kind is TextKind.ANSWER:
            text = self._withheld.lstrip()
            if text.startswith(self._start):
                self._withheld = text[len(self._start) :]
                self._begin_reasoning()
                return True
            if not self._start.startswith(text):
                self._tag = ""
            return False
        offset = self._withheld.find(self._end)
        if offset >= 0:
            rest = self._withheld[offset + len(self._end) :]
            self._withheld = self._withheld[:offset].rstrip("\n")
            self._pass(pieces, len(self._withheld))
            self._withheld, self.kind, self._tag = rest, TextKind.ANSWER, ""
            self._after_tag = True
            return True
        certain = len(self._withheld) - overlap(self._withheld, (self._end,))
        # Line breaks may turn out to be those before the tag.
        self._pass(pieces, len(self._withheld[:certain].rstrip("\n")))
        return False

    def _begin_reasoning(self) -> None:
        self.kind, self._tag = TextKind.REASONING, self._end
        self._after_tag = True

    def _pass(self, pieces: list[TextPiece], length: int) -> None:
        text, self._withheld = self._withheld[:length], self._withheld[length:]
        if self._after_tag:
            text = text.lstrip("\n")
        if text:
            self._after_tag = False
            pieces.append(TextPiece(self.kind, text))
