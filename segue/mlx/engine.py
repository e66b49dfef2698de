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

from ..checks import named_arguments
from ..config import CacheConfig, GenerationConfig
from ..engine import StoredCache, StoredState, Tokenizer
from ..errors import ConfigurationError
from ..masking.matcher import GrammarCompiler
from ..tokenizer import unknown_ids
from ..tokenizers.hugging_face import HuggingFaceTokenizer
from . import blas
from .context import MlxContext
from .fingerprint import fingerprint
from .kv.bounded import KEPT_TOKENS, BoundedKVCache
from .kv.state import KVState, reference_layers
from .process.arrays import compute_arrays
from .process.forks import use_model
from .sampling import Sampling
from .speculation.drafter import Drafter, LookupDrafter
from .speculation.model import ModelDrafter
from .stored.checks import count_tokens
from .stored.prompt_cache import read_cache_file
from .stored.sections import read_prefix

PROMPT_LOOKUP = "prompt-lookup"


class MlxEngine:
    """A model and its tokenizer, as `mlx_lm.load` returns them; shared by many sessions.

    `segue.load` makes one from a model's name; this is for models that are loaded already, as by
    ``MlxEngine(*mlx_lm.load("mlx-community/Qwen3-0.6B-4bit"))``, and for models of your own.

    Examples:
        >>> import segue
        >>> from segue.testing import CachingModel, ToyTokenizer
        >>> engine = segue.MlxEngine(CachingModel(lambda ids: ord("h"), 300), ToyTokenizer())
        >>> segue.ChatSession(engine).respond("Say h.", max_tokens=3)
        'hhh'

    Args:
        model: An mlx-lm model.
        tokenizer: Its tokenizer: mlx-lm's wrapper, a Hugging Face tokenizer, or an object that
            implements `segue.engine.Tokenizer`.
        name: What messages call the model; by default the tokenizer's own name.

    Raises:
        MissingTemplateError: if the tokenizer has no chat template.
        ForkedProcessError: if this process was forked from one that uses MLX.
    """

    @named_arguments(owner="MlxEngine")
    def __init__(self, model: Any, tokenizer: Any, *, name: str | None = None) -> None:
        use_model()
        self.model = model
        """The mlx-lm model."""
        self.tokenizer: Tokenizer = (
            HuggingFaceTokenizer(tokenizer, name=name)
            if hasattr(tokenizer, "apply_chat_template")
            else tokenizer
        )
        """The model's own tokenizer, with its chat template."""
        self.name = name or str(getattr(self.tokenizer, "name", type(model).__name__))
        """What messages call the model."""
        self.source = self.name
        """What it was loaded as. Prompt cache files have it for mlx-lm's commands, which can load
        folders and repositories by it."""
        self.location = ""
        """What loads it from any folder: an absolute path, an alias or a repository; empty if that
        is unknown."""
        self.recommended = GenerationConfig()
        """The settings of replies that the model's publisher recommends, where its files name any:
        ``ChatSession(engine, generation=engine.recommended)``."""
        self._grammars = GrammarCompiler(self.tokenizer, lambda: self.vocabulary)
        self._quantizable: set[tuple[int, int]] = set()
        self._known_ids: dict[int, mx.array | None] = {}
        if mx.default_device() == mx.Device(mx.cpu):
            blas.warn_if_slow()
        compute_arrays(model)

    def __repr__(self) -> str:
        return f"<MlxEngine {self.name}>"

    def context(self, cache: CacheConfig) -> MlxContext:
        """Return a new, empty context with a cache of this kind.

        Raises:
            ConfigurationError: if this model can't have such a cache.
        """
        use_model()
        if cache.kv_bits is not None:
            self._check_quantizable(cache.kv_bits, cache.kv_group_size)
        return MlxContext(
            KVState(self.model, lambda: self._make_cache(cache), cache),
            cache,
            self._sampling,
            make_drafter=self._drafter,
            make_matcher=self._grammars.matcher,
            vocabulary=self._stated_vocabulary,
            # What mlx_lm.generate looks for in a prompt cache.
            labels={"model": self.source, "tokenizer_config": "{}"},
        )

    def load_cache(self, path: Path) -> StoredCache:
        """See `segue.engine.StoresPrompts.load_cache`; the layout is mlx-lm's own."""
        use_model()
        own = make_prompt_cache(self.model)
        kinds = [type(layer) for layer in own]
        file = read_cache_file(path, reference_layers(self.model, own))
        layers = [
            BoundedKVCache.of(layer)
            if kind is KVCache and isinstance(layer, RotatingKVCache)
            else layer
            for layer, kind in zip(file.layers, kinds, strict=True)
        ]
        return _stored(layers, count_tokens(layers), file.metadata)

    def read_prefix(self, stored: StoredState, cache: CacheConfig) -> StoredCache:
        """See `segue.engine.StoresPrompts.read_prefix`."""
        use_model()
        state = KVState(self.model, lambda: self._make_cache(cache), cache)
        layers = read_prefix(state, stored)
        return _stored(layers, count_tokens(layers), {})

    @property
    def fingerprint(self) -> str:
        """See `segue.engine.Engine.fingerprint`; computed once."""
        return self._fingerprint

    # Type checkers don't take a cached_property where a protocol has a property.
    @cached_property
    def _fingerprint(self) -> str:
        use_model()
        return fingerprint(self.model, self.tokenizer.vocabulary)

    def compile_grammar(self, grammar: str) -> None:
        """See `segue.engine.Grammars.compile_grammar`."""
        self._grammars.matcher(grammar)

    def _drafter(self, draft: object) -> Drafter:
        """Return what proposes tokens for this engine's contexts, in a state of its own.

        Raises:
            ConfigurationError: if this draft can't draft for this engine.
        """
        if draft == PROMPT_LOOKUP:
            return LookupDrafter()
        if not isinstance(draft, MlxEngine):
            kind = repr(draft) if isinstance(draft, str) else type(draft).__name__
            raise ConfigurationError(
                f"{kind} can't draft for a model that runs on MLX.",
                remedy=f"Pass an MlxEngine as the draft, or {PROMPT_LOOKUP!r}.",
            )
        # A draft's caches are small: they are kept whole, whatever the model's are.
        cache = CacheConfig()
        return ModelDrafter(
            KVState(draft.model, lambda: draft._make_cache(cache), cache),
            self._sampling,
            vocabulary=draft.vocabulary,
            width=self.vocabulary,
            fingerprint=lambda: draft.fingerprint,
        )

    @cached_property
    def vocabulary(self) -> int:
        """How many tokens the model has; its embedding may be wider than the tokenizer."""
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
        """Return a number of the model's settings, if they state it."""
        settings = getattr(self.model, "args", None)
        text = getattr(settings, "text_config", None)
        nested = text.get(name) if isinstance(text, dict) else None
        number = nested or getattr(settings, name, None)
        return number if isinstance(number, int) else None

    @cached_property
    def _xtc_special_tokens(self) -> list[int]:
        """The ids that XTC never excludes, as in mlx-lm: a line's end and a reply's."""
        ids = {*self.tokenizer.encode("\n"), *self.tokenizer.eos_token_ids}
        return [token for token in ids if 0 <= token < self.vocabulary]

    def _sampling(self, config: GenerationConfig) -> Sampling:
        return Sampling(
            config,
            vocabulary=lambda: self.vocabulary,
            xtc_special_tokens=self._xtc_special_tokens if config.xtc_probability else (),
            known=self._known,
        )

    def _known(self, width: int) -> mx.array | None:
        """Return which of the first `width` ids have a token; ``None`` if all have, or none."""
        if width not in self._known_ids:
            unknown = set(unknown_ids(self.tokenizer, range(width)))
            known = None
            if 0 < len(unknown) < width:
                known = mx.array([index not in unknown for index in range(width)])
                # Computed now: replies on other threads use it, too.
                mx.eval(known)
            self._known_ids[width] = known
        return self._known_ids[width]

    def _make_cache(self, cache: CacheConfig) -> list[Any]:
        layers: list[Any] = make_prompt_cache(self.model)
        if cache.max_kv_size is not None:
            if not any(type(layer) is KVCache for layer in layers):
                raise ConfigurationError(
                    f"max_kv_size has no effect on {self.name}: its layers bring bounded caches of "
                    "their own.",
                    remedy="Leave max_kv_size at None.",
                )
            # mlx-lm's own make_prompt_cache overlooks the size where the model makes its caches.
            layers = [
                BoundedKVCache(cache.max_kv_size, keep=KEPT_TOKENS)
                if type(layer) is KVCache
                else layer
                for layer in layers
            ]
        return layers

    def _check_quantizable(self, bits: int, group_size: int) -> None:
        """Try a quantized cache on two tokens: if it works depends on every layer's shape.

        Raises:
            ConfigurationError: if it does not work.
        """
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
                f"The KV cache of {self.name} can't be quantized: none of its layers can be.",
                remedy="Leave kv_bits at None.",
            )
        self._quantizable.add((bits, group_size))


def _stored(layers: list[Any], offset: int | None, metadata: Mapping[str, str]) -> StoredCache:
    stored = StoredCache(layers, offset, metadata)
    for layer in layers:
        # Layers of another kind than the model's own: a setting of whoever made the cache.
        if isinstance(layer, QuantizedKVCache):
            return replace(stored, kv_bits=layer.bits, kv_group_size=layer.group_size)
        if isinstance(layer, BoundedKVCache):
            return replace(stored, max_kv_size=layer.max_size)
    return stored
