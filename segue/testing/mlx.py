"""A fake model for `segue.MlxEngine`, over mlx-lm's real caches."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

from .. import mlx as _good_blas_first  # noqa: F401

# isort: split
import mlx.core as mx
from mlx_lm.models.cache import KVCache

from .fake import NextToken


class CachingModel:
    """Behaves as an mlx-lm model: each layer caches the tokens it is fed, as keys.

    What it says next depends on what its cache really holds, read back from there.

    Args:
        rule: From the ids in the cache to the next id.
        vocabulary: How many logits it has.
        layers: How many layers.
        fail_at: Fail in these forward passes (the first is 1), half of the layers advanced ...
        failure: ... with this exception; by default a RuntimeError, as MLX raises.

    Attributes:
        calls: Forward passes so far.
    """

    def __init__(
        self,
        rule: NextToken,
        vocabulary: int,
        *,
        layers: int = 4,
        fail_at: Iterable[int] = (),
        failure: BaseException | None = None,
    ) -> None:
        self.args = SimpleNamespace(vocab_size=vocabulary)
        self.layers = [object() for _ in range(layers)]
        self.fail_at = set(fail_at)
        self.failure = failure
        self.calls = 0
        self._rule = rule
        self._vocabulary = vocabulary

    def __call__(self, inputs: mx.array, cache: list[Any] | None = None) -> mx.array:
        """Logits of shape ``(1, n, vocabulary)`` for tokens of shape ``(1, n)``."""
        self.calls += 1
        cache = cache if cache is not None else [KVCache() for _ in self.layers]
        keys = inputs.astype(mx.float32)[:, None, :, None]
        held = keys
        for index, layer in enumerate(cache):
            if self.calls in self.fail_at and index == len(cache) // 2:
                raise self.failure or RuntimeError(f"failed in forward pass {self.calls}, as told")
            held, _ = layer.update_and_fetch(keys, keys)
        ids = [int(value) for value in cast(list[float], held[0, 0, :, 0].tolist())]
        count = inputs.shape[1]
        said = [self._rule(ids[: len(ids) - count + end]) for end in range(1, count + 1)]
        return mx.where(mx.arange(self._vocabulary) == mx.array(said)[:, None], 10.0, 0.0)[None]
