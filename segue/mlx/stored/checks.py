"""What must be true of the layers of a KV cache: of live ones to be saved, and of saved ones.

How it works: what a file holds is compared three times. `layers.py` compares each layer's fields
with each other; `check_saved` compares the layers with each other (all at one offset, all bounded
or quantized in one way), and then each with the *reference layer* at its index: what this model's
own cache is after one token. Shapes, types and settings of reference layers are known without
computing anything, and don't change as a cache grows.

What does not work: recognizing another model of the same shapes. A fingerprint does that, where a
file has one; and values that are wrong but finite can only be found by a checksum.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

from mlx.utils import tree_map
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    ConcatenateKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
)

from ...errors import PromptCacheError, PromptCacheMismatchError
from .layers import KINDS, Fields, SavedLayer, describe

StandIns = Mapping[type[Any], Set[type[Any]]]
"""The classes that may be saved instead of a reference layer's, by that layer's class."""


def count_tokens(layers: Iterable[Any]) -> int | None:
    """Return how many tokens the layers hold; ``None`` if no layer counts (recurrent models).

    Raises:
        PromptCacheError: if the layers don't agree.
    """
    offsets = {layer.offset for layer in leaves(layers) if hasattr(layer, "offset")}
    if len(offsets) > 1:
        raise PromptCacheError(
            "The layers of the KV cache are out of step: a forward pass was interrupted.",
            remedy="Make the cache again from the conversation's start.",
        )
    return int(offsets.pop()) if offsets else None


def trimmed(layer: Any) -> Any:
    """Return a layer without its unused rows: they may be of tokens that were taken back."""
    if isinstance(layer, CacheList):
        return CacheList(*map(trimmed, layer.caches))
    if isinstance(layer, (KVCache, QuantizedKVCache, ConcatenateKVCache, ChunkedKVCache)):
        rows = layer.offset - getattr(layer, "start_position", 0)
    elif isinstance(layer, RotatingKVCache) and layer.offset < layer.keys.shape[2]:
        rows = layer.offset
    else:
        return layer
    shorter = copy.copy(layer)
    shorter.keys, shorter.values = tree_map(
        lambda array: array[..., :rows, :], (layer.keys, layer.values)
    )
    return shorter


def leaves(layers: Iterable[Any]) -> Iterator[Any]:
    """Yield the layers, and instead of a list, its members."""
    for layer in layers:
        if isinstance(layer, CacheList):
            yield from leaves(layer.caches)
        else:
            yield layer


def is_empty(layer: Any) -> bool:
    """Return True if a layer, which must not be a list, holds nothing."""
    arrays = layer.cache if isinstance(layer, ArraysCache) else [layer.keys]
    return all(array is None for array in arrays)


def check_kinds(layers: list[Any]) -> None:
    """Refuse layers of classes that can't be saved.

    Raises:
        PromptCacheError: if there is one.
    """
    for layer in leaves(layers):
        if type(layer) not in KINDS:
            raise PromptCacheError(
                f"This model's cache has layers of class {type(layer).__name__}, and "
                "prompt cache files have no form for them.",
                remedy="Keep the conversation's messages instead; the model reads them again.",
            )


def check_layers(layers: list[Any]) -> None:
    """Refuse layers that can't be saved, or that hold nothing.

    Raises:
        PromptCacheError: if there are any, or the layers are out of step.
    """
    check_kinds(layers)
    if not layers or any(map(is_empty, leaves(layers))) or count_tokens(layers) == 0:
        raise PromptCacheError(
            "There is no prompt cache to save yet: the model has read nothing.",
            remedy="Take a turn first, or prewarm the session.",
        )


def check_saved(
    saved: Sequence[SavedLayer], reference: Sequence[Any], stand_ins: StandIns, fields: Fields
) -> None:
    """Compare saved layers with each other, and with the model's.

    Args:
        saved: The layers, each sound by itself.
        reference: The reference layers of this model.
        stand_ins: Which classes may be saved instead of theirs.
        fields: What the layers were read from.

    Raises:
        PromptCacheFormatError: if the layers contradict each other.
        PromptCacheMismatchError: if they are of another model, or of other settings.
    """
    if len(saved) != len(reference):
        raise PromptCacheMismatchError(
            f"In {fields.name} there are {len(saved)} layers, and in this model's cache "
            f"{len(reference)}.",
            remedy="Use the model it was made with.",
        )
    inner = [leaf for layer in saved for leaf in layer.leaves()]
    offsets = {leaf.offset for leaf in inner} - {None}
    if len(offsets) > 1:
        raise fields.damaged("its layers don't hold the same number of tokens")
    if offsets == {0}:
        raise fields.damaged("it holds no tokens")
    plain = [
        layer
        for layer, expected in zip(saved, reference, strict=True)
        if layer.kind in stand_ins.get(type(expected), ())
    ]
    if len({(layer.kind, *layer.settings.items()) for layer in plain}) > 1:
        raise fields.damaged("its layers were bounded or quantized in different ways")
    positions: dict[object, tuple[int, ...]] = {}
    for leaf in inner:
        if positions.setdefault(tuple(leaf.settings.items()), leaf.position) != leaf.position:
            raise fields.damaged("layers of one kind in it have dropped different tokens")
    for index, (layer, expected) in enumerate(zip(saved, reference, strict=True)):
        allowed = stand_ins.get(type(expected), {type(expected)})
        _compare(layer, expected, allowed, f"layer {index}", fields.name)


def _compare(
    saved: SavedLayer, reference: Any, allowed: Set[type[Any]], where: str, name: str
) -> None:
    """Refuse a saved layer that can't take the place of a reference layer."""
    if saved.kind not in allowed:
        raise PromptCacheMismatchError(
            f"In {name}, {where} is a {saved.kind.__name__}; this model has a "
            f"{type(reference).__name__} there.",
            remedy="Use the model and the settings it was made with.",
        )
    if isinstance(reference, CacheList):
        if len(saved.state) != len(reference.caches):
            raise PromptCacheMismatchError(
                f"In {name}, {where} is a list of {len(saved.state)}; in this model, of "
                f"{len(reference.caches)}.",
                remedy="Use the model that it was made with.",
            )
        for index, (layer, inner) in enumerate(zip(saved.state, reference.caches, strict=True)):
            _compare(layer, inner, {type(inner)}, f"{where}, member {index}", name)
        return
    form, settings = describe(reference)
    found = {**saved.form, **{name: saved.settings.get(name) for name in settings}}
    expected = {**form, **settings}
    for what in sorted(found.keys() | expected.keys()):
        if found.get(what) != expected.get(what):
            raise PromptCacheMismatchError(
                f"In {name}, the {what} of {where} is {found.get(what)}; this model has "
                f"{expected.get(what)}.",
                remedy="Use the model it was made with, loaded in the same precision.",
            )
