"""One request over the KV caches: prefill, the decode loop, and what keeps the caches sound.

How it works
============

A token is yielded *after* its forward pass has begun. The device computes the next token while
Python looks at this one, so decoding never waits for the caller; and at every yield the caches hold
every token that was yielded, the newest one included. The ledger after a reply is then the prompt
and the reply, however the reply ended.

A draft lets one pass hold several tokens: the pending one, and proposals after it. So there may be
tokens *ahead*: in the caches, and not yet reported to the caller. `Window` has the whole account.

::

    caches     p p p p p p p p  r r r r  a a a
                                       ^      ^
                                reported      state.offset = reported + ahead

A window is *settled* while the caches are in step and `ahead` is right; `reported` is then what the
caller may rely on, and what the caches can be brought back to exactly (`drop`). From the first call
into the model until the next yield it is *unsettled*::

                 settle(ahead)
      unsettled ---------------> settled        after a chunk of prefill, before a yield or callback
          ^                         |
          +-------------------------+           before a pass, and before its result is waited for
               settled = False

      an exception while settled     the tokens ahead are dropped, `reported` stays
      an exception while unsettled   some layers may have advanced and others not: the caches are
                                     emptied, but for an opaque prefix

Callbacks of the caller (progress), a draft's own passes, the delivery of an interrupt and the
yields happen while the window is settled: so whatever they raise costs no cache. The forward pass,
the sampling (with the caller's logits processors) and the wait for the device happen unsettled.

The tokens ahead change as follows, with proposals `x y z`, of which the model accepts `x y`::

    pass over r x y z          yield r         ahead = 3   (verified or not, nobody knows yet)
    accept: x y                drop(1)         ahead = 2   z is gone
                               yield x         ahead = 1
                               yield y         ahead = 0

A cache that can't be trimmed comes back from `z` through the checkpoint before the pass: that drops
`r x y` as well, and they are fed again.

What does not work
==================

- Looking at a token before the next pass begins. The device would wait for Python at every token.
  With a draft it must be so: a drafter has to know the pending token's id before it proposes.
- Delivering Ctrl-C at any moment. It would leave the layers out of step; `deliver_interrupt` is
  called where they are in step, and the caller's hold delays it until then (`interrupt.py`).
- Clearing after every failure. A progress callback or a draft that raises says nothing about the
  model's caches, and a conversation is slow to read again.
- Going back to a checkpoint of an earlier pass. It may be of tokens that are no longer those of the
  conversation, so a window forgets its checkpoint when a request ends.
- Leaving work to the next request. It may come from another thread, whose stream does not see what
  this one began; so the end of a request has everything computed.
- mlx-lm's ``generate_step``. A failure in it leaves the caches in an unknown state, processors see
  only the tokens fed in this call, and there is nowhere to deliver an interrupt.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import mlx.core as mx
from mlx_lm.generate import generation_stream, wired_limit

from ..engine import Request, Step
from ..errors import GenerationError, SegueError
from ..interrupt import deliver_interrupt
from .kv.checkpoints import KVCheckpoint
from .kv.state import KVState
from .process.forks import check_process, is_forked
from .process.threads import leave_at_end, note_thread
from .sampling import Mask, Sample, Sampling
from .speculation.constraint import Constraint
from .speculation.speculation import Speculation
from .speculation.verify import VerifyPass

# How often, in tokens, decoding hands freed buffers back, as mlx-lm does.
CLEAR_CACHE_EVERY = 256
# The most tokens that one pass verifies.
MOST_PROPOSED = 64


class Window:
    """The newest end of a context's caches: what was reported of it, and what is ahead.

    Args:
        state: The caches.
    """

    def __init__(self, state: KVState) -> None:
        self.state = state
        """The caches."""
        self.ahead = 0
        """How many of the newest tokens were not reported."""
        self.settled = True
        """False while a pass changes the caches."""
        self.ids: list[int] = []
        """The ids of a running request after the prefix: the prompt, and, with a draft, those that
        were reported."""
        self.checkpoint: KVCheckpoint | None = None
        """A checkpoint before the latest proposals."""

    @property
    def reported(self) -> int:
        """How many tokens the caller may rely on."""
        return self.state.offset - self.ahead

    def settle(self, ahead: int = 0) -> None:
        """Record that the caches are in step, with so many tokens ahead."""
        self.ahead, self.settled = ahead, True

    def drop(self, count: int) -> None:
        """Drop the newest tokens, which were not reported; what has to go with them is fed again.

        Only what is after the checkpoint before the proposals is: where the caches can't rewind to
        that, or there is none, they are left at what `KVState.rewind` reached.
        """
        state, checkpoint = self.state, self.checkpoint
        offset = state.offset - count
        self.ahead, self.settled = 0, False
        if checkpoint is None:
            state.rewind(offset)
        elif checkpoint.offset <= (reached := state.rewind(offset, checkpoint)) < offset:
            lost = self.ids[reached - state.prefix : offset - state.prefix]
            state.feed(mx.array(lost, mx.uint32))
        self.settled = True


@contextmanager
def guard(
    window: Window, ids: list[int], sampling: Sampling, speculation: Speculation | None
) -> Iterator[None]:
    """Run a request's work so that the caches are sound afterwards, however it ends.

    If the work raises while the window is settled, the tokens ahead are dropped and the error is
    raised on. If it raises while the window is unsettled, the caches are emptied; what MLX raised
    becomes a GenerationError, but errors of the caller's own logits processors stay what they are.

    Args:
        window: The context's window; used by one request at a time.
        ids: The request's ids.
        sampling: The reply's sampling.
        speculation: The context's draft, if it has one.

    Raises:
        GenerationError: if the model failed.
    """
    state = window.state
    window.ids, window.checkpoint = ids, None
    window.settle()
    try:
        with wired_limit(state.model, [generation_stream]):
            try:
                yield
            except BaseException:
                if window.settled and not is_forked():
                    window.drop(window.ahead)
                raise
            finally:
                window.ids, window.checkpoint = [], None
                if is_forked():
                    state.abandon()
                    window.settle()
                elif window.settled:
                    window.settled = False
                    state.schedule()
                    state.release()
                    window.settle()
                if speculation is not None and not is_forked():
                    speculation.release()
    except BaseException as error:
        if window.settled:
            raise
        window.ahead = 0
        state.clear()
        # MLX reports what goes wrong on the device as a RuntimeError.
        known = isinstance(error, SegueError) or error is sampling.failure
        if isinstance(error, RuntimeError) and not known:
            raise GenerationError(
                f"The model failed during a forward pass: {error}. The KV cache was emptied; the "
                "conversation is unchanged and will be read again.",
                remedy="Try again; if memory ran out, use a shorter history, max_kv_size or "
                "kv_bits.",
            ) from error
        raise


def prefill(window: Window, request: Request) -> mx.array:
    """Feed all of the prompt but its last token, in chunks; chunks end at checkpoints.

    With no tokens to generate, the last token is fed as well.

    Returns:
        The last token, of shape ``(1,)``, whose logits are wanted; empty if it was fed.
    """
    state, config, progress = window.state, request.config, request.progress
    start = state.offset - state.prefix
    prompt = mx.array(window.ids[start:], mx.uint32)
    total = len(prompt)
    last = total if config.max_tokens == 0 else total - 1
    checkpoints = {offset - start for offset in request.checkpoints}
    ends = sorted({last, *(end for end in checkpoints if 0 < end < last)})
    fed = 0
    while True:
        if fed in checkpoints:
            state.keep_checkpoint()
        if progress is not None:
            progress(fed, total)
        deliver_interrupt()
        _check_program()
        if fed == last:
            return prompt[last:]
        end = min(fed + config.prefill_step_size, next(end for end in ends if end > fed))
        chunk = prompt[fed : fed + state.largest_pass(end - fed)]
        window.settled = False
        state.feed(chunk)
        state.evaluate()
        fed += len(chunk)
        window.settle()


class DecodeLoop:
    """The decoding of one reply, within `guard`.

    Args:
        window: The context's window.
        request: The request.
        sampling: The reply's sampling.
        speculation: The context's draft; ``None`` to decode without.
        constraint: The grammar that holds the reply, if one does.
        on_prompt_read: Called when the first token is known: the prompt was read then.
    """

    def __init__(
        self,
        window: Window,
        request: Request,
        sampling: Sampling,
        speculation: Speculation | None,
        constraint: Constraint | None,
        on_prompt_read: Callable[[], None] | None,
    ) -> None:
        self._window = window
        self._state = window.state
        self._config = request.config
        self._checkpoints = request.checkpoints
        self._sampling = sampling
        self._speculation = speculation
        self._constraint = constraint
        self._on_prompt_read = on_prompt_read
        # All ids of the conversation, for logits processors, if there are any.
        self._tokens: mx.array | None = None
        self._count = 0
        self._next_clear = 0

    def steps(self, last: mx.array) -> Generator[Step, None, None]:
        """Return the reply's tokens, one at a time; each is fed before it is yielded.

        Args:
            last: The prompt's last id, of shape ``(1,)``, not yet fed.
        """
        window, proposer = self._window, self._constraint or self._speculation
        if proposer is not None:
            proposer.begin(window.ids, self._config)
        window.settled = False
        if self._sampling.processors:
            self._tokens = mx.array(window.ids, mx.uint32)
        constraint = self._constraint
        pending = self._feed(last, None if constraint is None else constraint.first_mask())
        if len(window.ids) in self._checkpoints:
            self._state.keep_checkpoint()
        return self._plain(pending) if proposer is None else self._verified(pending, proposer)

    def _plain(self, pending: Sample) -> Generator[Step, None, None]:
        """Decode without a draft."""
        window = self._window
        while self._count < self._config.max_tokens:
            window.settled = False
            if self._tokens is not None:
                self._tokens = mx.concatenate([self._tokens, pending.token])
            following = self._feed(pending.token)
            step = self._step(pending, 0)
            window.settle()
            yield step
            _check_program()
            pending = following
            self._count += 1
            if self._count >= self._next_clear:
                self._clear()

    def _verified(
        self, pending: Sample, proposer: Speculation | Constraint
    ) -> Generator[Step, None, None]:
        """Decode with proposals: of a draft, or of a grammar."""
        window = self._window
        masks = proposer.masks if isinstance(proposer, Constraint) else None
        while self._count < self._config.max_tokens:
            proposals = self._propose(pending, proposer)
            asked, proposals = proposals is not None, proposals or []
            window.settled = False
            check = VerifyPass(self._state, self._sampling, pending, proposals, self._tokens, masks)
            window.checkpoint = check.checkpoint
            step = self._step(pending, len(proposals))
            window.ids.append(step.token)
            if not asked:
                proposer.extend(step.token)
            proposer.suspend()
            window.settle(len(proposals))
            yield step
            _check_program()
            window.settled = False
            proposer.resume()
            accepted, pending = check.accept()
            self._tokens = check.tokens
            if proposals:
                ids = [sample.id() for sample in accepted]
                window.ids += ids
                proposer.verified(len(proposals), ids)
                window.drop(len(proposals) - len(ids))
                proposer.suspend()
                from_draft = not proposer.forces
                for number, sample in enumerate(accepted, 1):
                    window.settled = False
                    step = Step(sample.id(), sample.logprobs(), from_draft)
                    window.settle(len(accepted) - number)
                    yield step
                    _check_program()
                proposer.resume()
                window.settled = False
            self._count += 1 + len(accepted)
            if self._count >= self._next_clear:
                self._clear()
        window.settle()

    def _feed(self, token: mx.array, mask: Mask = None) -> Sample:
        """Feed one token, and begin to compute the one after it."""
        logits = self._state.feed(token)
        if self._sampling.looks:  # the device works while the processor waits
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
        with mx.stream(generation_stream):
            sample = self._sampling(logits[:, -1, :], self._tokens, mask=mask)
        mx.async_eval(*sample.arrays())  # type: ignore[no-untyped-call]
        return sample

    def _propose(self, pending: Sample, proposer: Speculation | Constraint) -> list[Sample] | None:
        """Return what may come after the pending token; ``None`` if nobody was asked.

        If the proposer was asked, it knows the pending token's id.
        """
        room = self._config.max_tokens - self._count - 1
        # One less than would fit: what is quantized can't be taken back.
        room = self._state.largest_pass(2 + min(room, MOST_PROPOSED)) - 2
        count = min(self._config.num_draft_tokens, room)
        if not proposer.wants(count) or room <= 0:
            return None
        proposer.extend(pending.id())
        self._window.settle()
        if isinstance(proposer, Constraint):
            return proposer.propose(count, forced=room)
        return proposer.propose(count)

    def _step(self, pending: Sample, ahead: int) -> Step:
        """Wait for a token, which has been fed; there are `ahead` more after it."""
        step = Step(pending.id(), pending.logprobs())
        if self._on_prompt_read is not None:
            on_prompt_read, self._on_prompt_read = self._on_prompt_read, None
            self._window.settle(1 + ahead)
            on_prompt_read()
        return step

    def _clear(self) -> None:
        """Hand freed buffers back."""
        mx.clear_cache()
        self._next_clear = self._count + CLEAR_CACHE_EVERY


def _check_program() -> None:
    """Stop where the program forked or is ending; the window must be settled."""
    check_process()
    note_thread()
    leave_at_end()
