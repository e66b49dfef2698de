"""What a turn yields, piece by piece."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class FinishReason(StrEnum):
    """Why a reply ended."""

    STOP = "stop"
    """The model ended it, or a stop string did."""
    LENGTH = "length"
    """It reached `GenerationConfig.max_tokens`."""


class TextKind(StrEnum):
    """What a piece of a reply is part of."""

    ANSWER = "answer"
    """What is said to the person, or to the tools."""
    REASONING = "reasoning"
    """What a reasoning model thinks before it answers, where it marks that."""


@dataclass(frozen=True, slots=True)
class GenerationResponse:
    """One piece of a streamed reply: the newest token and the text it made readable.

    Args:
        text: Newly readable text; may be empty (a character, a stop string or a mark of reasoning
            is not decided yet). All pieces of one kind, joined, are the reply's text of that kind.
        token: The id of the newest token.
        logprobs: The natural-log probabilities of the likeliest tokens at this place, likeliest
            first, and of `token` itself; ``None`` unless `GenerationConfig.logprobs` asks.
            Taken after penalties and bias, before temperature and filters, as in mlx-lm.
        from_draft: Whether a draft proposed this token.
        prompt_tokens: Tokens in the whole prompt of this turn.
        cached_tokens: How many of those were already in the KV cache and were not fed.
        prompt_tps: Tokens fed per second before the first token (only fed ones count).
        generation_tokens: Tokens generated in this turn so far.
        generation_tps: Tokens generated per second since the first one.
        peak_memory: The most memory the engine has held so far, in bytes.
        finish_reason: Why the reply ended, on its last piece; ``None`` on all others.
        kind: Whether the text is of the answer or of the reasoning before it. A token that ends the
            one and begins the other makes two pieces.
    """

    text: str
    token: int
    logprobs: Mapping[int, float] | None
    from_draft: bool
    prompt_tokens: int
    cached_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    peak_memory: int
    finish_reason: FinishReason | None = None
    kind: TextKind = TextKind.ANSWER
