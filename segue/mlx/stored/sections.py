"""What a context holds, in the parts that a session file keeps; and back.

Everything is read and checked before anything changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import QuantizedKVCache

from ...engine import StoredPart
from ...errors import PromptCacheError, PromptCacheFormatError, PromptCacheMismatchError
from ..kv.state import KVState, Mark, always_trimmable
from .packed import Packed, pack

_LAYERS = "layers"
_MARK = "mark"


def state_parts(state: KVState) -> dict[str, StoredPart]:
    """The ``"cache"``, the ``"marks"`` and the ``"prefix"``, as far as there are such.

    Raises:
        PromptCacheError: There is no form for this kind of cache.
    """
    parts: dict[str, StoredPart] = {}
    if state.offset or state.pristine is not None:
        try:
            parts["cache"] = pack(
                {_LAYERS: state.layers}, {"offset": state.offset, "prefix": state.prefix}
            )
        finally:
            state.rest()
    if state.marks:
        parts["marks"] = pack(
            {str(at): list(mark.layers.values()) for at, mark in enumerate(state.marks)},
            {f"{at}.offset": mark.offset for at, mark in enumerate(state.marks)},
        )
    if state.pristine is not None:
        parts["prefix"] = pack({_LAYERS: state.pristine}, {"offset": state.prefix})
    return parts


def restore_state(state: KVState, parts: Mapping[str, StoredPart]) -> dict[str, str]:
    """Have an empty state, or one with the same prefix, hold what `state_parts` told.

    Returns:
        The parts that could not be used, and why.

    Raises:
        PromptCacheFormatError: The cache is damaged, or missing; nothing changed.
        PromptCacheMismatchError: It is of another model or of other settings; nothing changed.
    """
    if "cache" not in parts:
        raise PromptCacheFormatError(
            "Nothing was saved of the KV cache.",
            remedy="Go on without it: the model reads the conversation again.",
        )
    cache = Packed(parts["cache"], "the KV cache")
    prefix = cache.number("prefix")
    if prefix != state.prefix:
        raise PromptCacheMismatchError(
            f"The KV cache was saved with an opaque prefix of {prefix} tokens, and this one has "
            f"one of {state.prefix}.",
            remedy="Begin with the prompt cache that it began with.",
        )
    offset = cache.number("offset", least=prefix)
    own = _own_layers(state, cache, _LAYERS, offset)
    layers = cache.layers(_LAYERS, own, offset)
    cache.check_used_up()
    marks: list[Mark] = []
    unused = {}
    if "marks" in parts:
        try:
            marks = _marks(Packed(parts["marks"], "the marks"), own, prefix, offset)
        except PromptCacheError as error:
            unused["marks"] = error.what
    state.hold(layers, offset, marks)
    return unused


def read_prefix(state: KVState, part: StoredPart) -> list[Any]:
    """The layers of an opaque prefix.

    Args:
        state: An empty one of the kind that began with it.
        part: The part.

    Raises:
        PromptCacheFormatError: It is damaged.
        PromptCacheMismatchError: It is of another model or of other settings.
    """
    packed = Packed(part, "the prefix")
    offset = packed.number("offset")
    # Whatever has been read behind it, this is as it came.
    layers = packed.layers(_LAYERS, _own_layers(state, packed, _LAYERS, -1), offset)
    packed.check_used_up()
    return layers


def draft_part(state: KVState, held: list[int], mark: Mark | None, fingerprint: str) -> StoredPart:
    """What a draft model has read.

    Args:
        state: Its caches.
        held: The ids in them.
        mark: A place that it can come back to.
        fingerprint: Its model's.
    """
    groups, numbers = {_LAYERS: state.layers}, {}
    # Where all can be trimmed, nothing needs a mark.
    if mark is not None and mark.layers:
        groups[_MARK], numbers["mark.offset"] = list(mark.layers.values()), mark.offset
    ids = mx.array(held, mx.uint32)
    try:
        return pack(groups, numbers, texts={"fingerprint": fingerprint}, arrays={"ids": ids})
    finally:
        state.rest()


def restore_draft(
    state: KVState, part: StoredPart, vocabulary: int, fingerprint: str
) -> tuple[list[int], Mark | None]:
    """Have a draft model's empty state hold what `draft_part` told.

    Args:
        state: Its caches.
        part: The part.
        vocabulary: How many ids it can read.
        fingerprint: Its model's.

    Returns:
        The ids that it holds now, and the place it can come back to.

    Raises:
        PromptCacheFormatError: The part is damaged; nothing changed.
        PromptCacheMismatchError: It is another model's; nothing changed.
    """
    packed = Packed(part, "the draft's KV cache")
    if packed.text("fingerprint") != fingerprint:
        raise PromptCacheMismatchError(
            "What was saved of the draft's KV cache is of another draft model.",
            remedy="Use the draft that it was saved with, or let this one read the conversation.",
        )
    held = packed.ids("ids", vocabulary)
    own = _own_layers(state, packed, _LAYERS, len(held))
    layers = packed.layers(_LAYERS, own, len(held))
    mark = None
    if packed.has("mark.offset"):
        mark = _mark(packed, _MARK, own, 1, len(held))
    packed.check_used_up()
    state.hold(layers, len(held), [])
    return held, mark


def no_draft() -> PromptCacheError:
    """The error that says that nobody could use what was saved of a draft."""
    return PromptCacheError(
        "The draft's KV cache was set aside: this session has no draft model.",
        remedy="Pass the draft model that the session was saved with.",
    )


def _own_layers(state: KVState, packed: Packed, group: str, offset: int) -> list[Any]:
    """The model's own layers; quantized if the saved ones are: what a file began with may be so."""
    quantized = QuantizedKVCache.__name__ in packed.classes(group)
    return state.own_layers(offset, quantized=quantized)


def _marks(packed: Packed, own: list[Any], prefix: int, most: int) -> list[Mark]:
    marks: list[Mark] = []
    while packed.has(f"{len(marks)}.offset"):
        least = 1 + (marks[-1].offset if marks else prefix)
        marks.append(_mark(packed, str(len(marks)), own, least, most))
    packed.check_used_up()
    return marks


def _mark(packed: Packed, group: str, own: list[Any], least: int, most: int) -> Mark:
    """A mark that stands within these bounds, and has just the layers that a mark has here."""
    offset = packed.number(f"{group}.offset", least, most)
    places = [at for at, layer in enumerate(own) if not always_trimmable(layer)]
    layers = packed.layers(group, [own[at] for at in places], offset)
    return Mark(offset, dict(zip(places, layers, strict=True)))
