"""What a context holds, in the sections that a session file keeps; and back.

How it works: each section is packed by itself (`packed.py`), so that damage to one costs that one.

=================  ==============================================================================
``"cache"``        all layers, the offset, and how much of it is an opaque prefix
``"checkpoints"``  for each, the layers that it has copies of, and its offset
``"prefix"``       the layers of an opaque prefix, as they came
``"draft"``        a draft model's layers, the ids in them, its checkpoint, its fingerprint
=================  ==============================================================================

Everything is read and checked before anything changes. The cache must be there; a section besides
that can't be used is left out, with the reason.

What does not work: a section of another model or of other settings. It is compared with reference
layers, at the offset that it is said to have: a cache that is quantized from some token on has
another form after that token than before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import QuantizedKVCache

from ...engine import StoredState
from ...errors import PromptCacheError, PromptCacheFormatError, PromptCacheMismatchError
from ..kv.checkpoints import KVCheckpoint, always_trimmable
from ..kv.state import KVState
from .packed import Packed, pack

# Names in files.
_LAYERS = "layers"
_DRAFT_CHECKPOINT = "mark"


def state_sections(state: KVState) -> dict[str, StoredState]:
    """Return the ``"cache"``, ``"checkpoints"`` and ``"prefix"`` of a state, if there are any.

    Raises:
        PromptCacheError: if this kind of cache can't be saved.
    """
    sections: dict[str, StoredState] = {}
    if state.offset or state.pristine is not None:
        try:
            sections["cache"] = pack(
                {_LAYERS: state.layers}, {"offset": state.offset, "prefix": state.prefix}
            )
        finally:
            state.release()
    checkpoints = state.checkpoints.all
    if checkpoints:
        sections["checkpoints"] = pack(
            {str(index): list(each.layers.values()) for index, each in enumerate(checkpoints)},
            {f"{index}.offset": each.offset for index, each in enumerate(checkpoints)},
        )
    if state.pristine is not None:
        sections["prefix"] = pack({_LAYERS: state.pristine}, {"offset": state.prefix})
    return sections


def restore_state(state: KVState, sections: Mapping[str, StoredState]) -> dict[str, str]:
    """Have an empty state, or one with the same prefix, hold what `state_sections` returned.

    Returns:
        The sections that could not be used, and why.

    Raises:
        PromptCacheFormatError: if the cache is damaged, or missing; nothing changed.
        PromptCacheMismatchError: if it is of another model or of other settings; nothing changed.
    """
    if "cache" not in sections:
        raise PromptCacheFormatError(
            "Nothing was saved of the KV cache.",
            remedy="Continue without it: the model reads the conversation again.",
        )
    cache = Packed(sections["cache"], "the KV cache")
    prefix = cache.number("prefix")
    if prefix != state.prefix:
        raise PromptCacheMismatchError(
            f"The KV cache was saved with an opaque prefix of {prefix} tokens, and this one has "
            f"one of {state.prefix}.",
            remedy="Start from the prompt cache that it started from.",
        )
    offset = cache.number("offset", least=prefix)
    reference = _reference_layers(state, cache, _LAYERS, offset)
    layers = cache.layers(_LAYERS, reference, offset)
    cache.check_used_up()
    checkpoints: list[KVCheckpoint] = []
    unused = {}
    if "checkpoints" in sections:
        try:
            packed = Packed(sections["checkpoints"], "the checkpoints")
            checkpoints = _checkpoints(packed, reference, prefix, offset)
        except PromptCacheError as error:
            unused["checkpoints"] = error.what
    state.replace(layers, offset, checkpoints)
    return unused


def read_prefix(state: KVState, section: StoredState) -> list[Any]:
    """Return the layers of an opaque prefix.

    Args:
        state: An empty state of the kind that began with it.
        section: The section.

    Raises:
        PromptCacheFormatError: if it is damaged.
        PromptCacheMismatchError: if it is of another model or of other settings.
    """
    packed = Packed(section, "the prefix")
    offset = packed.number("offset")
    # As it came, however much has been read after it: not quantized for its length.
    layers = packed.layers(_LAYERS, _reference_layers(state, packed, _LAYERS, -1), offset)
    packed.check_used_up()
    return layers


def draft_section(
    state: KVState, ids: list[int], checkpoint: KVCheckpoint | None, fingerprint: str
) -> StoredState:
    """Return what a draft model has read.

    Args:
        state: Its caches.
        ids: The ids in them.
        checkpoint: A point that they can rewind to.
        fingerprint: Its model's.
    """
    groups, numbers = {_LAYERS: state.layers}, {}
    # Where all can be trimmed, nothing needs a checkpoint.
    if checkpoint is not None and checkpoint.layers:
        groups[_DRAFT_CHECKPOINT] = list(checkpoint.layers.values())
        numbers[f"{_DRAFT_CHECKPOINT}.offset"] = checkpoint.offset
    arrays = {"ids": mx.array(ids, mx.uint32)}
    try:
        return pack(groups, numbers, texts={"fingerprint": fingerprint}, arrays=arrays)
    finally:
        state.release()


def restore_draft(
    state: KVState, section: StoredState, vocabulary: int, fingerprint: str
) -> tuple[list[int], KVCheckpoint | None]:
    """Have a draft model's empty state hold what `draft_section` returned.

    Args:
        state: Its caches.
        section: The section.
        vocabulary: How many ids it can read.
        fingerprint: Its model's.

    Returns:
        The ids that it holds now, and the checkpoint that it can rewind to.

    Raises:
        PromptCacheFormatError: if the section is damaged; nothing changed.
        PromptCacheMismatchError: if it is another model's; nothing changed.
    """
    packed = Packed(section, "the draft's KV cache")
    if packed.text("fingerprint") != fingerprint:
        raise PromptCacheMismatchError(
            "What was saved of the draft's KV cache is of another draft model.",
            remedy="Use the draft that it was saved with, or let this one read the conversation.",
        )
    ids = packed.ids("ids", vocabulary)
    reference = _reference_layers(state, packed, _LAYERS, len(ids))
    layers = packed.layers(_LAYERS, reference, len(ids))
    checkpoint = None
    if packed.has(f"{_DRAFT_CHECKPOINT}.offset"):
        checkpoint = _checkpoint(packed, _DRAFT_CHECKPOINT, reference, 1, len(ids))
    packed.check_used_up()
    state.replace(layers, len(ids))
    return ids, checkpoint


def no_draft() -> PromptCacheError:
    """Return the error for a saved draft where there is no draft model to use it."""
    return PromptCacheError(
        "The draft's KV cache was set aside: this session has no draft model.",
        remedy="Pass the draft model that the session was saved with.",
    )


def _reference_layers(state: KVState, packed: Packed, group: str, offset: int) -> list[Any]:
    """Return the reference layers, quantized if the saved ones are: a prefix may have come so."""
    quantized = QuantizedKVCache.__name__ in packed.classes(group)
    return state.reference_layers(offset, quantized=quantized)


def _checkpoints(
    packed: Packed, reference: list[Any], prefix: int, most: int
) -> list[KVCheckpoint]:
    checkpoints: list[KVCheckpoint] = []
    least = prefix + 1
    while packed.has(f"{len(checkpoints)}.offset"):
        checkpoints.append(_checkpoint(packed, str(len(checkpoints)), reference, least, most))
        least = checkpoints[-1].offset + 1
    packed.check_used_up()
    return checkpoints


def _checkpoint(
    packed: Packed, group: str, reference: list[Any], least: int, most: int
) -> KVCheckpoint:
    """Return a checkpoint within these bounds, with just the layers that checkpoints have here."""
    offset = packed.number(f"{group}.offset", least, most)
    indices = [index for index, layer in enumerate(reference) if not always_trimmable(layer)]
    layers = packed.layers(group, [reference[index] for index in indices], offset)
    return KVCheckpoint(offset, dict(zip(indices, layers, strict=True)))
