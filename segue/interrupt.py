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


class InterruptHold:
    """A context manager that keeps SIGINT for later; reusable, not reentrant.

    It acts in the main thread alone (the only one that Python interrupts), and only where a
    Python handler would run; elsewhere, and inside another hold, it does nothing.

    Attributes:
        pending: Whether an interrupt came and has not been delivered.
    """

    def __init__(self) -> None:
        self.pending = False
        self._previous: Callable[[int, FrameType | None], Any] | None = None

    def __enter__(self) -> InterruptHold:
        global _active
        if _active is None and threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
            if callable(previous):
                self._previous = previous
                _active = self
                signal.signal(signal.SIGINT, self._keep)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        global _active
        if _active is self and self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            _active = None

    def _keep(self, signum: int, frame: FrameType | None) -> None:
        self.pending = True

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
        if self.pending and self._previous is not None:
            self.pending = False
            self._previous(signal.SIGINT, None)


def deliver_interrupt() -> None:
    """Deliver what the hold in force has kept: for engines, where their cache is in step.

    Raises:
        KeyboardInterrupt: An interrupt was pending.
    """
    if _active is not None and threading.current_thread() is threading.main_thread():
        _active.deliver()
