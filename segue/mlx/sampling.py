"""From logits to the next token: mlx-lm's penalties and filters, with random keys of our own.

How it works: a `Sampling` is made for each reply. It calls the logits processors, leaves out ids
that have no token (embeddings are padded), and then takes the likeliest token, or narrows the
distribution by mlx-lm's filters and draws. Each draw splits the
reply's own random key, so that a reply with a seed comes out the same whatever else is sampled.

A token that a draft model proposed was drawn from another distribution than this model's. By the
rule of Leviathan et al. 2023 (algorithm 1), it is accepted with the probability that makes up for
the difference, and else another token is drawn from what the draft's distribution lacked: the
result has the very distribution that it would have without a draft.

What does not work:

- mlx-lm's samplers. They draw from MLX's global random state, so two conversations that take turns
  would disturb each other.
- Looking at values here. Everything is lazy: the device computes while Python continues, and only
  `Sample.id` and `Sample.logprobs` wait.
- Trusting token ids of the settings. MLX does not check indices: an id too large would write
  outside the logits, so it is refused.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import mlx.core as mx
from mlx_lm.sample_utils import (
    apply_min_p,
    apply_top_k,
    apply_top_p,
    apply_xtc,
    make_logits_processors,
)

from ..config import GenerationConfig
from ..errors import ConfigurationError

Mask = mx.array | int | None
"""The tokens that may be sampled: a row of booleans, the one id that may be, ``None`` for any."""

TINY = 1e-6
# Any constant will do: it turns a seed into another seed.
_DRAFT_SEED = 0x9E3779B97F4A7C15


class Sample(NamedTuple):
    """A sampled token, and what is to be reported of it; arrays, not yet evaluated."""

    token: mx.array
    """The id, shape ``(1,)``."""
    logprob: mx.array | None = None
    """Its log probability, shape ``(1,)``."""
    top_tokens: mx.array | None = None
    """The likeliest ids, unordered, shape ``(n,)``."""
    top_logprobs: mx.array | None = None
    """Their log probabilities, shape ``(n,)``."""
    weights: mx.array | None = None
    """The log probabilities that it was drawn by (filters and temperature applied), shape
    ``(vocabulary,)``; ``None`` if the likeliest token was taken."""

    def arrays(self) -> list[mx.array]:
        """Return what has to be computed before the token can be reported."""
        arrays = (self.token, self.logprob, self.top_tokens, self.top_logprobs)
        return [array for array in arrays if array is not None]

    def id(self) -> int:
        """Return the token's id; waits for it."""
        return cast(int, self.token.item())

    def logprobs(self) -> Mapping[int, float] | None:
        """Return the value of `GenerationResponse.logprobs`; waits for the arrays."""
        if self.logprob is None or self.top_tokens is None or self.top_logprobs is None:
            return None
        tokens = cast(list[int], self.top_tokens.tolist())
        values = cast(list[float], self.top_logprobs.tolist())
        # What can't be sampled at all is not among the likeliest.
        likely = zip(tokens, values, strict=True)
        table = {token: value for token, value in likely if value > -math.inf}
        table.setdefault(self.id(), cast(float, self.logprob.item()))
        return dict(sorted(table.items(), key=lambda entry: -entry[1]))


class Sampling:
    """The sampling of one reply: processors with fresh state, and a random key.

    Args:
        config: The reply's settings.
        vocabulary: Returns how many logits the model has; called only if `config` has token ids.
        xtc_special_tokens: Ids that XTC never excludes.
        known: Returns which of so many ids have a token, as an array of booleans, if not all have;
            the others are never sampled.

    Raises:
        ConfigurationError: if a token id is outside the vocabulary, or a logits processor can't be
            copied.
    """

    def __init__(
        self,
        config: GenerationConfig,
        *,
        vocabulary: Callable[[], int],
        xtc_special_tokens: Sequence[int],
        known: Callable[[int], mx.array | None] = lambda width: None,
    ) -> None:
        # MLX does not check indices: an id too large would write outside the logits.
        if config.logit_bias and max(config.logit_bias) >= vocabulary():
            raise ConfigurationError(
                f"logit_bias names token {max(config.logit_bias)}, but this model has "
                f"{vocabulary()} tokens.",
                remedy=f"Use ids below {vocabulary()}.",
            )
        try:
            extra = copy.deepcopy(config.logits_processors)
        except Exception as error:
            raise ConfigurationError(
                f"A logits processor could not be copied for this turn ({error}).",
                remedy="Give it a __deepcopy__ that returns one with fresh state.",
            ) from error
        self._processors = [
            *make_logits_processors(
                logit_bias=dict(config.logit_bias) or None,
                repetition_penalty=config.repetition_penalty,
                repetition_context_size=config.repetition_context_size,
                presence_penalty=config.presence_penalty,
                presence_context_size=config.presence_context_size,
                frequency_penalty=config.frequency_penalty,
                frequency_context_size=config.frequency_context_size,
            ),
            *extra,
        ]
        self.failure: Exception | None = None
        """What a processor raised, if one did: an error of the caller's, not the model's."""
        # Dividing by a tiny temperature overflows; only the likeliest token has a chance anyway.
        self.key = _first_key(config.seed) if config.temperature > TINY else None
        """The random key that the next draw starts from; ``None`` if nothing is drawn. Put an
        earlier one back to take draws back."""
        self._temperature = config.temperature
        self._logprobs = config.logprobs
        self.looks = bool(extra)
        """True if there are processors of the caller, which may look at the newest token, and wait
        for it."""
        self._filters = _filters(config, xtc_special_tokens)
        self._known = known

    @property
    def processors(self) -> bool:
        """True if there are processors, which want to see the tokens."""
        return bool(self._processors)

    def __call__(
        self,
        logits: mx.array,
        tokens: mx.array | None,
        draft: Sample | None = None,
        mask: Mask = None,
    ) -> Sample:
        """Sample one token.

        Args:
            logits: Shape ``(1, vocabulary)``.
            tokens: All ids of the conversation, shape ``(n,)``; read only if there are processors.
            draft: A proposal for this token. If it was drawn at random, it is accepted or redrawn;
                if not, it changes nothing, and is for the caller to compare.
            mask: The tokens that a grammar allows.
        """
        for processor in self._processors:
            try:
                logits = processor(tokens, logits)
            except Exception as error:
                self.failure = error
                raise
        known = self._known(logits.shape[-1])
        if known is not None:
            logits = mx.where(known, logits, float("-inf"))
        if mask is not None:
            if isinstance(mask, int) and not self._logprobs:
                return self._only(mask)
            logits = _masked(logits, mask)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        weights = None
        if self.key is None:
            token = mx.argmax(logprobs, axis=-1)
        else:
            self.key, draw, chance = mx.random.split(self.key, 3)
            candidates = logprobs
            for narrow in self._filters:
                candidates = narrow(candidates, chance)
            candidates = candidates * (1 / self._temperature)
            if draft is not None and draft.weights is not None:
                token = _accept_or_redraw(candidates, draft.token, draft.weights, draw)
            else:
                token = mx.random.categorical(candidates, key=draw)
            weights = candidates[0]
        if not self._logprobs:
            return Sample(token, weights=weights)
        row = logprobs[0]
        count = min(self._logprobs, row.size)
        top = mx.argpartition(-row, kth=count - 1)[:count]
        return Sample(token, row[token], top, row[top], weights)

    def _only(self, token: int) -> Sample:
        """Return the one token that may be sampled; it uses up random numbers as any other."""
        if self.key is not None:
            self.key, _, _ = mx.random.split(self.key, 3)
        return Sample(mx.array([token], mx.uint32))


def _masked(logits: mx.array, mask: mx.array | int) -> mx.array:
    """Return logits without what a mask excludes; a mask may be narrower, or wider."""
    width = logits.shape[-1]
    if isinstance(mask, int):
        allowed = mx.arange(width) == mask
    else:
        allowed = mx.pad(mask, (0, max(width - mask.size, 0)))[:width]
    return mx.where(allowed, logits, -mx.inf)


def _accept_or_redraw(
    candidates: mx.array, drafted: mx.array, weights: mx.array, key: mx.array
) -> mx.array:
    """Return the drafted token, or one of those that its draft proposed too seldom.

    Args:
        candidates: The log weights to sample by, shape ``(1, vocabulary)``.
        drafted: The proposed id, shape ``(1,)``.
        weights: The log weights that it was drawn by, shape ``(vocabulary,)``.
        key: A random key.
    """
    accepting, redrawing = mx.random.split(key, 2)
    wanted = mx.softmax(candidates[0], precise=True)
    proposed = mx.softmax(weights, precise=True)
    accept = mx.random.uniform(key=accepting) * proposed[drafted] < wanted[drafted]
    lacking = mx.maximum(wanted - proposed, 0.0)
    # If rounding leaves nothing lacking, the two distributions are the same.
    lacking = mx.where(lacking.sum() > 0, lacking, wanted)
    redrawn = mx.random.categorical(mx.log(lacking)[None], key=redrawing)
    return mx.where(accept, drafted, redrawn)


Filter = Callable[[mx.array, mx.array], mx.array]
"""``(logprobs, key) -> logprobs`` with the excluded tokens at minus infinity."""


def _filters(config: GenerationConfig, xtc_special_tokens: Sequence[int]) -> list[Filter]:
    """Return the filters that are on, in mlx-lm's order."""
    filters: list[Filter] = []
    if 0 < config.top_p < 1:
        filters.append(lambda logprobs, _: apply_top_p(logprobs, max(config.top_p, TINY)))
    if config.min_p > 0:

        def min_p(logprobs: mx.array, _: mx.array) -> mx.array:
            least = min(config.min_tokens_to_keep, logprobs.shape[-1])
            kept: mx.array = apply_min_p(logprobs, config.min_p, least)
            return kept

        filters.append(min_p)
    if config.xtc_probability > 0:
        special = list(xtc_special_tokens)

        def xtc(logprobs: mx.array, key: mx.array) -> mx.array:
            # Ours decides whether to exclude: mlx-lm's own draw, at probability 1, always does.
            excluded = apply_xtc(logprobs, 1.0, config.xtc_threshold, special)
            skip = mx.random.uniform(key=key) > config.xtc_probability
            return mx.where(skip, logprobs, excluded)

        filters.append(xtc)
    if config.top_k > 0:

        def top_k(logprobs: mx.array, _: mx.array) -> mx.array:
            # mlx-lm's filter refuses to keep the whole vocabulary, which would not be a filter.
            return (
                apply_top_k(logprobs, config.top_k)
                if config.top_k < logprobs.shape[-1]
                else logprobs
            )

        filters.append(top_k)
    return filters


def draft_settings(config: GenerationConfig) -> GenerationConfig:
    """Return the settings that a draft samples by: the reply's own, as far as they are stateless.

    Its random draws must not be the reply's: the two decide about each other.
    """
    seed = None if config.seed is None else config.seed ^ _DRAFT_SEED
    return replace(config, logits_processors=(), logprobs=0, seed=seed)


def _first_key(seed: int | None) -> mx.array:
    if seed is not None:
        return mx.random.key(seed)
    # Drawn from MLX's global state, so that mx.random.seed makes a whole program repeatable.
    return mx.random.key(cast(int, mx.random.randint(0, 2**31 - 1).item()))
