"""Checkpoints: what a cache rewinds to where it can't be trimmed.

How it works: most layers can drop their newest rows, however many they hold. Others can't: a
recurrent state has no rows, and a sliding window has overwritten what came before it. A checkpoint
has copies of just those layers, as they were at some offset. To rewind to it, they are replaced by
copies of the copies, and the other layers are trimmed to the same offset.

MLX copies arrays on write, so a checkpoint costs nothing until the layer it was copied from
changes, and then as much as the layer. How many there are, and how large they may be together, is
bounded.

What does not work: asking a layer of mlx-lm's whether it can be trimmed, and trusting the answer
for later. A sliding window can be until it wraps around, a chunked one says it can when it has
dropped the front of the chunk that it would go back to; see `can_trim`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_lm.models.cache import CacheList, ConcatenateKVCache, KVCache, QuantizedKVCache

from ...checkpoints import thin_checkpoints

# Caches that can always drop their newest tokens.
_TRIMMABLE = (KVCache, QuantizedKVCache, ConcatenateKVCache)


@dataclass(frozen=True, slots=True)
class KVCheckpoint:
    """A point that a `KVState` can rewind to."""

    offset: int
    """How many tokens were cached."""
    layers: Mapping[int, Any]
    """Copies of the layers that may not be trimmable later, by index; never changed."""

    @classmethod
    def of(cls, layers: Sequence[Any], offset: int) -> KVCheckpoint:
        """Return a checkpoint of a cache's layers as they are."""
        copies = {
            index: copy.deepcopy(layer)
            for index, layer in enumerate(layers)
            if not always_trimmable(layer)
        }
        return cls(offset, copies)

    @property
    def nbytes(self) -> int:
        """The size of the copies."""
        return sum(layer.nbytes for layer in self.layers.values() if not layer.empty())


class Checkpoints:
    """The checkpoints of one cache, oldest first, within bounds.

    Args:
        most: How many there may be.
        most_bytes: How large they may be together.
        checkpoints: The first ones.
    """

    def __init__(
        self, most: int, most_bytes: int, checkpoints: Sequence[KVCheckpoint] = ()
    ) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._checkpoints = list(checkpoints)

    @property
    def all(self) -> tuple[KVCheckpoint, ...]:
        """The checkpoints, by ascending offset."""
        return tuple(self._checkpoints)

    @property
    def offsets(self) -> tuple[int, ...]:
        """How many tokens were cached at each, ascending."""
        return tuple(checkpoint.offset for checkpoint in self._checkpoints)

    @property
    def nbytes(self) -> int:
        """The size of all, in bytes."""
        return _size(self._checkpoints)

    def add(self, checkpoint: KVCheckpoint) -> None:
        """Add a checkpoint with a higher offset than all others; too many are thinned out."""
        self._checkpoints.append(checkpoint)
        thin_checkpoints(self._checkpoints, self._fit)

    def newest(self, offset: int, *more: KVCheckpoint) -> KVCheckpoint | None:
        """Return the newest of these and of `more` at or before an offset, if there is one."""
        reachable = [each for each in (*self._checkpoints, *more) if each.offset <= offset]
        return max(reachable, key=lambda checkpoint: checkpoint.offset, default=None)

    def cut(self, offset: int) -> None:
        """Drop those after an offset."""
        self._checkpoints = [each for each in self._checkpoints if each.offset <= offset]

    def replaced(self, checkpoints: Sequence[KVCheckpoint] = ()) -> Checkpoints:
        """Return others with the same bounds."""
        return Checkpoints(self._most, self._most_bytes, checkpoints)

    def _fit(self, checkpoints: Sequence[KVCheckpoint]) -> bool:
        return len(checkpoints) <= self._most and _size(checkpoints) <= self._most_bytes


def can_trim(layer: Any) -> bool:
    """Return True if a layer can drop its newest tokens now and be what it was before them."""
    if isinstance(layer, CacheList):
        return all(map(can_trim, layer.caches))
    # A chunked layer says it can, but has dropped the front of the chunk that it would go back to.
    return bool(layer.is_trimmable()) and not getattr(layer, "start_position", 0)


def always_trimmable(layer: Any) -> bool:
    """Return True if a layer can drop its newest tokens, however many it comes to hold."""
    if isinstance(layer, CacheList):
        return all(map(always_trimmable, layer.caches))
    return type(layer) in _TRIMMABLE


def _size(checkpoints: Sequence[KVCheckpoint]) -> int:
    return sum(checkpoint.nbytes for checkpoint in checkpoints)
