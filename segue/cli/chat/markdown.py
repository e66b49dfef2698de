"""A Markdown text that appears as it is written.

How it works
    Text is only ever added to what is on the screen. Its characters are printed once, as soon as
    their style is certain (see `MarkdownStyler`): at once, or when a span that they may belong to
    is closed. So each word costs the same, however long the reply gets. The terminal wraps and
    scrolls it, and may be made wider or narrower meanwhile.

    A passing remark stands in a live region of rich's, which is gone before the text begins.

What does not work
    - A live region for the text, or for its last block. It is drawn again and again, so a block
      must not be taller than the screen, and to be drawn over it must be broken into lines here:
      then a long line can't be copied as one. If the terminal gets narrower, old lines stay.
"""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ..output.screen import show_pieces
from ..output.styling import MarkdownStyler, Piece

QUIET = "dim"


class MarkdownStream:
    """Shows a Markdown text that grows.

    Args:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._styler = MarkdownStyler()
        self._quiet = False
        self._in_line = False
        self._remark: Live | None = None

    def __enter__(self) -> MarkdownStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end_section()

    @property
    def waiting(self) -> int:
        """How many characters wait for their style."""
        return self._styler.waiting

    def note(self, text: str) -> None:
        """Show a passing remark until the next text comes; not in the middle of a line."""
        if self._in_line or self.waiting:
            return
        if self._remark is None:
            self._remark = Live(console=self._console, auto_refresh=False, transient=True)
            self._remark.start()
        self._remark.update(Text(text, style=QUIET), refresh=True)

    def begin(self, heading: str, *, quiet: bool = False) -> None:
        """Begin a section: a new text, after a heading on a line of its own.

        Args:
            heading: The heading.
            quiet: Whether the text is dim, and not Markdown.
        """
        self._end_section()
        self._show([Piece(heading, QUIET), Piece("\n", "")])
        self._quiet = quiet

    def write(self, text: str) -> None:
        """Add text."""
        self._show([Piece(text, QUIET)] if self._quiet else self._styler.feed(text))

    def _end_section(self) -> None:
        self._show(self._styler.finish())
        if self._in_line:
            self._show([Piece("\n", "")])

    def _show(self, pieces: list[Piece]) -> None:
        self._end_remark()
        pieces = [piece for piece in pieces if piece.text]
        if pieces:
            show_pieces(self._console, pieces)
            self._in_line = not pieces[-1].text.endswith("\n")

    def _end_remark(self) -> None:
        if self._remark is not None:
            self._remark.update("", refresh=True)
            self._remark.stop()
            self._remark = None
