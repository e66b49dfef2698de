"""The layers of a saved KV cache: read field by field, checked, and only then built.

How it works: mlx-lm names the *fields* of a layer's state by where they are in it (``"3.0"`` is the
first field of layer 3). `Fields` hands them out by name, whether they are in a prompt cache file or
in a section of a session file. For each class that a layer may be of, one function here asks for
the fields that the class must have, by the names they must have, and compares them: an offset with
the number of rows, the position in a rotating buffer with what it can have come to, packed sizes
with bits and group size. What comes out is a `SavedLayer`, with a `TensorInfo` where each array
will be. Its `build` is called once everything is checked.

Guarantees: no name in a file decides what is looked up, called or allocated. Classes are found in a
table of ours; sizes are those of the file's own data.

What does not work: mlx-lm's ``load_prompt_cache``. It calls ``from_state`` on whatever its module
has under the name in the file, within lists as well, and trusts every number. One class of mlx-lm's
has no form here: deepseek_v41's ``LayerCache``, which mlx-lm can save, but not load. The caches of
batches are refused, too.
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

from ...config import KV_BITS, KV_GROUP_SIZES, LARGEST_INT
from ...errors import PromptCacheFormatError
from ...files.safetensors import TensorInfo, shown
from ..kv.bounded import BoundedKVCache

# The longest name of a class, in characters.
LONGEST_NAME = 64

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
    """A saved layer: checked, not loaded."""

    kind: type[Any]
    """Its class."""
    state: Any
    """What the class's state holds, with a `TensorInfo` instead of each array; of a `CacheList`,
    its members."""
    offset: int | None = None
    """How many tokens it holds; ``None`` for layers that don't count them."""
    form: Mapping[str, object] = field(default_factory=dict)
    """What the model's shapes and types decide, by names for messages."""
    settings: Mapping[str, int] = field(default_factory=dict)
    """What else the model, or whoever made the cache, decided."""
    position: tuple[int, ...] = ()
    """Which of its rows it holds, if it drops old ones. Models make one mask for all layers with
    the same settings, so it must be the same in them."""

    def leaves(self) -> Iterator[SavedLayer]:
        """Yield the layer itself, or the members of a list."""
        if self.kind is CacheList:
            for layer in self.state:
                yield from layer.leaves()
        else:
            yield self

    def build(self, arrays: Mapping[str, mx.array]) -> Any:
        """Return the layer, with its arrays."""
        if self.kind is CacheList:
            # Its own state setter looks its classes up by the names in the file.
            return CacheList(*(layer.build(arrays) for layer in self.state))
        return self.kind.from_state(_filled(self.state, arrays))


def _filled(state: Any, arrays: Mapping[str, mx.array]) -> Any:
    if isinstance(state, TensorInfo):
        return arrays[state.name]
    if isinstance(state, list):
        return [_filled(item, arrays) for item in state]
    return state


class Fields(Protocol):
    """The fields of the layers' states, by name, wherever they are saved; see `read_layer`."""

    name: str
    """What messages call whatever they are saved in."""

    def has(self, name: str) -> bool:
        """Return True if there is a field of that name."""
        ...

    def array(self, name: str) -> TensorInfo:
        """Return a field that must be an array."""
        ...

    def optional_array(self, name: str) -> TensorInfo | None:
        """Return a field that must be an array, or ``None`` if the layer had none."""
        ...

    def number(self, name: str, least: int = 0, most: int = LARGEST_INT) -> int:
        """Return a field that must be a whole number within bounds."""
        ...

    def text(self, name: str) -> str:
        """Return a field that must be a short text."""
        ...

    def damaged(self, how: str) -> PromptCacheFormatError:
        """Return the error for fields that can't have been saved so.

        Args:
            how: How the damage shows, as a clause.
        """
        ...


def read_layer(fields: Fields, kind: str, at: str) -> SavedLayer:
    """Read and check one layer.

    Args:
        fields: What it is read from.
        kind: The name of its class.
        at: What the names of its fields begin with.

    Raises:
        PromptCacheFormatError: if there is no such class, or fields are missing or contradict each
            other.
        OSError: if the file can't be read.
    """
    reader = _READERS.get(kind)
    if reader is None:
        raise PromptCacheFormatError(
            f"In {fields.name} there is a layer of class {shown(kind)}, which Segue does not know.",
            remedy=f"The classes it knows are {', '.join(_READERS)}.",
        )
    return reader(fields, at)


def describe(layer: Any) -> tuple[Mapping[str, object], Mapping[str, int]]:
    """Return form and settings of a live layer, as `SavedLayer` has those of a saved one."""
    settings = {name: getattr(layer, name) for name in _SETTINGS.get(type(layer), ())}
    if isinstance(layer, ArraysCache):
        return _slots([slot if slot is None else _info(slot) for slot in layer.cache]), settings
    if isinstance(layer, QuantizedKVCache):
        keys, values = ([_info(array) for array in arrays] for arrays in (layer.keys, layer.values))
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
    """Return the form of the keys and values that were quantized."""
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


def _keys_and_values(fields: Fields, at: str) -> tuple[TensorInfo, TensorInfo, int]:
    """Return the two arrays of a layer, ``(1, heads, rows, size)`` each, and their rows."""
    keys, values = fields.array(f"{at}.0"), fields.array(f"{at}.1")
    return keys, values, _rows(fields, at, [keys, values])


def _rows(fields: Fields, at: str, arrays: list[TensorInfo]) -> int:
    if any(len(array.shape) != 4 for array in arrays):
        raise fields.damaged(f"keys or values of its layer {at} are not of rank 4")
    if any(array.shape[0] != 1 for array in arrays):
        raise fields.damaged(f"its layer {at} is not of one conversation")
    rows = {array.shape[2] for array in arrays}
    if len(rows) != 1:
        raise fields.damaged(
            f"keys and values of its layer {at} don't have the same number of rows"
        )
    return rows.pop()


def _read_kv(fields: Fields, at: str) -> SavedLayer:
    keys, values, rows = _keys_and_values(fields, at)
    offset = fields.number(f"{at}.2", most=rows)
    return SavedLayer(KVCache, [keys, values, offset], offset, _form(keys, values))


def _read_concatenate(fields: Fields, at: str) -> SavedLayer:
    keys, values, rows = _keys_and_values(fields, at)
    return SavedLayer(ConcatenateKVCache, [keys, values], rows, _form(keys, values))


def _read_rotating(fields: Fields, at: str) -> SavedLayer:
    keys, values, rows = _keys_and_values(fields, at)
    offset = fields.number(f"{at}.2")
    max_size = fields.number(f"{at}.4", least=1)
    keep = fields.number(f"{at}.3", most=max_size - 1)
    index = fields.number(f"{at}.5", most=rows)
    # A prefill leaves more rows than the layer is to keep; the next single token drops them.
    if offset <= rows:
        sound = index == offset and rows <= max(max_size, offset)
    else:
        sound = rows >= max_size and (index == rows or (rows == max_size and keep < index))
    if not sound:
        raise fields.damaged(f"rows and position of its rotating layer {at} don't agree")
    return SavedLayer(
        RotatingKVCache,
        [keys, values, offset, keep, max_size, index],
        offset,
        _form(keys, values),
        {"max_size": max_size, "keep": keep},
        (index, rows),
    )


def _read_chunked(fields: Fields, at: str) -> SavedLayer:
    keys, values, rows = _keys_and_values(fields, at)
    offset = fields.number(f"{at}.2")
    chunk_size = fields.number(f"{at}.3", least=1)
    start = fields.number(f"{at}.4", least=max(0, offset - rows), most=offset)
    return SavedLayer(
        ChunkedKVCache,
        [keys, values, offset, chunk_size, start],
        offset,
        _form(keys, values),
        {"chunk_size": chunk_size},
        (start,),
    )


def _read_quantized(fields: Fields, at: str) -> SavedLayer:
    keys, values = ([fields.array(f"{at}.{half}.{index}") for index in range(3)] for half in (0, 1))
    rows = _rows(fields, at, keys + values)
    offset = fields.number(f"{at}.2", most=rows)
    group_size, bits = fields.number(f"{at}.3"), fields.number(f"{at}.4")
    if group_size not in KV_GROUP_SIZES or bits not in KV_BITS:
        raise fields.damaged(f"its layer {at} can't have {bits} bits in groups of {group_size}")
    for packed, scales, biases in (keys, values):
        size = scales.shape[3] * group_size
        if (
            packed.dtype != "U32"
            or packed.shape[:3] != scales.shape[:3]
            or packed.shape[3] * 32 != size * bits
            or scales[1:3] != biases[1:3]
        ):
            raise fields.damaged(f"the quantized arrays of its layer {at} don't fit together")
    return SavedLayer(
        QuantizedKVCache,
        [keys, values, offset, group_size, bits],
        offset,
        _quantized_form(keys, values, group_size),
        {"group_size": group_size, "bits": bits},
    )


def _read_arrays(fields: Fields, at: str) -> SavedLayer:
    slots: list[TensorInfo | None] = []
    while fields.has(f"{at}.0.{len(slots)}"):
        slots.append(fields.optional_array(f"{at}.0.{len(slots)}"))
    if any(slot is not None and slot.shape[:1] != (1,) for slot in slots):
        raise fields.damaged(f"the slots of its layer {at} are not of one conversation")
    # mlx-lm pads the conversations of a batch to one length.
    if not all(fields.optional_array(f"{at}.{index}") is None for index in (1, 2)):
        raise fields.damaged(f"its layer {at} is padded, as in a batch")
    return SavedLayer(ArraysCache, [slots, None, None], form=_slots(slots))


def _read_list(fields: Fields, at: str) -> SavedLayer:
    layers: list[SavedLayer] = []
    while fields.has(f"{at}.{len(layers)}.1"):
        inner = f"{at}.{len(layers)}"
        kind = fields.text(f"{inner}.1")
        # None of mlx-lm's models nests lists, and a file could without end.
        if kind == CacheList.__name__:
            raise fields.damaged(f"its layer {at} is a list that holds a list")
        layers.append(read_layer(fields, kind, f"{inner}.0"))
    return SavedLayer(CacheList, layers)


KINDS: Mapping[type[Any], Callable[[Fields, str], SavedLayer]] = {
    KVCache: _read_kv,
    RotatingKVCache: _read_rotating,
    QuantizedKVCache: _read_quantized,
    ChunkedKVCache: _read_chunked,
    ConcatenateKVCache: _read_concatenate,
    ArraysCache: _read_arrays,
    CacheList: _read_list,
}
"""The classes of layers that can be saved, and how each is read."""

_READERS = {kind.__name__: reader for kind, reader in KINDS.items()}
_SETTINGS: Mapping[type[Any], tuple[str, ...]] = {
    RotatingKVCache: ("max_size", "keep"),
    # What it always keeps depends on the conversation.
    BoundedKVCache: ("max_size",),
    ChunkedKVCache: ("chunk_size",),
    QuantizedKVCache: ("group_size", "bits"),
}
