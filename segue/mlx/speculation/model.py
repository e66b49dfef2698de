"""A smaller model as a drafter, with KV caches of its own.

How it works: the drafter has its own account of the ids in its caches, `_cached`, and trusts
nothing else. Whatever happened to the conversation (an undo, a rejected proposal, a reply without
drafts), it compares that account with the conversation's ids, `_known`, rewinds to where they part,
and reads the rest. So nobody has to inform it of changes, and it can't be out of step.

    _known    a b c d e f g      the conversation: prompt and reply
    _cached   a b c d x y        the ids in the caches; x and y were proposed, and rejected
    _agreed         ^            ids of both that were compared already

Of a proposal, all tokens but the last are in the caches afterwards: the accepted ones stay there.
Draft models that can't be trimmed rewind to a checkpoint before their latest proposal.

What does not work:

- Proposing without the newest id. The logits that are wanted come from a pass over that id, so
  `propose` feeds at least one token, if need be a second time.
- Recovering from a failed pass. The caches may be out of step then, so `_attempt` empties them; the
  model's own caches, and the conversation, are not touched.
- Ids that the draft can't read. Embeddings are padded differently: a model may know ids that its
  draft does not. As long as the conversation has one after what is cached, nothing is proposed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

import mlx.core as mx
from mlx_lm.generate import generation_stream

from ...config import GenerationConfig
from ...engine import StoredState
from ...errors import GenerationError, SegueError
from ...interrupt import deliver_interrupt
from ...ledger import common_prefix
from ..kv.checkpoints import KVCheckpoint
from ..kv.state import KVState
from ..sampling import Sample, Sampling, draft_settings
from ..stored.sections import draft_section, restore_draft

Result = TypeVar("Result")


class ModelDrafter:
    """A smaller model as a `Drafter`.

    Args:
        state: Its empty caches.
        make_sampling: Makes the sampling of a reply.
        vocabulary: How many ids its model can read.
        width: How many logits the verifying model has.
        fingerprint: Returns its model's fingerprint.
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
        # The ids in the caches; the first `_agreed` of them are the first of `_known`.
        self._cached: list[int] = []
        self._agreed = 0
        self._checkpoint: KVCheckpoint | None = None
        self._config = GenerationConfig()
        self._sampling: Sampling | None = None
        self._in_step = True

    @property
    def samples(self) -> bool:
        """See `Drafter.samples`."""
        return self._sampling is not None and self._sampling.key is not None

    def begin(self, ids: Sequence[int], config: GenerationConfig) -> None:
        """See `Drafter.begin`."""
        self._known = list(ids)
        self._agreed = 0
        self._config = draft_settings(config)
        self._sampling = self._make_sampling(self._config)

    def catch_up(self) -> None:
        """See `Drafter.catch_up`."""
        if self.expects():
            self._attempt(self._catch_up)

    def extend(self, ids: Sequence[int]) -> None:
        """See `Drafter.extend`."""
        self._known.extend(ids)

    def expects(self) -> bool:
        """See `Drafter.expects`; never if the conversation has ids that the draft can't read."""
        return max(self._known[self._agreed :], default=0) < self._vocabulary

    def propose(self, count: int) -> list[Sample]:
        """See `Drafter.propose`."""
        return self._attempt(lambda: self._propose(count)) if self.expects() else []

    def cut(self, length: int) -> None:
        """See `Drafter.cut`."""
        self._attempt(lambda: self._rewind(min(length, len(self._cached))))
        self._known = self._known[:length]

    def release(self) -> None:
        """See `Drafter.release`."""
        self._attempt(self._release)

    def fork(self) -> ModelDrafter:
        """See `Drafter.fork`."""
        twin = copy.copy(self)
        twin._state = self._state.fork()
        twin._known, twin._cached = list(self._known), list(self._cached)
        return twin

    def stored(self) -> StoredState | None:
        """See `Drafter.stored`."""
        if not self._cached:
            return None
        return draft_section(self._state, self._cached, self._checkpoint, self._fingerprint())

    def restore(self, section: StoredState) -> None:
        """See `Drafter.restore`."""
        self._cached, self._checkpoint = restore_draft(
            self._state, section, self._vocabulary, self._fingerprint()
        )
        self._agreed = 0

    def _release(self) -> None:
        self._state.schedule(*([] if self._checkpoint is None else [self._checkpoint]))
        self._state.release()

    def _catch_up(self) -> None:
        # The last id is read with what comes next.
        length = len(self._known) - 1
        self._rewind_to_agreement(length)
        self._read(length)
        self._state.evaluate()

    def _propose(self, count: int) -> list[Sample]:
        state, sampling = self._state, self._sampling
        assert sampling is not None
        # The newest id, if no other, is read again: it is its logits that are wanted.
        self._rewind_to_agreement(len(self._known) - 1)
        logits = self._read(len(self._known))
        assert logits is not None
        self._checkpoint = state.checkpoint()
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
        self._cached += ids[:-1]
        return drafted

    def _read(self, length: int) -> mx.array | None:
        """Feed what the caches lack of the first `length` known ids.

        Returns:
            The last pass's logits; ``None`` if nothing was lacking.
        """
        logits = None
        while (start := len(self._cached)) < length:
            chunk = self._known[start : min(start + self._config.prefill_step_size, length)]
            logits = self._state.feed(mx.array(chunk, mx.uint32))
            self._cached += chunk
            if len(self._cached) < length:
                self._state.evaluate()
                self._in_step = True
                deliver_interrupt()
                self._in_step = False
        self._agreed = length
        return logits

    def _rewind_to_agreement(self, most: int) -> None:
        """Go back to where the caches agree with the known ids, and to no more than `most`."""
        start = min(self._agreed, len(self._cached), most)
        same = start + common_prefix(self._cached[start:], self._known[start:most])
        self._rewind(same)

    def _rewind(self, length: int) -> None:
        checkpoint = self._checkpoint
        reached = self._state.rewind(length, *([] if checkpoint is None else [checkpoint]))
        if checkpoint is not None and checkpoint.offset > reached:
            self._checkpoint = None
        del self._cached[reached:]
        self._agreed = min(self._agreed, reached)

    def _fit(self, logits: mx.array) -> mx.array:
        """Return logits as wide as those of the verifying model: embeddings are padded."""
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
                self._cached, self._agreed, self._checkpoint = [], 0, None
            if isinstance(error, RuntimeError) and not isinstance(error, SegueError):
                raise GenerationError(
                    f"The draft model failed during a forward pass: {error}. Its KV cache was "
                    "emptied; the model's own, and the conversation, are unchanged.",
                    remedy="Try again; if memory ran out, use a smaller draft, or prompt-lookup.",
                ) from error
            raise
