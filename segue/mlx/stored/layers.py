"""The layers of a saved KV cache: told from shapes and numbers, checked, and only then built.

mlx-lm names the parts of a layer's state by their place in it (``"3.0"`` is the first part of layer
3), and writes numbers, class names and missing parts as small tensors. Here every part is asked
for by the name that it must have; no name in a file decides what is looked up or allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    ConcatenateKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
)

from ...errors import PromptCacheFormatError
from ...files.safetensors import TensorInfo, shown
from ..kv.bounded import BoundedKVCache

# The longest name of a class, in characters, and the most tokens that any cache counts.
LONGEST_NAME = 64
MOST_TOKENS = 2**31 - 1
GROUP_SIZES = (32, 64, 128)
BITS = (2, 3, 4, 5, 6, 8)

DTYPES = {
    mx.bool_: "BOOL",
    mx.uint8: "U8",
    mx.int8: "I8",
    mx.uint16: "U16",
    mx.int16: "I16",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.uint32: "U32",
    mx.int32: "I32",
    mx.float32: "F32",
    mx.uint64: "U64",
    mx.int64: "I64",
}


@dataclass(frozen=True)
class SavedLayer:
    """A saved layer: checked, not loaded.

    Attributes:
        kind: Its class.
        state: What the class's state holds, a `TensorInfo` in the place of each array; of a
            `CacheList`, its layers.
        offset: The tokens it holds; ``None`` for layers that don't count them.
        form: What the model's shapes and types decide, by names for messages.
        settings: What else the model, or whoever made the cache, decided.
        position: Where the layer's rows stand, if it drops old ones. Models make one mask for all
            layers with the same settings, so it must be the same in them.
    """

    kind: type[Any]
    state: Any
    offset: int | None = None
    form: Mapping[str, object] = field(default_factory=dict)
    settings: Mapping[str, int] = field(default_factory=dict)
    position: tuple[int, ...] = ()

    def leaves(self) -> Iterator[SavedLayer]:
        """The layer itself, or those of a list."""
        if self.kind is CacheList:
            for layer in self.state:
                yield from layer.leaves()
        else:
            yield self

    def build(self, arrays: Mapping[str, mx.array]) -> Any:
        """The layer with its arrays in place."""
        if self.kind is CacheList:
            # Its own state setter looks its classes up by the names in the file.
            return CacheList(*(layer.build(arrays) for layer in self.state))
        return self.kind.from_state(_filled(self.state, arrays))


def _filled(state: Any, arrays: Mapping[str, mx.array]) -> Any:
    if isinstance(state, TensorInfo):
        return arrays[state.name]
    if isinstance(state, list):
        return [_filled(part, arrays) for part in state]
    return state


class States(Protocol):
    """The parts of the layers' states, by name, wherever they are kept; see `read_layer`.

    Attributes:
        name: What messages call what keeps them.
    """

    name: str

    def has(self, name: str) -> bool:
        """Whether there is such a part."""
        ...

    def array(self, name: str) -> TensorInfo:
        """An array."""
        ...

    def optional_array(self, name: str) -> TensorInfo | None:
        """An array, or nothing where the layer had none."""
        ...

    def number(self, name: str, least: int = 0, most: int = MOST_TOKENS) -> int:
        """A whole number within bounds."""
        ...

    def text(self, name: str) -> str:
        """A short text."""
        ...

    def damaged(self, how: str) -> PromptCacheFormatError:
        """The error that says that they are not what was once kept, and how that shows."""
        ...


def read_layer(states: States, kind: str, at: str) -> SavedLayer:
    """Read and check the layer of class `kind` whose parts' names begin with `at`.

    Raises:
        PromptCacheFormatError: There is no such class, parts of the layer are missing, or they
            contradict each other.
        OSError: The file can't be read.
    """
    reader = _READERS.get(kind)
    if reader is None:
        raise PromptCacheFormatError(
            f"In {states.name} there is a layer of class {shown(kind)}, which Segue does not know.",
            remedy=f"The classes it knows are {', '.join(_READERS)}.",
        )
    return reader(states, at)


def describe(layer: Any) -> tuple[Mapping[str, object], Mapping[str, int]]:
    """The form and the settings of a live layer, as `SavedLayer` has those of a saved one."""
    settings = {name: getattr(layer, name) for name in _SETTINGS.get(type(layer), ())}
    if isinstance(layer, ArraysCache):
        return _slots([slot if slot is None else _info(slot) for slot in layer.cache]), settings
    if isinstance(layer, QuantizedKVCache):
        keys, values = ([_info(part) for part in parts] for parts in (layer.keys, layer.values))
        return _quantized_form(keys, values, layer.group_size), settings
    return _form(_info(layer.keys), _info(layer.values)), settings


def _info(array: mx.array) -> TensorInfo:
    return TensorInfo("", DTYPES.get(array.dtype, str(array.dtype)), array.shape, 0, 0)


def _form(keys: TensorInfo, values: TensorInfo) -> Mapping[str, object]:
    return {
        "number of key heads": keys.shape[1],
        "number of value heads": values.shape[1],
        "size of a key": keys.shape[3],
        "size of a value": values.shape[3],
        "type of the keys": keys.dtype,
        "type of the values": values.dtype,
    }


def _quantized_form(
    keys: list[TensorInfo], values: list[TensorInfo], group_size: int
) -> Mapping[str, object]:
    """The form of the keys and values that were quantized."""
    whole = [
        scales._replace(shape=(*scales.shape[:3], scales.shape[3] * group_size))
        for _, scales, _ in (keys, values)
    ]
    return _form(*whole)


def _slots(slots: list[TensorInfo | None]) -> Mapping[str, object]:
    form: dict[str, object] = {"number of slots": len(slots)}
    for index, slot in enumerate(slots):
        if slot is None:
            form[f"content of slot {index}"] = "nothing"
            continue
        form[f"type of slot {index}"] = slot.dtype
        # Slots of whole numbers are the last few token ids (longcat_flash_ngram): they grow.
        last = slot.shape[-1:] if slot.dtype[0] not in "IU" else ("any",)
        form[f"shape of slot {index}"] = (*slot.shape[:-1], *last)
    return form


def _keys_and_values(states: States, at: str) -> tuple[TensorInfo, TensorInfo, int]:
    """The two arrays of a layer, ``(1, heads, rows, size)`` each, and their rows."""
    keys, values = states.array(f"{at}.0"), states.array(f"{at}.1")
    return keys, values, _rows(states, at, [keys, values])


def _rows(states: States, at: str, arrays: list[TensorInfo]) -> int:
    if any(len(array.shape) != 4 for array in arrays):
        raise states.damaged(f"keys or values of its layer {at} are not of rank 4")
    if any(array.shape[0] != 1 for array in arrays):
        raise states.damaged(f"its layer {at} is not of one conversation")
    rows = {array.shape[2] for array in arrays}
    if len(rows) != 1:
        raise states.damaged(f"keys and values of its layer {at} are not as many")
    return rows.pop()


def _read_kv(states: States, at: str) -> SavedLayer:
    keys, values, rows = _keys_and_values(states, at)
    offset = states.number(f"{at}.2", most=rows)
    return SavedLayer(KVCache, [keys, values, offset], offset, _form(keys, values))


def _read_concatenate(states: States, at: str) -> SavedLayer:
    keys, values, rows = _keys_and_values(states, at)
    return SavedLayer(ConcatenateKVCache, [keys, values], rows, _form(keys, values))


def _read_rotating(states: States, at: str) -> SavedLayer:
    keys, values, rows = _keys_and_values(states, at)
    offset = states.number(f"{at}.2")
    max_size = states.number(f"{at}.4", least=1)
    keep = states.number(f"{at}.3", most=max_size - 1)
    index = states.number(f"{at}.5", most=rows)
    # A prefill leaves more rows than the layer is to keep; the next single token drops them.
    if offset <= rows:
        sound = index == offset and rows <= max(max_size, offset)
    else:
        sound = rows >= max_size and (index == rows or (rows == max_size and keep < index))
    if not sound:
        raise states.damaged(f"rows and position of its rotating layer {at} don't agree")
    return SavedLayer(
        RotatingKVCache,
        [keys, values, offset, keep, max_size, index],
        offset,
        _form(keys, values),
        {"max_size": max_size, "keep": keep},
        (index, rows),
    )


def _read_chunked(states: States, at: str) -> SavedLayer:
    keys, values, rows = _keys_and_values(states, at)
    offset = states.number(f"{at}.2")
    chunk_size = states.number(f"{at}.3", least=1)
    start = states.number(f"{at}.4", least=max(0, offset - rows), most=offset)
    return SavedLayer(
        ChunkedKVCache,
        [keys, values, offset, chunk_size, start],
        offset,
        _form(keys, values),
        {"chunk_size": chunk_size},
        (start,),
    )


def _read_quantized(states: States, at: str) -> SavedLayer:
    keys, values = ([states.array(f"{at}.{half}.{part}") for part in range(3)] for half in (0, 1))
    rows = _rows(states, at, keys + values)
    offset = states.number(f"{at}.2", most=rows)
    group_size, bits = states.number(f"{at}.3"), states.number(f"{at}.4")
    if group_size not in GROUP_SIZES or bits not in BITS:
        raise states.damaged(f"its layer {at} can't have {bits} bits in groups of {group_size}")
    for packed, scales, biases in (keys, values):
        size = scales.shape[3] * group_size
        if (
            packed.dtype != "U32"
            or packed.shape[:3] != scales.shape[:3]
            or packed.shape[3] * 32 != size * bits
            or scales[1:3] != biases[1:3]
        ):
            raise states.damaged(f"the quantized parts of its layer {at} don't fit together")
    return SavedLayer(
        QuantizedKVCache,
        [keys, values, offset, group_size, bits],
        offset,
        _quantized_form(keys, values, group_size),
        {"group_size": group_size, "bits": bits},
    )


def _read_arrays(states: States, at: str) -> SavedLayer:
    slots: list[TensorInfo | None] = []
    while states.has(f"{at}.0.{len(slots)}"):
        slots.append(states.optional_array(f"{at}.0.{len(slots)}"))
    if any(slot is not None and slot.shape[:1] != (1,) for slot in slots):
        raise states.damaged(f"the slots of its layer {at} are not of one conversation")
    # mlx-lm pads the conversations of a batch to one length.
    if not all(states.optional_array(f"{at}.{part}") is None for part in (1, 2)):
        raise states.damaged(f"its layer {at} is padded, as in a batch")
    return SavedLayer(ArraysCache, [slots, None, None], form=_slots(slots))


def _read_list(states: States, at: str) -> SavedLayer:
    layers: list[SavedLayer] = []
    while states.has(f"{at}.{len(layers)}.1"):
        inner = f"{at}.{len(layers)}"
        kind = states.text(f"{inner}.1")
        # None of mlx-lm's models nests lists, and a file could without end.
        if kind == CacheList.__name__:
            raise states.damaged(f"its layer {at} is a list that holds a list")
        layers.append(read_layer(states, kind, f"{inner}.0"))
    return SavedLayer(CacheList, layers)


KINDS: Mapping[type[Any], Callable[[States, str], SavedLayer]] = {
    KVCache: _read_kv,
    RotatingKVCache: _read_rotating,
    QuantizedKVCache: _read_quantized,
    ChunkedKVCache: _read_chunked,
    ConcatenateKVCache: _read_concatenate,
    ArraysCache: _read_arrays,
    CacheList: _read_list,
}
"""The classes that a prompt cache file can hold, and how each is read."""

_READERS = {kind.__name__: reader for kind, reader in KINDS.items()}
_SETTINGS: Mapping[type[Any], tuple[str, ...]] = {
    RotatingKVCache: ("max_size", "keep"),
    # What it keeps is the conversation's.
    BoundedKVCache: ("max_size",),
    ChunkedKVCache: ("chunk_size",),
    QuantizedKVCache: ("group_size", "bits"),
}
