"""Layers of KV caches in a section of a session file: packed from memory, unpacked with mistrust.

How it works: a section has values, as in JSON, and tensors (`StoredState`). The fields of a layer's
state have the names that mlx-lm gives them in prompt cache files, with the name of a group of
layers before them (``"layers.3.0"``). Arrays become tensors, and everything else is a value under
``"state"``; ``"classes"`` has the names of each group's classes.

Packing copies an array only if the array has unused rows; other tensors are views of MLX's buffers,
which MLX does not write to while anyone else holds them. Unpacking asks for each field by name,
through `layers.py`, and for nothing else; whatever is left then belongs to nothing and is refused.

What does not work: other kinds of cache. A section is of just the kind of cache that the context
has at so many tokens, down to the bits, but for bounded layers, which are saved as mlx-lm's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import RotatingKVCache

from ...config import LARGEST_INT
from ...engine import StoredState, StoredTensor
from ...errors import PromptCacheFormatError
from ...files.safetensors import LARGEST_DIMENSION, LARGEST_RANK, SIZES, TensorInfo, shown
from ..kv.bounded import BoundedKVCache, as_saved
from .checks import StandIns, check_layers, check_saved, count_tokens, trimmed
from .layers import DTYPES, LONGEST_NAME, read_layer

STAND_INS: StandIns = {BoundedKVCache: {RotatingKVCache}}
_TYPES = {name: dtype for dtype, name in DTYPES.items()}


def pack(
    groups: Mapping[str, Sequence[Any]],
    numbers: Mapping[str, int],
    *,
    texts: Mapping[str, str] | None = None,
    arrays: Mapping[str, mx.array] | None = None,
) -> StoredState:
    """Return a section that has these layers; what happens to them later does not change it.

    Rows that are merely allocated are left out.

    Args:
        groups: Lists of layers, by names without dots.
        numbers: What else to save: numbers by name, of names other than a group's.
        texts: Texts by name, likewise.
        arrays: Arrays by name, likewise.

    Raises:
        PromptCacheError: if layers are empty, or of a class that can't be saved.
    """
    state: dict[str, Any] = {**numbers, **(texts or {})}
    found = dict(arrays or {})
    classes = {}
    for group, layers in groups.items():
        saved = [as_saved(layer) for layer in layers]
        check_layers(saved)
        classes[group] = [type(layer).__name__ for layer in saved]
        flat: Any = tree_flatten([trimmed(layer).state for layer in saved])
        for name, value in flat:
            (found if isinstance(value, mx.array) else state)[f"{group}.{name}"] = value
    views = {name: _bytes_of(array) for name, array in found.items()}
    mx.eval(views)
    tensors = {
        name: StoredTensor(
            DTYPES[array.dtype],
            tuple(array.shape),
            # Casting refuses what has no bytes.
            memoryview(views[name]).cast("B") if array.size else b"",  # type: ignore[arg-type]
        )
        for name, array in found.items()
    }
    return StoredState({"classes": classes, "state": state}, tensors)


class Packed:
    """A section that `pack` made, or that is said to be one; implements `Fields`.

    Args:
        section: The section.
        name: What messages call it.

    Raises:
        PromptCacheFormatError: if it can't be such a section.
    """

    def __init__(self, section: StoredState, name: str) -> None:
        self.name = name
        self._tensors = section.tensors
        state, classes = section.values.get("state"), section.values.get("classes")
        if not isinstance(state, dict) or not isinstance(classes, dict):
            raise self.damaged("it does not say what it holds")
        self._state: dict[str, Any] = state
        self._classes: dict[str, Any] = classes
        self._left = {*state, *section.tensors}

    def classes(self, group: str) -> list[str]:
        """Return the names of the classes of a group's layers."""
        names = self._classes.get(group)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self.damaged(f"it does not name the layers of {group}")
        return names

    def layers(self, group: str, reference: Sequence[Any], offset: int) -> list[Any]:
        """Return a group's layers, checked, their arrays evaluated.

        Args:
            group: The group's name.
            reference: The reference layers, of the kinds that these must be.
            offset: How many tokens they must hold.

        Raises:
            PromptCacheFormatError: if they can't be what was packed.
            PromptCacheMismatchError: if they are of another model, or of other settings.
        """
        classes = self.classes(group)
        saved = [read_layer(self, kind, f"{group}.{index}") for index, kind in enumerate(classes)]
        check_saved(saved, reference, STAND_INS, self)
        arrays = _Arrays(self._tensors)
        layers = [
            BoundedKVCache.of(layer) if isinstance(expected, BoundedKVCache) else layer
            for layer, expected in zip(
                (each.build(arrays) for each in saved), reference, strict=True
            )
        ]
        if count_tokens(layers) not in (None, offset):
            raise self.damaged(f"its layers don't hold the {offset} tokens that they should")
        mx.eval([layer.state for layer in layers])
        return layers

    def ids(self, name: str, below: int) -> list[int]:
        """Return a field that must be an array of token ids, each of them smaller than `below`."""
        info = self.array(name)
        if info.dtype != "U32" or len(info.shape) != 1:
            raise self.damaged(f"its field {shown(name)} does not hold token ids")
        ids = np.frombuffer(self._tensors[name].data, "<u4")
        if ids.size and int(ids.max()) >= below:
            raise self.damaged(f"its field {shown(name)} has an id that the model does not have")
        return [int(token) for token in ids]

    def has(self, name: str) -> bool:
        """See `Fields.has`."""
        return name in self._tensors or name in self._state

    def array(self, name: str) -> TensorInfo:
        """See `Fields.array`."""
        tensor = self._tensors.get(name)
        if tensor is None or name in self._state:
            raise self._lacking(name)
        dtype, shape, data = tensor
        size = memoryview(data).nbytes
        sound = (
            dtype in _TYPES
            and len(shape) <= LARGEST_RANK
            and all(type(extent) is int and 0 <= extent <= LARGEST_DIMENSION for extent in shape)
        )
        if not sound or prod(shape) * SIZES[dtype] != size:
            raise self.damaged(f"type, shape and size of its tensor {shown(name)} don't agree")
        self._left.discard(name)
        return TensorInfo(name, dtype, tuple(shape), 0, size)

    def optional_array(self, name: str) -> TensorInfo | None:
        """See `Fields.optional_array`."""
        if name in self._state and self._state[name] is None and name not in self._tensors:
            self._left.discard(name)
            return None
        return self.array(name)

    def number(self, name: str, least: int = 0, most: int = LARGEST_INT) -> int:
        """See `Fields.number`."""
        value = self._value(name)
        # JSON's true is an int to Python.
        if type(value) is not int:
            raise self.damaged(f"its field {shown(name)} is not a whole number")
        if not least <= value <= most:
            raise self.damaged(f"its field {shown(name)} is {str(value)[:60]}, which can't be")
        return value

    def text(self, name: str) -> str:
        """See `Fields.text`."""
        value = self._value(name)
        if not isinstance(value, str) or len(value) > LONGEST_NAME:
            raise self.damaged(f"its field {shown(name)} is not a text")
        return value

    def check_used_up(self) -> None:
        """Refuse a section with a field that nobody asked for.

        Raises:
            PromptCacheFormatError: if there is one.
        """
        if self._left:
            raise self.damaged(f"its field {shown(min(self._left))} belongs to nothing")

    def damaged(self, how: str) -> PromptCacheFormatError:
        """See `Fields.damaged`."""
        return PromptCacheFormatError(
            f"What was saved of {self.name} is damaged: {how}.",
            remedy="Continue without it: the model reads the conversation again.",
        )

    def _value(self, name: str) -> Any:
        if name not in self._state or name in self._tensors:
            raise self._lacking(name)
        self._left.discard(name)
        return self._state[name]

    def _lacking(self, name: str) -> PromptCacheFormatError:
        return self.damaged(f"its layers lack the field {shown(name)}")


class _Arrays(dict[str, mx.array]):
    """Tensors that were checked, made into arrays as they are asked for."""

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        super().__init__()
        self._tensors = tensors

    def __missing__(self, name: str) -> mx.array:
        dtype, shape, data = self._tensors[name]
        if not prod(shape):
            return mx.zeros(shape, _TYPES[dtype])
        # NumPy has no bfloat16: all come in as bytes.
        *front, last = shape or (1,)
        flat = np.frombuffer(data, np.uint8).reshape(*front, last * SIZES[dtype])
        return mx.array(flat).view(_TYPES[dtype]).reshape(shape)


def _bytes_of(array: mx.array) -> mx.array:
    """Return an array's bytes, in as many dimensions: in one, they might be too many to count.

    It is an array of its own, for MLX's assignments change the very object that they name.
    """
    whole = mx.contiguous(array if array.ndim else array.reshape(1))
    return whole.view(mx.uint8)
