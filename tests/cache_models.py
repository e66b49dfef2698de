"""Tiny models whose caches are of the rarer kinds, and caches of every kind, filled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import maybe_quantize_kv_cache
from mlx_lm.models import baichuan_m1, llama4, longcat_flash_ngram
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ConcatenateKVCache,
    KVCache,
    RotatingKVCache,
    make_prompt_cache,
)
from tiny import randomize, tiny_hybrid, tiny_llama, tiny_mamba

from segue import PromptCacheFormatError
from segue.mlx.stored.prompt_cache import read_cache_file

VOCABULARY = 80


def tiny_chunked(vocabulary: int) -> Any:
    """Three layers that keep a chunk of 8 tokens, and one that keeps all."""
    text = {
        "attention_bias": False,
        "attention_chunk_size": 8,
        "head_dim": 16,
        "hidden_size": 32,
        "interleave_moe_layer_step": 2,
        "intermediate_size": 32,
        "intermediate_size_mlp": 32,
        "max_position_embeddings": 1000,
        "model_type": "llama4",
        "num_attention_heads": 2,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 4,
        "num_key_value_heads": 1,
        "num_local_experts": 2,
        "rms_norm_eps": 1e-4,
        "rope_scaling": None,
        "rope_theta": 1000,
        "use_qk_norm": True,
        "vocab_size": vocabulary,
    }
    return randomize(llama4.Model(llama4.ModelArgs(model_type="llama4", text_config=text)))


def tiny_lists(vocabulary: int) -> Any:
    """Each layer keeps recurrent state and keys, the keys of every second one in a window."""
    return randomize(
        baichuan_m1.Model(
            baichuan_m1.ModelArgs(
                vocab_size=vocabulary,
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=4,
                num_attention_heads=2,
                num_key_value_heads=1,
                rope_theta=1000.0,
                sliding_window=8,
                sliding_window_layers=[1, 3],
                conv_window=2,
                rms_norm_eps=1e-5,
            )
        )
    )


def tiny_ngram(vocabulary: int) -> Any:
    """The last few token ids beside lists of two latent caches a layer."""
    return randomize(
        longcat_flash_ngram.Model(
            longcat_flash_ngram.ModelArgs(
                attention_bias=False,
                emb_neighbor_num=4,
                emb_split_num=4,
                expert_ffn_hidden_size=32,
                ffn_hidden_size=32,
                hidden_size=32,
                kv_lora_rank=16,
                max_position_embeddings=1000,
                mla_scale_kv_lora=True,
                mla_scale_q_lora=True,
                model_type="longcat_flash_ngram",
                moe_topk=2,
                n_routed_experts=2,
                ngram_vocab_size_ratio=8,
                norm_topk_prob=False,
                num_attention_heads=2,
                num_layers=2,
                q_lora_rank=16,
                qk_nope_head_dim=8,
                qk_rope_head_dim=8,
                rms_norm_eps=1e-5,
                rope_scaling=None,
                rope_theta=1000,
                routed_scaling_factor=1.0,
                router_bias=False,
                v_head_dim=8,
                vocab_size=vocabulary,
                zero_expert_num=2,
                zero_expert_type="identity",
            )
        )
    )


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
