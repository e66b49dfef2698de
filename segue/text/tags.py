"""Reasoning and answer: told apart by the marks that a model writes around its reasoning."""

from __future__ import annotations

from typing import NamedTuple

from ..response import TextKind
from .stops import undecided


class ReasoningTags(NamedTuple):
    """What a model writes around its reasoning."""

    start: str
    end: str


class TextPart(NamedTuple):
    """Some text of a reply, of one kind."""

    kind: TextKind
    text: str


class ReasoningSplitter:
    """Splits the text of one reply as it comes.

    Reasoning stands at the front, between two marks; the first mark may be the prompt's last word.
    The marks themselves, and the line breaks around them, belong to neither.

    Args:
        tags: The marks; ``None`` where the model writes none.
        prompt: The prompt's text.

    Attributes:
        kind: What the newest text is part of.
    """

    def __init__(self, tags: tuple[str, str] | None, prompt: str) -> None:
        self._tags = None if tags is None else ReasoningTags(*tags)
        self._held = ""
        # Right behind a mark, where line breaks are dropped.
        self._behind_mark = False
        if self._tags is None:
            self.kind, self._mark = TextKind.ANSWER, ""
        elif prompt.rstrip().endswith(self._tags.start):
            self.kind, self._mark = TextKind.REASONING, self._tags.end
            self._behind_mark = True
        else:
            # Until it is clear whether the reply begins with reasoning.
            self.kind, self._mark = TextKind.ANSWER, self._tags.start

    def add(self, text: str) -> list[TextPart]:
        """The parts that are now certain."""
        self._held += text
        parts: list[TextPart] = []
        while self._mark and self._step(parts):
            pass
        if not self._mark:
            self._pass(parts, len(self._held))
        return parts

    def finish(self) -> list[TextPart]:
        """What is still held back: the reply ended before it became a mark."""
        parts: list[TextPart] = []
        if self.kind is TextKind.REASONING:
            self._held = self._held.rstrip("\n")
        self._pass(parts, len(self._held))
        return parts

    def _step(self, parts: list[TextPart]) -> bool:
        """Decide on what is held; whether a mark was found, so that there may be more to do."""
        assert self._tags is not None
        if self.kind is TextKind.ANSWER:
            front = self._held.lstrip()
            if front.startswith(self._mark):
                self._held = front[len(self._mark) :]
                self.kind, self._mark = TextKind.REASONING, self._tags.end
                self._behind_mark = True
                return True
            if not self._mark.startswith(front):
                self._mark = ""
            return False
        place = self._held.find(self._mark)
        if place >= 0:
            rest = self._held[place + len(self._mark) :]
            self._held = self._held[:place].rstrip("\n")
            self._pass(parts, len(self._held))
            self._held, self.kind, self._mark = rest, TextKind.ANSWER, ""
            self._behind_mark = True
            return True
        certain = len(self._held) - undecided(self._held, (self._mark,))
        # Line breaks may turn out to be those before the mark.
        self._pass(parts, len(self._held[:certain].rstrip("\n")))
        return False

    def _pass(self, parts: list[TextPart], length: int) -> None:
        text, self._held = self._held[:length], self._held[length:]
        if self._behind_mark:
            text = text.lstrip("\n")
        if text:
            self._behind_mark = False
            parts.append(TextPart(self.kind, text))
