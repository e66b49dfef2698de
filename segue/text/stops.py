"""Stop strings: found across token boundaries, withheld until decided."""

from __future__ import annotations

from collections.abc import Iterable

from .matching import overlap


class StopStrings:
    """Watches the text of one reply for the strings that end it.

    Text is passed on as soon as no stop string can begin in it any more.

    Examples:
        >>> stops = StopStrings(["END"])
        >>> stops.add("the E"), stops.add("N"), stops.add("D of it"), stops.found
        ('the ', '', '', True)

    Args:
        strings: The strings; none of them empty.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        self._strings = tuple(strings)
        self._withheld = ""
        self.found = False
        """True once a stop string has appeared; what follows it is dropped."""

    def add(self, text: str) -> str:
        """Return the text that is now certain to be part of the reply."""
        if self.found:
            return ""
        if not self._strings:
            return text
        text = self._withheld + text
        offsets = [offset for string in self._strings if (offset := text.find(string)) >= 0]
        if offsets:
            self.found = True
            self._withheld = ""
            return text[: min(offsets)]
        certain = len(text) - overlap(text, self._strings)
        self._withheld = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """Return the text still withheld: the reply ended before it became a stop string."""
        text, self._withheld = self._withheld, ""
        return text
