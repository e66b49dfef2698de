"""The rows of KV caches that forks of one conversation share.

MLX copies a whole buffer when a copy of it is written for the first time, so that ten forks which
each said something would hold ten times what they share. Instead, a context at rest that shares
rows with another keeps those as they were at the fork and a copy of its own rows behind them; the
layers themselves are hollow then. To go on, it puts them together.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from weakref import WeakSet

import mlx.core as mx
from mlx_lm.models.cache import CacheList, KVCache, QuantizedKVCache

# Their rows are one behind another, and are never changed once they are there.
SHAREABLE = (KVCache, QuantizedKVCache)


class _Segment:
    """Rows of some layers that are never written again; any number of contexts hold it.

    Args:
        kind: The layers' class.
        arrays: By their place, the arrays of each: its rows, and maybe more behind them.
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

    Layers that can't share rows, or that no longer are what they were at the fork, are left alone.
    Every method is given the context's layers, the same ones in the same order.
    """

    def __init__(self) -> None:
        self._uses: list[_Use] = []
        # Behind these, while the layers are hollow.
        self._own: _Use | None = None
        self._hollow = False

    def fork(self, layers: Sequence[Any]) -> SharedRows:
        """What a copy of the context shares, which is all; its layers are to be copies of these."""
        self.fold(layers)
        if not self._hollow:
            self._begin(layers)
        elif self._own is not None:
            self._hold(self._own)
            self._own = None
        twin = SharedRows()
        twin._hollow = self._hollow
        for use in self._uses:
            twin._hold(use)
        return twin

    def fold(self, layers: Sequence[Any]) -> None:
        """Keep no more than the shared rows and a copy of the own ones, if any are shared still."""
        if self._hollow:
            return
        self._drop_unshared()
        if not self._uses:
            return
        kind, places = self._uses[-1].segment.kind, self._uses[-1].segment.arrays
        found = {at: layer for at, layer in _shareable(layers) if at in places}
        shared = sum(use.rows for use in self._uses)
        offsets = {layer.offset for layer in found.values()}
        alike = len(found) == len(places) and all(type(each) is kind for each in found.values())
        if not alike or len(offsets) != 1 or min(offsets) < shared:
            self.release()
            return
        (offset,) = offsets
        if offset > shared:
            own = {
                at: [mx.contiguous(array[..., shared:offset, :]) for array in _arrays(layer)]
                for at, layer in found.items()
            }
            mx.eval(own)
            self._own = _Use(_Segment(kind, own), offset - shared)
        for layer in found.values():
            layer.keys = layer.values = None
        self._hollow = True

    def unfold(self, layers: Sequence[Any]) -> None:
        """Fill the layers again, for work."""
        if not self._hollow:
            return
        pieces = [*self._uses, *([] if self._own is None else [self._own])]
        filled: list[tuple[Any, list[mx.array]]] = []
        for at, layer in _shareable(layers):
            if at in pieces[0].segment.arrays:
                parts = zip(
                    *(_rows_of(piece, at, len(pieces) == 1) for piece in pieces), strict=True
                )
                filled.append((layer, [_joined(part) for part in parts]))
        # Here and now: another thread could not finish what this one has begun.
        mx.eval([arrays for _, arrays in filled])
        for layer, arrays in filled:
            _fill(layer, arrays)
        self._own, self._hollow = None, False
        self._drop_unshared()

    def cut(self, offset: int) -> None:
        """The layers were trimmed to this many rows: what lies behind them is shared no more."""
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

    def release(self) -> None:
        """Share nothing any more; the layers must not be hollow, or not be wanted."""
        self.cut(0)
        self._hollow = False

    def _begin(self, layers: Sequence[Any]) -> None:
        """Share all rows: they become the first segment, and the layers hollow."""
        found = [(at, each) for at, each in _shareable(layers) if each.keys is not None]
        if not found:
            return
        kind, offset = type(found[0][1]), found[0][1].offset
        # As many, and of one kind: so they always are, where all of them are used.
        if not offset or any(type(each) is not kind or each.offset != offset for _, each in found):
            return
        segment = _Segment(kind, {at: _arrays(layer) for at, layer in found})
        for _, layer in found:
            layer.keys = layer.values = None
        self._hold(_Use(segment, offset))
        self._hollow = True

    def _hold(self, use: _Use) -> None:
        use.segment.holders.add(self)
        self._uses.append(use)

    def _drop_unshared(self) -> None:
        """Forget the latest segments that nobody else holds; their rows are own ones then."""
        while self._uses and len(self._uses[-1].segment.holders) == 1:
            self._uses.pop().segment.holders.discard(self)


def _shareable(layers: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """The layers whose rows can be shared, by their place among all that are of that kind ever."""
    place = 0
    for layer in layers:
        inner = layer.caches if isinstance(layer, CacheList) else [layer]
        # Of lists that can't be trimmed, marks hold copies: as a whole, and never hollow.
        alike = all(type(each) in SHAREABLE for each in inner)
        for each in inner:
            if alike:
                yield place, each
            place += 1


def _arrays(layer: Any) -> list[mx.array]:
    """A layer's arrays: keys and values, or their three parts each where they are quantized."""
    if isinstance(layer, QuantizedKVCache):
        return [*layer.keys, *layer.values]
    return [layer.keys, layer.values]


def _fill(layer: Any, arrays: list[mx.array]) -> None:
    if isinstance(layer, QuantizedKVCache):
        layer.keys, layer.values = arrays[:3], arrays[3:]
    else:
        layer.keys, layer.values = arrays


def _rows_of(piece: _Use, at: int, alone: bool) -> list[mx.array]:
    """A layer's rows of a piece; with those behind them as room where nothing is to follow."""
    arrays = piece.segment.arrays[at]
    return arrays if alone else [array[..., : piece.rows, :] for array in arrays]


def _joined(parts: Sequence[mx.array]) -> mx.array:
    """The rows one behind another, as an array of their own.

    MLX's assignments change the very object that they name, and copy what others hold as well.
    """
    first = parts[0]
    if len(parts) == 1:
        return copy.copy(first)
    # With room for what comes: without, the next tokens would have it all copied once more.
    room = mx.zeros((*first.shape[:-2], KVCache.step, first.shape[-1]), first.dtype)
    return mx.concatenate([*parts, room], axis=-2)
