"""The terminal's own settings."""

from __future__ import annotations

import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

# Places in the list that tcgetattr returns.
INPUT_FLAGS, LOCAL_FLAGS = 0, 3


@contextmanager
def quiet_input() -> Iterator[None]:
    """What is typed now is not shown, but kept as it is for the next prompt; Ctrl-C still works.

    Otherwise the terminal would write it into the reply that is being shown, and turn an Enter
    typed ahead into a line break of the next message.
    """
    try:
        before = termios.tcgetattr(sys.stdin)
    except (termios.error, OSError, ValueError):
        yield  # not a terminal
        return
    quiet = [*before]
    quiet[INPUT_FLAGS] &= ~termios.ICRNL
    quiet[LOCAL_FLAGS] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
