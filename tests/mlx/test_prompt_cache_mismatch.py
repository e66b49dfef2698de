"""Prompt cache files with numbers and shapes that can't be, or that are another model's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    make_prompt_cache,
    save_prompt_cache,
)

from kit.filled_caches import KINDS, VOCABULARY, fill, filled, layers, make_bounded, refused
from kit.models import tiny_hybrid, tiny_llama, tiny_mamba
from segue import PromptCacheError, PromptCacheMismatchError
from segue.mlx.stored.checks import count_tokens
from segue.mlx.stored.prompt_cache import read_cache_file, write_cache_file

# --- foreign files: shapes, types and numbers ---------------------------------------------------


def rewrite(path: Path, kind: str, change: Callable[[Any], Any]) -> list[Any]:
    """A file of mlx-lm's of such a cache, one part changed; the model's own layers."""
    _, own, cache = filled(kind)
    change(cache)
    save_prompt_cache(str(path), cache)
    return own


def every(**changes: Any) -> Callable[[Any], None]:
    def change(cache: list[Any]) -> None:
        for layer in cache:
            for name, value in changes.items():
                if hasattr(layer, name):
                    setattr(layer, name, value)

    return change


def one(index: int, **changes: Any) -> Callable[[Any], None]:
    return lambda cache: every(**changes)(cache[index : index + 1])


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        ("plain", every(offset=257), "257, which can't be"),
        ("plain", every(offset=-1), "-1, which can't be"),
        ("plain", every(offset=2**40), "which can't be"),
        ("plain", every(offset=0), "it holds no tokens"),
        ("plain", every(offset=2.5), "not a whole number"),
        ("plain", every(offset=mx.array([6])), "lack the field"),
        ("plain", every(offset=None), "lack the field"),
        ("plain", every(offset="six"), "lack the field"),
        ("plain", every(keys=mx.zeros((1, 1, 256))), "rank 4"),
        ("plain", every(keys=mx.zeros((1, 1, 255, 32))), "same number of rows"),
        ("plain", every(keys=None), "lack the field"),
        ("plain", lambda cache: setattr(cache[2], "offset", 5), "same number of tokens"),
        ("bounded, turned", every(_idx=31), "which can't be"),
        ("bounded, turned", every(_idx=4), "don't agree"),
        ("bounded, turned", every(_idx=-1), "which can't be"),
        ("bounded, turned", every(keep=16), "which can't be"),
        ("bounded, turned", every(keep=-1), "which can't be"),
        ("bounded, turned", every(max_size=0), "which can't be"),
        ("bounded, turned", every(max_size=17), "don't agree"),
        ("bounded, turned", every(offset=2**31), "which can't be"),
        ("bounded, turned", one(1, _idx=6), "dropped different"),
        ("bounded, turned", lambda cache: setattr(cache[1], "keep", 2), "different ways"),
        ("bounded, not full", every(_idx=8), "don't agree"),
        ("bounded, prefilled past it", every(_idx=29), "don't agree"),
        ("quantized", every(group_size=48), "48"),
        ("quantized", every(bits=7), "7 bits"),
        ("quantized", every(bits=4), "don't fit together"),
        ("quantized", every(group_size=64), "don't fit together"),
        ("quantized", every(offset=257), "which can't be"),
        ("chunked, past a chunk", every(start_position=14), "which can't be"),
        ("chunked, past a chunk", every(start_position=-1), "which can't be"),
        ("chunked, past a chunk", every(chunk_size=0), "which can't be"),
        ("chunked, past a chunk", every(offset=1000), "which can't be"),
        ("chunked, past a chunk", lambda c: setattr(c[1], "start_position", 3), "dropped diff"),
        ("lists", lambda cache: setattr(cache[0][1], "offset", 5), "same number of tokens"),
    ],
)
def test_numbers_and_shapes_that_can_t_be(tmp_path, kind, change, told):
    path = tmp_path / "x.safetensors"
    refused(path, told, own=rewrite(path, kind, change))


def packed(part: int, shape: tuple[int, ...], dtype: mx.Dtype) -> Callable[[Any], None]:
    def change(cache: list[Any]) -> None:
        keys = list(cache[0].keys)
        keys[part] = mx.zeros(shape, dtype)
        cache[0].keys = tuple(keys)

    return change


@pytest.mark.parametrize(
    "change",
    [
        packed(0, (1, 1, 256, 8), mx.int32),
        packed(0, (1, 1, 256, 4), mx.uint32),
        packed(1, (1, 1, 256, 2), mx.float32),
        packed(2, (1, 1, 256, 1), mx.float16),
        packed(2, (1, 2, 256, 1), mx.float32),
    ],
)
def test_quantized_parts_that_don_t_fit_together(tmp_path, change):
    path = tmp_path / "x.safetensors"
    refused(path, "fit together|same number of rows", own=rewrite(path, "quantized", change))


# --- sound files of other models ----------------------------------------------------------------


def saved(path: Path, model: Any, cache: list[Any] | None = None) -> Path:
    save_prompt_cache(str(path), fill(model, cache or make_prompt_cache(model), (9, 1)))
    return path


def own_of(model: Any) -> list[Any]:
    return fill(model, make_prompt_cache(model), (1,))


def half(model: Any) -> Any:
    model.set_dtype(mx.float16)
    return model


LLAMA = tiny_llama(VOCABULARY)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (tiny_llama(VOCABULARY, head_dim=16), "size of a key of layer 0 is 16; this model has 32"),
        (half(tiny_llama(VOCABULARY)), "type of the keys of layer 0 is F16; this model has F32"),
        (tiny_llama(VOCABULARY, window=8), "layer 0 is a RotatingKVCache|bounded"),
        (tiny_hybrid(VOCABULARY), "are 3 layers, and in this model's cache 4"),
    ],
)
def test_a_file_of_another_model(tmp_path, model, told):
    path = saved(tmp_path / "x.safetensors", model)
    with pytest.raises(PromptCacheError, match=told):
        read_cache_file(path, own_of(LLAMA))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_of_model_is_a_mismatch(tmp_path, kind):
    _, own, cache = filled(kind)
    path = tmp_path / "x"
    write_cache_file(path, cache, {})
    other = [ArraysCache(3) for _ in cache]
    for layer in other:
        layer[0] = mx.zeros((1, 1))
    refused(path, "this model has", PromptCacheMismatchError, other)
    refused(path, "layers, and in this", PromptCacheMismatchError, [*own, own[0]])


def test_settings_of_another_model(tmp_path):
    path = saved(tmp_path / "x.safetensors", tiny_llama(VOCABULARY, window=8))
    own = own_of(tiny_llama(VOCABULARY, window=12))
    refused(path, "the max_size of layer 0 is 8; this model has 12", PromptCacheMismatchError, own)
    path = saved(tmp_path / "x.safetensors", tiny_mamba(VOCABULARY))
    own = own_of(tiny_mamba(VOCABULARY))
    own[1][0] = own[1][0][:, :2]
    refused(path, "the shape of slot 0 of layer 1", PromptCacheMismatchError, own)


def test_bounded_layers_stand_in_for_plain_ones_alone(tmp_path):
    path = saved(tmp_path / "x.safetensors", LLAMA, make_bounded(LLAMA))
    assert count_tokens(read_cache_file(path, own_of(LLAMA)).layers) == 10
    own = layers(1)[1:]
    bounded = make_bounded(LLAMA)[:1]
    bounded[0].update_and_fetch(*[mx.ones((1, 1, 1, 2))] * 2)
    save_prompt_cache(str(path), [CacheList(own[0][0], *bounded)])
    refused(path, "layer 0, member 1 is a RotatingKVCache", PromptCacheMismatchError, own)
    save_prompt_cache(str(path), [CacheList(own[0][0])])
    refused(path, "is a list of 1; in this model, of 2", PromptCacheMismatchError, own)
