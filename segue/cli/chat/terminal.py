r"""The terminal's own settings while a reply is shown.

How it works
    Somebody may type while a reply is shown. Three flags of the terminal are cleared for that time:
    ECHO, which would write the keys into the reply; ICANON, with which the terminal collects a line
    before anybody can read it; and ICRNL, which turns Enter (``\r``) into a line feed. The keys
    stay in the terminal's queue as they were typed, and the next prompt reads them. ISIG stays set,
    so Ctrl-C still sends its signal.

What does not work
    - Clearing ECHO alone. With ICRNL, an Enter typed ahead reaches the prompt as Ctrl-J, which
      starts a new line of the message instead of sending it.
    - TCSAFLUSH, which discards the queue, and what was typed with it. TCSADRAIN leaves it alone.
    - Input that isn't a terminal: it has no such settings, and is left as it is.
"""

from __future__ import annotations

import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

# Indices in the list that tcgetattr returns.
INPUT_FLAGS, LOCAL_FLAGS = 0, 3


@contextmanager
def quiet_input() -> Iterator[None]:
    """Keep what is typed in this block off the screen, and unchanged for the next prompt."""
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
