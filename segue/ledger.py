"""The ledger: which tokens the KV cache holds, and which text they spell."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

_Slices = TypeVar("_Slices", str, tuple[int, ...], list[int])


class Seam(NamedTuple):
    """A place between two tokens where the text up to it is known for certain."""

    ids: int
    """How many ids stand before it."""
    chars: int
    """How many characters those ids spell."""


@dataclass(frozen=True, slots=True)
class TokenLedger:
    """Token ids with the text they spell; immutable.

    The text is kept beside the ids because sampled ids are often not what the tokenizer makes of
    their text: only by comparing text can a later prompt keep them.

    Attributes:
        ids: The ids, oldest first.
        text: What ``ids[:seams[-1].ids]`` spell; the ids behind the last seam are unspelled.
        seams: Where the text may be cut, ascending; the first is ``(0, 0)``.
    """

    ids: tuple[int, ...] = ()
    text: str = ""
    seams: tuple[Seam, ...] = (Seam(0, 0),)

    def extend(self, ids: Sequence[int], text: str | None) -> TokenLedger:
        """With more ids behind, and a seam after them if their text is known.

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
        """Only the first `length` ids (all of them, if there are fewer)."""
        if length >= len(self.ids):
            return self
        seams = self.seams[: bisect_right(self.seams, length, key=lambda seam: seam.ids)]
        return TokenLedger(self.ids[:length], self.text[: seams[-1].chars], seams)

    def seam_within(self, text: str) -> Seam:
        """The last seam up to which `text` and the ledger's text are the same."""
        return self.seam_before(common_prefix(self.text, text))

    def seam_before(self, chars: int) -> Seam:
        """The last seam with at most so many characters before it."""
        return self.seams[bisect_right(self.seams, chars, key=lambda seam: seam.chars) - 1]


def common_prefix(a: _Slices, b: _Slices) -> int:
    """How many leading elements two sequences share; linear, at the speed of slice comparison."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def tokens_to_keep(held: TokenLedger, prompt: TokenLedger) -> int:
    """How many of the held tokens a turn can keep: the longest common prefix with its prompt.

    The prompt's last token is never among them: the model must be fed at least one token to say
    what comes next.
    """
    return min(common_prefix(held.ids, prompt.ids), len(prompt.ids) - 1)
