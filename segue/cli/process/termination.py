"""Ending on SIGTERM and SIGHUP as on Ctrl-C: what was said is kept, and the terminal restored.

How it works
    `docker stop` sends SIGTERM, and a window that is closed sends SIGHUP. By default both end a
    process where it is. While `ending_on_signals` is in force, the first of them is remembered and
    becomes a Ctrl-C: it raises SIGINT. So it arrives where a Ctrl-C may arrive, never in the middle
    of a change to the KV cache (see `segue.interrupt`), and whatever cleans up after a Ctrl-C
    cleans up. A program that would continue after a Ctrl-C asks `is_ending` first. At the end of
    the block the signal is raised once more with its default action, so that whoever started the
    process sees what ended it.

    If the window is gone, all output fails with an OSError. That is no reason to lose anything:
    what must be saved is saved in ``finally`` blocks, and the error ends with the block.

What does not work
    - Raising an exception of our own in the handler. A KV cache could be left half way through a
      change, since only SIGINT is held back there.
    - Calling SIGINT's handler instead of raising the signal: an event loop, such as the prompt's,
      has one that does nothing, and looks at the signal by other means.
    - A process that ignores Ctrl-C, as those that a script starts in the background do. So in the
      block it has a handler for SIGINT, which ignores all but our own.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Windows has no SIGHUP.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]

_received: int | None = None
_finishing = False


def is_ending() -> bool:
    """Return True if a signal has asked this process to end."""
    return _received is not None


def stop_if_ending() -> None:
    """Stop what takes long, if the Ctrl-C that was to stop it was lost somewhere.

    Raises:
        KeyboardInterrupt: if a signal has asked this process to end.
    """
    if is_ending():
        raise KeyboardInterrupt


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Turn the first SIGTERM or SIGHUP in this block into a Ctrl-C, and end by it afterwards.

    A signal that is ignored, as by ``nohup``, stays ignored. In other threads than the main one,
    nothing is changed.
    """
    global _received, _finishing
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _received, _finishing = None, False
    before = {number: signal.getsignal(number) for number in [*SIGNALS, signal.SIGINT]}
    for number in SIGNALS:
        if before[number] is signal.SIG_DFL:
            signal.signal(number, _interrupt)
    if before[signal.SIGINT] is signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt_if_ending)
    try:
        yield
    finally:
        _finishing = True  # a signal that comes from here on is only remembered
        for number, handler in before.items():
            if signal.getsignal(number) in (_interrupt, _interrupt_if_ending):
                signal.signal(number, handler)
        if _received is not None:
            _end_by(_received)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _received
    # One is enough: a second one must not break off what the first one has begun.
    if _received is None:
        _received = number
        if not _finishing:
            signal.raise_signal(signal.SIGINT)


def _interrupt_if_ending(number: int, frame: FrameType | None) -> None:
    stop_if_ending()


def _end_by(number: int) -> None:
    # Output is not flushed: whoever should read it may have stopped reading.
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    # The first process of a container has no default action.
    sys.exit(128 + number)
