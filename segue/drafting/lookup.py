"""Prompt lookup: drafts out of the conversation itself, without a second model.

After Saxena 2023, "Prompt Lookup Decoding": what followed the same few tokens earlier is likely to
follow them again, wherever a reply quotes, edits or repeats.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..ledger import common_prefix

# How many tokens must have been the same before what followed them is proposed. Fewer are alike by
# chance too often: on a CPU, each token proposed in vain costs a tenth of a forward pass.
NGRAM = 3
# How many of the latest places that look alike are compared, and over how many tokens.
CANDIDATES = 4
LONGEST = 24


class PromptLookup:
    """An index of where each few tokens of a conversation occurred, kept up as it grows."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        # Behind which id each n-gram ended last, and the time before that (0 for never).
        self._latest: dict[tuple[int, ...], int] = {}
        self._before: list[int] = [0]
        # The n-grams without their last id.
        self._begun: set[tuple[int, ...]] = set()

    def follow(self, ids: Sequence[int]) -> None:
        """Bring the index up to a conversation: costs what is new, or all where it changed."""
        held = self._ids
        same = common_prefix(held, list(ids[: len(held)]))
        if same < len(held):
            self._ids, self._latest, self._before, self._begun = [], {}, [0], set()
            same = 0
        self.extend(ids[same:])

    def extend(self, new: Sequence[int]) -> None:
        """Add the conversation's newest ids."""
        ids = self._ids
        for token in new:
            ids.append(token)
            gram = tuple(ids[-NGRAM:])
            if len(gram) < NGRAM:
                self._before.append(0)
            else:
                self._before.append(self._latest.get(gram, 0))
                self._latest[gram] = len(ids)
                self._begun.add(gram[:-1])

    def expects(self) -> bool:
        """Whether the next token could complete an n-gram that is known."""
        return tuple(self._ids[1 - NGRAM :]) in self._begun

    def propose(self, count: int) -> list[int]:
        """The `count` ids that may come next; none where nothing alike was said before.

        Of the latest places that look alike, the one that is alike for longest is taken. Where
        what follows it is the end itself, the text repeats, and is taken to go on repeating.
        """
        ids, end = self._ids, len(self._ids)
        best, longest = 0, 0
        place = end
        for _ in range(CANDIDATES):
            place = self._before[place]
            if not place:
                break
            alike = self._alike(place)
            if alike > longest:
                best, longest = place, alike
        if not longest:
            return []
        proposed = ids[best : best + count]
        while len(proposed) < count:
            proposed.append(proposed[len(proposed) - (end - best)])
        return proposed

    def _alike(self, place: int) -> int:
        """How many ids in front of `place` are those at the end, `LONGEST` at most."""
        ids, end = self._ids, len(self._ids)
        length = NGRAM
        while length < min(place, LONGEST) and ids[place - length - 1] == ids[end - length - 1]:
            length += 1
        return length
