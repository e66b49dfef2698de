r"""The terminal's own settings while a chat runs and nobody is asked for anything.

How it works
    Somebody may type while a model is loaded, a reply is shown or a session is saved. Three flags
    of the terminal are cleared for that time: ECHO, which would write the keys into the reply;
    ICANON, with which the terminal collects a line before anybody can read it; and ICRNL, which
    turns Enter (``\r``) into a line feed. The keys stay in the terminal's queue as they were typed,
    and the next prompt reads them. ISIG stays set, so Ctrl-C still sends its signal.

    A shell that a stopped process (Ctrl-Z) gave way to sets the terminal for itself. So the flags
    are cleared again on SIGCONT.

    The prompt takes over with settings of its own, and puts back those that it found. So one block
    around the whole chat is enough.

    What was typed before that block, while Python started, is in the queue already, and each Enter
    in it is a line feed by now. It is taken from the queue and handed to the prompt as it was
    typed.

What does not work
    - Clearing ECHO alone. With ICRNL, an Enter typed ahead reaches the prompt as Ctrl-J, which
      starts a new line of the message instead of sending it.
    - TCSAFLUSH, which discards the queue, and what was typed with it. TCSADRAIN leaves it alone.
    - Input that isn't a terminal: it has no such settings, and is left as it is.
    - Telling Enter from Ctrl-J, and Ctrl-D from nothing, in what was typed before the block.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

# Indices in the list that tcgetattr returns.
INPUT_FLAGS, LOCAL_FLAGS = 0, 3


def is_terminal() -> bool:
    """Return True if a person types, and sees what is printed."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


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
    try:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
        if before[LOCAL_FLAGS] & termios.ICANON:
            _hand_over(_typed_already(sys.stdin.fileno()))
        with _again_after_a_stop(quiet):
            yield
    finally:
        # If the window was closed, there is nothing to put back.
        with suppress(termios.error, OSError):
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextmanager
def _again_after_a_stop(quiet: list[Any]) -> Iterator[None]:
    """Set the terminal again whenever the process continues after Ctrl-Z, in this block."""

    def reset(number: int, frame: FrameType | None) -> None:
        with suppress(termios.error, OSError):
            # A prompt has settings of its own, without these flags as well.
            if termios.tcgetattr(sys.stdin)[LOCAL_FLAGS] & termios.ICANON:
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGCONT, reset)
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, before)


def _typed_already(descriptor: int) -> bytes:
    """Return what is in the terminal's queue, with Enter as it was typed."""
    typed = b""
    with suppress(OSError):
        while select.select([descriptor], [], [], 0)[0] and (data := os.read(descriptor, 4096)):
            typed += data
    # The terminal writes a zero byte for Ctrl-D.
    return typed.replace(b"\n", b"\r").replace(b"\0", b"")


def _hand_over(typed: bytes) -> None:
    """Have the next prompt begin with these keys."""
    if not typed:
        return
    # Slow to import, and rarely needed this early.
    from prompt_toolkit.input import create_input
    from prompt_toolkit.input.typeahead import store_typeahead
    from prompt_toolkit.input.vt100_parser import Vt100Parser
    from prompt_toolkit.key_binding import KeyPress

    keys: list[KeyPress] = []
    Vt100Parser(keys.append).feed_and_flush(typed.decode(errors="replace"))
    store_typeahead(create_input(), keys)
