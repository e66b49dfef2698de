"""The ledger: which tokens the KV cache holds, and which text they spell.

Sampled ids are often not what the tokenizer makes of their text, so a later prompt can only keep
them if it is compared by text. The ledger has that text, with *seams*: offsets between two tokens
where the text up to there is certain. A new prompt keeps the ids up to the last seam at which the
two texts still agree.

Some text spells a control token, and is none: it was typed, or sampled piece by piece. The text of
a ledger has a `MARK` inside each such place, so that the two never pass for each other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

MARK = "\ufdd0"
"""Inside text that spells a control token and is none: a noncharacter, which no text has."""

_Slices = TypeVar("_Slices", str, tuple[object, ...], list[int])


class Seam(NamedTuple):
    """An offset between two tokens where the text up to it is certain."""

    ids: int
    """How many ids come before the seam."""
    chars: int
    """How many characters those ids spell."""


@dataclass(frozen=True, slots=True)
class TokenLedger:
    """Token ids with the text they spell; immutable."""

    ids: tuple[int, ...] = ()
    """The ids, oldest first."""
    text: str = ""
    """The text of ``ids[:seams[-1].ids]``; ids after the last seam have no known text."""
    seams: tuple[Seam, ...] = (Seam(0, 0),)
    """The seams where the text may be cut, ascending; the first is ``(0, 0)``."""

    def extend(self, ids: Sequence[int], text: str | None) -> TokenLedger:
        """Return the ledger with more ids, and a seam after them if their text is known.

        Args:
            ids: The ids to append.
            text: What they spell right there; ``None`` if that is not known for certain.
        """
        grown = self.ids + tuple(ids)
        if text is None or self.seams[-1].ids != len(self.ids) or not ids:
            return TokenLedger(grown, self.text, self.seams)
        whole = self.text + text
        return TokenLedger(grown, whole, (*self.seams, Seam(len(grown), len(whole))))

    def truncate(self, length: int) -> TokenLedger:
        """Return the first `length` ids (all of them, if there are fewer)."""
        if length >= len(self.ids):
            return self
        seams = self.seams[: bisect_right(self.seams, length, key=lambda seam: seam.ids)]
        return TokenLedger(self.ids[:length], self.text[: seams[-1].chars], seams)

    def unmarked(self) -> TokenLedger:
        """Return the ledger without the marks in its text, as files have it."""
        if MARK not in self.text:
            return self
        seams = [Seam(ids, chars - self.text.count(MARK, 0, chars)) for ids, chars in self.seams]
        return TokenLedger(self.ids, self.text.replace(MARK, ""), tuple(seams))

    def seam_within(self, text: str) -> Seam:
        """Return the last seam up to which `text` and the ledger's text are the same."""
        return self.seam_before(common_prefix(self.text, text))

    def seam_before(self, chars: int) -> Seam:
        """Return the last seam with at most so many characters before it."""
        return self.seams[bisect_right(self.seams, chars, key=lambda seam: seam.chars) - 1]


def common_prefix(a: _Slices, b: _Slices) -> int:
    """Return how many leading elements two sequences share.

    Linear, at the speed of slice comparison.
    """
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def tokens_to_keep(cached: TokenLedger, prompt: TokenLedger) -> int:
    """Return how many cached ids a turn can keep: the longest common prefix with its prompt.

    The prompt's last id is never among them: the model must be fed at least one token to say what
    comes next.
    """
    return min(common_prefix(cached.ids, prompt.ids), len(prompt.ids) - 1)
