"""Foreign text, made fit to be seen.

What a model, a file or another program says may have characters that command a terminal: escape
sequences clear the screen, set its title or write the clipboard; a carriage return or a backspace
writes over what is there; bidirectional controls reorder what surrounds them. Here each such
character becomes a visible one, so that it is read and not obeyed, and nothing is left out in
silence.

Newlines and tabs stay. So do invisible characters that scripts and emoji need (joiners, directional
marks, tags of flags): they command nothing.
"""

from __future__ import annotations

from collections.abc import Iterable


def printable(text: str) -> str:
    r"""Return a text with visible characters instead of control characters.

    Each character is replaced by itself, so a text may be replaced piece by piece.

    Examples:
        >>> printable("red: \x1b[31m")
        'red: ␛[31m'
        >>> printable("\u202egnp.exe")
        '<U+202E>gnp.exe'
    """
    return text.translate(_SEEN)


def printable_line(text: str, limit: int | None = None) -> str:
    r"""Return a text as one printable line.

    Args:
        text: The text. Its newlines and tabs become visible as well.
        limit: The most characters to return; ``None`` for all.

    Examples:
        >>> printable_line("two\nlines")
        'two␊lines'
        >>> printable_line("two lines", 5)
        'two …'
    """
    if limit is not None and len(text) > limit:
        text = text[:limit]  # what is replaced does not get shorter
        return printable_line(text)[: limit - 1] + "…"
    return text.translate(_SEEN_IN_LINE)


def _pictures() -> dict[int, str]:
    """The control characters that have a picture of their own in Unicode."""
    pictures = {code: chr(0x2400 + code) for code in range(0x20)}
    return pictures | {0x7F: "\N{SYMBOL FOR DELETE}"}


def _names(codes: Iterable[int]) -> dict[int, str]:
    return {code: f"<U+{code:04X}>" for code in codes}


_SEEN_IN_LINE = _pictures() | _names(
    [
        *range(0x80, 0xA0),  # C1: escape sequences in one character
        0x2028,  # line separator
        0x2029,  # paragraph separator
        *range(0x202A, 0x202F),  # bidirectional embeddings and overrides
        *range(0x2066, 0x2070),  # bidirectional isolates, and deprecated controls
        *range(0xD800, 0xE000),  # halves of characters, which no terminal can take
    ]
)
_SEEN = {code: seen for code, seen in _SEEN_IN_LINE.items() if chr(code) not in "\n\t"}
