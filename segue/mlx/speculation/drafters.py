"""What proposes tokens for the model to check: prompt lookup, or a smaller model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import mlx.core as mx
from mlx_lm.generate import generation_stream

from ...config import GenerationConfig
from ...drafting.lookup import PromptLookup
from ...engine import StoredPart
from ...errors import GenerationError, SegueError
from ...interrupt import deliver_interrupt
from ...ledger import common_prefix
from ..kv.state import KVState, Mark
from ..sampling import Sample, Sampling, draft_settings
from ..stored.sections import draft_part, no_draft, restore_draft

Result = TypeVar("Result")


class Draft(Protocol):
    """Proposes the next tokens of a conversation, which it follows from reply to reply."""

    @property
    def by_chance(self) -> bool:
        """Whether this reply's proposals are drawn, so that other draws bring other replies."""
        ...

    def begin(self, ids: Sequence[int], config: GenerationConfig) -> None:
        """A reply begins behind these ids. No model works yet."""
        ...

    def catch_up(self) -> None:
        """Read what it has not read yet.

        Raises:
            GenerationError: The draft's model failed; it holds nothing any more.
        """
        ...

    def extend(self, ids: Sequence[int]) -> None:
        """These ids came next. No model works."""
        ...

    def expects(self) -> bool:
        """Whether it might propose something once it is told the next id."""
        ...

    def propose(self, count: int) -> list[Sample]:
        """Up to `count` tokens that may come next.

        Raises:
            GenerationError: The draft's model failed; it holds nothing any more.
        """
        ...

    def cut(self, length: int) -> None:
        """Hold no more than the first `length` ids of the conversation.

        Raises:
            GenerationError: The draft's model failed; it holds nothing any more.
        """
        ...

    def rest(self) -> None:
        """The reply is over; the next one may come from another thread."""
        ...

    def fork(self) -> Draft:
        """Another one that has read the same."""
        ...

    def part(self) -> StoredPart | None:
        """What it has read, for a file; ``None`` if that is nothing, or not worth it."""
        ...

    def restore(self, part: StoredPart) -> None:
        """Have read what another draft told as its `part`.

        Raises:
            PromptCacheError: It can't; nothing changed.
        """
        ...


class LookupDraft:
    """Prompt lookup as a `Draft`."""

    by_chance = False

    def __init__(self) -> None:
        self._lookup = PromptLookup()

    def begin(self, ids: Sequence[int], config: GenerationConfig) -> None:
        """See `Draft.begin`."""
        self._lookup.follow(ids)

    def catch_up(self) -> None:
        """See `Draft.catch_up`."""

    def extend(self, ids: Sequence[int]) -> None:
        """See `Draft.extend`."""
        self._lookup.extend(ids)

    def expects(self) -> bool:
        """See `Draft.expects`."""
        return self._lookup.expects()

    def propose(self, count: int) -> list[Sample]:
        """See `Draft.propose`."""
        return [Sample(mx.array([token], mx.uint32)) for token in self._lookup.propose(count)]

    def cut(self, length: int) -> None:
        """See `Draft.cut`; it follows other ids with the next reply."""

    def rest(self) -> None:
        """See `Draft.rest`."""

    def fork(self) -> LookupDraft:
        """See `Draft.fork`; the index is made anew when it is needed."""
        return LookupDraft()

    def part(self) -> None:
        """See `Draft.part`; the conversation is all there is to it."""

    def restore(self, part: StoredPart) -> None:
        """See `Draft.restore`."""
        raise no_draft()


class ModelDraft:
    """A smaller model as a `Draft`, with KV caches of its own.

    It keeps its own account of the ids that its caches hold, and goes by nothing else: whatever
    happened to the conversation, it comes back to what is still true and reads the rest.

    Args:
        state: Its empty caches.
        make_sampling: Makes the sampling of a reply.
        vocabulary: How many ids its model can read.
        width: How many logits the checking model has.
        fingerprint: Tells what identifies its model.
    """

    def __init__(
        self,
        state: KVState,
        make_sampling: Callable[[GenerationConfig], Sampling],
        *,
        vocabulary: int,
        width: int,
        fingerprint: Callable[[], str],
    ) -> None:
        self._state = state
        self._make_sampling = make_sampling
        self._vocabulary = vocabulary
        self._width = width
        self._fingerprint = fingerprint
        self._known: list[int] = []
        # What the caches hold; `_agreed` of these are certain to be the first ids of `_known`.
        self._held: list[int] = []
        self._agreed = 0
        self._mark: Mark | None = None
        self._config = GenerationConfig()
        self._sampling: Sampling | None = None
        self._in_step = True

    @property
    def by_chance(self) -> bool:
        """See `Draft.by_chance`."""
        return self._sampling is not None and self._sampling.key is not None

    def begin(self, ids: Sequence[int], config: GenerationConfig) -> None:
        """See `Draft.begin`."""
        self._known = list(ids)
        self._agreed = 0
        self._config = draft_settings(config)
        self._sampling = self._make_sampling(self._config)

    def catch_up(self) -> None:
        """See `Draft.catch_up`."""
        if self.expects():
            self._attempt(self._catch_up)

    def extend(self, ids: Sequence[int]) -> None:
        """See `Draft.extend`."""
        self._known.extend(ids)

    def expects(self) -> bool:
        """See `Draft.expects`; never where the conversation holds ids that it can't read."""
        return max(self._known[self._agreed :], default=0) < self._vocabulary

    def propose(self, count: int) -> list[Sample]:
        """See `Draft.propose`."""
        return self._attempt(lambda: self._propose(count)) if self.expects() else []

    def cut(self, length: int) -> None:
        """See `Draft.cut`."""
        self._attempt(lambda: self._go_back(min(length, len(self._held))))
        self._known = self._known[:length]

    def rest(self) -> None:
        """See `Draft.rest`."""
        self._attempt(self._rest)

    def fork(self) -> ModelDraft:
        """See `Draft.fork`."""
        twin = copy.copy(self)
        twin._state = self._state.fork()
        twin._known, twin._held = list(self._known), list(self._held)
        return twin

    def part(self) -> StoredPart | None:
        """See `Draft.part`."""
        if not self._held:
            return None
        return draft_part(self._state, self._held, self._mark, self._fingerprint())

    def restore(self, part: StoredPart) -> None:
        """See `Draft.restore`."""
        self._held, self._mark = restore_draft(
            self._state, part, self._vocabulary, self._fingerprint()
        )
        self._agreed = 0

    def _rest(self) -> None:
        self._state.schedule(self._mark)
        self._state.rest()

    def _catch_up(self) -> None:
        # The last id is read with what comes next.
        length = len(self._known) - 1
        self._return(length)
        self._read(length)
        self._state.evaluate()

    def _propose(self, count: int) -> list[Sample]:
        state, sampling = self._state, self._sampling
        assert sampling is not None
        # The newest id, if no other, is read anew: it is its logits that are wanted.
        self._return(len(self._known) - 1)
        logits = self._read(len(self._known))
        assert logits is not None
        self._mark = state.mark()
        drafted: list[Sample] = []
        while True:
            tokens = None
            if sampling.processors:
                # Penalties look at the latest tokens alone.
                seen = self._known[-self._penalty_window :]
                tokens = mx.concatenate(
                    [mx.array(seen, mx.uint32), *(sample.token for sample in drafted)]
                )
            with mx.stream(generation_stream):
                sample = sampling(self._fit(logits[:, -1, :]), tokens)
            mx.async_eval(sample.token)  # type: ignore[no-untyped-call]
            drafted.append(sample)
            if len(drafted) == count:
                break
            logits = state.feed(sample.token)
        ids = [sample.id() for sample in drafted]
        # The last one was not read.
        self._held += ids[:-1]
        return drafted

    def _read(self, length: int) -> mx.array | None:
        """Feed what the caches lack of the first `length` known ids; the last pass's logits."""
        logits = None
        while (start := len(self._held)) < length:
            chunk = self._known[start : min(start + self._config.prefill_step_size, length)]
            logits = self._state.feed(mx.array(chunk, mx.uint32))
            self._held += chunk
            if len(self._held) < length:
                self._state.evaluate()
                self._in_step = True
                deliver_interrupt()
                self._in_step = False
        self._agreed = length
        return logits

    def _return(self, most: int) -> None:
        """Go back to where the caches agree with the known ids, and to no more than `most`."""
        start = min(self._agreed, len(self._held), most)
        same = start + common_prefix(self._held[start:], self._known[start:most])
        self._go_back(same)

    def _go_back(self, length: int) -> None:
        reached = self._state.rewind(length, self._mark)
        if self._mark is not None and self._mark.offset > reached:
            self._mark = None
        del self._held[reached:]
        self._agreed = min(self._agreed, reached)

    def _fit(self, logits: mx.array) -> mx.array:
        """Logits as wide as those of the checking model: embeddings are padded differently."""
        missing = self._width - logits.shape[-1]
        if missing > 0:
            return mx.pad(logits, [(0, 0), (0, missing)], constant_values=float("-inf"))
        return logits[:, : self._width]

    @property
    def _penalty_window(self) -> int:
        config = self._config
        return max(
            config.repetition_context_size,
            config.presence_context_size,
            config.frequency_context_size,
        )

    def _attempt(self, work: Callable[[], Result]) -> Result:
        """Do it, or forget everything: caches that a failed pass left out of step help nobody."""
        self._in_step = False
        try:
            return work()
        except BaseException as error:
            if not self._in_step:
                self._state.clear()
                self._held, self._agreed, self._mark = [], 0, None
            if isinstance(error, RuntimeError) and not isinstance(error, SegueError):
                raise GenerationError(
                    f"The draft model failed during a forward pass: {error}. Its KV cache was "
                    "emptied; the model's own, and the conversation, are kept.",
                    remedy="Try again; if memory ran out, use a smaller draft, or prompt-lookup.",
                ) from error
            raise
