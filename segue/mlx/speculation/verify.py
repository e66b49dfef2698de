"""A draft at work: when it proposes, how its proposals are checked, and whether that pays."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
from mlx_lm.generate import generation_stream

from ...config import GenerationConfig
from ...drafting.pace import Pace
from ...engine import Acceptance, StoredPart
from ..kv.state import KVState
from ..sampling import Sample, Sampling
from .drafters import Draft

# What drafting and checking one token is taken to cost, in plain tokens, where no clock may decide.
ASSUMED_COST = 0.25


class Drafting:
    """A context's draft, and its account of it.

    Args:
        draft: What proposes.
        num_draft_tokens: How many tokens at a time, at most.

    Attributes:
        most: That number.
        acceptance: What became of all proposals so far.
    """

    def __init__(self, draft: Draft, num_draft_tokens: int) -> None:
        self._draft = draft
        self.most = num_draft_tokens
        # By the clock, over all replies; and by what passes are assumed to cost, for replies that
        # must not depend on the clock.
        self._clocked = Pace()
        self._pace = self._clocked
        self._assumed_time = 0.0
        self._timed = False
        self.acceptance = Acceptance(0, 0)

    def fork(self) -> Drafting:
        """One for a fork of the context: it has read the same, and proposed nothing yet."""
        return Drafting(self._draft.fork(), self.most)

    def part(self) -> StoredPart | None:
        """See `Draft.part`."""
        return self._draft.part()

    def restore(self, part: StoredPart) -> None:
        """See `Draft.restore`."""
        self._draft.restore(part)

    def begin(self, ids: Sequence[int], config: GenerationConfig) -> None:
        """A reply begins behind these ids.

        Raises:
            GenerationError: The draft's model failed.
        """
        self._draft.begin(ids, config)
        # With a seed, the same prompt must get the same reply: where the draft's draws have a
        # part in it, neither the clock nor earlier replies must have one.
        steady = self._draft.by_chance and config.seed is not None
        self._pace = Pace(lambda: self._assumed_time) if steady else self._clocked
        if config.max_tokens > 1 and not self._pace.paused:
            self._draft.catch_up()
        self._pace.start()
        self._timed = False

    def wants(self, room: int) -> bool:
        """Whether to ask for a proposal, which needs the pending token's id."""
        return room > 0 and self._pace.drafting and self._draft.expects()

    def propose(self, room: int) -> list[Sample]:
        """Up to `room` tokens that may come behind the last one told.

        Raises:
            GenerationError: The draft's model failed.
        """
        return self._draft.propose(room)

    def tell(self, token: int) -> None:
        """This is the pending token; its id became known just now, or by `checked`."""
        self._draft.extend([token])
        if not self._timed:
            self._assumed_time += 1.0
            self._pace.lap(1, drafted=False)
        self._timed = False

    def checked(self, proposed: int, accepted: Sequence[int]) -> None:
        """A pass is done; of so many proposals, it accepted these."""
        self._draft.extend(accepted)
        self._assumed_time += 1.0 + ASSUMED_COST * proposed
        self._pace.lap(1 + len(accepted), drafted=True)
        self._timed = True
        made, taken = self.acceptance
        self.acceptance = Acceptance(made + proposed, taken + len(accepted))

    def cut(self, length: int) -> None:
        """All but the first `length` ids of the conversation were taken back.

        Raises:
            GenerationError: The draft's model failed.
        """
        self._draft.cut(length)

    def rest(self) -> None:
        """The reply is over."""
        self._draft.rest()

    def leave(self) -> None:
        """The reply is suspended."""
        self._pace.leave()

    def resume(self) -> None:
        """The reply goes on."""
        self._pace.resume()


class Pass:
    """One forward pass over the pending token and what a draft proposes behind it.

    It is under way once this is made; only `accept` waits for it.

    Args:
        state: The caches to feed.
        sampling: The reply's sampling.
        pending: The newest token, not yet fed.
        proposals: What the draft proposes behind it, or nothing.
        tokens: The ids of the conversation, the pending one included, if there are processors.

    Attributes:
        proposals: The proposals.
        tokens: The ids of the conversation, with what was accepted.
        mark: A place in front of it all, for caches that can't be trimmed.
    """

    def __init__(
        self,
        state: KVState,
        sampling: Sampling,
        pending: Sample,
        proposals: list[Sample],
        tokens: mx.array | None,
    ) -> None:
        self.proposals = proposals
        self.tokens = tokens
        self.mark = state.mark() if proposals else None
        self._sampling = sampling
        fed = [pending.token, *(proposal.token for proposal in proposals)]
        self._logits = state.feed(mx.concatenate(fed) if proposals else pending.token)
        self._samples: list[Sample] = []
        # The random keys after each sample.
        self._keys: list[mx.array | None] = []
        self._sample()
        # Processors may remember what they saw: they are never shown what may not come to be.
        if tokens is None:
            for _ in proposals:
                self._sample()
        arrays = [array for sample in self._samples for array in sample.arrays()]
        mx.async_eval(*arrays)  # type: ignore[no-untyped-call]

    def accept(self) -> tuple[list[Sample], Sample]:
        """The samples that are what was proposed, and the first that is not, pending now."""
        count = 0
        while (
            count < len(self.proposals) and self._samples[count].id() == self.proposals[count].id()
        ):
            count += 1
            if count == len(self._samples):
                assert self.tokens is not None
                self.tokens = mx.concatenate([self.tokens, self._samples[-1].token])
                self._sample()
        # Draws for what did not come to be are taken back.
        self._sampling.key = self._keys[count]
        return self._samples[:count], self._samples[count]

    def _sample(self) -> None:
        place = len(self._samples)
        draft = self.proposals[place] if place < len(self.proposals) else None
        with mx.stream(generation_stream):
            sample = self._sampling(self._logits[:, place, :], self.tokens, draft)
        self._samples.append(sample)
        self._keys.append(self._sampling.key)
