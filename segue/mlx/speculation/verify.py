"""One forward pass that verifies proposals.

How it works: the pass feeds the pending token and the proposals after it, and the model samples at
each position as it would without a draft. A proposal that is what the model samples is accepted;
the first sample that differs is the next pending token. With greedy decoding, or with proposals
that were not drawn at random (prompt lookup), that is all: the reply has the very tokens of one
without a draft. A proposal drawn from a draft model's distribution is accepted or redrawn by
Leviathan's rule; see `Sampling`.

The pass is under way once a `VerifyPass` is made; only `accept` waits for it. A pass without
proposals is plain decoding.

What does not work:

- Sampling at all positions at once if there are logits processors: they may have a state, and must
  never be shown a token that was not accepted. Then each position is sampled when the one before
  was accepted.
- Leaving the random key where the last position left it. A reply without a draft would not have
  drawn for rejected positions, so the key is put back to where the accepted ones left it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
from mlx_lm.generate import generation_stream

from ..kv.state import KVState
from ..sampling import Mask, Sample, Sampling


class VerifyPass:
    """One forward pass over the pending token and what a drafter proposes after it.

    Args:
        state: The caches to feed.
        sampling: The reply's sampling.
        pending: The newest token, not yet fed.
        proposals: What a drafter proposes after it; may be empty.
        tokens: The ids of the conversation up to the pending one, if there are processors.
        masks: Returns which tokens may be sampled after the pending one and after each proposal,
            if a grammar holds the reply. Called while the device is at work.
    """

    def __init__(
        self,
        state: KVState,
        sampling: Sampling,
        pending: Sample,
        proposals: Sequence[Sample],
        tokens: mx.array | None,
        masks: Callable[[Sample, Sequence[Sample]], list[Mask]] | None = None,
    ) -> None:
        self.tokens = None if tokens is None else mx.concatenate([tokens, pending.token])
        """The ids of the conversation, the pending one included; `accept` adds those that it
        accepts."""
        self.checkpoint = state.checkpoint() if proposals else None
        """A checkpoint before the pass, for caches that can't be trimmed."""
        self._proposals = proposals
        self._sampling = sampling
        fed = [pending.token, *(proposal.token for proposal in proposals)]
        self._logits = state.feed(mx.concatenate(fed) if proposals else pending.token)
        self._masks: list[Mask] = [None] * len(fed)
        if masks is not None:
            mx.async_eval(self._logits)  # type: ignore[no-untyped-call]
            self._masks = masks(pending, proposals)
        elif sampling.looks:
            mx.async_eval(self._logits)  # type: ignore[no-untyped-call]
        self._samples: list[Sample] = []
        # The random key after each sample.
        self._keys: list[mx.array | None] = []
        self._sample()
        # Processors may have a state: they are never shown what may not be accepted.
        if tokens is None:
            for _ in proposals:
                self._sample()
        arrays = [array for sample in self._samples for array in sample.arrays()]
        mx.async_eval(*arrays)  # type: ignore[no-untyped-call]

    def accept(self) -> tuple[list[Sample], Sample]:
        """Wait for the pass.

        Returns:
            The accepted proposals, as the model sampled them, and the next pending token.
        """
        count = 0
        while (
            count < len(self._proposals)
            and self._samples[count].id() == self._proposals[count].id()
        ):
            count += 1
            if count == len(self._samples):
                assert self.tokens is not None
                self.tokens = mx.concatenate([self.tokens, self._samples[-1].token])
                self._sample()
        # Draws for what was not accepted are taken back.
        self._sampling.key = self._keys[count]
        return self._samples[:count], self._samples[count]

    def _sample(self) -> None:
        """Sample at the next position."""
        position = len(self._samples)
        draft = self._proposals[position] if position < len(self._proposals) else None
        with mx.stream(generation_stream):
            sample = self._sampling(
                self._logits[:, position, :], self.tokens, draft, self._masks[position]
            )
        self._samples.append(sample)
        self._keys.append(self._sampling.key)
