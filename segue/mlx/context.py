"""The KV state of one conversation, and the decode loop over it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

import mlx.core as mx
from mlx_lm.generate import generation_stream, wired_limit

from ..config import GenerationConfig
from ..engine import Acceptance, Marks, PrefillProgress, Step, StoredPart
from ..errors import ConfigurationError, GenerationError, PromptCacheError, SegueError
from ..interrupt import deliver_interrupt
from .kv.bounded import as_saved
from .kv.state import KVState, Mark
from .sampling import Sample, Sampling
from .speculation.verify import Drafting, Pass
from .stored.prompt_cache import write_cache_file
from .stored.sections import no_draft, restore_state, state_parts
from .threads import note_thread

# How often, in tokens, decode hands freed buffers back, as mlx-lm does.
CLEAR_CACHE_EVERY = 256
# Tokens that a bounded cache holds beside those that it never drops, at least.
LEAST_ROOM = 4


class MlxContext:
    """A `Context` over the KV caches of an mlx-lm model, with or without a draft.

    Args:
        state: The caches, empty or holding a prefix.
        make_sampling: Makes the sampling of a reply; refuses what the model can't do.
        vocabulary: How many tokens the model knows, where that is known; larger ids are refused.
        labels: Texts to save along with the caches.
        drafting: Proposes tokens, if anything does.
    """

    def __init__(
        self,
        state: KVState,
        make_sampling: Callable[[GenerationConfig], Sampling],
        *,
        vocabulary: int | None = None,
        labels: Mapping[str, str] = MappingProxyType({}),
        drafting: Drafting | None = None,
    ) -> None:
        self._state = state
        self._make_sampling = make_sampling
        self._vocabulary = vocabulary
        self._labels = labels
        self._drafting = drafting
        # Tokens in the caches beyond what was told: proposals, accepted already or under check.
        self._ahead = 0
        # A place before the latest proposals.
        self._mark: Mark | None = None
        # What the caches can be brought back to exactly; `None` while a pass is under way.
        self._safe: int | None = None

    @property
    def offset(self) -> int:
        """How many tokens the KV cache holds, the prefix included."""
        return self._state.offset - self._ahead

    @property
    def prefix(self) -> int:
        """How many of these came with a prompt cache that does not tell their ids."""
        return self._state.prefix

    @property
    def acceptance(self) -> Acceptance:
        """What became of the draft's proposals so far."""
        return Acceptance() if self._drafting is None else self._drafting.acceptance

    @property
    def peak_memory(self) -> int:
        """The most memory MLX has held so far, in bytes."""
        return int(mx.get_peak_memory())

    @property
    def marks(self) -> Marks:
        """The places that it can come back to, where its layers can't be trimmed."""
        state = self._state
        return Marks(tuple(mark.offset for mark in state.marks), state.mark_bytes)

    @property
    def wants_marks(self) -> bool:
        """Whether some layers may become ones that can't be trimmed."""
        return not self._state.trimmable

    def rewind(self, offset: int) -> int:
        """See `segue.engine.Context.rewind`; the draft forgets what is dropped, too."""
        before = self._state.offset
        reached = self._state.rewind(offset)
        if reached < before and self._drafting is not None:
            self._drafting.cut(reached - self._state.prefix)
        return reached

    def generate(
        self,
        ids: Sequence[int],
        config: GenerationConfig,
        progress: PrefillProgress | None = None,
        *,
        marks: Sequence[int] = (),
        pinned: int = 0,
    ) -> Generator[Step, None, None]:
        """See `segue.engine.Context.generate`."""
        self._check_ids(ids)
        bound = config.max_kv_size
        if bound is not None and pinned > bound - LEAST_ROOM and not self.prefix:
            raise ConfigurationError(
                f"The instructions take {pinned} tokens, and max_kv_size={bound} leaves no room "
                "beside them.",
                remedy="Use a larger max_kv_size, or shorter instructions.",
            )
        sampling = self._make_sampling(config)
        return self._generate(list(ids), config, sampling, progress, set(marks), pinned)

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """See `segue.engine.Context.save`; the layout is mlx-lm's own. The draft's stay behind."""
        try:
            layers = list(map(as_saved, self._state.layers))
            write_cache_file(path, layers, {**self._labels, **metadata})
        finally:
            self._state.rest()

    def fork(self) -> MlxContext:
        """See `segue.engine.Context.fork`; the fork's `acceptance` begins at zero."""
        return MlxContext(
            self._state.fork(),
            self._make_sampling,
            vocabulary=self._vocabulary,
            labels=self._labels,
            drafting=None if self._drafting is None else self._drafting.fork(),
        )

    def parts(self) -> Mapping[str, StoredPart]:
        """See `segue.engine.Context.parts`."""
        parts = state_parts(self._state)
        draft = None if self._drafting is None else self._drafting.part()
        return parts if draft is None else {**parts, "draft": draft}

    def restore(self, parts: Mapping[str, StoredPart]) -> Mapping[str, str]:
        """See `segue.engine.Context.restore`."""
        unused = dict(restore_state(self._state, parts))
        if "draft" in parts:
            try:
                if self._drafting is None:
                    raise no_draft()
                self._drafting.restore(parts["draft"])
            except PromptCacheError as error:
                unused["draft"] = error.what
        return unused

    def _generate(
        self,
        ids: list[int],
        config: GenerationConfig,
        sampling: Sampling,
        progress: PrefillProgress | None,
        marks: set[int],
        pinned: int,
    ) -> Generator[Step, None, None]:
        note_thread()
        self._safe, self._mark = self.offset, None
        self._state.pin(pinned)
        try:
            with wired_limit(self._state.model, [generation_stream]):
                try:
                    total = len(ids) + self._state.prefix - self._state.offset
                    last = self._prefill(ids, config, progress, marks)
                    read = None if progress is None else partial(progress, total, total)
                    if config.max_tokens:
                        yield from self._decode(last, ids, config, sampling, read, marks)
                except BaseException:
                    if self._safe is not None:
                        self._come_back(self._safe, ids)
                    raise
                finally:
                    self._mark = None
                    if self._safe is not None:
                        # Nothing is left to be computed on this thread's own stream: the next
                        # turn may come from another one.
                        safe, self._safe = self._safe, None
                        self._state.schedule()
                        self._state.rest()
                        self._safe = safe
                    if self._drafting is not None:
                        self._drafting.rest()
        except BaseException as error:
            if self._safe is not None:
                raise
            self._ahead = 0
            self._state.clear()
            # MLX reports what goes wrong on the device as a RuntimeError.
            mapped = isinstance(error, SegueError) or error is sampling.failure
            if isinstance(error, RuntimeError) and not mapped:
                raise GenerationError(
                    f"The model failed during a forward pass: {error}. The KV cache was emptied; "
                    "the conversation is kept and will be read again.",
                    remedy="Try again; if memory ran out, use a shorter history, max_kv_size or "
                    "kv_bits.",
                ) from error
            raise

    def _prefill(
        self,
        ids: list[int],
        config: GenerationConfig,
        progress: PrefillProgress | None,
        marks: set[int],
    ) -> mx.array:
        """Feed all but the last token in chunks; that one is returned, its logits are wanted.

        With no tokens to generate, it is fed as well. Chunks end at marks.
        """
        state = self._state
        start = state.offset - state.prefix
        prompt = mx.array(ids[start:], mx.uint32)
        total = len(prompt)
        last = total if config.max_tokens == 0 else total - 1
        stops = sorted(mark - start for mark in marks if start < mark < start + last)
        fed = 0
        while True:
            if start + fed in marks:
                state.keep_mark(config.max_marks, config.max_mark_bytes)
            if progress is not None:
                progress(fed, total)
            deliver_interrupt()
            if fed == last:
                return prompt[last:]
            end = min(fed + config.prefill_step_size, last)
            end = min([end, *(stop for stop in stops if stop > fed)])
            chunk = prompt[fed : fed + state.room(end - fed)]
            self._safe = None
            state.feed(chunk)
            state.evaluate()
            fed += len(chunk)
            self._safe = state.offset

    def _decode(
        self,
        last: mx.array,
        known: list[int],
        config: GenerationConfig,
        sampling: Sampling,
        read: Callable[[], None] | None,
        marks: set[int],
    ) -> Generator[Step, None, None]:
        """Yield the reply's tokens, each of them fed before it is looked at.

        So the device never waits for Python, except where a draft must know a token to go on.

        Args:
            last: The prompt's last id, shape ``(1,)``, not yet fed.
            known: The prompt's ids. With a draft, those of the reply are added.
            config: The reply's settings.
            sampling: The reply's sampling.
            read: Told that the prompt is read.
            marks: Where to promise to be able to come back to; here, behind the prompt.
        """
        state, drafting = self._state, self._drafting
        prompt_tokens = len(known)
        if drafting is not None:
            drafting.begin(known, config)
        self._safe = None
        tokens = mx.array(known, mx.uint32) if sampling.processors else None
        logits = state.feed(last)
        if prompt_tokens in marks:
            state.keep_mark(config.max_marks, config.max_mark_bytes)
        with mx.stream(generation_stream):
            pending = sampling(logits[:, -1, :], tokens)
        mx.async_eval(*pending.arrays())  # type: ignore[no-untyped-call]
        count, cleared = 0, 0
        while count < config.max_tokens:
            proposals: list[Sample] = []
            wanted = False
            if drafting is not None:
                room = min(drafting.most, config.max_tokens - count - 1)
                # One less than there is: what is quantized can't be taken back.
                room = state.room(2 + room) - 2
                wanted = drafting.wants(room)
                if wanted:
                    drafting.tell(pending.id())
                    self._safe = state.offset
                    proposals = drafting.propose(room)
                    self._safe = None
            if tokens is not None:
                tokens = mx.concatenate([tokens, pending.token])
            check = Pass(state, sampling, pending, proposals, tokens)
            step = Step(pending.id(), pending.logprobs())
            self._mark = check.mark
            if count == 0 and read is not None:
                self._ahead = 1 + len(proposals)
                self._safe = state.offset - self._ahead
                read()
            if drafting is not None:
                known.append(step.token)
                if not wanted:
                    drafting.tell(step.token)
                drafting.leave()
            self._ahead = len(proposals)
            self._safe = state.offset - self._ahead
            yield step
            told, self._safe = self._safe, None
            if drafting is not None:
                drafting.resume()
            accepted, pending = check.accept()
            tokens = check.tokens
            if proposals:
                assert drafting is not None
                ids = [sample.id() for sample in accepted]
                known += ids
                drafting.checked(len(proposals), ids)
                self._come_back(told + len(ids), known)
                drafting.leave()
                for place, sample in enumerate(accepted, 1):
                    step = Step(sample.id(), sample.logprobs(), from_draft=True)
                    self._ahead = len(accepted) - place
                    self._safe = state.offset - self._ahead
                    yield step
                    self._safe = None
                self._ahead = 0
                drafting.resume()
            count += 1 + len(accepted)
            if count >= cleared:
                mx.clear_cache()
                cleared = count + CLEAR_CACHE_EVERY
        self._safe = state.offset

    def _come_back(self, offset: int, known: list[int]) -> None:
        """Drop what lies beyond `offset`; what has to go with it is fed again.

        Only what lies behind the mark in front of the proposals: where the caches can't come back
        to that, or there is none, they are left at what `KVState.rewind` can keep.
        """
        state, mark = self._state, self._mark
        self._ahead, self._safe = 0, None
        reached = state.rewind(offset, mark)
        if mark is not None and mark.offset <= reached < offset:
            lost = known[reached - state.prefix : offset - state.prefix]
            state.feed(mx.array(lost, mx.uint32))
        self._safe = state.offset

    def _check_ids(self, ids: Sequence[int]) -> None:
        """MLX reads embeddings unchecked: an id too large would read memory that is not theirs."""
        if self._vocabulary is not None and ids and max(ids) >= self._vocabulary:
            raise ConfigurationError(
                f"The tokenizer made token {max(ids)}, but the model has {self._vocabulary} "
                "tokens, so they don't belong together.",
                remedy="Use the model's own tokenizer.",
            )
