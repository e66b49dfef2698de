"""The KV state of one conversation: a context with every capability that the seam has.

How it works: a context owns a `KVState` (the caches), a `Window` on its newest end, and maybe a
`Speculation` (a draft). `run` checks a request and returns a generator; what that does is in
`decoding.py`, under a guard that leaves the caches sound however it ends. Everything else is called
between requests and works on the caches as they are.

Back at its prefix (``rewind(0)``), a context is as good as new: no checkpoints, nothing shared with
forks, nothing in the draft, its pace forgotten.

What does not work: two requests at a time, and changing a context while a request is suspended. A
session closes a reply before it does anything else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import mlx.core as mx

from ..config import SMALLEST_KV_SIZE, CacheConfig, GenerationConfig
from ..engine import (
    Acceptance,
    CheckpointReport,
    Engine,
    Request,
    Step,
    StoredCache,
    StoredState,
)
from ..errors import ConfigurationError, PromptCacheError
from ..masking.matcher import Matcher
from .decoding import DecodeLoop, Window, guard, prefill
from .kv.bounded import KEPT_TOKENS, as_saved
from .kv.state import KVState
from .process.forks import is_forked, use_model
from .sampling import Sampling
from .speculation.constraint import Constraint
from .speculation.drafter import Drafter
from .speculation.speculation import Speculation
from .stored.prompt_cache import write_cache_file
from .stored.sections import no_draft, restore_state, state_sections

# How many tokens a bounded cache must be able to hold beside those that it never drops.
LEAST_SPACE = SMALLEST_KV_SIZE - KEPT_TOKENS


class MlxContext:
    """A context over the KV caches of an mlx-lm model, with every capability that there is.

    Args:
        state: The caches, empty.
        cache: What kind of cache they are.
        make_sampling: Makes the sampling of a reply; refuses what the model can't do.
        make_drafter: Makes what proposes tokens out of an argument of `draft_with`.
        make_matcher: Compiles the grammar of a request.
        vocabulary: How many tokens the model has, where that is known; larger ids are refused.
        labels: Texts to save along with the caches.
    """

    logits_type = mx.array
    """See `segue.engine.ProcessesLogits`."""

    def __init__(
        self,
        state: KVState,
        cache: CacheConfig,
        make_sampling: Callable[[GenerationConfig], Sampling],
        *,
        make_drafter: Callable[[object], Drafter],
        make_matcher: Callable[[str], Matcher],
        vocabulary: int | None = None,
        labels: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._state = state
        self._window = Window(state)
        self._cache = cache
        self._make_sampling = make_sampling
        self._make_drafter = make_drafter
        self._make_matcher = make_matcher
        self._vocabulary = vocabulary
        self._labels = labels
        self._speculation: Speculation | None = None
        self._reused: int | None = None

    @property
    def offset(self) -> int:
        """How many tokens are cached, the prefix included; those ahead of the reply are not."""
        return self._window.reported

    @property
    def reused(self) -> int | None:
        """How many tokens were cached when the latest request began; ``None`` before the first."""
        return self._reused

    @property
    def prefix(self) -> int:
        """How many of these came with a prompt cache that does not record their ids."""
        return self._state.prefix

    @property
    def acceptance(self) -> Acceptance:
        """What became of the draft's proposals so far."""
        return Acceptance() if self._speculation is None else self._speculation.acceptance

    @property
    def peak_memory(self) -> int:
        """The most memory MLX has used so far, in bytes."""
        return int(mx.get_peak_memory())

    @property
    def checkpoints(self) -> CheckpointReport:
        """Where the context can rewind to, if its layers can't be trimmed."""
        checkpoints = self._state.checkpoints
        return CheckpointReport(checkpoints.offsets, checkpoints.nbytes)

    @property
    def wants_checkpoints(self) -> bool:
        """True if some layers may become ones that can't be trimmed."""
        return not self._state.trimmable

    def draft_with(self, draft: Engine | Literal["prompt-lookup"]) -> None:
        """Use a draft in all requests: ``"prompt-lookup"``, or an `MlxEngine`.

        Raises:
            ConfigurationError: if this draft can't draft for this context's engine.
        """
        self._speculation = Speculation(self._make_drafter(draft))

    def start_from(self, stored: StoredCache, *, opaque: bool) -> None:
        """See `segue.engine.Stores.start_from`."""
        self._state.start_from(stored.layers, stored.offset or 0, opaque=opaque)

    def run(self, request: Request) -> Generator[Step, None, None]:
        """See `segue.engine.Context.run`."""
        use_model()
        self._check(request)
        grammar = request.grammar
        matcher = None if grammar is None else self._make_matcher(grammar)
        return self._run(request, self._make_sampling(request.config), matcher)

    def rewind(self, offset: int) -> int:
        """See `segue.engine.Context.rewind`; the draft forgets what is dropped, too.

        In a forked process, everything is dropped.
        """
        state, before = self._state, self._state.offset
        if is_forked():
            state.abandon()
            return state.offset
        reached = state.rewind(offset)
        if self._speculation is not None and (reached < before or reached == state.prefix):
            self._speculation.cut(reached - state.prefix)
        return reached

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """See `segue.engine.Stores.save`; the layout is mlx-lm's own, without the draft."""
        use_model()
        try:
            layers = list(map(as_saved, self._state.layers))
            write_cache_file(path, layers, {**self._labels, **metadata})
        finally:
            self._state.release()

    def fork(self) -> MlxContext:
        """See `segue.engine.Forks.fork`."""
        use_model()
        twin = copy.copy(self)
        twin._state = self._state.fork()
        twin._window = Window(twin._state)
        twin._speculation = None if self._speculation is None else self._speculation.fork()
        return twin

    def stored(self) -> Mapping[str, StoredState]:
        """See `segue.engine.Stores.stored`."""
        use_model()
        sections = state_sections(self._state)
        draft = None if self._speculation is None else self._speculation.stored()
        return sections if draft is None else {**sections, "draft": draft}

    def restore(self, stored: Mapping[str, StoredState]) -> Mapping[str, str]:
        """See `segue.engine.Stores.restore`."""
        unused = dict(restore_state(self._state, stored))
        if "draft" in stored:
            try:
                if self._speculation is None:
                    raise no_draft()
                self._speculation.restore(stored["draft"])
            except PromptCacheError as error:
                unused["draft"] = error.what
        return unused

    def close(self) -> None:
        """See `segue.engine.Context.close`."""
        self._speculation = None
        self._state.close()

    def _run(
        self, request: Request, sampling: Sampling, matcher: Matcher | None
    ) -> Generator[Step, None, None]:
        use_model()
        state, window, config = self._state, self._window, request.config
        before = self._reused = window.reported
        state.pin(request.pinned)
        ids = list(request.ids)
        with guard(window, ids, sampling, self._speculation):
            last = prefill(window, request)
            if config.max_tokens:
                total = len(ids) + state.prefix - before
                progress = request.progress
                # Without drafts in this reply, the draft catches up in the next that has them.
                speculation = self._speculation if config.num_draft_tokens else None
                yield from DecodeLoop(
                    window,
                    request,
                    sampling,
                    speculation,
                    None if matcher is None else Constraint(matcher, speculation),
                    None if progress is None else partial(progress, total, total),
                ).steps(last)

    def _check(self, request: Request) -> None:
        """Refuse a request that the model or its cache can't serve."""
        ids, bound = request.ids, self._cache.max_kv_size
        # MLX reads embeddings unchecked: an id too large would read other memory.
        if self._vocabulary is not None and ids and max(ids) >= self._vocabulary:
            raise ConfigurationError(
                f"The tokenizer made token {max(ids)}, but the model has {self._vocabulary} "
                "tokens, so they don't belong together.",
                remedy="Use the model's own tokenizer.",
            )
        if bound is not None and request.pinned > bound - LEAST_SPACE and not self.prefix:
            raise ConfigurationError(
                f"The instructions take {request.pinned} tokens, and max_kv_size={bound} leaves "
                "no room beside them.",
                remedy="Use a larger max_kv_size, or shorter instructions.",
            )
