"""A session's KV cache: the context, and the ledger of what it holds, always together."""

from __future__ import annotations

from collections.abc import Sequence

from .config import GenerationConfig, SpeculativeDecodingConfig
from .engine import Acceptance, Context, Engine
from .errors import ConfigurationError
from .ledger import TokenLedger, tokens_to_keep
from .prompt import append_reply
from .prompt_cache import PromptCache


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
        self._speculative = speculative
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

    def clear(self) -> None:
        """Forget everything but an opaque prefix."""
        self._acceptance, self.context = self.acceptance, None
        self.ledger = TokenLedger()

    def _new_context(self, config: GenerationConfig) -> Context:
        return self._engine.context(
            config,
            speculative=self._speculative,
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
