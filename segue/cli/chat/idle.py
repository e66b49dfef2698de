"""Reading ahead while a person types."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from queue import SimpleQueue

from ...session import ChatSession

# Whoever presses Enter waits for at most so many tokens: well under a second on a CPU.
CHUNK = 64


class _Stop(Exception):  # noqa: N818 (no error: a way out)
    """The person is done typing."""


@contextmanager
def reading_ahead(session: ChatSession) -> Iterator[None]:
    """Let the model read what the next prompt will begin with, until this is left.

    Nothing else may use the session meanwhile. What goes wrong is left to the next turn to tell.
    """
    enough, done = threading.Event(), threading.Event()

    def stop_when_enough(fed: int, total: int) -> None:
        if enough.is_set():
            raise _Stop

    def read() -> None:
        ahead = session.settle if session.history else session.prewarm
        try:
            ahead(prompt_progress_callback=stop_when_enough, prefill_step_size=CHUNK)
        except Exception:
            return
        finally:
            done.set()

    _reader().put(read)
    try:
        yield
    finally:
        enough.set()
        # Another Ctrl-C must not leave the session to two threads.
        while not done.is_set():
            with suppress(KeyboardInterrupt):
                done.wait()


@cache
def _reader() -> SimpleQueue[Callable[[], None]]:
    """Takes what the one thread is to do that reads ahead for as long as the program runs.

    MLX keeps threads of its own, and what it compiled, for each thread that ran a model.
    """
    tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def work() -> None:
        while True:
            tasks.get()()

    threading.Thread(target=work, name="reading ahead", daemon=True).start()
    return tasks
