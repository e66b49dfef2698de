"""A loaded MLX model with its tokenizer."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from ..config import GenerationConfig
from ..engine import Tokenizer
from ..errors import ConfigurationError
from . import blas
from .context import MlxContext
from .sampling import Sampling
from .tokenizer import MlxTokenizer

# The first tokens of a conversation that a cache of bounded size never drops, as in mlx-lm.
KEPT_TOKENS = 4


class MlxEngine:
    """A model and its tokenizer, as `mlx_lm.load` returns them; shared by many sessions.

    Args:
        model: An mlx-lm model.
        tokenizer: Its tokenizer: mlx-lm's wrapper, a Hugging Face tokenizer, or an object that
            implements `segue.engine.Tokenizer`.
        name: What messages call the model; by default the tokenizer's own name.

    Raises:
        MissingTemplateError: The tokenizer has no chat template.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str | None = None) -> None:
        self.model = model
        self.tokenizer: Tokenizer = (
            MlxTokenizer(tokenizer, name=name)
            if hasattr(tokenizer, "apply_chat_template")
            else tokenizer
        )
        self.name = name or getattr(self.tokenizer, "name", type(model).__name__)
        if mx.default_device() == mx.Device(mx.cpu):
            blas.warn_if_slow()

    def context(self, config: GenerationConfig) -> MlxContext:
        """See `segue.engine.Engine.context`."""
        return MlxContext(self.model, lambda: self._make_cache(config), self._sampling)

    @cached_property
    def vocabulary(self) -> int:
        """How many logits the model has (its embedding may be wider than the tokenizer)."""
        # The shape is known without computing anything: MLX is lazy.
        return int(self.model(mx.zeros((1, 1), mx.uint32)).shape[-1])

    @cached_property
    def _newline_ids(self) -> list[int]:
        return list(self.tokenizer.encode("\n"))

    def _sampling(self, config: GenerationConfig) -> Sampling:
        return Sampling(
            config,
            vocabulary=lambda: self.vocabulary,
            xtc_special_tokens=[*self._newline_ids, *self.tokenizer.eos_token_ids],
        )

    def _make_cache(self, config: GenerationConfig) -> list[Any]:
        cache: list[Any] = make_prompt_cache(self.model)
        if config.max_kv_size is not None:
            # mlx-lm's own make_prompt_cache overlooks the size where the model makes its caches.
            bounded = [
                RotatingKVCache(config.max_kv_size, keep=KEPT_TOKENS)
                if type(layer) is KVCache
                else layer
                for layer in cache
            ]
            if not any(type(layer) is KVCache for layer in cache):
                raise ConfigurationError(
                    f"max_kv_size has no effect on {self.name}: its layers bring bounded caches of "
                    "their own.",
                    remedy="Leave max_kv_size at None.",
                )
            cache = bounded
        if config.kv_bits is not None:
            self._check_quantizable(cache, config)
        return cache

    def _check_quantizable(self, cache: list[Any], config: GenerationConfig) -> None:
        able = [layer for layer in cache if hasattr(layer, "to_quantized")]
        try:
            for layer in able:
                layer.to_quantized(group_size=config.kv_group_size, bits=config.kv_bits)
        except NotImplementedError:
            able = []
        if not able:
            raise ConfigurationError(
                f"The KV cache of {self.name} can't be quantized.", remedy="Leave kv_bits at None."
            )
