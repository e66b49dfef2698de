"""Markdown, styled where it stands.

How it works
    Nothing is rendered: the characters of a text stay what they are, marks and all, and styles are
    laid over them. A text may grow; what it says never depends on how it was cut into pieces.

    A line has its kind by how it begins: a fence, a line of code between fences, a heading, a
    quotation, or anything else. In the last kind, spans are looked for: code, bold, italic. What
    more text could change waits: the marks at the start of a line, and the text after a mark that
    may open a span, until that is closed, its line ends, or it gets too long. All waits are
    bounded, so the cost of a text is proportional to its length, however it comes.

    Only what is surely Markdown is styled. Stars beside letters or blanks (``2*3*4``, ``a * b``),
    underscores (``__init__``), and marks that nothing closes stay as they are.

What does not work
    - Rendering. Markdown has many ways to write what looks the same, so rendered text drops and
      changes characters; raw HTML, backslashes and single line breaks are lost. And whoever talks
      with a model about code needs to see what it wrote.
    - Colours by language in code. A lexer needs the whole block: whether a line is code or part of
      a string may depend on any other. So a growing block would have to be drawn again and again,
      which costs the square of its length, and lines that have scrolled away can't be redrawn.
    - Styling from a mark on, before the one that closes it has come: most lone stars open nothing.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import NamedTuple

CODE, HEADING, QUOTATION = "cyan", "bold", "italic"
EMPHASES = {1: "italic", 2: "bold", 3: "bold italic"}

# In characters. Longer ones are rare, and taken for plain text.
LONGEST_SPAN = 200
LONGEST_START = 80

# What may stand before a fence in its line: blanks, and marks of list items.
_MARGIN = r"(?:[ \t]|(?:[-*+]|[0-9]{1,9}[.)])[ \t])*"
_FENCE = re.compile(_MARGIN + r"(?P<marks>`{3,}|~{3,})[^`\n]*\n?")
_HEADING = re.compile(r" {0,3}#{1,6}[ \t\n]")
_QUOTATION = re.compile(r" {0,3}>")
# A start that may still become one of these.
_UNDECIDED = re.compile(
    _MARGIN + r"(?:[-*+]|[0-9]{1,9}[.)]?|#{1,6}|`{1,2}|~{1,2}|(?:`{3,}|~{3,})[^`\n]*)?"
)

_ASCII_WORD = re.compile(r"\w", re.ASCII)

# Where a span may open, or a character is escaped.
_MARK = re.compile(r"[*`\\\n]")
_RUN = re.compile(r"(.)\1*")
_OPENS = re.compile(r"\*{1,3}(?=[^\s*.,;:!?/|)\]}\\])|`+(?=[^`\n])")
_SPAN = re.compile(
    r"(?P<ticks>`+)(?!`)[^\n]*?[^`\n](?P=ticks)(?!`)"
    r"|\*\*\*[^*\n]*[^\s*\\]\*\*\*(?![*\w])"
    r"|\*\*(?!\*)(?:[^*\n]|\*(?!\*))*?[^\s*\\]\*\*(?![*\w])"
    r"|\*(?!\*)[^*\n]*[^\s*\\]\*(?![*\w])",
    re.ASCII,
)


class Piece(NamedTuple):
    """A part of the text, and its style."""

    text: str
    style: str
    """A style of rich's; empty for none."""


class MarkdownStyler:
    """Lays styles over a Markdown text that grows.

    The texts of all pieces, joined, are the text that was fed.

    Examples:
        >>> styler = MarkdownStyler()
        >>> styler.feed("Say **hel")
        [Piece(text='Say ', style='')]
        >>> styler.feed("lo** to *.py") + styler.finish()
        [Piece(text='**hello**', style='bold'), Piece(text=' to *.py', style='')]
    """

    def __init__(self) -> None:
        self._reset()

    @property
    def waiting(self) -> int:
        """How many characters wait for their style."""
        return len(self._source)

    def feed(self, text: str) -> list[Piece]:
        """Add text; return the pieces whose style is certain now."""
        return self._pieces(text, last=False)

    def finish(self) -> list[Piece]:
        """End the text; return the pieces that were waiting. The next text begins anew."""
        pieces = self._pieces("", last=True)
        self._reset()
        return pieces

    def _reset(self) -> None:
        self._source = ""  # what waits
        self._before = "\n"  # the character before that
        self._fence = ""  # the marks that opened the block of code that is open
        self._end_line()

    def _end_line(self) -> None:
        self._begun = False  # the kind of the line is known
        self._style: str | None = None  # of the whole line; none if it has spans
        self._code: str | None = None  # the first characters of a line of code

    def _pieces(self, text: str, *, last: bool) -> list[Piece]:
        source = self._source + text
        found = []
        at = 0
        while at < len(source):
            piece = self._next(source, at, last)
            if piece is None:
                break
            found.append(piece)
            at += len(piece.text)
            self._before = piece.text[-1]
            if self._before == "\n":
                if self._code is not None and self._closes(self._code):
                    self._fence = ""
                self._end_line()
        self._source = source[at:]
        joined = groupby(found, key=lambda piece: piece.style)
        return [Piece("".join(piece.text for piece in same), style) for style, same in joined]

    def _next(self, source: str, at: int, last: bool) -> Piece | None:
        """Return the next piece; ``None`` if more text could change it."""
        if not self._begun:
            self._begun = self._begin_line(source[at : at + LONGEST_START], last)
            if not self._begun:
                return None
        if self._style is None:
            return self._next_of_spans(source, at, last)
        end = source.find("\n", at) + 1 or len(source)
        if self._code is not None:
            self._code += source[at : min(end, at + LONGEST_START - len(self._code))]
        return Piece(source[at:end], self._style)

    def _begin_line(self, start: str, last: bool) -> bool:
        """Find the kind of a line; False if more text could change it."""
        if self._fence:
            self._style, self._code = CODE, ""
            return True
        start, newline, _ = start.partition("\n")
        start += newline
        whole = newline or (last and len(start) < LONGEST_START)
        if not whole and len(start) < LONGEST_START and _UNDECIDED.fullmatch(start):
            return False
        fence = _FENCE.fullmatch(start) if whole else None
        if fence:
            self._style, self._fence = CODE, fence["marks"]
        elif _HEADING.match(start):
            self._style = HEADING
        elif _QUOTATION.match(start):
            self._style = QUOTATION
        return True

    def _closes(self, line: str) -> bool:
        """True if a line of code is the fence that closes it."""
        marks = line.strip()
        return (
            len(line) < LONGEST_START
            and len(marks) >= len(self._fence)
            and marks == self._fence[0] * len(marks)
        )

    def _next_of_spans(self, source: str, at: int, last: bool) -> Piece | None:
        """Return the next piece of a line that may have spans."""
        mark = _MARK.search(source, at)
        if mark is None:
            return Piece(source[at:], "")
        if mark.start() > at:
            return Piece(source[at : mark.start()], "")
        if mark[0] == "\n":
            return Piece("\n", "")
        window = source[at : at + LONGEST_SPAN]
        whole = last or len(window) == LONGEST_SPAN or "\n" in window
        if mark[0] == "\\":
            # The character that is escaped opens nothing.
            size = 2 if window[1:2] not in ("", "\n") else 1
            return Piece(window[:size], "") if size == 2 or whole else None
        run = _RUN.match(source, at)
        assert run is not None
        if self._before == mark[0] or (mark[0] == "*" and _ASCII_WORD.match(self._before)):
            return Piece(run[0], "")
        if not _OPENS.match(source, at):
            return Piece(run[0], "") if whole or run.end() < len(source) else None
        span = _SPAN.match(window)
        if span and (span.end() < len(window) or (last and len(window) < LONGEST_SPAN)):
            style = CODE if mark[0] == "`" else EMPHASES[len(run[0])]
            return Piece(span[0], style)
        return Piece(run[0], "") if whole else None
