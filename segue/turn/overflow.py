"""Conversations that are longer than the model's context."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal

from ..config import GenerationConfig
from ..conversation import split_turns
from ..errors import ConfigurationError, ContextLengthError
from ..messages import Message, Role, check_messages

OnOverflow = Literal["error", "drop-oldest"] | Callable[[tuple[Message, ...]], Iterable[Message]]
"""``"error"`` refuses the turn; ``"drop-oldest"`` drops the oldest whole turns, a tool exchange
with the turn it is part of, and never a system message; a function returns another history."""

# The share of a context that is kept free for a reply, if the reply may be so long.
RESERVED_SHARE = 4


class ContextLimit:
    """Keeps prompts within a model's context.

    Args:
        limit: The most tokens that a prompt and its reply may have; ``None`` if unknown.
        on_overflow: What to do about more.

    Raises:
        ConfigurationError: if `on_overflow` is neither of the two words nor a function.
    """

    def __init__(self, limit: int | None, on_overflow: OnOverflow) -> None:
        if on_overflow not in ("error", "drop-oldest") and not callable(on_overflow):
            raise ConfigurationError(
                f"on_overflow must be 'error', 'drop-oldest' or a function, not {on_overflow!r}.",
                remedy="A function takes the history and returns a shorter one.",
            )
        self.limit = limit
        self.on_overflow = on_overflow

    def needs_room(self, length: int, max_tokens: int) -> bool:
        """Return True if a prompt of this length is too long, and `make_room` may help."""
        if self.limit is None or self.on_overflow == "error":
            return False
        return length + self._reserve(max_tokens) > self.limit

    def make_room(
        self,
        history: Sequence[Message],
        messages: Sequence[Message],
        measure: Callable[[Sequence[Message]], int],
        *,
        max_tokens: int,
    ) -> tuple[Message, ...]:
        """Drop old turns until the prompt fits. The result may still be too long: call `check`.

        Args:
            history: What was said before.
            messages: What is said now; its own turn is never dropped, even if it began before.
            measure: Returns how many tokens a prompt of some history and these messages has.
            max_tokens: How long the reply may be.

        Raises:
            MessageError: if a function returned something other than messages.
        """
        if callable(self.on_overflow):
            return check_messages(self.on_overflow(tuple(history)))
        assert self.limit is not None
        room = self.limit - self._reserve(max_tokens)
        # Each turn that goes makes the prompt shorter: the fewest that must go are found by
        # halving, since every attempt renders and encodes.
        least, most = 1, len(split_turns([*history, *messages])) - 1
        while least < most:
            middle = (least + most) // 2
            if measure(without_turns(history, messages, middle)) <= room:
                most = middle
            else:
                least = middle + 1
        return without_turns(history, messages, least)

    def _reserve(self, max_tokens: int) -> int:
        """Return how many tokens stay free for the reply: one, or its share where turns may go."""
        if self.limit is None or self.on_overflow != "drop-oldest":
            return 1
        return max(min(max_tokens, self.limit // RESERVED_SHARE), 1)

    def check(self, length: int) -> None:
        """Refuse a prompt that is too long for any reply.

        Raises:
            ContextLengthError: if it leaves no token for the reply.
        """
        if self.limit is not None and length >= self.limit:
            raise ContextLengthError(
                f"This prompt has {length:,} tokens, and the model's context holds "
                f"{self.limit:,}, the reply included. Nothing was changed.",
                remedy="Shorten the message, clear() the conversation, or pass "
                "on_overflow='drop-oldest'.",
            )

    def within(self, config: GenerationConfig, length: int) -> GenerationConfig:
        """Return settings under which the reply to a prompt of this length fits the context."""
        if self.limit is None or length + config.max_tokens <= self.limit:
            return config
        return replace(config, max_tokens=self.limit - length)


def without_turns(
    history: Sequence[Message], messages: Sequence[Message], count: int
) -> tuple[Message, ...]:
    """Return a history without its oldest turns; system messages stay, and so does the open turn.

    Args:
        history: What was said before.
        messages: What is said now; the turn that it belongs to stays whole.
        count: How many turns go, at most.
    """
    dropped = 0
    for turn in split_turns([*history, *messages])[:count]:
        if dropped + len(turn) > len(history):
            break
        dropped += len(turn)
    system = [message for message in history[:dropped] if message.role is Role.SYSTEM]
    return (*system, *history[dropped:])


def dropped_from(history: Sequence[Message], kept: Sequence[Message]) -> tuple[Message, ...]:
    """Return the messages of one history that another one lacks."""
    remaining = list(kept)
    dropped = []
    # The newest stay, most often in one piece.
    for message in reversed(history):
        if remaining and remaining[-1] == message:
            remaining.pop()
        elif message in remaining:
            remaining.remove(message)
        else:
            dropped.append(message)
    return tuple(reversed(dropped))
