"""How much work something takes, in measures that a busy machine doesn't change much."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any


def calls(work: Callable[[], Any]) -> int:
    """How many functions are called, those of C included."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def times_as_long(work: Callable[[], Any], reference: Callable[[], Any], *, runs: int = 3) -> float:
    """How many times as long as a reference some work keeps the processor.

    Both run in turns and the shortest of their times count. It is time that this process works, in
    all its threads: what other programs take from it is not in there.
    """
    best = [float("inf")] * 2
    for _ in range(runs):
        for number, each in enumerate((work, reference)):
            begun = time.process_time()
            each()
            best[number] = min(best[number], time.process_time() - begun)
    return best[0] / best[1]
