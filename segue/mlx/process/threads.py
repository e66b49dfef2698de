"""Ends a program in good order where threads run a model.

How it works: each thread that uses a model notes its id (`note_thread`). At the end of the program
two things remain to be done about those threads, before the interpreter begins to close down.

- *Threads that still live* are daemons: Python has waited for all others. It would end them at
  their next bytecode, in a way that aborts the process if MLX is on their stack or has compiled
  something for them, and it may unload MLX while they compute. So `_end_threads` has a SystemExit
  raised in them, which ends a thread without a word, and waits. A reply raises it by itself between
  two tokens or two chunks of the prompt (`leave_at_end`): as after Ctrl-C, what was said is in the
  history. A thread outside of Segue gets it wherever it is, and one that stays long within Segue
  (it loads a model, say) as well.
- *Threads that have ended for Python* may not be gone for the system. Where MLX compiled something
  for a thread, it gives that back to Python as the very last thing that the thread does. If the
  interpreter is closing down by then, Python before 3.14 aborts the process, too.

What does not work:

- ``Thread.join``. It returns when the thread has ended for Python, which is too early.
- Waiting without end. A thread may wait in the system for as long as it likes (a socket, a long
  sleep), a forward pass may hang, and the system may give a thread's id to another thread of the
  process, which never goes. `PATIENCE` and `WORK_PATIENCE` bound the wait. A thread that sleeps
  longer, and wakes while the interpreter closes down, still aborts the process.
- Looking where there is no ``/proc``. There, a short sleep has to do.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread
import ctypes
import os
import sys
import threading
import time
from pathlib import Path
from types import FrameType

# How long the end of a program waits at most, and between two looks, in seconds.
PATIENCE, PAUSE = 2.0, 0.001
# The same for threads that are at work within Segue, and when those are no longer left to end
# where they choose.
WORK_PATIENCE, GRACE = 60.0, 1.0
# How long it waits where the system does not list a process's threads.
BLIND_WAIT = 0.05
TASKS = "/proc/self/task"
PACKAGE = str(Path(__file__).parents[2]) + os.sep

_used: set[int] = set()
# The thread that ends the program; None before.
_ender: int | None = None
# The threads that were told to end by then.
_told: set[int] = set()
# Nobody has a thread that waits for this go on.
_never = threading.Lock()
_never.acquire()


def note_thread() -> None:
    """Record that the calling thread uses a model."""
    _used.add(threading.get_native_id())


def leave_at_end() -> None:
    """End the calling thread if the program is ending: called where the cache is in step.

    A thread that comes again has caught what should have ended it, and never returns from here.

    Raises:
        SystemExit: if the program is ending in another thread.
    """
    if _ender is None or _ender == (thread := threading.get_ident()):
        return
    if thread in _told:
        _wait_for_ever()
    _told.add(thread)
    raise SystemExit


def leave_if_closing() -> None:
    """End the calling thread if Python's pools take no more work, for the program is ending.

    Called where work failed, perhaps for that reason: nobody is left to tell.

    Raises:
        SystemExit: if it is so, and this isn't the main thread.
    """
    closing = getattr(concurrent.futures.thread, "_shutdown", False) or _ender is not None
    if closing and threading.current_thread() is not threading.main_thread():
        raise SystemExit


def _wait_for_ever() -> None:
    while True:
        _never.acquire()


@atexit.register
def _end() -> None:
    global _ender
    _ender = threading.get_ident()
    _end_threads()
    _wait_for_threads()


def _end_threads() -> None:
    """End the threads that use a model and still live, as far as they can be."""
    started = time.monotonic()
    while living := [thread for thread in threading.enumerate() if _is_daemon(thread)]:
        frames = sys._current_frames()
        passed = time.monotonic() - started
        waiting = False
        for thread in living:
            frame = frames.get(thread.ident or 0)
            if frame is None:  # one that Python did not start, and that is gone
                continue
            working = _is_working(frame)
            if passed < (WORK_PATIENCE if working else PATIENCE):
                waiting = waiting or not _waits_for_ever(frame)
            # Again and again: a thread may catch it, and go on.
            if not working or passed > GRACE:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
                )
        if not waiting:
            return
        time.sleep(PAUSE)


def _is_daemon(thread: threading.Thread) -> bool:
    """Return True for a thread that uses a model, and is not the one that ends the program."""
    return thread.native_id in _used and thread.ident != _ender


def _is_working(frame: FrameType | None) -> bool:
    """Return True if a thread is at work within Segue."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            return True
        frame = frame.f_back
    return False


def _waits_for_ever(frame: FrameType) -> bool:
    """Return True if a thread waits for a queue or an event, and nobody will wake it any more."""
    if frame.f_code is _wait_for_ever.__code__:
        return True
    waits = frame.f_code is threading.Condition.wait.__code__
    return waits and frame.f_locals.get("timeout") is None


def _wait_for_threads() -> None:
    """Wait until the threads that used a model, and have ended for Python, are gone."""
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
