"""Ctrl-C, held back while a KV cache is half way through a change.

A KeyboardInterrupt may strike between any two bytecodes: inside a forward pass it leaves some
layers advanced and others not, and the whole cache is lost. So the work of a turn runs under a
hold, and the interrupt is delivered at the next place where everything is in step.
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_active: InterruptHold | None = None
_armed = 0
_forwarding = False
_previous: Callable[[int, FrameType | None], Any] = signal.default_int_handler


class InterruptHold:
    """A context manager that keeps SIGINT for later; reusable, not reentrant.

    It acts in the main thread alone (the only one that Python interrupts), and only where a
    Python handler would run; elsewhere, and inside another hold, it does nothing.

    Changing a signal's handler costs more than a token's other work. `arm` puts one of ours before
    the program's for as long as there is something to hold; it passes on at once what comes
    outside a hold. A hold that was not armed arms itself while it is in force.

    Attributes:
        pending: Whether an interrupt came and has not been delivered.
    """

    def __init__(self) -> None:
        self.pending = False
        self._armed = False
        self._armed_itself = False

    def arm(self) -> None:
        """Stand before the program's handler until `disarm`."""
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
        """Step back; the program's handler is its own again once nobody stands before it."""
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
        """Have what is pending strike soon, for callers that must not raise it themselves."""
        if self.pending:
            self.pending = False
            # From a thread: here it could strike inside a finalizer, where it would be swallowed.
            threading.Timer(0.001, _thread.interrupt_main).start()

    def deliver(self) -> None:
        """Run the handler that a pending interrupt was meant for.

        Raises:
            KeyboardInterrupt: As Python's own handler does; whatever another handler raises.
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
    """Call the program's handler, or Python's own should that one pass on to ours."""
    global _forwarding
    if _forwarding:
        signal.default_int_handler(signum, frame)
    _forwarding = True
    try:
        _previous(signum, frame)
    finally:
        _forwarding = False


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def deliver_interrupt() -> None:
    """Deliver what the hold in force has kept: for engines, where their cache is in step.

    Raises:
        KeyboardInterrupt: An interrupt was pending.
    """
    if _active is not None and _in_main_thread():
        _active.deliver()
