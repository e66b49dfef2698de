"""Kinds of KV caches, and sessions over them."""

from __future__ import annotations

from pathlib import Path

from mlx_lm.models.cache import save_prompt_cache

from kit.contexts import read
from kit.models import tiny_hybrid, tiny_llama, tiny_mamba
from kit.probe import layers_of
from segue import CacheConfig, ChatSession, GenerationConfig, MlxEngine
from segue.mlx.kv.bounded import BoundedKVCache

SHORT = GenerationConfig(max_tokens=8)
KINDS = {
    "full": (tiny_llama, {}, {}),
    "sliding": (tiny_llama, {"window": 16}, {}),
    "recurrent": (tiny_mamba, {}, {}),
    "hybrid": (tiny_hybrid, {}, {}),
    "bounded": (tiny_llama, {}, {"max_kv_size": 24}),
    "quantized": (
        tiny_llama,
        {},
        {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 0},
    ),
}


def counted(session: ChatSession, text: str) -> tuple[str, int]:
    """A turn's reply, and how many tokens it fed before that."""
    reply = session.stream(text)
    said = "".join(response.text for response in reply)
    return said, reply.prompt_tokens - reply.cached_tokens


def foreign(
    engine: MlxEngine,
    path: Path,
    ids: list[int],
    cache: CacheConfig = CacheConfig(),  # noqa: B008 (immutable)
) -> list:
    """A file as mlx-lm writes it, of tokens that it does not name."""
    context = engine.context(cache)
    read(context, ids)
    layers = [
        layer.as_rotating() if isinstance(layer, BoundedKVCache) else layer
        for layer in layers_of(context)
    ]
    save_prompt_cache(str(path), layers, {"model": "tiny"})
    return ids
