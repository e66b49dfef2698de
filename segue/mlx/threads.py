"""Waits, at the end of the program, for threads that ran a model.

How it works: each thread that runs a request notes its id (`note_thread`). At the end of the
program, `_wait_for_threads` waits until those of them that have ended for Python are gone for the
system, too. Where MLX compiled something for a thread, it gives that back to Python as the very
last thing that the thread does, after Python has stopped waiting for it. If the interpreter is
closing down by then, Python before 3.14 ends that thread in a way that aborts the process, after
everything went well.

What does not work:

- ``Thread.join``. It returns when the thread has ended for Python, which is too early.
- Waiting without end. The system may give a thread's id to another thread of the process, which
  never goes; `PATIENCE` bounds the wait.
- Looking where there is no ``/proc``. There, a short sleep has to do.
"""

from __future__ import annotations

import atexit
import os
import threading
import time

# How long the end of a program waits at most, and between two looks, in seconds.
PATIENCE, PAUSE = 2.0, 0.001
# How long it waits where the system does not list a process's threads.
BLIND_WAIT = 0.05
TASKS = "/proc/self/task"

_used: set[int] = set()


def note_thread() -> None:
    """Record that the calling thread runs a model."""
    _used.add(threading.get_native_id())


@atexit.register
def _wait_for_threads() -> None:
    """Wait until the threads that ran a model, and have ended for Python, are gone."""
    ended = _used - {thread.native_id for thread in threading.enumerate()}
    if not ended:
        return
    if not os.path.isdir(TASKS):
        time.sleep(BLIND_WAIT)
        return
    until = time.monotonic() + PATIENCE
    while any(os.path.exists(f"{TASKS}/{thread}") for thread in ended):
        if time.monotonic() > until:
            return
        time.sleep(PAUSE)
