"""A session's KV cache: the context, and the ledger of what it holds, always together."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from ..config import GenerationConfig, SpeculativeDecodingConfig
from ..engine import Acceptance, Context, Engine, StoredPart
from ..errors import ConfigurationError, PromptCacheError
from ..ledger import TokenLedger, tokens_to_keep
from ..store.prompt_cache import PromptCache
from ..store.session_file import SessionFile
from ..store.session_layout import STATES
from .prompt import append_reply


class SessionCache:
    """What one session's model has read.

    The context is made when it is first needed, and replaced where settings ask for a cache of
    another kind.

    Args:
        engine: The model.
        config: The settings of the first turn.
        speculative: A draft for its contexts.
        start: What it holds from the start. If its tokens are not known, all contexts begin with
            it, and it stays.

    Attributes:
        config: The settings, completed with those of the start.
        speculative: The draft.
        context: The context, if there is one yet.
        ledger: The ids that it holds behind its prefix.

    Raises:
        ConfigurationError: The draft, or the start, does not go with the engine or the settings.
    """

    def __init__(
        self,
        engine: Engine,
        config: GenerationConfig,
        *,
        speculative: SpeculativeDecodingConfig | None = None,
        start: PromptCache | None = None,
    ) -> None:
        _check_draft(engine, speculative)
        _check_start(engine, start)
        self._engine = engine
        self.speculative = speculative
        self._opaque = start if start is not None and start.ledger is None else None
        self.config = config if start is None else start.settle(config)
        self.context: Context | None = None
        self._settings = self.config.cache_settings
        # What became of the drafts of contexts that are no more.
        self._acceptance = Acceptance()
        self.ledger = TokenLedger()
        if start is not None and start.ledger is not None:
            self.ledger = start.ledger
            self.context = engine.context(self.config, speculative=speculative, cache=start.stored)
        elif start is not None or speculative is not None:
            # What does not go together is refused here, not in the first turn.
            self.context = self._new_context(self.config)

    @property
    def opaque(self) -> bool:
        """Whether it begins with a prefix whose tokens nobody told."""
        return self._opaque is not None

    def settle(self, config: GenerationConfig) -> GenerationConfig:
        """Settings as this cache needs them: an opaque prefix can't be read again into another.

        Raises:
            ConfigurationError: They ask for a cache of another kind than the prefix.
        """
        return config if self._opaque is None else self._opaque.settle(config)

    @property
    def offset(self) -> int:
        """How many tokens it holds, an opaque prefix included."""
        return 0 if self.context is None else self.context.offset

    @property
    def acceptance(self) -> Acceptance:
        """What became of all that was drafted."""
        if self.context is None:
            return self._acceptance
        return Acceptance(*map(sum, zip(self._acceptance, self.context.acceptance, strict=True)))

    def held(self, config: GenerationConfig) -> TokenLedger:
        """What it holds behind the prefix and can go on with under these settings."""
        context = self.context
        if context is None or self._settings != config.cache_settings:
            return TokenLedger()
        return self.ledger.truncate(context.offset - context.prefix)

    def context_for(self, config: GenerationConfig) -> Context:
        """The context, or a new one of the kind that is asked for; `turn_to` takes it over.

        Raises:
            ConfigurationError: The model can't have such a cache.
        """
        if self.context is not None and self._settings == config.cache_settings:
            return self.context
        return self._new_context(config)

    def turn_to(self, context: Context, config: GenerationConfig, prompt: TokenLedger) -> int:
        """Rewind a context, from `context_for`, to where it agrees with a prompt.

        From here on it is filled from that prompt, and holds the first of its ids.

        Returns:
            How many tokens it holds, its prefix included.
        """
        keep = 0
        if context is self.context:
            keep = tokens_to_keep(self.held(config), prompt)
        else:
            self._acceptance = self.acceptance
            self.context, self._settings = context, config.cache_settings
        self.ledger = prompt
        return context.rewind(context.prefix + keep)

    def commit(self, reply: Sequence[int] = ()) -> None:
        """Write down what really happened since `turn_to`.

        Args:
            reply: The ids that were told behind the prompt.
        """
        context = self.context
        assert context is not None
        ledger = append_reply(self._engine.tokenizer, self.ledger, reply)
        # After a failure the cache may hold less than was generated, or nothing; an interrupt may
        # have struck before the last token was told, and then the cache gives it back.
        context.rewind(context.prefix + len(ledger.ids))
        self.ledger = ledger.truncate(context.offset - context.prefix)

    def rewind(self, keep: int) -> None:
        """Go back to at most the first `keep` ids behind the prefix."""
        if self.context is not None:
            self.context.rewind(self.context.prefix + keep)
            self.ledger = self.ledger.truncate(self.context.offset - self.context.prefix)

    def fork(self) -> SessionCache:
        """Another one that holds the same; nothing is copied before one of the two changes."""
        twin = copy.copy(self)
        twin._acceptance = Acceptance()
        twin.context = None if self.context is None else self.context.fork()
        return twin

    def parts(self, config: GenerationConfig, *, kv: bool) -> Mapping[str, StoredPart]:
        """What a file keeps of it, as far as it can go on under these settings.

        An opaque prefix is among that in any case: nobody could read it again.

        Args:
            config: The settings.
            kv: Whether to keep more than that.

        Raises:
            PromptCacheError: Files have no form for this kind of cache.
        """
        if self.context is None and self.opaque:
            self.context = self._new_context(config)
        kv = kv and self._settings == config.cache_settings
        if self.context is None or not (kv or self.opaque):
            return {}
        parts = self.context.parts()
        return parts if kv else {"prefix": parts["prefix"]}

    @classmethod
    def resume(
        cls,
        engine: Engine,
        file: SessionFile,
        config: GenerationConfig,
        speculative: SpeculativeDecodingConfig | None,
    ) -> tuple[SessionCache, Mapping[str, str]]:
        """What a saved session's model had read, as far as this engine can go on with it.

        Args:
            engine: The model.
            file: The session, its parts loaded.
            config: Settings to go on with; if they ask for another kind of cache, the old is left.
            speculative: A draft for its contexts.

        Returns:
            The cache, and the parts of the file that were set aside, with the reasons.

        Raises:
            ConfigurationError: Draft or settings don't go with the engine or an opaque prefix.
        """
        parts = dict(file.parts)
        aside = {name: file.damage[name] for name in (*STATES, "tokens") if name in file.damage}
        if parts and file.origin.fingerprint != engine.fingerprint:
            aside |= dict.fromkeys(parts, "it is of another model, or of another precision")
            parts.clear()
        start = None
        if "prefix" in parts:
            try:
                stored = engine.read_prefix(parts["prefix"], file.generation)
                start = PromptCache(engine, stored)
            except PromptCacheError as error:
                aside["prefix"] = error.what
        if "prefix" in aside:
            parts.clear()
        cache = cls(engine, config, speculative=speculative, start=start)
        cache._acceptance = Acceptance(file.usage.proposed_tokens, file.usage.accepted_tokens)
        same_kind = cache.config.cache_settings == file.generation.cache_settings
        if "cache" in parts and "tokens" not in aside and same_kind:
            aside |= cache._restore(parts, file.ledger)
        return cache, aside

    def _restore(self, parts: Mapping[str, StoredPart], ledger: TokenLedger) -> Mapping[str, str]:
        """Hold what a file tells; the parts that could not be used, and why."""
        context = self._new_context(self.config)
        try:
            aside = context.restore(parts)
        except PromptCacheError as error:
            return {"cache": error.what}
        if context.offset != context.prefix + len(ledger.ids):
            return {"cache": "it holds another number of tokens than the file names"}
        self.context, self.ledger, self._settings = context, ledger, self.config.cache_settings
        return aside

    def clear(self) -> None:
        """Forget everything but an opaque prefix."""
        self._acceptance, self.context = self.acceptance, None
        self.ledger = TokenLedger()

    def _new_context(self, config: GenerationConfig) -> Context:
        return self._engine.context(
            config,
            speculative=self.speculative,
            cache=None if self._opaque is None else self._opaque.stored,
            opaque=self._opaque is not None,
        )


def _check_draft(engine: Engine, speculative: SpeculativeDecodingConfig | None) -> None:
    if speculative is None:
        return
    if not isinstance(speculative, SpeculativeDecodingConfig):
        raise ConfigurationError(
            f"speculative is a SpeculativeDecodingConfig, not {type(speculative).__name__}.",
            remedy="Build one: SpeculativeDecodingConfig('prompt-lookup').",
        )
    draft = speculative.draft
    if not isinstance(draft, str) and draft.tokenizer.vocabulary != engine.tokenizer.vocabulary:
        raise ConfigurationError(
            "The draft has another vocabulary than the model, so neither can read the other's "
            "tokens.",
            remedy="Use a smaller model of the same family, or 'prompt-lookup'.",
        )


def _check_start(engine: Engine, start: PromptCache | None) -> None:
    if start is None:
        return
    if not isinstance(start, PromptCache):
        raise ConfigurationError(
            f"cache is a loaded prompt cache, not {type(start).__name__}.",
            remedy="Pass what segue.load_prompt_cache(path, engine) returns.",
        )
    if start.engine is not engine:
        raise ConfigurationError(
            "The prompt cache was loaded for another engine than this session's.",
            remedy="Load it with this one: segue.load_prompt_cache(path, engine).",
        )
