"""A session's context, and the ledger of what it holds, always together.

The ledger is what we know of the cache: ids, and the text they spell. The context alone knows what
became of them (a failure empties it, an interrupt stops it between two chunks, a layer that can't
be trimmed goes back further than asked), so after every change the ledger is cut to the context's
offset. Ids after an opaque prefix are the only ones that a ledger has.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Literal, Self, TypeVar, cast

from ..config import CacheConfig
from ..engine import (
    Acceptance,
    CheckpointReport,
    Checkpoints,
    Context,
    Drafts,
    Engine,
    Forks,
    ReportsMemory,
    Request,
    Step,
    StoredState,
    Stores,
)
from ..errors import ConfigurationError, PromptCacheError, UnsupportedFeatureError
from ..ledger import TokenLedger, tokens_to_keep
from ..prompt_cache import PromptCache
from ..tokenizer import unknown_ids
from .plan import CacheView
from .prompts.spelling import append_reply, is_spelled, settle_saved

PROMPT_LOOKUP = "prompt-lookup"
Capability = TypeVar("Capability")


class CachedContext:
    """A session's context, and the ledger of what it holds.

    Args:
        engine: The model.
        cache: The kind of cache.
        draft: What drafts for the context, if anything does.
        prompt_cache: What the context holds from the start. If its ids are unknown, it stays.

    Raises:
        ConfigurationError: if the cache, the draft or the prompt cache does not suit the engine, or
            the prompt cache does not suit the settings.
        UnsupportedFeatureError: if the engine has no drafts, or no prompt caches.
    """

    def __init__(
        self,
        engine: Engine,
        cache: CacheConfig,
        *,
        draft: Engine | Literal["prompt-lookup"] | None = None,
        prompt_cache: PromptCache | None = None,
    ) -> None:
        _check_draft(engine, draft)
        _check_prompt_cache(engine, prompt_cache)
        self._engine = engine
        self.config = cache if prompt_cache is None else prompt_cache.config_for(cache)
        """The kind of cache, completed with that of the prompt cache."""
        self.draft = draft
        """The draft: an engine, or ``"prompt-lookup"``; ``None`` without one."""
        self.opaque = prompt_cache is not None and prompt_cache.ledger is None
        """True if the cache begins with a prefix whose ids are unknown."""
        # What a fork on an engine without forks begins with: it could not read it again.
        self._opaque_start = prompt_cache if self.opaque else None
        self.ledger = TokenLedger()
        """The ids that were fed after the prefix; `view` has those that are still there."""
        # What became of drafts in the process that this session was saved in.
        self._earlier = Acceptance()
        self._hold(engine.context(self.config))
        if draft is not None:
            drafts = self.require(Drafts, feature="drafts", remedy="Leave draft at None.")
            drafts.draft_with(draft)
        if prompt_cache is not None:
            stores = self.require(
                Stores, feature="prompt caches", remedy="Leave prompt_cache at None."
            )
            stores.start_from(prompt_cache.stored, opaque=self.opaque)
            self.ledger = settle_saved(engine.tokenizer, prompt_cache.ledger or TokenLedger())
        self.prefix = self._context.prefix if isinstance(self._context, Stores) else 0
        """How many tokens the opaque prefix has."""

    def _hold(self, context: Context) -> None:
        self._context = context
        # Asked for with every token.
        self._memory = context if isinstance(context, ReportsMemory) else None
        # Engines may hold more of a context than memory: a sequence, a connection.
        self._closing = weakref.finalize(self, context.close)
        self._closing.atexit = False

    @property
    def offset(self) -> int:
        """How many tokens the context holds, an opaque prefix included."""
        return self._context.offset

    @property
    def reused(self) -> int | None:
        """See `segue.engine.Context.reused`."""
        return self._context.reused

    @property
    def peak_memory(self) -> int:
        """The most memory that the engine has used, in bytes; 0 if it does not report that."""
        return 0 if self._memory is None else self._memory.peak_memory

    @property
    def acceptance(self) -> Acceptance:
        """The tokens drafted in the session's whole life, and those accepted."""
        if not isinstance(self._context, Drafts):
            return self._earlier
        now = self._context.acceptance
        return Acceptance(
            self._earlier.proposed + now.proposed, self._earlier.accepted + now.accepted
        )

    @property
    def checkpoints(self) -> CheckpointReport:
        """The checkpoints that the context can rewind to, if it can't be trimmed."""
        if isinstance(self._context, Checkpoints):
            return self._context.checkpoints
        return CheckpointReport()

    @property
    def view(self) -> CacheView:
        """The cache as planning must know it."""
        context = self._context
        return CacheView(
            ledger=self.ledger.truncate(context.offset - self.prefix),
            prefix=self.prefix,
            wants_checkpoints=isinstance(context, Checkpoints) and context.wants_checkpoints,
        )

    def run(self, request: Request) -> Generator[Step, None, None]:
        """See `segue.engine.Context.run`."""
        return self._context.run(request)

    def shared(self, prompt: TokenLedger) -> int:
        """Return how many ids of a prompt are cached and need not be fed."""
        return tokens_to_keep(self.view.ledger, prompt)

    def turn_to(self, ledger: TokenLedger, *, feeds: bool) -> int:
        """Rewind to where the cache agrees with a prompt.

        From here on the context is filled from that prompt, and holds the first of its ids.

        Args:
            ledger: The prompt.
            feeds: False if nothing will be fed: the prompt is a part of what is cached.

        Returns:
            How many tokens the context holds, its prefix included.
        """
        keep = self.shared(ledger) if feeds else len(ledger.ids)
        offset = self._context.rewind(self.prefix + keep)
        # Only now: if the rewind failed, the context holds what it held, or less of it.
        self.ledger = ledger
        return offset

    def commit(self, reply: Sequence[int] = (), *, begun: Sequence[int] = ()) -> None:
        """Write down what really happened since `turn_to`.

        Args:
            reply: The ids that were generated after the prompt.
            begun: The ids at the end of the prompt that are the beginning of the same reply.
        """
        if not self._closing.alive:
            # A session and its live reply were collected together, the context first.
            return
        # As one: what is half a character at the end of the one is whole in both.
        prompt = self.ledger.truncate(len(self.ledger.ids) - len(begun))
        ledger = append_reply(self._engine.tokenizer, prompt, (*begun, *reply))
        # After a failure the context may hold less than was generated, or nothing; an interrupt
        # may have struck before the last token was reported, and then the context gives it back.
        self._context.rewind(self.prefix + len(ledger.ids))
        self.ledger = ledger.truncate(self._context.offset - self.prefix)

    def clear(self) -> None:
        """Forget everything but an opaque prefix."""
        self._context.rewind(self.prefix)
        self.ledger = TokenLedger()

    def fork(self) -> Self:
        """Return another one that holds the same; nothing is copied before one of the two changes.

        Where the engine can't copy contexts, the other one holds nothing, and reads again.
        """
        if not isinstance(self._context, Forks):
            return type(self)(
                self._engine, self.config, draft=self.draft, prompt_cache=self._opaque_start
            )
        twin = copy.copy(self)
        twin._earlier = Acceptance()
        twin._hold(self._context.fork())
        return twin

    def replaced_by(self, other: CachedContext) -> Self:
        """Return a fork of another one that counts drafts from where this one is."""
        twin = other.fork()
        twin._earlier = self.acceptance
        return cast(Self, twin)

    def is_like(self, other: CachedContext) -> bool:
        """Return True if another context could be this one's."""
        return (
            other._engine is self._engine
            and other.config == self.config
            and other.draft == self.draft
            and other.prefix == self.prefix
        )

    def require(self, capability: type[Capability], *, feature: str, remedy: str) -> Capability:
        """Return the context as one that has a capability.

        Raises:
            UnsupportedFeatureError: if the engine lacks it.
        """
        if not isinstance(self._context, capability):
            raise UnsupportedFeatureError(self._engine.name, feature, remedy=remedy)
        return self._context

    def stored(self, *, kv: bool) -> Mapping[str, StoredState]:
        """Return what a session file keeps of the context.

        An opaque prefix is among that in any case: it could not be read again.

        Args:
            kv: Whether to keep more than that.

        Raises:
            PromptCacheError: if files have no form for this kind of cache.
        """
        context = self._context
        if not isinstance(context, Stores) or not (kv or self.opaque):
            return {}
        stored = context.stored()
        return stored if kv else {"prefix": stored["prefix"]}

    def restore(
        self, stored: Mapping[str, StoredState], ledger: TokenLedger, acceptance: Acceptance
    ) -> Mapping[str, str]:
        """Hold what a saved session's context held, as far as this engine can use it.

        Args:
            stored: The sections of a file.
            ledger: The ids in its cache.
            acceptance: What became of drafts until then.

        Returns:
            The sections that could not be used, and why.
        """
        self._earlier = acceptance
        context = self._context
        if "cache" not in stored:
            return {}
        if not isinstance(context, Stores):
            return {"cache": f"the engine {self._engine.name} can't take it up"}
        if unknown := unknown_ids(self._engine.tokenizer, ledger.ids):
            return {"tokens": f"the vocabulary has no token {unknown[0]}"}
        try:
            unused = context.restore(stored)
        except PromptCacheError as error:
            return {"cache": error.what}
        if context.offset != self.prefix + len(ledger.ids):
            context.rewind(self.prefix)
            return {"cache": "it holds another number of tokens than the file names"}
        if not is_spelled(self._engine.tokenizer, ledger):
            context.rewind(self.prefix)
            return {"cache": "its tokens do not spell the text that the file has for them"}
        self.ledger = settle_saved(self._engine.tokenizer, ledger)
        return unused


def _check_draft(engine: Engine, draft: Any) -> None:
    if draft is None or (isinstance(draft, str) and draft == PROMPT_LOOKUP):
        return
    # A class has methods, too, but no tokenizer yet.
    if isinstance(draft, str) or not (hasattr(draft, "context") and hasattr(draft, "tokenizer")):
        raise ConfigurationError(
            f"draft must be {PROMPT_LOOKUP!r} or an engine, not {draft!r}.",
            remedy=f"Pass {PROMPT_LOOKUP!r}, or what segue.load(...) returns.",
        )
    if draft.tokenizer.vocabulary != engine.tokenizer.vocabulary:
        raise ConfigurationError(
            "The draft has another vocabulary than the model, so neither can read the other's "
            "tokens.",
            remedy=f"Use a smaller model of the same family, or {PROMPT_LOOKUP!r}.",
        )


def _check_prompt_cache(engine: Engine, prompt_cache: object) -> None:
    if prompt_cache is None:
        return
    if not isinstance(prompt_cache, PromptCache):
        raise ConfigurationError(
            f"prompt_cache must be a PromptCache, not {type(prompt_cache).__name__}.",
            remedy="Pass what segue.load_prompt_cache(path, engine) returns.",
        )
    if prompt_cache.engine is not engine:
        raise ConfigurationError(
            "The prompt cache was loaded for another engine than this session's.",
            remedy="Load it with this one: segue.load_prompt_cache(path, engine).",
        )
