"""Prompt cache files: mlx-lm's layout, with the ids and the conversation among the metadata."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ..checks import check_engine
from ..conversation import Conversation
from ..engine import Engine, StoresPrompts
from ..errors import (
    PromptCacheError,
    PromptCacheFormatError,
    PromptCacheMismatchError,
    UnsupportedFeatureError,
)
from ..files.path import checked_path
from ..ledger import TokenLedger
from ..prompt_cache import PromptCache
from ..tokenizer import unknown_ids
from .texts import (
    conversation_from_json,
    conversation_to_json,
    ledger_from_json,
    ledger_to_json,
)

Value = TypeVar("Value")

# The keys of our metadata in a file, beside those of the engine.
FINGERPRINT, TOKENS, CONVERSATION = "segue_fingerprint", "segue_tokens", "segue_conversation"


def load_prompt_cache(path: str | os.PathLike[str], engine: Engine) -> PromptCache:
    """Load a prompt cache, written by `ChatSession.save_cache` or by mlx-lm.

    Nothing in the file is run or looked up as code. A file of our own is checked by its checksum,
    another by the shapes, types, offsets and sizes of all it holds.

    Examples:
        >>> import segue
        >>> from segue.testing import FakeEngine
        >>> engine = FakeEngine()
        >>> session = segue.ChatSession(engine, instructions="Be brief.")
        >>> fed = session.prewarm()
        >>> session.save_cache("brief.safetensors")
        >>> segue.load_prompt_cache("brief.safetensors", engine).offset == fed
        True

    Args:
        path: The file.
        engine: The model that it was made with.

    Raises:
        ConfigurationError: if an argument has the wrong type.
        UnsupportedFeatureError: if the engine has no prompt caches.
        PromptCacheError: if the file can't be read.
        PromptCacheFormatError: if it is truncated, damaged, of a newer version, or not a prompt
            cache.
        PromptCacheMismatchError: if it was made with another model.
    """
    path = checked_path(path)
    check_engine(engine)
    if not isinstance(engine, StoresPrompts):
        raise UnsupportedFeatureError(
            engine.name, "prompt caches", remedy="Begin without a prompt cache."
        )
    stored = engine.load_cache(path)
    metadata = stored.metadata
    if metadata.get(FINGERPRINT, engine.fingerprint) != engine.fingerprint:
        raise PromptCacheMismatchError(
            f"{path} was made with another model, or with this one in another precision.",
            remedy="Load the model that it was made with, or make the cache anew.",
        )
    ledger = None
    if TOKENS in metadata:
        ledger = _read(path, metadata[TOKENS], ledger_from_json)
        if unknown := unknown_ids(engine.tokenizer, ledger.ids):
            raise PromptCacheFormatError(
                f"{path} names token {unknown[0]}, but the model's vocabulary has none.",
                remedy="Make the prompt cache anew from its text.",
            )
        # Purely recurrent layers count nothing.
        if stored.offset is None:
            stored = replace(stored, offset=len(ledger.ids))
        if len(ledger.ids) != stored.offset:
            raise PromptCacheFormatError(
                f"{path} names {len(ledger.ids)} tokens, but its layers hold {stored.offset}.",
                remedy="Make the prompt cache anew from its text.",
            )
    conversation = Conversation()
    if CONVERSATION in metadata:
        conversation = _read(path, metadata[CONVERSATION], conversation_from_json)
    return PromptCache(engine, stored, ledger, conversation)


def describe(
    fingerprint: str,
    ledger: TokenLedger | None,
    conversation: Conversation,
) -> dict[str, str]:
    """Return the metadata of a prompt cache, as `load_prompt_cache` reads it.

    Args:
        fingerprint: The engine's.
        ledger: The ids that the cache holds; ``None`` if it begins with an opaque prefix. The
            conversation is left out then: it would be read again after a cache that has it.
        conversation: What was said.

    Raises:
        PromptCacheError: if tool calls or template arguments hold what JSON can't express.
    """
    metadata = {FINGERPRINT: fingerprint}
    if ledger is None:
        return metadata
    metadata[TOKENS] = ledger_to_json(ledger)
    try:
        metadata[CONVERSATION] = conversation_to_json(conversation)
    except ValueError as error:
        raise PromptCacheError(
            f"A cache can't be saved with its conversation: {error}.",
            remedy="Use strings, numbers, lists and dicts in tool calls and template_kwargs.",
        ) from error
    return metadata


def _read(path: Path, text: str, reader: Callable[[str], Value]) -> Value:
    """Read one of the texts among the metadata."""
    try:
        return reader(text)
    except ValueError as error:
        raise PromptCacheFormatError(
            f"The metadata of {path} are damaged: {error}.",
            remedy="Make the prompt cache anew.",
        ) from error
