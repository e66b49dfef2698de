"""Prompt lookup: drafts out of the conversation itself, without a second model.

After Saxena 2023, "Prompt Lookup Decoding": what followed the same few tokens earlier is likely to
follow them again, wherever a reply quotes, edits or repeats.

How it works: for each n-gram of `NGRAM` ids, the index has the offset at which it ended last, and
for each offset, where the n-gram that ends there ended the time before. So the earlier occurrences
of the latest n-gram form a chain, newest first, and both growing and shrinking the index by an id
are a few look-ups.

What does not work:

- Finding the longest match anywhere. Only the latest `CANDIDATES` occurrences are compared, over
  `LONGEST` ids; older ones are left out, so that a proposal's cost doesn't grow with the text.
- Shorter n-grams. Two equal ids are too often equal by chance.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..ledger import common_prefix

# How many ids must be equal before what followed them is proposed. Fewer are equal by chance too
# often: on a CPU, each token proposed in vain costs a tenth of a forward pass.
NGRAM = 3
# How many of the latest occurrences are compared, and over how many ids.
CANDIDATES = 4
LONGEST = 24


class PromptLookup:
    """An index of where each n-gram of a conversation occurred, updated as the ids change.

    Examples:
        >>> from segue.drafting.lookup import PromptLookup
        >>> lookup = PromptLookup()
        >>> lookup.follow([1, 2, 3, 4, 5, 1, 2, 3])
        >>> lookup.propose(2)
        [4, 5]
    """

    def __init__(self) -> None:
        self._ids: list[int] = []
        # By n-gram, the offset at which it ended last; and by offset, where the n-gram that ends
        # there ended the time before (0 for never).
        self._latest: dict[tuple[int, ...], int] = {}
        self._before: list[int] = [0]
        # The known n-grams without their last id: how many n-grams begin so.
        self._begun: dict[tuple[int, ...], int] = {}

    def follow(self, ids: Sequence[int]) -> None:
        """Update the index to a conversation's ids; costs as much as differs at the end."""
        same = common_prefix(self._ids, list(ids[: len(self._ids)]))
        self.cut(same)
        self.extend(ids[same:])

    def extend(self, new: Sequence[int]) -> None:
        """Add the conversation's newest ids."""
        ids = self._ids
        for token in new:
            ids.append(token)
            gram = tuple(ids[-NGRAM:])
            if len(gram) < NGRAM:
                self._before.append(0)
                continue
            before = self._latest.get(gram, 0)
            self._before.append(before)
            self._latest[gram] = len(ids)
            if not before:
                self._begun[gram[:-1]] = self._begun.get(gram[:-1], 0) + 1

    def cut(self, length: int) -> None:
        """Forget all but the first `length` ids."""
        ids = self._ids
        while len(ids) > length:
            gram, before = tuple(ids[-NGRAM:]), self._before.pop()
            ids.pop()
            if before:
                self._latest[gram] = before
            elif len(gram) == NGRAM:
                del self._latest[gram]
                self._begun[gram[:-1]] -= 1
                if not self._begun[gram[:-1]]:
                    del self._begun[gram[:-1]]

    def expects(self) -> bool:
        """Return True if the next token could complete a known n-gram."""
        return tuple(self._ids[1 - NGRAM :]) in self._begun

    def propose(self, count: int) -> list[int]:
        """Return the `count` ids that may come next; none if the latest n-gram is new.

        Of the latest occurrences, the one with the most equal ids before it is taken. Where what
        followed it runs into the end, the text repeats, and is taken to continue repeating.
        """
        ids, end = self._ids, len(self._ids)
        best, longest = 0, 0
        offset = end
        for _ in range(CANDIDATES):
            offset = self._before[offset]
            if not offset:
                break
            equal = self._equal_before(offset)
            if equal > longest:
                best, longest = offset, equal
        if not longest:
            return []
        proposed = ids[best : best + count]
        while len(proposed) < count:
            proposed.append(proposed[len(proposed) - (end - best)])
        return proposed

    def _equal_before(self, offset: int) -> int:
        """Count the ids before `offset` that equal those at the end, up to `LONGEST`."""
        ids, end = self._ids, len(self._ids)
        length = NGRAM
        while length < min(offset, LONGEST) and ids[offset - length - 1] == ids[end - length - 1]:
            length += 1
        return length
