"""Text from files and standard input, which must be UTF-8.

A byte order mark at its start, which some editors write, is not part of the text.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

BOM = "\ufeff"


def without_mark(text: str) -> str:
    """Return a text without the byte order mark that it may begin with."""
    return text.removeprefix(BOM)


def decoded(data: bytes, source: str) -> str:
    """Return the text of a file.

    Args:
        data: The file's bytes.
        source: The file, for the error.

    Raises:
        ClickException: if it isn't text.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise click.ClickException(
            f"{source} must be UTF-8 text, but byte {error.start} is not. Convert the text first."
        ) from error
    if "\0" in text:
        raise click.ClickException(
            f"{source} must be text, but byte {data.index(0)} is zero. Pass a text file."
        )
    return without_mark(text)


def read_standard_input() -> str:
    """Return the whole of standard input as one message.

    Raises:
        ClickException: if it isn't text, or is empty.
    """
    buffer = getattr(sys.stdin, "buffer", None)
    data = sys.stdin.read().encode(errors="surrogateescape") if buffer is None else buffer.read()
    # Indentation before its first word may be meant.
    text = decoded(data, "Standard input").replace("\r\n", "\n").strip("\n")
    if not text.strip():
        raise click.ClickException(
            "Standard input is empty, so there is nothing to answer. Pipe a message into the chat."
        )
    return text


def read_lines() -> Iterator[str]:
    """Yield the lines of standard input that aren't empty, each as soon as it comes.

    Raises:
        ClickException: if one of them isn't text.
    """
    lines = getattr(sys.stdin, "buffer", sys.stdin)
    for number, line in enumerate(lines, start=1):
        data = line if isinstance(line, bytes) else line.encode(errors="surrogateescape")
        if text := decoded(data, f"Line {number} of standard input").strip():
            yield text
