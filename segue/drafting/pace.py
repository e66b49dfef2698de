"""Measures if drafting pays.

How it works: decoding is a sequence of passes, and `lap` marks the end of each: plain passes make
one token, drafted ones verify proposals and make one or more. A `Pace` has the times of the latest
of both kinds and compares medians, since other programs disturb single passes: a draft pays if the
plain passes for as many tokens would have taken longer.

    plain passes first, until there are ENOUGH timings
        -> drafting, as long as it pays
            -> paused for FIRST_PAUSE tokens, then for twice as many, and so on
        -> plain again after REMEASURE drafted tokens: plain speed falls as the context grows

A draft that has paid over a whole window gets its first, short pause back.

What does not work:

- Timing the caller. A reader may take a minute between two tokens; `suspend` and `resume` leave
  that time out. The time before the first lap (prefill) belongs to no pass.
- Real time, for replies that must come out the same every time. Their pace gets a clock that
  advances by what passes are assumed to cost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from statistics import median
from time import perf_counter

# How many timings of the latest passes a decision uses, and how many it needs.
WINDOW = 16
ENOUGH = 4
# Tokens decoded plainly before a draft that lost is tried again; each time twice as many.
FIRST_PAUSE = 32
# Plain speed is measured again after so many drafted tokens.
REMEASURE = 256


class Pace:
    """A stopwatch over decoding, which compares plain passes with those that verify a draft.

    Args:
        clock: Returns the time, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._plain: deque[float] = deque(maxlen=WINDOW)
        self._drafted: deque[tuple[float, int]] = deque(maxlen=WINDOW)
        self._pause = 0
        self._next_pause = FIRST_PAUSE
        self._since_plain = 0
        self._last: float | None = None
        self._suspended = 0.0

    @property
    def paused(self) -> bool:
        """True if the draft is left out for now because it did not pay."""
        return self._pause > 0

    @property
    def drafting(self) -> bool:
        """True if the next pass should verify a draft; plain speed must be known, too."""
        fresh = len(self._plain) >= ENOUGH and self._since_plain < REMEASURE
        return fresh and not self.paused

    def start(self) -> None:
        """Begin a reply: the time until the first `lap` belongs to no pass."""
        self._last = None

    def suspend(self) -> None:
        """Stop the clock while the reply is suspended."""
        self._suspended = self._clock()

    def resume(self) -> None:
        """Start the clock again."""
        if self._last is not None:
            self._last += self._clock() - self._suspended

    def lap(self, tokens: int, *, drafted: bool) -> None:
        """Record a pass that made so many tokens, in the time since the last lap."""
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
