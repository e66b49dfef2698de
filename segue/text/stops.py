"""Stop strings: found across token boundaries, held back until decided."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Watches the text of one reply for the strings that end it.

    Text is passed on as soon as no stop string can begin in it any more.

    Attributes:
        found: Whether a stop string has appeared; what follows it is dropped.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """The text that is now certain to be part of the reply."""
        if self.found:
            return ""
        if not self._strings:
            return text
        held = self._held + text
        places = [place for string in self._strings if (place := held.find(string)) >= 0]
        if places:
            self.found = True
            self._held = ""
            return held[: min(places)]
        keep = undecided(held, self._strings)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """The text still held back: the reply ended before it became a stop string."""
        held, self._held = self._held, ""
        return held


def undecided(text: str, strings: Sequence[str]) -> int:
    """How long the longest ending of a text is that one of some strings may begin with."""
    longest = max(len(string) for string in strings) - 1
    for length in range(min(longest, len(text)), 0, -1):
        ending = text[len(text) - length :]
        if any(string.startswith(ending) for string in strings):
            return length
    return 0
