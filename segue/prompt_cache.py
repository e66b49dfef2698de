"""A KV cache from a file, as a session can begin with it."""

# No postponed annotations here: type hints must resolve when a class says it is `segue`'s.

from dataclasses import dataclass, field, replace
from typing import Any

from .config import CacheConfig
from .conversation import Conversation
from .engine import Engine, StoredCache
from .errors import ConfigurationError
from .ledger import TokenLedger


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PromptCache:
    """A KV cache from a file, for any number of sessions over the engine it was loaded with.

    Made by `load_prompt_cache`; given to a session as ``ChatSession(engine, prompt_cache=...)``.
    """

    engine: Engine
    """The engine."""
    stored: StoredCache
    """The cache itself."""
    ledger: TokenLedger | None = None
    """The ids it holds with their text; ``None`` if the file does not name them. Then the cache is
    an *opaque prefix*: it stays before everything that is said."""
    conversation: Conversation = field(default_factory=Conversation)
    """The conversation that it was saved from."""

    def __repr__(self) -> str:
        kind = "opaque" if self.ledger is None else "known"
        return f"<PromptCache of {self.offset:,} {kind} tokens>"

    @property
    def offset(self) -> int:
        """How many tokens it holds; 0 where neither the file nor its layers count them."""
        return self.stored.offset or 0

    @property
    def ids(self) -> tuple[int, ...] | None:
        """The ids of those tokens; ``None`` if the file does not name them."""
        return None if self.ledger is None else self.ledger.ids

    def config_for(self, cache: CacheConfig) -> CacheConfig:
        """Return settings with this cache's own kind filled in where none is asked for.

        Raises:
            ConfigurationError: if the settings ask for a cache of another kind.
        """
        stored = self.stored
        changes: dict[str, Any] = {}
        if stored.max_kv_size is not None and cache.max_kv_size is None:
            changes["max_kv_size"] = stored.max_kv_size
        if stored.kv_bits is not None and cache.kv_bits is None:
            changes.update(kv_bits=stored.kv_bits, kv_group_size=stored.kv_group_size)
        config = replace(cache, **changes)
        # A cache that is not quantized yet can be, later on.
        other_bits = stored.kv_bits is not None and (stored.kv_bits, stored.kv_group_size) != (
            config.kv_bits,
            config.kv_group_size,
        )
        if other_bits or config.max_kv_size != stored.max_kv_size:
            raise ConfigurationError(
                f"The prompt cache was made with max_kv_size={stored.max_kv_size}, "
                f"kv_bits={stored.kv_bits} and kv_group_size={stored.kv_group_size}, and the "
                "settings ask for others.",
                remedy="Leave max_kv_size and kv_bits at None, or make the cache anew.",
            )
        return config
