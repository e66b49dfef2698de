"""Threads that run a model, and the end of the program."""

from __future__ import annotations

import atexit
import os
import threading
import time

# How long the end of a program waits, in seconds, and between two looks.
PATIENCE, PAUSE = 2.0, 0.001
# The same where the system does not list a process's threads.
BLIND_WAIT = 0.05
TASKS = "/proc/self/task"

_used: set[int] = set()


def note_thread() -> None:
    """Remember that the calling thread runs a model."""
    _used.add(threading.get_native_id())


@atexit.register
def _wait_for_threads() -> None:
    """Wait until the threads that ran a model, and have ended for Python, are gone.

    Where MLX compiled something for a thread, it is given back to Python as the last thing that
    the thread does, after Python has stopped to wait for it. If the interpreter is closing down by
    then, Python before 3.14 ends that thread in a way that aborts the process.
    """
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
