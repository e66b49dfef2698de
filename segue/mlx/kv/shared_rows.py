"""The rows of KV caches that forks of one conversation share.

MLX copies a whole buffer when a copy of it is written for the first time. So ten forks of a
conversation of 4,000 tokens that each add 50 would hold eleven times 4,000 rows.

How it works: what was there at a fork becomes a *segment*, rows that are never written again, and
which any number of contexts hold. While no request runs, a context that shares rows is *compacted*:
it has its segments and a copy of its own rows after them, and its layers have no rows at all. To
run, it is *expanded*: the rows are put together again in the layers.

    fork                 both contexts get the same segments; the layers are compacted
    expand(layers)       segments + own rows -> layers             before the first pass
    compact(layers)      layers -> segments + a copy of own rows   after the request
    cut(offset)          rows after the offset are shared no more  after a rewind
    leave()              nothing is shared any more                after a failure, a restore

A segment knows its holders by weak references, so that a context that was dropped without a word
counts no longer. Once nobody else holds a segment, its rows are the context's own; the last context
that is left works on the buffer itself. Where there never was a fork, none of this exists.

Guarantees: a fork copies nothing but, at most, rows that were added since an earlier fork. While no
request runs, n forks hold the shared rows once, and each its own; a running one holds all of its
rows once more. A context computes with the same bits as without forks.

What does not work:

- Sharing what is rewritten in place: rotating buffers, recurrent states. Such layers are left to
  MLX's copy on write. Lists (`CacheList`) are compacted only if all their members can be, for
  checkpoints copy the others as a whole.
- Assigning into an array that was handed out. MLX's slice assignment changes the very object that
  it names; so a single segment is copied (the object, not the buffer) before it becomes a layer's.
- Leaving the work to the next pass. Another thread may make that one, and it could not finish what
  this thread's stream has begun: `expand` and `compact` wait until all is computed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from weakref import WeakSet

import mlx.core as mx
from mlx_lm.models.cache import CacheList, KVCache, QuantizedKVCache

# Caches whose rows follow one another, and are never changed once they are there.
SHAREABLE = (KVCache, QuantizedKVCache)


class _Segment:
    """Rows of some layers that are never written again; any number of contexts hold it.

    Args:
        kind: The layers' class.
        arrays: The arrays of each layer, by its index: its rows, and maybe more after them.
    """

    def __init__(self, kind: type[Any], arrays: dict[int, list[mx.array]]) -> None:
        self.kind = kind
        self.arrays = arrays
        self.holders: WeakSet[SharedRows] = WeakSet()


class _Use(NamedTuple):
    """How many of a segment's rows a context has."""

    segment: _Segment
    rows: int


class SharedRows:
    """What one context shares of its layers' rows.

    Layers that can't share rows, or that are no longer what they were at the fork, are left alone.
    Every method gets the context's layers, the same ones in the same order.
    """

    def __init__(self) -> None:
        self._uses: list[_Use] = []
        # The context's own rows, after the segments, while the layers are compacted.
        self._own: _Use | None = None
        self._compacted = False

    def fork(self, layers: Sequence[Any]) -> SharedRows:
        """Compact the layers, and return what a copy of them shares with them, which is all."""
        self.compact(layers)
        if not self._compacted:
            self._begin(layers)
        elif self._own is not None:
            self._hold(self._own)
            self._own = None
        twin = SharedRows()
        twin._compacted = self._compacted
        for use in self._uses:
            twin._hold(use)
        return twin

    def compact(self, layers: Sequence[Any]) -> None:
        """Keep just the shared rows and a copy of the own ones, if any are still shared."""
        if self._compacted:
            return
        self._drop_unshared()
        if not self._uses:
            return
        kind, indices = self._uses[-1].segment.kind, self._uses[-1].segment.arrays
        found = {index: layer for index, layer in _shareable(layers) if index in indices}
        shared = sum(use.rows for use in self._uses)
        offsets = {layer.offset for layer in found.values()}
        same = len(found) == len(indices) and all(type(each) is kind for each in found.values())
        if not same or len(offsets) != 1 or min(offsets) < shared:
            self.leave()
            return
        (offset,) = offsets
        if offset > shared:
            own = {
                index: [mx.contiguous(array[..., shared:offset, :]) for array in _arrays(layer)]
                for index, layer in found.items()
            }
            mx.eval(own)
            self._own = _Use(_Segment(kind, own), offset - shared)
        for layer in found.values():
            layer.keys = layer.values = None
        self._compacted = True

    def expand(self, layers: Sequence[Any]) -> None:
        """Fill the layers again, for work."""
        if not self._compacted:
            return
        pieces = [*self._uses, *([] if self._own is None else [self._own])]
        filled: list[tuple[Any, list[mx.array]]] = []
        for index, layer in _shareable(layers):
            if index in pieces[0].segment.arrays:
                rows = zip(
                    *(_rows_of(piece, index, len(pieces) == 1) for piece in pieces), strict=True
                )
                filled.append((layer, [_joined(arrays) for arrays in rows]))
        # Here and now: another thread could not finish what this one has begun.
        mx.eval([arrays for _, arrays in filled])
        for layer, arrays in filled:
            _fill(layer, arrays)
        self._own, self._compacted = None, False
        self._drop_unshared()

    def cut(self, offset: int) -> None:
        """Share no rows after an offset; the layers were trimmed to it."""
        uses, self._uses = self._uses, []
        start = 0
        for use in uses:
            if start < offset:
                self._uses.append(use._replace(rows=min(use.rows, offset - start)))
            else:
                use.segment.holders.discard(self)
            start += use.rows
        if self._own is not None:
            rows = min(self._own.rows, offset - start)
            self._own = self._own._replace(rows=rows) if rows > 0 else None

    def leave(self) -> None:
        """Share nothing any more; the layers must be expanded, or not be wanted."""
        self.cut(0)
        self._compacted = False

    def _begin(self, layers: Sequence[Any]) -> None:
        """Share all rows: they become the first segment, and the layers are compacted."""
        found = [(index, each) for index, each in _shareable(layers) if each.keys is not None]
        if not found:
            return
        kind, offset = type(found[0][1]), found[0][1].offset
        # As many, and of one kind: so they always are, where all of them are used.
        if not offset or any(type(each) is not kind or each.offset != offset for _, each in found):
            return
        segment = _Segment(kind, {index: _arrays(layer) for index, layer in found})
        for _, layer in found:
            layer.keys = layer.values = None
        self._hold(_Use(segment, offset))
        self._compacted = True

    def _hold(self, use: _Use) -> None:
        use.segment.holders.add(self)
        self._uses.append(use)

    def _drop_unshared(self) -> None:
        """Forget the latest segments that nobody else holds; their rows are own ones then."""
        while self._uses and len(self._uses[-1].segment.holders) == 1:
            self._uses.pop().segment.holders.discard(self)


def _shareable(layers: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Yield the layers whose rows can be shared, with their index among all, members of lists too.

    The index is the same at every call, whichever layers can be shared by then.
    """
    index = 0
    for layer in layers:
        inner = layer.caches if isinstance(layer, CacheList) else [layer]
        # Of lists that can't be trimmed, checkpoints have copies: as a whole, never compacted.
        shareable = all(type(each) in SHAREABLE for each in inner)
        for each in inner:
            if shareable:
                yield index, each
            index += 1


def _arrays(layer: Any) -> list[mx.array]:
    """Return a layer's arrays: keys and values, each of them three if they are quantized."""
    if isinstance(layer, QuantizedKVCache):
        return [*layer.keys, *layer.values]
    return [layer.keys, layer.values]


def _fill(layer: Any, arrays: list[mx.array]) -> None:
    if isinstance(layer, QuantizedKVCache):
        layer.keys, layer.values = arrays[:3], arrays[3:]
    else:
        layer.keys, layer.values = arrays


def _rows_of(piece: _Use, index: int, alone: bool) -> list[mx.array]:
    """Return a layer's rows of a piece; with the unused ones after them if nothing is to follow."""
    arrays = piece.segment.arrays[index]
    return arrays if alone else [array[..., : piece.rows, :] for array in arrays]


def _joined(pieces: Sequence[mx.array]) -> mx.array:
    """Return rows after one another, as an array of their own.

    MLX's assignments change the very object that they name, and copy what others hold as well.
    """
    first = pieces[0]
    if len(pieces) == 1:
        return copy.copy(first)
    # With space for what comes: without, the next tokens would have it all copied once more.
    space = mx.zeros((*first.shape[:-2], KVCache.step, first.shape[-1]), first.dtype)
    return mx.concatenate([*pieces, space], axis=-2)
