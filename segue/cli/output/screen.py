"""A terminal, or what Rich takes for one.

What was said is shown as it was said, but for control characters, which are made visible. It is
never taken for markup of Rich's, and never wrapped or padded here: the terminal breaks long lines
itself, and so knows them as one line, which can be copied as one. The command's own remarks are
wrapped between words.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from ...printable import printable
from .styling import MarkdownStyler, Piece


def show_pieces(console: Console, pieces: Iterable[Piece]) -> None:
    """Show styled text as it was said, without a newline after it."""
    segments = [
        Segment(printable(text), console.get_style(style) if style else None)
        for text, style in pieces
    ]
    # A `Text` would expand tabs, and drop control characters in silence.
    console.print(Segments(segments), end="", crop=False)


def show_text(console: Console, text: str) -> None:
    """Show a text as it was said; what comes next begins a line."""
    show_pieces(console, [Piece(_ended(text), "")])


def show_markdown(console: Console, text: str) -> None:
    """Show a Markdown text as it was said, with styles; what comes next begins a line."""
    styler = MarkdownStyler()
    show_pieces(console, styler.feed(_ended(text)) + styler.finish())


def show_remark(console: Console, text: str, style: str = "") -> None:
    """Show a remark of the command's own, which may quote others."""
    console.print(Text(printable(text), style=style))


def show_table(console: Console, table: Table) -> None:
    """Show a table of the command's own words."""
    console.print(table)


def _ended(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"
