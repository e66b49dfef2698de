"""Prompt caches: KV caches that outlive their session, as files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ..config import GenerationConfig
from ..engine import Engine, StoredCache
from ..errors import (
    ConfigurationError,
    PromptCacheError,
    PromptCacheFormatError,
    PromptCacheMismatchError,
)
from ..files.atomic import checked_path
from ..ledger import TokenLedger
from ..messages import Message
from .texts import Conversation, ledger_from_json, ledger_to_json

Told = TypeVar("Told")

# The keys of our metadata in a file, beside those of the engine.
FINGERPRINT, TOKENS, CONVERSATION = "segue_fingerprint", "segue_tokens", "segue_conversation"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PromptCache:
    """A KV cache from a file, for any number of sessions over the engine it was loaded with.

    Made by `load_prompt_cache`; given to a session as ``ChatSession(engine, cache=...)``.

    Attributes:
        engine: The engine.
        stored: The cache itself.
        ledger: The ids it holds with their text, or ``None`` if the file does not tell them. Then
            it is an *opaque prefix*: it stays in front of everything that is said.
        instructions: The system message of the conversation that it was saved from.
        history: What was said in that conversation.
        template_kwargs: Its arguments for the chat template.
    """

    engine: Engine
    stored: StoredCache
    ledger: TokenLedger | None = None
    instructions: str | None = None
    history: tuple[Message, ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        kind = "opaque" if self.ledger is None else "known"
        return f"<PromptCache of {self.offset:,} {kind} tokens>"

    @property
    def offset(self) -> int:
        """How many tokens it holds; 0 where neither the file nor its layers tell."""
        return self.stored.offset or 0

    @property
    def ids(self) -> tuple[int, ...] | None:
        """The ids of those tokens; ``None`` if the file does not tell them."""
        return None if self.ledger is None else self.ledger.ids

    def settle(self, generation: GenerationConfig) -> GenerationConfig:
        """Settings under which this cache can go on, its own kind filled in where none is asked.

        Raises:
            ConfigurationError: They ask for a cache of another kind.
        """
        stored = self.stored
        changes: dict[str, Any] = {}
        if stored.max_kv_size is not None and generation.max_kv_size is None:
            changes["max_kv_size"] = stored.max_kv_size
        if stored.kv_bits is not None and generation.kv_bits is None:
            changes.update(kv_bits=stored.kv_bits, kv_group_size=stored.kv_group_size)
        settled = replace(generation, **changes)
        quantized = (stored.kv_bits, stored.kv_group_size)
        # A cache that is not quantized yet can be, later on.
        other_bits = stored.kv_bits is not None and quantized != (
            settled.kv_bits,
            settled.kv_group_size,
        )
        if other_bits or settled.max_kv_size != stored.max_kv_size:
            raise ConfigurationError(
                f"The prompt cache was made with max_kv_size={stored.max_kv_size}, "
                f"kv_bits={stored.kv_bits} and kv_group_size={stored.kv_group_size}, and the "
                "settings ask for others.",
                remedy="Leave max_kv_size and kv_bits at None, or make the cache anew.",
            )
        return settled


def load_prompt_cache(path: str | os.PathLike[str], engine: Engine) -> PromptCache:
    """Load a prompt cache, written by `ChatSession.save_cache` or by mlx-lm.

    Nothing in the file is run or looked up as code. One of our own is checked by its checksum,
    another by the shapes, types, offsets and sizes of all it holds.

    Args:
        path: The file.
        engine: The model that it was made with.

    Raises:
        ConfigurationError: An argument is of the wrong type.
        PromptCacheError: The file can't be read.
        PromptCacheFormatError: It is truncated, damaged, of a newer version, or no prompt cache.
        PromptCacheMismatchError: It was made with another model.
    """
    place = checked_path(path)
    if not callable(getattr(engine, "load_cache", None)):
        raise ConfigurationError(
            f"{engine!r} is no engine that a prompt cache could be loaded for.",
            remedy="Pass what segue.load(...) returned.",
        )
    stored = engine.load_cache(place)
    metadata = stored.metadata
    if metadata.get(FINGERPRINT, engine.fingerprint) != engine.fingerprint:
        raise PromptCacheMismatchError(
            f"{place} was made with another model, or with this one in another precision.",
            remedy="Load the model that it was made with, or make the cache anew.",
        )
    ledger = None
    if TOKENS in metadata:
        ledger = _read(place, metadata[TOKENS], ledger_from_json)
        # Purely recurrent layers count nothing.
        if stored.offset is None:
            stored = replace(stored, offset=len(ledger.ids))
        if len(ledger.ids) != stored.offset:
            raise PromptCacheFormatError(
                f"{place} names {len(ledger.ids)} tokens, but its layers hold {stored.offset}.",
                remedy="Make the prompt cache anew from its text.",
            )
    said = _read(place, metadata.get(CONVERSATION, '{"history": []}'), Conversation.from_json)
    return PromptCache(
        engine, stored, ledger, said.instructions, said.history, said.template_kwargs
    )


def describe(
    fingerprint: str,
    ledger: TokenLedger | None,
    conversation: Conversation,
) -> dict[str, str]:
    """The metadata of a prompt cache, as `load_prompt_cache` reads it.

    Args:
        fingerprint: The engine's.
        ledger: The ids that the cache holds; ``None`` if it begins with an opaque prefix. The
            conversation is left out then: it would be read again behind a cache that has it.
        conversation: What was said.

    Raises:
        PromptCacheError: Tool calls or template arguments hold what JSON can't.
    """
    metadata = {FINGERPRINT: fingerprint}
    if ledger is None:
        return metadata
    metadata[TOKENS] = ledger_to_json(ledger)
    try:
        metadata[CONVERSATION] = conversation.to_json()
    except ValueError as error:
        raise PromptCacheError(
            f"A cache can't be saved with its conversation: {error}.",
            remedy="Use strings, numbers, lists and dicts in tool calls and template_kwargs.",
        ) from error
    return metadata


def _read(path: Path, text: str, reader: Callable[[str], Told]) -> Told:
    """What a text among the metadata tells."""
    try:
        return reader(text)
    except ValueError as error:
        raise PromptCacheFormatError(
            f"The metadata of {path} are damaged: {error}.",
            remedy="Make the prompt cache anew.",
        ) from error
