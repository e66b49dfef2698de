"""A context's drafter at work: when it is asked for proposals, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence

from ...config import GenerationConfig
from ...drafting.pace import Pace
from ...engine import Acceptance, StoredState
from ..sampling import Sample
from .drafter import Drafter

# What drafting and verifying one token is assumed to cost, in plain tokens; see `_assumed_time`.
ASSUMED_COST = 0.25


class Speculation:
    """A drafter, its pace, and the account of its proposals.

    Args:
        drafter: What proposes.
    """

    forces = False
    """False: what a draft proposes may be rejected."""

    def __init__(self, drafter: Drafter) -> None:
        self.drafter = drafter
        """What proposes."""
        self.acceptance = Acceptance()
        """What became of all proposals so far."""
        # Pace by the clock, over all replies.
        self._clocked = Pace()
        self._pace = self._clocked
        # A clock that advances by what passes are assumed to cost. A reply with a seed must come
        # out the same on a busy machine; if the draft's random draws have a part in it, then when
        # the draft is asked must not depend on real time, nor on earlier replies.
        self._assumed_time = 0.0
        self._timed = False

    def fork(self) -> Speculation:
        """Return one for a fork of the context: it has read the same, and proposed nothing yet."""
        return Speculation(self.drafter.fork())

    def stored(self) -> StoredState | None:
        """See `Drafter.stored`."""
        return self.drafter.stored()

    def restore(self, section: StoredState) -> None:
        """See `Drafter.restore`."""
        self.drafter.restore(section)

    def begin(self, ids: Sequence[int], config: GenerationConfig) -> None:
        """Begin a reply after these ids.

        Raises:
            GenerationError: if the draft's model failed.
        """
        self.drafter.begin(ids, config)
        steady = self.drafter.samples and config.seed is not None
        self._pace = Pace(lambda: self._assumed_time) if steady else self._clocked
        if config.max_tokens > 1 and not self._pace.paused:
            self.drafter.catch_up()
        self._pace.start()
        self._timed = False

    def wants(self, count: int) -> bool:
        """Return True if up to `count` proposals are to be made, given the pending token's id."""
        return count > 0 and self._pace.drafting and self.drafter.expects()

    def propose(self, count: int) -> list[Sample]:
        """Return up to `count` tokens that may come after the newest one.

        Raises:
            GenerationError: if the draft's model failed.
        """
        return self.drafter.propose(count)

    def extend(self, token: int) -> None:
        """Add the id of the pending token, known just now or by `verified`."""
        self.drafter.extend([token])
        if not self._timed:
            self._assumed_time += 1.0
            self._pace.lap(1, drafted=False)
        self._timed = False

    def verified(self, proposed: int, accepted: Sequence[int]) -> None:
        """Record a pass over so many proposals, and the ids that it accepted."""
        self.drafter.extend(accepted)
        self._assumed_time += 1.0 + ASSUMED_COST * proposed
        self._pace.lap(1 + len(accepted), drafted=True)
        self._timed = True
        before = self.acceptance
        self.acceptance = Acceptance(before.proposed + proposed, before.accepted + len(accepted))

    def read(self, ids: Sequence[int]) -> None:
        """Add ids that the grammar of a reply demanded: they say nothing about the draft."""
        self.drafter.extend(ids)
        self._pace.start()
        self._timed = True

    def cut(self, length: int) -> None:
        """Forget all but the first `length` ids of the conversation; with 0, its pace as well.

        Raises:
            GenerationError: if the draft's model failed.
        """
        self.drafter.cut(length)
        if length == 0:
            self._clocked = Pace()

    def release(self) -> None:
        """End the reply."""
        self.drafter.release()

    def suspend(self) -> None:
        """Stop the clock: the reply is suspended."""
        self._pace.suspend()

    def resume(self) -> None:
        """Start the clock again."""
        self._pace.resume()
