"""The KV caches of one conversation, one a layer, as one thing that grows and goes back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generation_stream, maybe_quantize_kv_cache
from mlx_lm.models.cache import CacheList, ConcatenateKVCache, KVCache, QuantizedKVCache

from ...config import GenerationConfig
from ..stored.checks import probe_layers
from .bounded import BoundedKVCache
from .shared_rows import SharedRows

Model = Callable[..., mx.array]
"""An mlx-lm model: ``(tokens (1, n), cache=...) -> logits (1, n, vocabulary)``."""

# Caches that can always drop their newest tokens.
_TRIMMABLE = (KVCache, QuantizedKVCache, ConcatenateKVCache)


@dataclass(frozen=True, slots=True)
class Mark:
    """A place that a `KVState` can come back to.

    Attributes:
        offset: How many tokens were held there.
        layers: Copies, by their place, of the layers that may not be trimmable later. MLX copies
            on write: one costs memory once its original changes.
    """

    offset: int
    layers: Mapping[int, Any]

    @property
    def nbytes(self) -> int:
        """The size of the copies."""
        return sum(layer.nbytes for layer in self.layers.values() if not layer.empty())


class KVState:
    """The caches of one conversation with one model.

    Counts the tokens it was fed by itself: not every layer counts, and none can be asked in the
    middle of a pass.

    Args:
        model: The model.
        make_layers: Makes the empty caches, one a layer.
        config: Whether and when the caches are quantized.

    Attributes:
        model: The model.
        marks: Places to come back to, the first one first.
        offset: How many tokens they hold.
        prefix: How many of those are a prefix, which always stays.
    """

    def __init__(
        self,
        model: Model,
        make_layers: Callable[[], list[Any]],
        config: GenerationConfig,
    ) -> None:
        self.model = model
        self._make_layers = make_layers
        self._bits = config.kv_bits
        self._group_size = config.kv_group_size
        self._quantized_start = config.quantized_kv_start
        self._layers = make_layers()
        # What of them is shared with forks; `None` where there never was one.
        self._sharing: SharedRows | None = None
        self.marks: list[Mark] = []
        self.offset = 0
        self.prefix = 0
        self._pristine: list[Any] | None = None
        self._quantize()

    @property
    def layers(self) -> list[Any]:
        """The caches. Where rows are shared with forks, they are put together; see `rest`."""
        if self._sharing is not None:
            self._sharing.unfold(self._layers)
        return self._layers

    @property
    def pristine(self) -> list[Any] | None:
        """The layers of an opaque prefix, if there is one; never changed."""
        return self._pristine

    def own_layers(self, offset: int, *, quantized: bool) -> list[Any]:
        """What this model's caches are after one token, for others to be compared with.

        Args:
            offset: Of the kind that they are at so many tokens.
            quantized: Whether they are quantized earlier than they would be here.
        """
        layers = probe_layers(self.model, self._make_layers())
        if self._bits is not None and (quantized or offset >= self._quantized_start):
            maybe_quantize_kv_cache(layers, 0, self._group_size, self._bits)
        return layers

    def hold(self, layers: list[Any], offset: int, marks: list[Mark]) -> None:
        """Hold these, `offset` tokens long with the prefix, and whatever was held no more."""
        self._forget_sharing()
        self._layers, self.offset, self.marks = layers, offset, marks

    def fork(self) -> KVState:
        """Another one that holds the same; nothing is copied before one of the two is fed."""
        twin = copy.copy(self)
        if self._sharing is None:
            self._sharing = SharedRows()
        twin._sharing = self._sharing.fork(self._layers)
        twin._layers = copy.deepcopy(self._layers)
        twin.marks = list(self.marks)
        return twin

    def rest(self) -> None:
        """Nothing will be fed for now: rows that forks share are held once."""
        if self._sharing is not None:
            self._sharing.fold(self._layers)

    def start_from(self, layers: list[Any], offset: int, *, opaque: bool) -> None:
        """Hold copies of these caches, `offset` tokens long.

        An opaque one is kept whole beside the working copy, and is never lost: nobody could read
        its tokens again.
        """
        if opaque:
            self._pristine, self.prefix = layers, offset
        self._layers, self.offset = copy.deepcopy(layers), offset
        self._quantize()

    def clear(self) -> None:
        """Drop everything but the prefix."""
        pristine = self._pristine
        self._forget_sharing()
        self._layers = self._make_layers() if pristine is None else copy.deepcopy(pristine)
        self.offset = self.prefix
        self.marks.clear()
        self._quantize()

    def feed(self, tokens: mx.array) -> mx.array:
        """One forward pass over ``(n,)`` tokens; the logits, shape ``(1, n, vocabulary)``.

        Nothing is computed yet. If this raises, or computing it does, the layers may be out of
        step, and only `clear` helps.
        """
        with mx.stream(generation_stream):
            logits = self.model(tokens[None], cache=self.layers)
            self.offset += len(tokens)
            self._quantize()
        return logits

    def evaluate(self) -> None:
        """Wait until all that was fed is computed, and hand freed buffers back."""
        mx.eval([layer.state for layer in self._layers])
        mx.clear_cache()

    def schedule(self, mark: Mark | None = None) -> None:
        """Have all that was fed computed, marks included, without waiting for it."""
        marks = self.marks if mark is None else [*self.marks, mark]
        layers = [*self._layers, *(layer for mark in marks for layer in mark.layers.values())]
        mx.async_eval([layer.state for layer in layers])  # type: ignore[no-untyped-call]

    def room(self, most: int) -> int:
        """How many tokens, `most` at most, one pass can take and be as good as one pass for each.

        A cache that is to be quantized from some token on must be so in time for that one.
        """
        if self._bits is not None and self.offset < self._quantized_start:
            return min(most, self._quantized_start - self.offset)
        return most

    def pin(self, count: int) -> None:
        """Have caches of bounded size never drop the first `count` tokens.

        Those that began with a prefix keep what they kept when it was made.
        """
        for layer in self._layers:
            if isinstance(layer, BoundedKVCache) and self._pristine is None:
                layer.pin(count)

    def mark(self) -> Mark:
        """A place to come back to: here."""
        copies = {
            index: copy.deepcopy(layer)
            for index, layer in enumerate(self._layers)
            if not always_trimmable(layer)
        }
        return Mark(self.offset, copies)

    @property
    def trimmable(self) -> bool:
        """Whether it can come back to any offset without a mark, always."""
        return all(map(always_trimmable, self._layers))

    def keep_mark(self, most: int, most_bytes: int) -> None:
        """Promise to be able to come back to here, within bounds on all marks.

        The first mark and the newest stay longest; of those between them, the oldest goes first.

        Args:
            most: How many marks are kept.
            most_bytes: How large they may be together.
        """
        known = {self.prefix, *(mark.offset for mark in self.marks)}
        if self.trimmable or self.offset in known:
            return
        self.marks.append(self.mark())
        while self.marks and (len(self.marks) > most or self.mark_bytes > most_bytes):
            del self.marks[1 if len(self.marks) > 2 else 0]

    @property
    def mark_bytes(self) -> int:
        """The size of all marks, in bytes."""
        return sum(mark.nbytes for mark in self.marks)

    def rewind(self, offset: int, mark: Mark | None = None) -> int:
        """Go back to at most `offset` tokens, and never beyond the prefix.

        Layers that can be trimmed are. If others can't, they are restored from the newest mark at
        or before `offset`, and the rest is trimmed to there; without one, everything but the prefix
        is dropped.

        Args:
            offset: How many tokens to keep, at most.
            mark: One more mark, besides those that are kept.

        Returns:
            The offset really reached.
        """
        offset = max(offset, self.prefix)
        if offset >= self.offset:
            return self.offset
        restored: Mapping[int, Any] = {}
        if offset and not all(map(_can_trim, self._layers)):
            marks = [*self.marks, *([] if mark is None else [mark])]
            reachable = [mark for mark in marks if mark.offset <= offset]
            newest = max(reachable, key=lambda mark: mark.offset, default=None)
            offset, restored = (newest.offset, newest.layers) if newest else (0, {})
        # What was quantized does not become whole again.
        if offset == 0 or (self._quantized_start > offset and self._is_quantized):
            self.clear()
            return self.offset
        surplus = self.offset - offset
        in_step = False
        try:
            for index, layer in enumerate(self._layers):
                if index in restored:
                    self._layers[index] = copy.deepcopy(restored[index])
                elif layer.trim(surplus) != surplus:
                    break
            else:
                in_step = True
                self.offset = offset
                self.marks = [mark for mark in self.marks if mark.offset <= offset]
                if self._sharing is not None:
                    self._sharing.cut(offset)
        finally:
            if not in_step:
                self.clear()
        return self.offset

    def _quantize(self) -> None:
        """Quantize the caches once they hold enough tokens, the first ones at once."""
        if self._bits is not None and self.offset >= self._quantized_start:
            maybe_quantize_kv_cache(self._layers, 0, self._group_size, self._bits)

    def _forget_sharing(self) -> None:
        if self._sharing is not None:
            self._sharing.release()
            self._sharing = None

    @property
    def _is_quantized(self) -> bool:
        return any(isinstance(layer, QuantizedKVCache) for layer in self._layers)


def _can_trim(layer: Any) -> bool:
    """Whether a layer can drop its newest tokens and be what it was before them."""
    if isinstance(layer, CacheList):
        return all(map(_can_trim, layer.caches))
    # A chunked layer says it can, but has dropped the front of the chunk that it would go back to.
    return bool(layer.is_trimmable()) and not getattr(layer, "start_position", 0)


def always_trimmable(layer: Any) -> bool:
    """Whether a layer can drop its newest tokens, however many it comes to hold."""
    if isinstance(layer, CacheList):
        return all(map(always_trimmable, layer.caches))
    return type(layer) in _TRIMMABLE
