"""Markdown that appears as it is written.

How it works
    A growing text is split in two: blocks that more text can't change, and the last block, which
    may still grow. A finished block is rendered once and printed for good. The last one is rendered
    again and again in a live region at the bottom of the screen, at most every
    `SECONDS_BETWEEN_REFRESHES`; of a block that is taller than the screen, its last lines.

What does not work
    - A live region for the whole text. Each token would render all of it again, so that a reply
      costs the square of its length, and lines that have scrolled away can't be redrawn.
    - Printing each token. How a line looks may depend on what follows it: a list's next item, the
      end of a code block, a table's second line.
    - Splitting at every blank line. It may stand inside a fenced code block, or between the items
      of a list. So a list is one block, however long, and is rendered again until it ends.
    - References. A block is rendered alone, so a link whose target is defined in a later block is
      shown as it was written.
"""

from __future__ import annotations

from time import monotonic
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

SECONDS_BETWEEN_REFRESHES = 0.08


class MarkdownStream:
    """Shows a Markdown text that grows.

    Args:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._block = ""
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._refreshed = 0.0

    def __enter__(self) -> MarkdownStream:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.update("", refresh=True)
        self._live.stop()
        if self._block.strip():
            self._console.print(Markdown(self._block))
        self._block = ""

    def note(self, text: str) -> None:
        """Show a passing remark until the next text comes."""
        self._live.update(Text(text, style="dim"), refresh=True)

    def write(self, text: str) -> None:
        """Add text."""
        self._block += text
        finished, self._block = split_finished(self._block)
        if finished.strip():
            self._live.update("")
            self._console.print(Markdown(finished))
            self._console.print()
        now = monotonic()
        due = now - self._refreshed >= SECONDS_BETWEEN_REFRESHES
        if due:
            self._refreshed = now
        self._live.update(_LastLines(Markdown(self._block)), refresh=due)


def split_finished(text: str) -> tuple[str, str]:
    """The Markdown blocks that more text can't change, and the rest.

    A blank line ends a block, unless it is in a fenced code block, or the line after it may belong
    to the same block (a list's next item, an indented line).
    """
    fence = ""
    end = offset = 0
    blank = False
    for line in text.splitlines(keepends=True):
        stripped = line.strip()
        if blank and not fence and _begins_block(line):
            end = offset
        if stripped.startswith(("```", "~~~")):
            if not fence:
                fence = stripped[:3]
            elif stripped.startswith(fence):
                fence = ""
        blank = not stripped
        offset += len(line)
    return text[:end], text[end:]


def _begins_block(line: str) -> bool:
    """True if a line that follows a blank one certainly begins a new block."""
    first = line[:1]
    return bool(first) and not first.isspace() and not first.isdigit() and first not in "-*+>"


class _LastLines:
    """The last lines of a renderable, as many as fit the terminal."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._renderable, options.update(height=None), pad=False)
        height = max(console.size.height - 2, 1)
        for line in lines[-height:]:
            yield from line
            yield Segment.line()
