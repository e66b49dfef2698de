"""What must be true of the layers of a KV cache: live ones that are saved, and saved ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import mlx.core as mx
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
from .layers import KINDS, SavedLayer, States, describe

StandIns = Mapping[type[Any], Set[type[Any]]]
"""By the class of a model's own layer: other classes that may be saved in its place."""


def probe_layers(model: Callable[..., mx.array], layers: list[Any]) -> list[Any]:
    """A model's own layers after one token, for saved ones to be compared with.

    Nothing is computed: MLX is lazy, and shapes and types are known before values are.

    Args:
        model: An mlx-lm model.
        layers: Its empty caches, as mlx-lm's ``make_prompt_cache(model)`` makes them; they are fed.
    """
    model(mx.zeros((1, 1), mx.uint32), cache=layers)
    return layers


def tokens_held(layers: Iterable[Any]) -> int | None:
    """How many tokens the layers hold; ``None`` where none of them counts (recurrent models).

    Raises:
        PromptCacheError: The layers don't agree.
    """
    offsets = {layer.offset for layer in leaves(layers) if hasattr(layer, "offset")}
    if len(offsets) > 1:
        raise PromptCacheError(
            "The layers of the KV cache are out of step: a forward pass was broken off.",
            remedy="Make the cache again from the conversation's start.",
        )
    return int(offsets.pop()) if offsets else None


def trimmed(layer: Any) -> Any:
    """A layer without the rows that it holds room in: they may be of tokens taken back."""
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
        lambda part: part[..., :rows, :], (layer.keys, layer.values)
    )
    return shorter


def leaves(layers: Iterable[Any]) -> Iterator[Any]:
    """The layers, those within lists included."""
    for layer in layers:
        if isinstance(layer, CacheList):
            yield from leaves(layer.caches)
        else:
            yield layer


def is_empty(layer: Any) -> bool:
    """Whether a layer, that is no list, holds nothing."""
    parts = layer.cache if isinstance(layer, ArraysCache) else [layer.keys]
    return all(part is None for part in parts)


def check_kinds(layers: list[Any]) -> None:
    """Refuse layers of classes that can't be saved.

    Raises:
        PromptCacheError: There is one.
    """
    for layer in leaves(layers):
        if type(layer) not in KINDS:
            raise PromptCacheError(
                f"This model's cache has layers of class {type(layer).__name__}, for which "
                "prompt cache files have no form.",
                remedy="Keep the conversation's messages instead; the model reads them again.",
            )


def check_layers(layers: list[Any]) -> None:
    """Refuse layers that no file could bring back.

    Raises:
        PromptCacheError: There are such.
    """
    check_kinds(layers)
    if not layers or any(map(is_empty, leaves(layers))) or tokens_held(layers) == 0:
        raise PromptCacheError(
            "There is no prompt cache to save yet: the model has read nothing.",
            remedy="Take a turn first, or warm the session up.",
        )


def check_saved(
    saved: Sequence[SavedLayer], own: Sequence[Any], stand_ins: StandIns, states: States
) -> None:
    """Check saved layers against each other, and against the model's.

    Args:
        saved: The layers, each sound by itself.
        own: The layers of this model's own cache, after one token; see `probe_layers`.
        stand_ins: What may stand in the place of which of those.
        states: What the layers were read from.

    Raises:
        PromptCacheFormatError: They contradict each other.
        PromptCacheMismatchError: They are of another model, or of other settings.
    """
    if len(saved) != len(own):
        raise PromptCacheMismatchError(
            f"In {states.name} there are {len(saved)} layers, and in this model's cache "
            f"{len(own)}.",
            remedy="Use the model it was made with.",
        )
    inner = [leaf for layer in saved for leaf in layer.leaves()]
    offsets = {leaf.offset for leaf in inner} - {None}
    if len(offsets) > 1:
        raise states.damaged("its layers don't hold the same number of tokens")
    if offsets == {0}:
        raise states.damaged("it holds no tokens")
    plain = [
        layer
        for layer, mine in zip(saved, own, strict=True)
        if layer.kind in stand_ins.get(type(mine), ())
    ]
    if len({(layer.kind, *layer.settings.items()) for layer in plain}) > 1:
        raise states.damaged("its layers were bounded or quantized in different ways")
    positions: dict[object, tuple[int, ...]] = {}
    for leaf in inner:
        if positions.setdefault(tuple(leaf.settings.items()), leaf.position) != leaf.position:
            raise states.damaged("layers of one kind in it have dropped different tokens")
    for index, (layer, mine) in enumerate(zip(saved, own, strict=True)):
        allowed = stand_ins.get(type(mine), {type(mine)})
        _compare(layer, mine, allowed, f"layer {index}", states.name)


def _compare(saved: SavedLayer, own: Any, allowed: Set[type[Any]], where: str, name: str) -> None:
    """Refuse a saved layer that can't stand in the place of the model's own."""
    if saved.kind not in allowed:
        raise PromptCacheMismatchError(
            f"In {name}, {where} is a {saved.kind.__name__}; this model has a "
            f"{type(own).__name__} there.",
            remedy="Use the model and the settings it was made with.",
        )
    if isinstance(own, CacheList):
        if len(saved.state) != len(own.caches):
            raise PromptCacheMismatchError(
                f"In {name}, {where} is a list of {len(saved.state)}; in this model, of "
                f"{len(own.caches)}.",
                remedy="Use the model it was made with instead.",
            )
        for index, (layer, inner) in enumerate(zip(saved.state, own.caches, strict=True)):
            _compare(layer, inner, {type(inner)}, f"{where}, part {index}", name)
        return
    form, settings = describe(own)
    told = {**saved.form, **{what: saved.settings.get(what) for what in settings}}
    wanted = {**form, **settings}
    for what in sorted(told.keys() | wanted.keys()):
        if told.get(what) != wanted.get(what):
            raise PromptCacheMismatchError(
                f"In {name}, the {what} of {where} is {told.get(what)}; this model has "
                f"{wanted.get(what)}.",
                remedy="Use the model it was made with, loaded in the same precision.",
            )
