"""Reading ahead while a person types."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..session import ChatSession

# Whoever presses Enter waits for at most so many tokens: well under a second on a CPU.
CHUNK = 64


class _Stop(Exception):  # noqa: N818 (no error: a way out)
    """The person is done typing."""


@contextmanager
def reading_ahead(session: ChatSession) -> Iterator[None]:
    """Let the model read what the next prompt will begin with, until this is left.

    Nothing else may use the session meanwhile. What goes wrong is left to the next turn to tell.
    """
    enough = threading.Event()

    def stop_when_enough(fed: int, total: int) -> None:
        if enough.is_set():
            raise _Stop

    def read() -> None:
        ahead = session.settle if session.history else session.prewarm
        try:
            ahead(prompt_progress_callback=stop_when_enough, prefill_step_size=CHUNK)
        except Exception:
            return

    reader = threading.Thread(target=read, name="reading ahead", daemon=True)
    reader.start()
    try:
        yield
    finally:
        enough.set()
        # Another Ctrl-C must not leave the session to two threads.
        while reader.is_alive():
            with suppress(KeyboardInterrupt):
                reader.join()
