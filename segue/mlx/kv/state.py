"""The KV caches of one conversation, one a layer, as one thing that grows and rewinds.

How it works: a `KVState` feeds tokens to the model, which appends them to every layer, and drops
them again: by trimming layers that can be trimmed, and by restoring the others from a checkpoint
(`checkpoints.py`). Reuse, trim and rebuild are all `rewind`: to where the cache is, to where it was
asked to, to nothing. The state counts the tokens that it was fed by itself.

Beside the working layers there may be

- the layers of an opaque *prefix*, whose tokens nobody knows: they are never changed, so that even
  after a failure the prefix can be copied back, and `rewind` stops there;
- *shared rows*, where the conversation was forked (`shared_rows.py`): while no request runs, the
  layers may be compacted, and `layers` expands them. `release` compacts them again.

A cache that is to be quantized from some token on must be so from exactly that token on, whatever
passes it was read in, or the same conversation would get another reply. Passes end there; see
`largest_pass`. What is quantized can't be made whole again, so a rewind to before that token drops
everything.

What does not work:

- Asking a layer for its offset. Recurrent layers have none, and `trim` of a negative count moves it
  forward without an error.
- Continuing after a failed pass. Some layers have advanced and others have not, and no layer knows
  by how much: `clear` is all that is left to do. So `rewind` clears, too, if it fails half way.
- Sharing layers between threads while something is still to be computed: MLX's lazy arrays belong
  to the thread's own stream. `schedule` has it computed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generation_stream, maybe_quantize_kv_cache
from mlx_lm.models.cache import QuantizedKVCache

from ...config import CacheConfig
from .bounded import BoundedKVCache
from .checkpoints import Checkpoints, KVCheckpoint, always_trimmable, can_trim
from .shared_rows import SharedRows

Model = Callable[..., mx.array]
"""An mlx-lm model: ``(tokens (1, n), cache=...) -> logits (1, n, vocabulary)``."""


def reference_layers(model: Model, layers: list[Any]) -> list[Any]:
    """Return a model's own layers after one token, for saved ones to be compared with.

    Nothing is computed: MLX is lazy, and shapes and types are known before values are.

    Args:
        model: An mlx-lm model.
        layers: Its empty caches, as mlx-lm's ``make_prompt_cache(model)`` makes them; they are fed.
    """
    model(mx.zeros((1, 1), mx.uint32), cache=layers)
    return layers


class KVState:
    """The caches of one conversation with one model.

    Args:
        model: The model.
        make_layers: Makes the empty caches, one a layer.
        cache: If and when the caches are quantized, and the bounds on checkpoints.
    """

    def __init__(
        self, model: Model, make_layers: Callable[[], list[Any]], cache: CacheConfig
    ) -> None:
        self.model = model
        """The model."""
        self.offset = 0
        """How many tokens are cached."""
        self.prefix = 0
        """How many of those are a prefix, which always stays."""
        self.checkpoints = Checkpoints(cache.max_checkpoints, cache.max_checkpoint_bytes)
        """What layers that can't be trimmed rewind to."""
        self._make_layers = make_layers
        self._bits = cache.kv_bits
        self._group_size = cache.kv_group_size
        self._quantized_start = cache.quantized_kv_start
        self._layers = make_layers()
        # Rows that are shared with forks; `None` if there never was one.
        self._sharing: SharedRows | None = None
        self._pristine: list[Any] | None = None
        self._quantize()

    @property
    def layers(self) -> list[Any]:
        """The caches. Where rows are shared with forks, they are expanded; see `release`."""
        if self._sharing is not None:
            self._sharing.expand(self._layers)
        return self._layers

    @property
    def pristine(self) -> list[Any] | None:
        """The layers of an opaque prefix, if there is one; never changed."""
        return self._pristine

    @property
    def trimmable(self) -> bool:
        """True if the caches can rewind to any offset without a checkpoint, always."""
        return all(map(always_trimmable, self._layers))

    def reference_layers(self, offset: int, *, quantized: bool) -> list[Any]:
        """Return this model's caches after one token, for saved ones to be compared with.

        Args:
            offset: They are of the kind that they have at this offset.
            quantized: True if they are quantized earlier than they would be here.
        """
        layers = reference_layers(self.model, self._make_layers())
        if self._bits is not None and (quantized or offset >= self._quantized_start):
            maybe_quantize_kv_cache(layers, 0, self._group_size, self._bits)
        return layers

    def replace(
        self, layers: list[Any], offset: int, checkpoints: Sequence[KVCheckpoint] = ()
    ) -> None:
        """Hold these layers, `offset` tokens long with the prefix, instead of the present ones."""
        self._stop_sharing()
        self._layers, self.offset = layers, offset
        self.checkpoints = self.checkpoints.replaced(checkpoints)

    def start_from(self, layers: list[Any], offset: int, *, opaque: bool) -> None:
        """Hold copies of these layers, `offset` tokens long; for a new state.

        The layers of an opaque prefix are saved beside the working copy and are never lost: nobody
        could read its tokens again.
        """
        if opaque:
            self._pristine, self.prefix = layers, offset
        self._layers, self.offset = copy.deepcopy(layers), offset
        self._quantize()

    def fork(self) -> KVState:
        """Return another state that holds the same; nothing is copied before one of them is fed."""
        twin = copy.copy(self)
        if self._sharing is None:
            self._sharing = SharedRows()
        twin._sharing = self._sharing.fork(self._layers)
        twin._layers = copy.deepcopy(self._layers)
        twin.checkpoints = self.checkpoints.replaced(self.checkpoints.all)
        return twin

    def release(self) -> None:
        """Free what only a running request needs: rows that forks share are stored once."""
        if self._sharing is not None:
            self._sharing.compact(self._layers)

    def clear(self) -> None:
        """Drop everything but the prefix."""
        pristine = self._pristine
        layers = self._make_layers() if pristine is None else copy.deepcopy(pristine)
        self.replace(layers, self.prefix)
        self._quantize()

    def abandon(self) -> None:
        """Count as empty but for the prefix, and leave the layers alone; not fed again.

        In a forked process, nothing may be done with them.
        """
        self.offset = self.prefix
        self.checkpoints = self.checkpoints.replaced(())

    def close(self) -> None:
        """Free all memory; the state is not used again."""
        self._pristine, self.prefix = None, 0
        self.replace([], 0)

    def feed(self, tokens: mx.array) -> mx.array:
        """Make one forward pass over ``(n,)`` tokens.

        Nothing is computed yet. If this raises, or computing it does, the layers may be out of
        step, and only `clear` helps.

        Returns:
            The logits, of shape ``(1, n, vocabulary)``.
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

    def schedule(self, *more: KVCheckpoint) -> None:
        """Have all that was fed computed, checkpoints and `more` included, without waiting."""
        layers = list(self._layers)
        for checkpoint in (*self.checkpoints.all, *more):
            layers += checkpoint.layers.values()
        mx.async_eval([layer.state for layer in layers])  # type: ignore[no-untyped-call]

    def largest_pass(self, most: int) -> int:
        """Return how many tokens, up to `most`, one pass can take and be as good as single ones.

        A cache that is to be quantized from some token on must be so in time for that token.
        """
        if self._bits is not None and self.offset < self._quantized_start:
            return min(most, self._quantized_start - self.offset)
        return most

    def pin(self, count: int) -> None:
        """Have caches of bounded size never drop the first `count` tokens.

        Caches that started from a prefix always keep the tokens that it was made to keep.
        """
        for layer in self._layers:
            if isinstance(layer, BoundedKVCache) and self._pristine is None:
                layer.pin(count)

    def checkpoint(self) -> KVCheckpoint:
        """Return a checkpoint of the present offset; whoever asks has to keep it."""
        return KVCheckpoint.of(self._layers, self.offset)

    def keep_checkpoint(self) -> None:
        """Be able to rewind to the present offset, as far as checkpoints are bounded."""
        if not self.trimmable and self.offset not in (self.prefix, *self.checkpoints.offsets):
            self.checkpoints.add(self.checkpoint())

    def rewind(self, offset: int, *more: KVCheckpoint) -> int:
        """Go back to at most `offset` tokens, and never into the prefix.

        Layers that can be trimmed are. If others can't, they are restored from the newest
        checkpoint at or before `offset`, and the rest is trimmed to there; without one, everything
        but the prefix is dropped.

        Args:
            offset: How many tokens to keep, at most.
            more: Checkpoints besides those that are kept.

        Returns:
            The offset reached.
        """
        offset = max(offset, self.prefix)
        if offset >= self.offset:
            return self.offset
        restored: Mapping[int, Any] = {}
        if offset and not all(map(can_trim, self._layers)):
            newest = self.checkpoints.newest(offset, *more)
            offset, restored = (newest.offset, newest.layers) if newest else (0, {})
        # What was quantized does not become whole again.
        if offset == 0 or (self._quantized_start > offset and self._is_quantized):
            self.clear()
        else:
            self._cut(offset, restored)
        return self.offset

    def _cut(self, offset: int, restored: Mapping[int, Any]) -> None:
        """Go back to just `offset` tokens, with these layers put back; `clear` if that fails."""
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
                self.checkpoints.cut(offset)
                if self._sharing is not None:
                    self._sharing.cut(offset)
        finally:
            if not in_step:
                self.clear()

    def _quantize(self) -> None:
        """Quantize the caches once they hold enough tokens."""
        if self._bits is not None and self.offset >= self._quantized_start:
            maybe_quantize_kv_cache(self._layers, 0, self._group_size, self._bits)

    def _stop_sharing(self) -> None:
        if self._sharing is not None:
            self._sharing.leave()
            self._sharing = None

    @property
    def _is_quantized(self) -> bool:
        return any(isinstance(layer, QuantizedKVCache) for layer in self._layers)
