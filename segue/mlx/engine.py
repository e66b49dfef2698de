"""A loaded MLX model with its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.generate import maybe_quantize_kv_cache
from mlx_lm.models.cache import (
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from ..config import GenerationConfig, SpeculativeDecodingConfig
from ..engine import StoredCache, StoredPart, Tokenizer
from ..errors import ConfigurationError
from ..tokenizers.hugging_face import MlxTokenizer
from . import blas
from .context import MlxContext
from .fingerprint import fingerprint
from .kv.bounded import KEPT_TOKENS, BoundedKVCache
from .kv.state import KVState
from .sampling import Sampling
from .speculation.drafters import Draft, LookupDraft, ModelDraft
from .speculation.verify import Drafting
from .stored.checks import probe_layers, tokens_held
from .stored.prompt_cache import read_cache_file
from .stored.sections import read_prefix


class MlxEngine:
    """A model and its tokenizer, as `mlx_lm.load` returns them; shared by many sessions.

    Args:
        model: An mlx-lm model.
        tokenizer: Its tokenizer: mlx-lm's wrapper, a Hugging Face tokenizer, or an object that
            implements `segue.engine.Tokenizer`.
        name: What messages call the model; by default the tokenizer's own name.

    Attributes:
        source: What it was loaded as. Prompt cache files tell it to mlx-lm's commands, which can
            load folders and repositories by it.

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
        self.name = name or str(getattr(self.tokenizer, "name", type(model).__name__))
        self.source = self.name
        self._quantizable: set[tuple[int, int]] = set()
        if mx.default_device() == mx.Device(mx.cpu):
            blas.warn_if_slow()

    def context(
        self,
        config: GenerationConfig,
        *,
        speculative: SpeculativeDecodingConfig | None = None,
        cache: StoredCache | None = None,
        opaque: bool = False,
    ) -> MlxContext:
        """See `segue.engine.Engine.context`."""
        if config.kv_bits is not None:
            self._check_quantizable(config.kv_bits, config.kv_group_size)
        state = KVState(self.model, lambda: self._make_cache(config), config)
        if cache is not None:
            state.start_from(cache.layers, cache.offset or 0, opaque=opaque)
        return MlxContext(
            state,
            self._sampling,
            vocabulary=self._stated_vocabulary,
            # What mlx_lm.generate looks for in a prompt cache.
            labels={"model": self.source, "tokenizer_config": "{}"},
            drafting=None if speculative is None else self._drafting(speculative),
        )

    def load_cache(self, path: Path) -> StoredCache:
        """See `segue.engine.Engine.load_cache`; the layout is mlx-lm's own."""
        own = make_prompt_cache(self.model)
        kinds = [type(layer) for layer in own]
        file = read_cache_file(path, probe_layers(self.model, own))
        layers = [
            BoundedKVCache.of(layer)
            if kind is KVCache and isinstance(layer, RotatingKVCache)
            else layer
            for layer, kind in zip(file.layers, kinds, strict=True)
        ]
        return _stored(layers, tokens_held(layers), file.metadata)

    def read_prefix(self, part: StoredPart, config: GenerationConfig) -> StoredCache:
        """See `segue.engine.Engine.read_prefix`."""
        state = KVState(self.model, lambda: self._make_cache(config), config)
        layers = read_prefix(state, part)
        return _stored(layers, tokens_held(layers), {})

    @cached_property
    def fingerprint(self) -> str:
        """See `segue.engine.Engine.fingerprint`."""
        return fingerprint(self.model, self.tokenizer.vocabulary)

    def _drafting(self, speculative: SpeculativeDecodingConfig) -> Drafting:
        engine = speculative.draft
        draft: Draft
        if isinstance(engine, str):
            draft = LookupDraft()
        elif isinstance(engine, MlxEngine):
            # A draft's caches are small: they are kept whole, whatever the model's are.
            config = GenerationConfig()
            draft = ModelDraft(
                KVState(engine.model, lambda: engine._make_cache(config), config),
                self._sampling,
                vocabulary=engine.vocabulary,
                width=self.vocabulary,
                fingerprint=lambda: engine.fingerprint,
            )
        else:
            raise ConfigurationError(
                f"{type(engine).__name__} can't draft for a model that runs on MLX.",
                remedy="Pass an MlxEngine as the draft, or 'prompt-lookup'.",
            )
        return Drafting(draft, speculative.num_draft_tokens)

    @cached_property
    def vocabulary(self) -> int:
        """How many tokens the model has (its embedding may be wider than the tokenizer)."""
        # The shape is known without computing anything: MLX is lazy.
        return self._stated_vocabulary or int(self.model(mx.zeros((1, 1), mx.uint32)).shape[-1])

    @property
    def context_length(self) -> int | None:
        """See `segue.engine.Engine.context_length`."""
        return self._stated("max_position_embeddings")

    @property
    def _stated_vocabulary(self) -> int | None:
        return self._stated("vocab_size")

    def _stated(self, name: str) -> int | None:
        """A number in the model's settings, if they state it."""
        settings = getattr(self.model, "args", None)
        text = getattr(settings, "text_config", None)
        nested = text.get(name) if isinstance(text, dict) else None
        number = nested or getattr(settings, name, None)
        return number if isinstance(number, int) else None

    @cached_property
    def _xtc_special_tokens(self) -> list[int]:
        """What XTC never excludes, as in mlx-lm: a line's and a reply's end."""
        ids = {*self.tokenizer.encode("\n"), *self.tokenizer.eos_token_ids}
        return [token for token in ids if 0 <= token < self.vocabulary]

    def _sampling(self, config: GenerationConfig) -> Sampling:
        return Sampling(
            config,
            vocabulary=lambda: self.vocabulary,
            xtc_special_tokens=self._xtc_special_tokens if config.xtc_probability else (),
        )

    def _make_cache(self, config: GenerationConfig) -> list[Any]:
        cache: list[Any] = make_prompt_cache(self.model)
        if config.max_kv_size is not None:
            if not any(type(layer) is KVCache for layer in cache):
                raise ConfigurationError(
                    f"max_kv_size has no effect on {self.name}: its layers bring bounded caches of "
                    "their own.",
                    remedy="Leave max_kv_size at None.",
                )
            # mlx-lm's own make_prompt_cache overlooks the size where the model makes its caches.
            cache = [
                BoundedKVCache(config.max_kv_size, keep=KEPT_TOKENS)
                if type(layer) is KVCache
                else layer
                for layer in cache
            ]
        return cache

    def _check_quantizable(self, bits: int, group_size: int) -> None:
        """Try a quantized cache on two tokens: whether it works depends on every layer's shape."""
        if (bits, group_size) in self._quantizable:
            return
        cache: list[Any] = make_prompt_cache(self.model)
        unquantized = [type(layer) for layer in cache]
        try:
            for _ in range(2):
                logits = self.model(mx.zeros((1, 1), mx.uint32), cache=cache)
                maybe_quantize_kv_cache(cache, 0, group_size, bits)
                mx.eval(logits, [layer.state for layer in cache])
        # Models and MLX refuse shapes and caches they can't handle with all kinds of errors.
        except Exception as error:
            raise ConfigurationError(
                f"The KV cache of {self.name} can't be quantized to {bits} bits in groups of "
                f"{group_size}: {error}.",
                remedy="Try another kv_group_size or kv_bits, or leave kv_bits at None.",
            ) from error
        if [type(layer) for layer in cache] == unquantized:
            raise ConfigurationError(
                f"The KV cache of {self.name} can't be quantized: it has no layer of that kind.",
                remedy="Leave kv_bits at None.",
            )
        self._quantizable.add((bits, group_size))


def _stored(layers: list[Any], offset: int | None, metadata: Mapping[str, str]) -> StoredCache:
    stored = StoredCache(layers, offset, metadata)
    for layer in layers:
        # Layers of another kind than the model's own were asked for when the cache was made.
        if isinstance(layer, QuantizedKVCache):
            return replace(stored, kv_bits=layer.bits, kv_group_size=layer.group_size)
        if isinstance(layer, BoundedKVCache):
            return replace(stored, max_kv_size=layer.max_size)
    return stored
