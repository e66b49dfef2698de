"""Usage: what a session has cost, in tokens and seconds."""

# No postponed annotations here: type hints must resolve when a class says it is `segue`'s.

from dataclasses import dataclass
from enum import StrEnum

from .messages import Message


class MissReason(StrEnum):
    """Why a turn could not reuse all that had been cached."""

    INSTRUCTIONS = "instructions"
    """The instructions are others than before."""
    TEMPLATE_KWARGS = "template_kwargs"
    """The template's arguments are others than before: `tools`, say."""
    DATE = "date"
    """The template writes another date than before."""
    MESSAGE = "message"
    """A message is another than before, or was taken back."""
    DROPPED = "dropped"
    """Messages were dropped, so that the prompt fits into the model's context."""
    TEMPLATE = "template"
    """The template renders the same conversation otherwise than before. Many leave out the
    reasoning of earlier turns, or write a reply otherwise than the model said it."""
    TOKENS = "tokens"
    """The text is the same, but the tokenizer makes other tokens of it."""
    REWIND = "rewind"
    """The cache can't drop just its newest tokens, and went back further."""
    LOST = "lost"
    """The cache was lost, or holds less than before: after a failure, in a file without it."""
    ENGINE = "engine"
    """The engine reports that it reused less than it was sent before."""


@dataclass(frozen=True, slots=True)
class Reuse:
    """How much of a prompt was cached, and why it was not more.

    Examples:
        >>> from segue import ChatSession
        >>> from segue.testing import FakeEngine
        >>> session = ChatSession(FakeEngine(["Hello.", "Fine."]), instructions="Be brief.")
        >>> _ = session.respond("Hi")
        >>> session.instructions = "Be kind."
        >>> _ = session.respond("How are you?")
        >>> print(session.reuse)
        11 of 78 tokens were reused: the instructions changed.
    """

    tokens: int
    """How many tokens were reused."""
    prompt_tokens: int
    """Tokens in the prompt."""
    reason: MissReason | None = None
    """Why not all that had been cached was reused; ``None`` if all was, the very end of the last
    reply aside, which templates write in ways of their own. Of several reasons, the one that comes
    first in the prompt."""
    message_index: int | None = None
    """The message at which the prompt parts from the cache: its index in the history."""
    held_tokens: int = 0
    """How many tokens had been cached when the turn before ended."""
    shared_tokens: int = 0
    """How many of those the prompt begins with: more than `tokens` if the cache no longer had all
    of them, or could not go back to just there."""
    detail: str = ""
    """The reason in words."""

    def __str__(self) -> str:
        count = f"{self.tokens:,} of {self.prompt_tokens:,} tokens were reused"
        if not self.held_tokens and self.reason is None:
            whose = "the engine had them of its own" if self.tokens else "nothing was cached before"
            return f"{count}: {whose}."
        if self.reason is None:
            end = "" if self.tokens >= self.held_tokens else " but for its end"
            return f"{count}: all that was cached{end}."
        return f"{count}: {self.detail}."


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
    reuse: Reuse | None = None
    """How much would be reused, and why not more."""

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
