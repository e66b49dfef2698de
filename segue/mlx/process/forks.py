"""Refuses MLX in a process that was forked from the one that uses it.

How it works: MLX computes in threads of its own, and a forked process has none of its parent's
threads. It would wait for them for ever. So the first use of MLX records the process
(`use_model`), and every later one looks whether it is still the same. What needs no MLX works in
the child: histories can be read, and sessions dropped and closed. For that, no thread of MLX's may
hold a lock at the moment of a fork, which nobody would give back in the child; so a fork waits
until what the forking thread began on MLX is computed.

What does not work:

- Looking at fork time alone (``os.register_at_fork``). C code forks past Python's hooks.
- Waiting for what other threads compute. A fork in the middle of it may leave a lock held, and then
  a child that drops a session waits for ever, as with any library that has threads.
- Seeing what others did with MLX before. If a program computes with MLX itself, forks, and makes
  its engine in the child, the child waits for ever.
"""

from __future__ import annotations

import os

from ...errors import ForkedProcessError
from .threads import note_thread

# The process that uses MLX; None until there is one.
_user: int | None = None


def use_model() -> None:
    """Record that this process and this thread use MLX.

    Raises:
        ForkedProcessError: if a process that this one was forked from did.
    """
    global _user
    if _user is None:
        _user = os.getpid()
        if hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(before=_finish_work)
    check_process()
    note_thread()


def _finish_work() -> None:
    """Wait for what this thread began on MLX."""
    if is_forked():
        return
    import mlx.core as mx
    from mlx_lm.generate import generation_stream

    try:
        mx.synchronize(generation_stream)
        mx.synchronize()
    except RuntimeError:  # this thread has no such stream, so it began nothing
        pass


def check_process() -> None:
    """Refuse to go on in a forked process.

    Raises:
        ForkedProcessError: if this is one, and its parent used MLX.
    """
    if is_forked():
        raise ForkedProcessError(
            f"This process ({os.getpid()}) was forked from process {_user}, which uses MLX; MLX "
            "would hang here.",
            remedy="Fork before a model is loaded, or start processes anew: "
            "multiprocessing.get_context('spawn').",
        )


def is_forked() -> bool:
    """Return True if this process was forked from one that uses MLX."""
    return _user is not None and _user != os.getpid()
