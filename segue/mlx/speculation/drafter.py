"""What proposes tokens for the model to verify, and the drafter that needs no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import mlx.core as mx

from ...config import GenerationConfig
from ...drafting.lookup import PromptLookup
from ...engine import StoredState
from ..sampling import Sample
from ..stored.sections import no_draft


class Drafter(Protocol):
    """Proposes the next tokens of a conversation, which it follows from reply to reply.

    In a reply, `begin` comes first; then, for each token, `extend` with its id, before or after
    which `propose` may be asked for what comes next; at the end, `release`.
    """

    @property
    def samples(self) -> bool:
        """True if this reply's proposals are drawn at random, so that other draws change it."""
        ...

    def begin(self, ids: Sequence[int], config: GenerationConfig) -> None:
        """Begin a reply after these ids. No model is run."""
        ...

    def catch_up(self) -> None:
        """Read what was not read yet.

        Raises:
            GenerationError: if the draft's model failed; its cache is empty then.
        """
        ...

    def extend(self, ids: Sequence[int]) -> None:
        """Add the ids that came next. No model is run."""
        ...

    def expects(self) -> bool:
        """Return True if `propose` may find something once the next id is added."""
        ...

    def propose(self, count: int) -> list[Sample]:
        """Return up to `count` tokens that may come next.

        Raises:
            GenerationError: if the draft's model failed; its cache is empty then.
        """
        ...

    def cut(self, length: int) -> None:
        """Forget all but the first `length` ids of the conversation.

        Raises:
            GenerationError: if the draft's model failed; its cache is empty then.
        """
        ...

    def release(self) -> None:
        """End the reply; the next one may come from another thread."""
        ...

    def fork(self) -> Drafter:
        """Return another one that has read the same."""
        ...

    def stored(self) -> StoredState | None:
        """Return what was read, for a file; ``None`` if that is nothing, or not worth saving."""
        ...

    def restore(self, section: StoredState) -> None:
        """Have read what another drafter returned from `stored`.

        Raises:
            PromptCacheError: if that can't be; nothing changed.
        """
        ...


class LookupDrafter:
    """Prompt lookup as a `Drafter`."""

    samples = False

    def __init__(self) -> None:
        self._lookup = PromptLookup()

    def begin(self, ids: Sequence[int], config: GenerationConfig) -> None:
        """See `Drafter.begin`."""
        self._lookup.follow(ids)

    def catch_up(self) -> None:
        """See `Drafter.catch_up`; `begin` did that."""

    def extend(self, ids: Sequence[int]) -> None:
        """See `Drafter.extend`."""
        self._lookup.extend(ids)

    def expects(self) -> bool:
        """See `Drafter.expects`."""
        return self._lookup.expects()

    def propose(self, count: int) -> list[Sample]:
        """See `Drafter.propose`."""
        return [Sample(mx.array([token], mx.uint32)) for token in self._lookup.propose(count)]

    def cut(self, length: int) -> None:
        """See `Drafter.cut`."""
        self._lookup.cut(length)

    def release(self) -> None:
        """See `Drafter.release`."""

    def fork(self) -> LookupDrafter:
        """See `Drafter.fork`; the index is built anew when it is needed."""
        return LookupDrafter()

    def stored(self) -> None:
        """See `Drafter.stored`; the conversation is all there is to save."""

    def restore(self, section: StoredState) -> None:
        """See `Drafter.restore`."""
        raise no_draft()
