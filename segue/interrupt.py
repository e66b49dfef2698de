"""Ctrl-C, delayed while a KV cache is half way through a change.

How it works
============

Python runs signal handlers in the main thread, between any two bytecodes. Its own handler for
SIGINT raises KeyboardInterrupt there. In the middle of a forward pass, that leaves some layers
advanced and others not, and in the middle of a turn, a cache that no ledger describes. So the work
of a turn runs under an `InterruptHold`, and while one is in force, the handler only sets `pending`.

There are three parts:

- *Armed*: a handler of ours is installed before the program's own. It passes on at once what comes
  while no hold is in force. Setting a signal's handler costs more than a token's other work, so a
  reply arms its hold when it starts, and disarms it when it ends. Armed holds are counted, and the
  last one puts the program's handler back.
- *In force*: between ``__enter__`` and ``__exit__``, around each step of the reply. At most one
  hold is in force at a time; inside another one, a hold does nothing.
- *Delivery*: `deliver` calls the program's handler for a pending interrupt, which usually raises.
  Engines call `deliver_interrupt` where their cache is in step, between two chunks of prefill; the
  turn calls `deliver` before it hands out the next token. Where nothing may be raised (a reply that
  is closed by the garbage collector), `pass_on` has the interrupt come again shortly.

Guarantees
==========

- An interrupt is delivered once: during the hold, at its end by whoever holds, or passed on.
- The program's own handler decides what an interrupt means. It is called as Python would have
  called it, but, if the interrupt was delayed, without a frame.
- Without a Python handler (SIGINT ignored, or left to the system), and in other threads than the
  main one, nothing is changed.

What does not work
==================

- Masking the signal (``pthread_sigmask``). It delays what the system delivers, but Python's own
  flag may be set already, and MLX's threads would inherit the mask.
- Catching KeyboardInterrupt and repairing afterwards. Nobody knows how far each layer was.
- Restoring the handler in ``__exit__`` whatever happened meanwhile. If the program installed
  another handler over ours, that one may pass on to ours: it is left alone, and ours then passes
  everything on to the one that it found. `_forwarding` breaks the circle if that one calls ours
  again.
- Changing handlers from another thread: Python allows it in the main thread alone. A reply that is
  closed elsewhere leaves ours installed, passing everything on, until the next one disarms.
- Raising from a finalizer. Python prints and swallows what ``__del__`` raises, hence `pass_on`,
  which uses a thread. Waiting for some time in there is not enough: on a busy machine the finalizer
  may take longer. So the thread looks at the main thread's stack until the finalizer is gone.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import CodeType, FrameType, TracebackType
from typing import Any

_active: InterruptHold | None = None
_armed = 0
_forwarding = False
_previous: Callable[[int, FrameType | None], Any] = signal.default_int_handler


class InterruptHold:
    """A context manager that delays SIGINT; it can be entered again, but not within itself.

    A hold acts in the main thread alone (the only one that Python interrupts), and only where a
    Python handler would run. A hold that was not armed arms itself while it is in force.

    Examples:
        >>> from segue.interrupt import InterruptHold
        >>> hold = InterruptHold()
        >>> with hold:
        ...     pass  # change what must not be changed half way
        >>> hold.deliver()  # raises KeyboardInterrupt if Ctrl-C came meanwhile
    """

    def __init__(self) -> None:
        self.pending = False
        """True if an interrupt came and was not delivered."""
        self._armed = False
        self._armed_itself = False

    def arm(self) -> None:
        """Install our handler before the program's, until `disarm`."""
        global _armed, _previous
        if self._armed or not _in_main_thread():
            return
        current = signal.getsignal(signal.SIGINT)
        if current is not _handle:
            # One installed over ours is left alone: it may pass on to ours.
            if _armed or not callable(current):
                return
            _previous = current
            signal.signal(signal.SIGINT, _handle)
        _armed += 1
        self._armed = True

    def disarm(self) -> None:
        """Put the program's handler back, unless another hold is armed."""
        global _armed
        if not self._armed:
            return
        self._armed = False
        _armed -= 1
        # Elsewhere the handler can't be changed; ours passes everything on.
        if not _armed and _in_main_thread() and signal.getsignal(signal.SIGINT) is _handle:
            signal.signal(signal.SIGINT, _previous)

    def __enter__(self) -> InterruptHold:
        global _active
        if not self._armed:
            self.arm()
            self._armed_itself = self._armed
        if self._armed and _active is None and _in_main_thread():
            _active = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        global _active
        if _active is self:
            _active = None
        if self._armed_itself:
            self._armed_itself = False
            self.disarm()

    def pass_on(self) -> None:
        """Have a pending interrupt come again shortly, for callers that must not raise it."""
        if self.pending:
            self.pending = False
            # From a thread: here it could come inside a finalizer, where it would be swallowed.
            caller = sys._getframe(1).f_code
            threading.Thread(target=_interrupt_after, args=(caller,), daemon=True).start()

    def deliver(self) -> None:
        """Call the handler that a pending interrupt was meant for.

        Raises:
            KeyboardInterrupt: if an interrupt is pending and the handler is Python's own; another
                handler may raise anything.
        """
        if self.pending:
            self.pending = False
            _forward(signal.SIGINT, None)


def _handle(signum: int, frame: FrameType | None) -> None:
    if _active is not None:
        _active.pending = True
    else:
        _forward(signum, frame)


def _forward(signum: int, frame: FrameType | None) -> None:
    """Call the program's handler, or Python's own if that one passes on to ours."""
    global _forwarding
    if _forwarding:
        signal.default_int_handler(signum, frame)
    _forwarding = True
    try:
        _previous(signum, frame)
    finally:
        _forwarding = False


def _interrupt_after(caller: CodeType) -> None:
    """Interrupt the main thread as soon as it does not run a function any more."""
    main = threading.main_thread().ident
    while _runs(main, caller):
        time.sleep(0.001)
    _thread.interrupt_main()


def _runs(thread: int | None, code: CodeType) -> bool:
    frame = None if thread is None else sys._current_frames().get(thread)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def deliver_interrupt() -> None:
    """Deliver what the hold in force has delayed: for engines, where their cache is in step.

    Raises:
        KeyboardInterrupt: if an interrupt is pending; see `InterruptHold.deliver`.
    """
    if _active is not None and _in_main_thread():
        _active.deliver()
