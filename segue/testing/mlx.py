"""A fake model for `segue.MlxEngine`, over mlx-lm's real caches."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

from .. import mlx as _good_blas_first  # noqa: F401

# isort: split
import mlx.core as mx
from mlx_lm.models.cache import KVCache

from .script import NextToken


class CachingModel:
    """A fake mlx-lm model, whose layers cache the tokens that they are fed, as keys.

    What it predicts next depends on what its cache really holds, which it reads back from there.

    Args:
        rule: A function from the ids in the cache to the next id.
        vocabulary: How many logits the model has.
        layers: How many layers it has.
        fail_at: The forward passes to fail in (the first is 1), with half of the layers advanced.
        failure: The exception to fail with; by default a RuntimeError, as MLX raises.
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
        """How many forward passes were made."""
        self._rule = rule
        self._vocabulary = vocabulary

    def __call__(self, inputs: mx.array, cache: list[Any] | None = None) -> mx.array:
        """Return logits of shape ``(1, n, vocabulary)`` for tokens of shape ``(1, n)``."""
        self.calls += 1
        cache = cache if cache is not None else [KVCache() for _ in self.layers]
        keys = inputs.astype(mx.float32)[:, None, :, None]
        cached = keys
        for index, layer in enumerate(cache):
            if self.calls in self.fail_at and index == len(cache) // 2:
                raise self.failure or RuntimeError(
                    f"failed in forward pass {self.calls}, as it should"
                )
            cached, _ = layer.update_and_fetch(keys, keys)
        ids = [int(value) for value in cast(list[float], cached[0, 0, :, 0].tolist())]
        count = inputs.shape[1]
        predicted = [self._rule(ids[: len(ids) - count + end]) for end in range(1, count + 1)]
        return mx.where(mx.arange(self._vocabulary) == mx.array(predicted)[:, None], 10.0, 0.0)[
            None
        ]


# Where it is public; from the start, since fingerprints of models name their classes.
CachingModel.__module__ = "segue.testing"
