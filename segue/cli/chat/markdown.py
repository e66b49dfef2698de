"""Markdown that appears as it is written."""

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
    """Shows a text that grows: finished blocks for good, the unfinished last one redrawn.

    Only the last block is rendered again as it grows, so a long reply costs no more per token than
    a short one, and what has scrolled away stays as it was.

    Args:
        console: Where to show it.
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
        """Show a passing remark in place of the block being written."""
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
        self._live.update(_Ending(Markdown(self._block)), refresh=due)


def split_finished(text: str) -> tuple[str, str]:
    """The Markdown blocks that more text can't change, and the rest.

    A blank line ends a block unless it stands in a fenced code block, or what follows may belong
    to the block before it (a list's next item, an indented line).
    """
    fence = ""
    cut = at = 0
    blank = False
    for line in text.splitlines(keepends=True):
        stripped = line.strip()
        if blank and not fence and _begins_block(line):
            cut = at
        if stripped.startswith(("```", "~~~")):
            if not fence:
                fence = stripped[:3]
            elif stripped.startswith(fence):
                fence = ""
        blank = not stripped
        at += len(line)
    return text[:cut], text[cut:]


def _begins_block(line: str) -> bool:
    """Whether a line behind a blank one certainly begins a block of its own."""
    first = line[:1]
    return bool(first) and not first.isspace() and not first.isdigit() and first not in "-*+>"


class _Ending:
    """As many of a renderable's last lines as the terminal has room for."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._renderable, options.update(height=None), pad=False)
        room = max(console.size.height - 2, 1)
        for line in lines[-room:]:
            yield from line
            yield Segment.line()
