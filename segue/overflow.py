"""What becomes of a conversation that the model's context does not hold any more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal, TypeVar

from .config import GenerationConfig
from .errors import ConfigurationError, ContextLengthError
from .messages import Message, Role, check_messages

OnOverflow = Literal["error", "drop-oldest"] | Callable[[tuple[Message, ...]], Iterable[Message]]
"""``"error"`` refuses the turn; ``"drop-oldest"`` drops the oldest whole turns, a tool exchange
with the turn it is part of, and never a system message; a callable returns another history."""

# The share of a context that is kept free for a reply, if that may be so long.
RESERVED_SHARE = 4

Built = TypeVar("Built")


class ContextLimit:
    """Keeps prompts within a model's context.

    Args:
        limit: The most tokens that a prompt and its reply may have; ``None`` if nobody tells.
        on_overflow: What to do about more.

    Raises:
        ConfigurationError: That is no such thing.
    """

    def __init__(self, limit: int | None, on_overflow: OnOverflow) -> None:
        if on_overflow not in ("error", "drop-oldest") and not callable(on_overflow):
            raise ConfigurationError(
                f"on_overflow={on_overflow!r} is nothing that could be done about a full context.",
                remedy="Use 'error', 'drop-oldest', or a function from a history to a shorter one.",
            )
        self.limit = limit
        self._on_overflow = on_overflow

    def fit(
        self,
        history: Sequence[Message],
        build: Callable[[Sequence[Message]], tuple[Built, int]],
        *,
        max_tokens: int,
    ) -> tuple[Built, tuple[Message, ...]]:
        """A prompt that fits, and the history that it goes on from.

        Args:
            history: What was said before.
            build: Makes a prompt of a history, and says how many tokens it has.
            max_tokens: How long the reply may be.

        Raises:
            ContextLengthError: There is no such prompt.
            MessageError: A callable returned something other than messages.
        """
        prompt, length = build(history)
        limit = self.limit
        if limit is None:
            return prompt, tuple(history)
        if self._on_overflow == "drop-oldest":
            reserve = max(min(max_tokens, limit // RESERVED_SHARE), 1)
            turns = split_turns(history)
            while length + reserve > limit and any(map(_may_go, turns)):
                oldest = next(turn for turn in turns if _may_go(turn))
                turns.remove(oldest)
                history = [message for turn in turns for message in turn]
                prompt, length = build(history)
        elif callable(self._on_overflow) and length >= limit:
            history = check_messages(self._on_overflow(tuple(history)))
            prompt, length = build(history)
        self.check(length)
        return prompt, tuple(history)

    def check(self, length: int) -> None:
        """Refuse a prompt that leaves no room for a token of reply.

        Raises:
            ContextLengthError: It does.
        """
        if self.limit is not None and length >= self.limit:
            raise ContextLengthError(
                f"This prompt has {length:,} tokens, and the model's context holds "
                f"{self.limit:,}, the reply included. Nothing was changed.",
                remedy="Shorten the message, clear() the conversation, or pass "
                "on_overflow='drop-oldest'.",
            )

    def within(self, config: GenerationConfig, length: int) -> GenerationConfig:
        """Settings under which the reply to a prompt of this length stays within the context."""
        if self.limit is None or length + config.max_tokens <= self.limit:
            return config
        return replace(config, max_tokens=self.limit - length)


def split_turns(history: Sequence[Message]) -> list[list[Message]]:
    """A history by turns: each begins with what a person says, tool exchanges are part of it.

    System messages stand alone.
    """
    turns: list[list[Message]] = []
    for message in history:
        alone = message.role is Role.SYSTEM
        begins = message.role is Role.USER and not (turns and turns[-1][-1].role is Role.USER)
        if alone or begins or not turns or turns[-1][-1].role is Role.SYSTEM:
            turns.append([message])
        else:
            turns[-1].append(message)
    return turns


def _may_go(turn: Sequence[Message]) -> bool:
    return turn[0].role is not Role.SYSTEM
