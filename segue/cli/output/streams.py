"""Standard output and standard error.

All that the command prints goes through this folder, because most of it may quote what others said:
a model, a file, a name. On a terminal, none of that may be a command (see `segue.printable`). In a
pipe or a file, what was said is data, and stays as it is; remarks, errors and questions are made
printable there, too, since people read them.
"""

from __future__ import annotations

import sys

import click

from ...printable import printable, printable_line


def write(text: str) -> None:
    """Write what was said to standard output: unchanged, unless that is a terminal."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def write_remark(text: str, *, error: bool = False, bold: bool = False) -> None:
    """Write a remark, which may quote others, and a newline.

    Args:
        text: The remark.
        error: Whether it goes to standard error.
        bold: Whether it is bold on a terminal.
    """
    text = printable(text)
    click.echo(click.style(text, bold=True) if bold else text, err=error)


def ask(question: str) -> bool:
    """Ask a question, which may quote others; True for yes."""
    return click.confirm(printable_line(question))
