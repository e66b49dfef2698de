"""The KV state of one conversation, over mlx-lm's caches."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generation_stream, maybe_quantize_kv_cache, wired_limit

from ..config import GenerationConfig
from ..engine import PrefillProgress, Step
from ..errors import ConfigurationError, GenerationError, SegueError
from ..interrupt import deliver_interrupt
from .sampling import Sample, Sampling

# How often, in tokens, decode hands freed buffers back, as mlx-lm does.
CLEAR_CACHE_EVERY = 256

Model = Callable[..., mx.array]
"""An mlx-lm model: ``(tokens (1, n), cache=...) -> logits (1, n, vocabulary)``."""


class MlxContext:
    """A `Context` over the caches of an mlx-lm model.

    Args:
        model: The model.
        make_cache: Makes the empty caches, one a layer.
        make_sampling: Makes the sampling of a reply; refuses what the model can't do.
        vocabulary: How many tokens the model knows, where that is known; larger ids are refused.
    """

    def __init__(
        self,
        model: Model,
        make_cache: Callable[[], list[Any]],
        make_sampling: Callable[[GenerationConfig], Sampling],
        *,
        vocabulary: int | None = None,
    ) -> None:
        self._model = model
        self._make_cache = make_cache
        self._make_sampling = make_sampling
        self._vocabulary = vocabulary
        self._cache = make_cache()
        self._offset = 0

    @property
    def offset(self) -> int:
        """How many tokens the KV cache holds."""
        return self._offset

    @property
    def peak_memory(self) -> int:
        """The most memory MLX has held so far, in bytes."""
        return int(mx.get_peak_memory())

    def rewind(self, offset: int) -> int:
        """See `segue.engine.Context.rewind`. Layers that can't be trimmed send it back to 0."""
        surplus = self._offset - offset
        if surplus <= 0:
            return self._offset
        if offset <= 0 or not all(map(_can_trim, self._cache)):
            self._empty()
            return self._offset
        try:
            trimmed = [layer.trim(surplus) for layer in self._cache]
        except BaseException:
            self._empty()
            raise
        if all(count == surplus for count in trimmed):
            self._offset = offset
        else:
            self._empty()
        return self._offset

    def generate(
        self,
        ids: Sequence[int],
        config: GenerationConfig,
        progress: PrefillProgress | None = None,
    ) -> Generator[Step, None, None]:
        """See `segue.engine.Context.generate`."""
        self._check_ids(ids)
        return self._generate(ids, config, self._make_sampling(config), progress)

    def _generate(
        self,
        ids: Sequence[int],
        config: GenerationConfig,
        sampling: Sampling,
        progress: PrefillProgress | None,
    ) -> Generator[Step, None, None]:
        """Where the cache is in step with what was told, `held` says how much that is."""
        held = self._offset
        in_step = True
        try:
            with wired_limit(self._model, [generation_stream]):
                prompt = mx.array(list(ids[held:]), mx.uint32)
                total = len(prompt)
                # The last token is fed apart: only its logits are wanted.
                last = total if config.max_tokens == 0 else total - 1
                fed = 0
                while True:
                    if progress is not None:
                        progress(fed, total)
                    deliver_interrupt()
                    if fed == last:
                        break
                    chunk = prompt[fed : min(fed + config.prefill_step_size, last)]
                    in_step = False
                    self._feed(chunk, config)
                    mx.eval([layer.state for layer in self._cache])
                    mx.clear_cache()
                    fed, held, in_step = fed + len(chunk), self._offset, True
                if config.max_tokens == 0:
                    return

                in_step = False
                tokens = mx.array(list(ids), mx.uint32) if sampling.processors else None
                sample = self._sample(prompt[last:], tokens, config, sampling)
                for count in range(config.max_tokens):
                    # The next forward pass is under way before this token is looked at: the
                    # device never waits for Python. So the cache holds every token yielded.
                    if tokens is not None:
                        tokens = mx.concatenate([tokens, sample.token])
                    ahead = self._sample(sample.token, tokens, config, sampling)
                    step = Step(sample.id(), sample.logprobs())
                    if count == 0 and progress is not None:
                        in_step = True
                        progress(total, total)
                    held, in_step = self._offset, True
                    yield step
                    in_step = False
                    if count % CLEAR_CACHE_EVERY == 0:
                        mx.clear_cache()
                    sample = ahead
        except BaseException as error:
            if in_step:
                self.rewind(held)
                raise
            self._empty()
            # MLX reports what goes wrong on the device as a RuntimeError.
            mapped = isinstance(error, SegueError) or error is sampling.failure
            if isinstance(error, RuntimeError) and not mapped:
                raise GenerationError(
                    f"The model failed during a forward pass: {error}. The KV cache was emptied; "
                    "the conversation is kept and will be read again.",
                    remedy="Try again; if memory ran out, use a shorter history, max_kv_size or "
                    "kv_bits.",
                ) from error
            raise

    def _feed(self, tokens: mx.array, config: GenerationConfig) -> mx.array:
        """One forward pass over ``(n,)`` tokens; the logits, shape ``(1, n, vocabulary)``."""
        with mx.stream(generation_stream):
            logits = self._model(tokens[None], cache=self._cache)
            maybe_quantize_kv_cache(
                self._cache,
                quantized_kv_start=config.quantized_kv_start,
                kv_group_size=config.kv_group_size,
                kv_bits=config.kv_bits,
            )
        self._offset += len(tokens)
        return logits

    def _sample(
        self,
        new: mx.array,
        tokens: mx.array | None,
        config: GenerationConfig,
        sampling: Sampling,
    ) -> Sample:
        """Feed the newest token and sample the one after it, without waiting for either."""
        logits = self._feed(new, config)
        with mx.stream(generation_stream):
            sample = sampling(logits[:, -1, :], tokens)
            mx.async_eval(*(array for array in sample if array is not None))  # type: ignore[no-untyped-call]
        return sample

    def _check_ids(self, ids: Sequence[int]) -> None:
        """MLX reads embeddings unchecked: an id too large would read memory that is not theirs."""
        if self._vocabulary is not None and ids and max(ids) >= self._vocabulary:
            raise ConfigurationError(
                f"The tokenizer made token {max(ids)}, but the model has {self._vocabulary} "
                "tokens, so they don't belong together.",
                remedy="Use the model's own tokenizer.",
            )

    def _empty(self) -> None:
        self._cache = self._make_cache()
        self._offset = 0


def _can_trim(layer: Any) -> bool:
    """Whether a layer can drop its newest tokens and be what it was before them."""
    # A chunked layer says it can, but has dropped the front of the chunk that it would go back to.
    return bool(layer.is_trimmable()) and not getattr(layer, "start_position", 0)
