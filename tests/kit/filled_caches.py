"""mlx-lm's own caches of every kind, filled with the tokens of a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import maybe_quantize_kv_cache
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ConcatenateKVCache,
    KVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from kit.models import tiny_chunked, tiny_hybrid, tiny_lists, tiny_llama, tiny_mamba, tiny_ngram
from segue import PromptCacheFormatError
from segue.mlx.stored.prompt_cache import read_cache_file

VOCABULARY = 80


def make_bounded(model: Any) -> list[Any]:
    """As `MlxEngine` and ``mlx_lm.cache_prompt --max-kv-size 16`` bound plain layers."""
    return [
        RotatingKVCache(16, keep=4) if type(layer) is KVCache else layer
        for layer in make_prompt_cache(model)
    ]


def make_concatenating(model: Any) -> list[Any]:
    return [ConcatenateKVCache() for _ in make_prompt_cache(model)]


def fill(
    model: Any, cache: list[Any], chunks: Sequence[int], *, bits: int | None = None
) -> list[Any]:
    """Feed tokens in chunks of these sizes."""
    at = 0
    for size in chunks:
        tokens = [(7 * place + 3) % VOCABULARY for place in range(at, at + size)]
        logits = model(mx.array([tokens], mx.uint32), cache=cache)
        maybe_quantize_kv_cache(cache, 0, 32, bits)
        mx.eval(logits, [layer.state for layer in cache])
        at += size
    return cache


Make = Callable[[Any], list[Any]]

# Of every kind of cache: the model, its caches, and how they are filled; past windows and chunks,
# and with rows in them in every order.
KINDS: dict[str, tuple[Any, Make, Sequence[int], int | None]] = {
    "plain": (tiny_llama, make_prompt_cache, (5, 1), None),
    "plain, past a step": (tiny_llama, make_prompt_cache, (300, 1), None),
    "quantized": (tiny_llama, make_prompt_cache, (30, 1), 8),
    "quantized to 3 bits": (tiny_llama, make_prompt_cache, (30, 1), 3),
    "bounded, not full": (tiny_llama, make_bounded, (9, 1), None),
    "bounded, prefilled past it": (tiny_llama, make_bounded, (30,), None),
    "bounded, turned": (tiny_llama, make_bounded, (14, 1, 1, 1, 1, 1), None),
    "concatenating": (tiny_llama, make_concatenating, (5, 1), None),
    "recurrent": (tiny_mamba, make_prompt_cache, (5, 1), None),
    "hybrid": (tiny_hybrid, make_prompt_cache, (20, 1, 1, 1, 1, 1), None),
    "hybrid, prefilled twice": (tiny_hybrid, make_prompt_cache, (20, 10), None),
    "chunked": (tiny_chunked, make_prompt_cache, (5, 1), None),
    "chunked, past a chunk": (tiny_chunked, make_prompt_cache, (6, 6, 1), None),
    "lists": (tiny_lists, make_prompt_cache, (5, 1), None),
    "lists, past a window": (tiny_lists, make_prompt_cache, (7, 1, 1, 1), None),
    "token ids": (tiny_ngram, make_prompt_cache, (5, 1), None),
}


def filled(kind: str) -> tuple[Any, list[Any], list[Any]]:
    """A model, its own caches after one token, and its caches filled."""
    make_model, make, chunks, bits = KINDS[kind]
    model = make_model(VOCABULARY)
    own = fill(model, make(model) if make is make_concatenating else make_prompt_cache(model), (1,))
    return model, own, fill(model, make(model), chunks, bits=bits)


def layers(tokens: int, *, heads: int = 1, size: int = 2) -> list[Any]:
    """Two kinds of layers, the smallest there are."""
    plain, arrays = KVCache(), ArraysCache(2)
    plain.step = 8
    plain.update_and_fetch(*[mx.ones((1, heads, tokens, size))] * 2)
    arrays[0] = mx.ones((1, 2))
    return [plain, CacheList(arrays, plain)]


OWN = layers(1)


def refused(
    path: Path, told: str = ".", kind: Any = PromptCacheFormatError, own: Any = OWN
) -> None:
    with pytest.raises(kind, match=told) as raised:
        read_cache_file(path, own)
    assert raised.value.remedy
    assert len(str(raised.value)) < 600
