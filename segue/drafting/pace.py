"""Whether drafting pays, judged by the clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from statistics import median
from time import perf_counter

# Timings of the latest passes that a judgement rests on, and how many it needs.
WINDOW = 16
ENOUGH = 4
# Tokens decoded plainly before a draft that lost is tried again; each time twice as many.
FIRST_PAUSE = 32
# Plain speed is measured anew after so many drafted tokens: it falls as the context grows.
REMEASURE = 256


class Pace:
    """A stopwatch over decoding, which compares plain passes with those that check a draft.

    It goes by medians, since other programs disturb single passes. A draft that does not pay is
    paused, for a span that doubles each time.

    Args:
        clock: Tells the time, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._plain: deque[float] = deque(maxlen=WINDOW)
        self._drafted: deque[tuple[float, int]] = deque(maxlen=WINDOW)
        self._pause = 0
        self._next_pause = FIRST_PAUSE
        self._since_plain = 0
        self._last: float | None = None

    @property
    def paused(self) -> bool:
        """Whether the draft is left out for now because it did not pay."""
        return self._pause > 0

    @property
    def drafting(self) -> bool:
        """Whether the next pass should check a draft: plain speed must be known, too."""
        fresh = len(self._plain) >= ENOUGH and self._since_plain < REMEASURE
        return fresh and not self.paused

    def start(self) -> None:
        """Decoding begins: the time until the first `lap` belongs to no pass."""
        self._last = None

    def leave(self) -> None:
        """The reply is suspended; whoever reads it may take their time."""
        self._left = self._clock()

    def resume(self) -> None:
        """The reply goes on."""
        if self._last is not None:
            self._last += self._clock() - self._left

    def lap(self, tokens: int, *, drafted: bool) -> None:
        """A pass gave so many tokens; it took the time since the last lap."""
        now = self._clock()
        seconds = None if self._last is None else now - self._last
        self._last = now
        if not drafted:
            self._count_plain(seconds)
        elif seconds is not None:
            self._count_drafted(seconds, tokens)

    def _count_plain(self, seconds: float | None) -> None:
        if self._since_plain >= REMEASURE:
            self._since_plain = 0
            self._plain.clear()
        if seconds is not None:
            self._plain.append(seconds)
        if self._pause:
            self._pause -= 1

    def _count_drafted(self, seconds: float, tokens: int) -> None:
        self._since_plain += tokens
        self._drafted.append((seconds, tokens))
        if min(len(self._drafted), len(self._plain)) < ENOUGH:
            return
        seconds_per_pass = median(seconds for seconds, _ in self._drafted)
        tokens_per_pass = sum(tokens for _, tokens in self._drafted) / len(self._drafted)
        if tokens_per_pass * median(self._plain) < seconds_per_pass:
            self._pause, self._next_pause = self._next_pause, 2 * self._next_pause
            self._drafted.clear()
        elif len(self._drafted) == WINDOW:
            self._next_pause = FIRST_PAUSE
