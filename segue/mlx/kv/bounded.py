"""A KV cache of bounded size that keeps the first tokens and the latest."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import RotatingKVCache

# The first tokens of a conversation that are never dropped, as in mlx-lm.
KEPT_TOKENS = 4


class BoundedKVCache(RotatingKVCache):  # type: ignore[misc]
    """mlx-lm's rotating cache, whose tokens see the same, whichever passes they came in.

    Each token sees the first `keep` tokens and the latest ``max_size - keep``, itself included.
    mlx-lm lets it be so for tokens that come one by one; one of several in a pass sees the latest
    `max_size` of what the pass began with, so that the first ones fade.
    """

    def pin(self, count: int) -> None:
        """Never drop the first `count` tokens, or the first few; too late once any was dropped."""
        if self.offset < self.max_size:
            self.keep = max(count, KEPT_TOKENS)

    def make_mask(self, N: int, window_size: int | None = None, return_array: bool = False) -> Any:  # noqa: N803 (mlx-lm's)
        """As `RotatingKVCache.make_mask`."""
        if N == 1 or not self.keep or window_size is not None:
            return super().make_mask(N, window_size=window_size, return_array=return_array)
        offset = min(self.max_size - 1, self.offset)
        if offset + N <= self.max_size and not return_array:
            return "causal"
        place = mx.arange(offset + N)
        own = mx.arange(offset, offset + N)[:, None]
        latest = place > own - (self.max_size - self.keep)
        return (place <= own) & (latest | (place < self.keep))

    @classmethod
    def of(cls, cache: RotatingKVCache) -> BoundedKVCache:
        """One that goes on with what mlx-lm's own holds."""
        bounded: BoundedKVCache = cls.from_state(cache.state)
        return bounded

    def as_rotating(self) -> RotatingKVCache:
        """mlx-lm's own, for files: they name it by its class."""
        return RotatingKVCache.from_state(self.state)


def as_saved(layer: Any) -> Any:
    """A layer as files hold it: a bounded one as mlx-lm's own, any other as it is."""
    return layer.as_rotating() if isinstance(layer, BoundedKVCache) else layer
