"""Layers of KV caches as parts of a session file: packed from memory, and unpacked unbelieving.

The parts of a layer's state have the names that mlx-lm gives them in prompt cache files. Its arrays
become tensors; numbers, class names and missing parts are values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import RotatingKVCache

from ...engine import StoredPart, StoredTensor
from ...errors import PromptCacheFormatError
from ...files.safetensors import LARGEST_DIMENSION, LARGEST_RANK, SIZES, TensorInfo, shown
from ..kv.bounded import BoundedKVCache, as_saved
from .checks import StandIns, check_layers, check_saved, tokens_held, trimmed
from .layers import DTYPES, LONGEST_NAME, MOST_TOKENS, read_layer

# A part of a context is of the context's own kind of cache, to the class.
STAND_INS: StandIns = {BoundedKVCache: {RotatingKVCache}}
_TYPES = {name: dtype for dtype, name in DTYPES.items()}


def pack(
    groups: Mapping[str, Sequence[Any]],
    numbers: Mapping[str, int],
    *,
    texts: Mapping[str, str] | None = None,
    arrays: Mapping[str, mx.array] | None = None,
) -> StoredPart:
    """A part that holds these layers; their arrays are not copied where they can be shared.

    Rows that are mere room are left out. What the layers hold later does not change the part.

    Args:
        groups: Lists of layers, by names without dots.
        numbers: What else there is to say, by names that are none of a group's.
        texts: Likewise, in words.
        arrays: Likewise, in arrays.

    Raises:
        PromptCacheError: Layers are empty, or of a class that has no form.
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
    return StoredPart({"classes": classes, "state": state}, tensors)


class Packed:
    """A part that `pack` made, or so it says: asked for what it must hold, piece by piece.

    Implements `segue.mlx.stored.layers.States`.

    Args:
        part: The part.
        name: What messages call it.

    Raises:
        PromptCacheFormatError: It is no such part.
    """

    def __init__(self, part: StoredPart, name: str) -> None:
        self.name = name
        self._tensors = part.tensors
        state, classes = part.values.get("state"), part.values.get("classes")
        if not isinstance(state, dict) or not isinstance(classes, dict):
            raise self.damaged("it does not say what it holds")
        self._state: dict[str, Any] = state
        self._classes: dict[str, Any] = classes
        self._left = {*state, *part.tensors}

    def classes(self, group: str) -> list[str]:
        """The classes of a group's layers, by name."""
        names = self._classes.get(group)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self.damaged(f"it does not name the layers of {group}")
        return names

    def layers(self, group: str, own: Sequence[Any], offset: int) -> list[Any]:
        """A group's layers, checked and in place of the model's own, their arrays evaluated.

        Args:
            group: The group's name.
            own: The model's own layers after one token, of the kinds that these must be.
            offset: How many tokens they must hold.

        Raises:
            PromptCacheFormatError: They are not what was packed.
            PromptCacheMismatchError: They are of another model, or of other settings.
        """
        classes = self.classes(group)
        saved = [read_layer(self, kind, f"{group}.{at}") for at, kind in enumerate(classes)]
        check_saved(saved, own, STAND_INS, self)
        arrays = _Arrays(self._tensors)
        layers = [
            BoundedKVCache.of(layer) if isinstance(mine, BoundedKVCache) else layer
            for layer, mine in zip((each.build(arrays) for each in saved), own, strict=True)
        ]
        if tokens_held(layers) not in (None, offset):
            raise self.damaged(f"its layers don't hold the {offset} tokens that they should")
        mx.eval([layer.state for layer in layers])
        return layers

    def ids(self, name: str, below: int) -> list[int]:
        """An array of token ids, each of them one of the first `below`."""
        info = self.array(name)
        if info.dtype != "U32" or len(info.shape) != 1:
            raise self.damaged(f"its part {shown(name)} holds no token ids")
        ids = np.frombuffer(self._tensors[name].data, "<u4")
        if ids.size and int(ids.max()) >= below:
            raise self.damaged(f"its part {shown(name)} has a token that there is not")
        return [int(token) for token in ids]

    def has(self, name: str) -> bool:
        """See `States.has`."""
        return name in self._tensors or name in self._state

    def array(self, name: str) -> TensorInfo:
        """See `States.array`."""
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
        """See `States.optional_array`."""
        if name in self._state and self._state[name] is None and name not in self._tensors:
            self._left.discard(name)
            return None
        return self.array(name)

    def number(self, name: str, least: int = 0, most: int = MOST_TOKENS) -> int:
        """See `States.number`."""
        value = self._value(name)
        # JSON's true is an int to Python.
        if type(value) is not int:
            raise self.damaged(f"its part {shown(name)} is no whole number")
        if not least <= value <= most:
            raise self.damaged(f"its part {shown(name)} is {str(value)[:60]}, which can't be")
        return value

    def text(self, name: str) -> str:
        """See `States.text`."""
        value = self._value(name)
        if not isinstance(value, str) or len(value) > LONGEST_NAME:
            raise self.damaged(f"its part {shown(name)} is no text")
        return value

    def check_used_up(self) -> None:
        """Refuse what belongs to no layer.

        Raises:
            PromptCacheFormatError: There is such.
        """
        if self._left:
            raise self.damaged(f"its part {shown(min(self._left))} belongs to nothing")

    def damaged(self, how: str) -> PromptCacheFormatError:
        """See `States.damaged`."""
        return PromptCacheFormatError(
            f"What was saved of {self.name} is damaged: {how}.",
            remedy="Go on without it: the model reads the conversation again.",
        )

    def _value(self, name: str) -> Any:
        if name not in self._state or name in self._tensors:
            raise self._lacking(name)
        self._left.discard(name)
        return self._state[name]

    def _lacking(self, name: str) -> PromptCacheFormatError:
        return self.damaged(f"its layers lack the part {shown(name)}")


class _Arrays(dict[str, mx.array]):
    """Tensors that were checked, made arrays as they are asked for."""

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
    """An array's bytes, in a shape of as many dimensions: of one, they might be too many to count.

    It is an array of its own, for MLX's assignments change the very object that they name.
    """
    whole = mx.contiguous(array if array.ndim else array.reshape(1))
    return whole.view(mx.uint8)
