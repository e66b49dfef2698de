"""A KV cache of bounded size that keeps the first tokens and the latest.

How it works: mlx-lm's `RotatingKVCache` has the rows already, and drops the right ones: it keeps
the first `keep` and overwrites the oldest of the others. Only what a token *sees* is decided here.
Each token sees the first `keep` tokens and the latest ``max_size - keep``, itself included. In a
pass of several tokens, `make_mask` masks them so.

What does not work: mlx-lm's own mask. In a pass of several tokens, each sees the latest `max_size`
tokens of what was cached when the pass began, so that the first tokens of the conversation fade
from sight (logits were off by 70%), and what a token sees depends on the pass it came in. Then two
caches of the same ids differ, and nothing else here could be right.

Which tokens are first can be chosen (`pin`) until one was dropped, and not after. Files name a
layer by its class, so a bounded layer is written as mlx-lm's own.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import RotatingKVCache

# The first tokens of a conversation that are never dropped, as in mlx-lm.
KEPT_TOKENS = 4


class BoundedKVCache(RotatingKVCache):  # type: ignore[misc]
    """mlx-lm's rotating cache, in which a token sees the same, whichever pass it came in."""

    def pin(self, count: int) -> None:
        """Never drop the first `count` tokens, or the first few; too late once any was dropped."""
        if self.offset < self.max_size:
            self.keep = max(count, KEPT_TOKENS)

    def make_mask(self, N: int, window_size: int | None = None, return_array: bool = False) -> Any:  # noqa: N803 (mlx-lm's)
        """Return which rows each of `N` new tokens sees, as `RotatingKVCache.make_mask` does."""
        if N == 1 or not self.keep or window_size is not None:
            return super().make_mask(N, window_size=window_size, return_array=return_array)
        offset = min(self.max_size - 1, self.offset)
        if offset + N <= self.max_size and not return_array:
            return "causal"
        row = mx.arange(offset + N)
        own = mx.arange(offset, offset + N)[:, None]
        latest = row > own - (self.max_size - self.keep)
        return (row <= own) & (latest | (row < self.keep))

    @classmethod
    def of(cls, cache: RotatingKVCache) -> BoundedKVCache:
        """Return a bounded cache that holds what one of mlx-lm's own holds."""
        bounded: BoundedKVCache = cls.from_state(cache.state)
        return bounded

    def as_rotating(self) -> RotatingKVCache:
        """Return mlx-lm's own kind, for files: they name it by its class."""
        return RotatingKVCache.from_state(self.state)


def as_saved(layer: Any) -> Any:
    """Return a layer as files have it: a bounded one as mlx-lm's own, any other as it is."""
    return layer.as_rotating() if isinstance(layer, BoundedKVCache) else layer
