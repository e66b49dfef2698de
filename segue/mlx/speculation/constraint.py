"""A grammar at work in one reply: masks for sampling, and proposals that are always right.

How it works: the grammar follows the reply. It needs each token's id, so it waits for a pass; to
keep the device busy, the next pass has begun by then, and masks are made while the device computes
(`VerifyPass` asks for them). Where the grammar leaves no choice, its tokens are proposed like those
of a draft, and one pass reads them all: at such a position the mask leaves one token, so sampling
accepts it, whatever the settings and the seed. A draft may propose where the grammar forces
nothing, as far as the grammar allows what it proposes.

*When to wait.* To propose, the newest id must be known before its pass begins, and then the device
waits for Python. That pays if tokens are likely to be forced, which shows in the mask that the
newest token was sampled under: inside free text it allows most of the vocabulary, at the joints of
a structure only a few tokens.

What does not work: excluding tokens by adding a bias. A logit may be minus infinity already, or the
bias too small for it; the mask replaces what it excludes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...config import GenerationConfig
from ...masking.matcher import Matcher
from ..sampling import Mask, Sample
from .speculation import Speculation

# The share of the vocabulary that a mask allows, below which tokens are likely to be forced soon.
NARROW = 1 / 16


class Constraint:
    """A grammar that holds one reply, with the context's draft, if it has one.

    Has the methods of `Speculation` that the decode loop calls. In each round of the loop, `wants`
    comes first, then, maybe, `extend` and `propose`; then `masks`; `verified` if there were
    proposals.

    Args:
        matcher: The grammar, at the reply's beginning.
        speculation: The draft.
    """

    def __init__(self, matcher: Matcher, speculation: Speculation | None) -> None:
        self._matcher = matcher
        self._speculation = speculation
        self._proposed: Sequence[Sample] = ()
        self._narrow = [False]
        # True once the matcher has consumed the pending token.
        self._consumed = False
        self.forces = False
        """True if the latest proposals are the grammar's own."""

    def begin(self, ids: Sequence[int], config: GenerationConfig) -> None:
        """See `Speculation.begin`."""
        if self._speculation is not None:
            self._speculation.begin(ids, config)

    def first_mask(self) -> Mask:
        """Return which tokens the reply may begin with."""
        (mask,) = self._as_masks([self._matcher.mask()])
        return mask

    def wants(self, count: int) -> bool:
        """Return True if tokens may be proposed once the pending token's id is known.

        Args:
            count: How many a draft may propose.
        """
        self._consumed = False
        speculation = self._speculation
        return self._narrow[0] or (speculation is not None and speculation.wants(count))

    def extend(self, token: int) -> None:
        """Add the pending token's id."""
        self._consume(token)
        if self._speculation is not None:
            self._speculation.extend(token)

    def propose(self, count: int, *, forced: int) -> list[Sample]:
        """Return tokens that may come after the pending one.

        Args:
            count: How many a draft may propose.
            forced: How many may be proposed if the grammar forces them.

        Raises:
            GenerationError: if the draft's model failed.
        """
        ids = self._matcher.forced(forced)
        self.forces = bool(ids)
        if ids:
            return [Sample(mx.array([token], mx.uint32)) for token in ids]
        speculation = self._speculation
        if speculation is None or not speculation.wants(count):
            return []
        drafted = speculation.propose(count)
        return drafted[: self._matcher.allowed([sample.id() for sample in drafted])]

    def masks(self, pending: Sample, proposals: Sequence[Sample]) -> list[Mask]:
        """Return which tokens may be sampled after the pending token, and after each proposal.

        Waits for the pending token.
        """
        self._consume(pending.id())
        follower = self._matcher.fork() if proposals else self._matcher
        masks = [follower.mask()]
        for proposal in proposals:
            follower.consume(proposal.id())
            masks.append(follower.mask())
        return self._as_masks(masks)

    def verified(self, proposed: int, accepted: Sequence[int]) -> None:
        """Record which proposals were accepted."""
        for token in accepted:
            self._matcher.consume(token)
        self._narrow = self._narrow[len(accepted) :]
        if self._speculation is None:
            return
        if self.forces:
            self._speculation.read(accepted)
        else:
            self._speculation.verified(proposed, accepted)

    def suspend(self) -> None:
        """See `Speculation.suspend`."""
        if self._speculation is not None:
            self._speculation.suspend()

    def resume(self) -> None:
        """See `Speculation.resume`."""
        if self._speculation is not None:
            self._speculation.resume()

    def _consume(self, token: int) -> None:
        if not self._consumed:
            self._matcher.consume(token)
            self._consumed = True

    def _as_masks(self, masks: Sequence[bytes | None]) -> list[Mask]:
        rows = [None if mask is None else np.frombuffer(mask, np.uint8) for mask in masks]
        counts = [None if row is None else int(np.bitwise_count(row).sum()) for row in rows]
        self._narrow = [
            row is not None and count is not None and count < NARROW * 8 * row.size
            for row, count in zip(rows, counts, strict=True)
        ]
        return [
            None if row is None else _only(row) if count == 1 else _as_array(row)
            for row, count in zip(rows, counts, strict=True)
        ]


def _only(row: np.ndarray[Any, Any]) -> int:
    """Return the id of the one bit that is set."""
    byte = int(row.argmax())
    return 8 * byte + int(row[byte]).bit_length() - 1


def _as_array(row: np.ndarray[Any, Any]) -> mx.array:
    return mx.array(np.unpackbits(row, bitorder="little").view(np.bool_))
