"""The list of saved sessions."""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.cells import cell_len, set_cell_size
from rich.console import Console

from .folder import SavedSession, age
from .show import printable

HEADINGS = ("NAME", "TITLE", "TURNS", "TOKENS", "SIZE", "MODEL", "AGE")
NUMBERS = ("TURNS", "TOKENS", "SIZE")
# What gives way where the terminal is too narrow, and down to how many columns.
NARROWED = (("TITLE", 12), ("MODEL", 8), ("NAME", 8), ("TITLE", 0))
GAP = 2


def print_sessions(sessions: Sequence[SavedSession]) -> None:
    """Print sessions as a table, as wide as the terminal at most, and whole into a pipe.

    What is wrong with any of them is told below.
    """
    console = Console(highlight=False)
    rows = [_row(session) for session in sessions]
    widths = [max(map(cell_len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    if console.is_terminal:
        widths = narrowed(widths, console.width)
    for place, row in enumerate([HEADINGS, *rows]):
        line = _line(row, widths)
        if console.is_terminal:
            line = set_cell_size(line, min(cell_len(line), console.width))
        click.echo(line if place else click.style(line, bold=True))
    for session in sessions:
        if session.problem:
            click.echo(_clean(f"{session.name}: {session.problem}"))


def narrowed(widths: Sequence[int], width: int) -> list[int]:
    """Widths of columns, made to fit into a line as far as they can be."""
    fitting = list(widths)
    for heading, least in NARROWED:
        place = HEADINGS.index(heading)
        excess = sum(fitting) + GAP * (len(fitting) - 1) - width
        fitting[place] -= max(min(excess, fitting[place] - least), 0)
    return fitting


def size_text(size: int) -> str:
    """A file's size as people say it: ``"1.5 MiB"``."""
    amount, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


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
    return tuple(map(_clean, cells))


def _clean(text: str) -> str:
    """A text as a single line, whatever characters a file has in its name."""
    return printable(text).replace("\n", " ").replace("\t", " ")


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = []
    for heading, cell, width in zip(HEADINGS, row, widths, strict=True):
        if cell_len(cell) > width:
            cell = set_cell_size(cell, width - 1) + "…" if width else ""
        filler = " " * (width - cell_len(cell))
        cells.append(filler + cell if heading in NUMBERS else cell + filler)
    return (" " * GAP).join(cells).rstrip()
