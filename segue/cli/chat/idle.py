"""Reading ahead while a person types.

How it works
    Most of the next prompt is known before it is typed: the instructions, the history, and a reply
    that many templates render otherwise than it was generated. So while the main thread waits for
    the keyboard, a second thread has the session read that much. When the person presses Enter, the
    main thread sets `enough`; the reader looks at it in its progress callback, between two chunks
    of the prompt, and leaves by an exception there. What was read until then stays in the cache.
    The main thread waits until the reader is done, because a session belongs to one thread at a
    time. A chunk is small, so that this wait is short.

What does not work
    - A new thread for each message. MLX keeps threads of its own, and what it compiled, for each
      thread that ever ran a model. So one thread reads ahead for as long as the program runs.
    - Stopping the reader with Ctrl-C: Python delivers signals to the main thread only. A Ctrl-C at
      the prompt ends the prompt, and so the reading, as Enter does.
    - Going on when a second Ctrl-C comes during the wait: two threads would use one session. It is
      swallowed, and the wait continues.
    - Reporting an error from here: the person is typing. What fails fails again in the next turn,
      which reports it; and what only this thread can't do is a line of /stats (`failure`).
"""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from queue import SimpleQueue
from weakref import WeakKeyDictionary

from ...engine import PrefillProgress
from ...session import ChatSession

# Whoever presses Enter waits for at most so many tokens: well under a second on a CPU.
CHUNK = 64


# The latest attempt's error, by session.
_failures: WeakKeyDictionary[ChatSession, Exception] = WeakKeyDictionary()


class _Enough(Exception):  # noqa: N818 (not an error: a way out)
    """The person is done typing."""


@contextmanager
def reading_ahead(session: ChatSession) -> Iterator[None]:
    """Have the session read the start of the next prompt until the block ends.

    The block must not use the session.
    """
    enough, done = threading.Event(), threading.Event()

    def stop_when_enough(fed: int, total: int) -> None:
        if enough.is_set():
            raise _Enough

    def read() -> None:
        try:
            _read_ahead(session, stop_when_enough)
            _failures.pop(session, None)
        except _Enough:
            _failures.pop(session, None)
        except Exception as error:
            _failures[session] = error
        finally:
            done.set()

    _reader().put(read)
    try:
        yield
    finally:
        enough.set()
        while not done.is_set():
            with suppress(KeyboardInterrupt):
                done.wait()


def failure(session: ChatSession) -> str | None:
    """Return why the latest attempt to read ahead failed; ``None`` if it didn't."""
    error = _failures.get(session)
    return None if error is None else " ".join(str(error).split()) or type(error).__name__


def _read_ahead(session: ChatSession, progress: PrefillProgress) -> None:
    session.prewarm(prompt_progress_callback=progress, prefill_step_size=CHUNK)


@cache
def _reader() -> SimpleQueue[Callable[[], None]]:
    """The queue of tasks of the one thread that reads ahead."""
    tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def work() -> None:
        while True:
            tasks.get()()

    threading.Thread(target=work, name="reading ahead", daemon=True).start()
    # So that the program's end need not wait for a thread that waits for a task.
    atexit.register(tasks.put, sys.exit)
    return tasks
