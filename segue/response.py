"""Responses: what a turn yields, piece by piece."""

# No postponed annotations here: type hints must resolve when a class says it is `segue`'s.

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
    """The part of a reply that a piece of text belongs to."""

    ANSWER = "answer"
    """The text for the person, or for the tools."""
    REASONING = "reasoning"
    """The model's thoughts before its answer, if it marks them."""


@dataclass(frozen=True, slots=True)
class GenerationResponse:
    """One piece of a streamed reply: the newest token and the text it made readable.

    Examples:
        >>> from segue import ChatSession
        >>> from segue.testing import FakeEngine
        >>> session = ChatSession(FakeEngine(["Hello."]))
        >>> "".join(response.text for response in session.stream("Hi"))
        'Hello.'
    """

    text: str
    """Newly readable text. May be empty, while a character, a stop string or a tag of reasoning is
    incomplete. All pieces of one kind, joined, are the reply's text of that kind."""
    token: int
    """The id of the newest token."""
    logprobs: Mapping[int, float] | None
    """Natural-log probabilities of the likeliest next tokens, likeliest first, and of `token`
    itself; ``None`` unless `GenerationConfig.logprobs` asks for them. Taken after penalties and
    bias, before temperature and filters, as in mlx-lm."""
    from_draft: bool
    """True if a draft proposed this token."""
    prompt_tokens: int
    """Tokens in the whole prompt of this turn."""
    cached_tokens: int
    """How many of those were in the KV cache already and were not fed."""
    prompt_tps: float
    """Tokens fed per second before the first token (cached ones don't count)."""
    generation_tokens: int
    """Tokens generated in this turn so far."""
    generation_tps: float
    """Tokens generated per second since the first one."""
    peak_memory: int
    """The most memory that the engine has used so far, in bytes."""
    finish_reason: FinishReason | None = None
    """Why the reply ended, on its last piece; ``None`` on all others."""
    kind: TextKind = TextKind.ANSWER
    """The kind of the text: of the answer, or of the reasoning before it. A token that ends one
    and begins the other makes two pieces."""
