"""What a conversation has cost."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from .files.json_text import read_object


@dataclass(frozen=True, slots=True)
class TurnUsage:
    """What one turn has cost.

    Attributes:
        prompt_tokens: Tokens in its prompt.
        cached_tokens: How many of those were in the KV cache already.
        fed_tokens: How many the model read in the turn itself, before its first token.
        generated_tokens: How many it generated.
        prefill_seconds: Time until the first token.
        decode_seconds: Time from the first token to the last.
    """

    prompt_tokens: int
    cached_tokens: int
    fed_tokens: int
    generated_tokens: int
    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What a session has cost so far.

    Attributes:
        turns: Its turns, oldest first, those that failed or were stopped included.
        prewarmed_tokens: Tokens that `ChatSession.prewarm` has fed.
        settled_tokens: Tokens that `ChatSession.settle` has fed.
        marks: Places that the cache can come back to now, where it can't be trimmed.
        mark_bytes: What those hold in memory.
        proposed_tokens: Tokens that a draft has proposed.
        accepted_tokens: How many of those the model took.
    """

    turns: tuple[TurnUsage, ...] = ()
    prewarmed_tokens: int = 0
    settled_tokens: int = 0
    marks: int = 0
    mark_bytes: int = 0
    proposed_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Tokens in all prompts."""
        return sum(turn.prompt_tokens for turn in self.turns)

    @property
    def cached_tokens(self) -> int:
        """How many of those were in the KV cache already."""
        return sum(turn.cached_tokens for turn in self.turns)

    @property
    def fed_tokens(self) -> int:
        """Tokens that the model has read in turns."""
        return sum(turn.fed_tokens for turn in self.turns)

    @property
    def generated_tokens(self) -> int:
        """Tokens that it has generated."""
        return sum(turn.generated_tokens for turn in self.turns)

    @property
    def prefill_seconds(self) -> float:
        """Time that prompts took."""
        return sum(turn.prefill_seconds for turn in self.turns)

    @property
    def decode_seconds(self) -> float:
        """Time that replies took, from their first tokens on."""
        return sum(turn.decode_seconds for turn in self.turns)

    def to_json(self) -> str:
        """What was spent, as JSON; marks are what there is now, and left out."""
        turns = [dataclasses.asdict(turn) for turn in self.turns]
        return json.dumps({"turns": turns, **{name: getattr(self, name) for name in _COUNTS}})

    @classmethod
    def from_json(cls, text: str) -> Usage:
        """The usage that a text tells.

        Raises:
            ValueError: It tells none.
        """
        entry = read_object(text)
        try:
            turns = tuple(TurnUsage(**turn) for turn in entry.get("turns", ()))
        except TypeError as error:
            raise ValueError("its turns are not of the form they should have") from error
        counts = {name: entry.get(name, 0) for name in _COUNTS}
        spent = [dataclasses.astuple(turn) for turn in turns]
        tokens = [*counts.values(), *(number for turn in spent for number in turn[:_TOKENS])]
        seconds = [number for turn in spent for number in turn[_TOKENS:]]
        # True is an int to Python; NaN is neither more nor less than anything.
        sound = all(type(number) is int for number in tokens) and all(
            type(number) in (int, float) and 0 <= number <= _LARGEST
            for number in (*tokens, *seconds)
        )
        if not sound:
            raise ValueError("it counts what can't be counted")
        return cls(turns, **counts)


_COUNTS = ("prewarmed_tokens", "settled_tokens", "proposed_tokens", "accepted_tokens")
# How many of a turn's fields, the first ones, count tokens.
_TOKENS = 4
# Sums of more may be none that a float can hold.
_LARGEST = 2**53
