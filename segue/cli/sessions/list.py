"""The table of saved sessions."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console

from ...printable import printable_line
from ..output.streams import write_remark
from ..words import age, size_text
from .folder import SavedSession

HEADINGS = ("NAME", "TITLE", "TURNS", "TOKENS", "SIZE", "MODEL", "AGE")
NUMBERS = ("TURNS", "TOKENS", "SIZE")
# The columns that shrink if the terminal is too narrow, in order, and how far.
NARROWED = (("TITLE", 12), ("MODEL", 8), ("NAME", 8), ("TITLE", 0))
GAP = 2


def print_sessions(sessions: Sequence[SavedSession]) -> None:
    """Print sessions as a table, and below it what is wrong with any of them.

    In a terminal the table is made to fit; in a pipe it is printed in full.
    """
    console = Console(highlight=False)
    rows = [_row(session) for session in sessions]
    widths = [max(map(cell_len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    if console.is_terminal:
        widths = narrowed(widths, console.width)
    for number, row in enumerate([HEADINGS, *rows]):
        line = _line(row, widths)
        if console.is_terminal:
            line = set_cell_size(line, min(cell_len(line), console.width))
        write_remark(line, bold=number == 0)
    for session in sessions:
        if session.problem:
            write_remark(printable_line(f"{session.name}: {session.problem}"))


def narrowed(widths: Sequence[int], width: int) -> list[int]:
    """Widths of columns, shrunk as far as possible to fit into a line."""
    fitting = list(widths)
    for heading, least in NARROWED:
        column = HEADINGS.index(heading)
        excess = sum(fitting) + GAP * (len(fitting) - 1) - width
        fitting[column] -= max(min(excess, fitting[column] - least), 0)
    return fitting


def _row(session: SavedSession) -> tuple[str, ...]:
    known = session.file is not None
    cells = (
        session.name,
        session.file.title if session.file is not None else "(damaged)",
        f"{session.turns:,}" if known else "",
        f"{session.tokens:,}" if known else "",
        size_text(session.size),
        session.model,
        age(session.saved),
    )
    return tuple(map(printable_line, cells))


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = []
    for heading, cell, width in zip(HEADINGS, row, widths, strict=True):
        if cell_len(cell) > width:
            cell = set_cell_size(cell, width - 1) + "…" if width else ""
        filler = " " * (width - cell_len(cell))
        cells.append(filler + cell if heading in NUMBERS else cell + filler)
    return (" " * GAP).join(cells).rstrip()
