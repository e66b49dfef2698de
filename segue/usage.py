"""Usage: what a session has cost, in tokens and seconds."""

# No postponed annotations here: type hints must resolve when a class says it is `segue`'s.

from dataclasses import dataclass

from .messages import Message


@dataclass(frozen=True, slots=True)
class TurnUsage:
    """The cost of one turn."""

    prompt_tokens: int
    """Tokens in the prompt."""
    cached_tokens: int
    """How many of those were in the KV cache already."""
    fed_tokens: int
    """How many tokens the model read in the turn itself, before its first token."""
    generated_tokens: int
    """How many tokens the model generated."""
    prefill_seconds: float
    """Time until the first token."""
    decode_seconds: float
    """Time from the first token to the last."""


@dataclass(frozen=True, slots=True)
class TurnPreview:
    """The cost of a turn before it is taken, from `ChatSession.preview`."""

    prompt_tokens: int
    """Tokens in its prompt."""
    cached_tokens: int
    """How many of those are cached: an upper bound where the cache can rewind to checkpoints
    alone."""
    dropped: tuple[Message, ...] = ()
    """The messages that would leave the history, so that the prompt fits into the context."""

    @property
    def fed_tokens(self) -> int:
        """How many tokens the model would read before its first token."""
        return self.prompt_tokens - self.cached_tokens


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of a session so far.

    Examples:
        >>> from segue import ChatSession
        >>> from segue.testing import FakeEngine
        >>> session = ChatSession(FakeEngine(["Hello."]))
        >>> session.prewarm() > 0
        True
        >>> _ = session.respond("Hi")
        >>> usage = session.usage
        >>> usage.prompt_tokens == usage.cached_tokens + usage.fed_tokens
        True
        >>> usage.cached_tokens == usage.prewarmed_tokens
        True
    """

    turns: tuple[TurnUsage, ...] = ()
    """Its turns, oldest first, including those that failed or were stopped."""
    prewarmed_tokens: int = 0
    """Tokens that the model read outside of turns."""
    checkpoints: int = 0
    """Checkpoints of the KV cache at this moment, where it can't be trimmed."""
    checkpoint_bytes: int = 0
    """Memory that the checkpoints take, in bytes."""
    proposed_tokens: int = 0
    """Tokens that a draft has proposed."""
    accepted_tokens: int = 0
    """How many of those the model took."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens in all prompts."""
        return sum(turn.prompt_tokens for turn in self.turns)

    @property
    def cached_tokens(self) -> int:
        """How many of the prompts' tokens were in the KV cache already."""
        return sum(turn.cached_tokens for turn in self.turns)

    @property
    def fed_tokens(self) -> int:
        """Tokens that the model has read in turns."""
        return sum(turn.fed_tokens for turn in self.turns)

    @property
    def generated_tokens(self) -> int:
        """Tokens that the model has generated."""
        return sum(turn.generated_tokens for turn in self.turns)

    @property
    def prefill_seconds(self) -> float:
        """Time until the first tokens of all replies."""
        return sum(turn.prefill_seconds for turn in self.turns)

    @property
    def decode_seconds(self) -> float:
        """Time from the first tokens of all replies to their last."""
        return sum(turn.decode_seconds for turn in self.turns)
