"""What was said, and which tokens stand for it, as text that files keep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import MessageError
from ..files.json_text import check_bounds, read_object
from ..ledger import Seam, TokenLedger
from ..messages import Message


@dataclass(frozen=True, slots=True)
class Conversation:
    """All that prompts are made of.

    Attributes:
        instructions: The system message.
        history: What was said, oldest first.
        template_kwargs: Arguments for the chat template.
    """

    instructions: str | None = None
    history: tuple[Message, ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """As JSON.

        Raises:
            ValueError: Tool calls or template arguments hold what JSON can't express.
        """
        conversation = {
            "instructions": self.instructions,
            "history": [message.to_dict() for message in self.history],
            "template_kwargs": dict(self.template_kwargs),
        }
        try:
            text = json.dumps(conversation, allow_nan=False, ensure_ascii=False)
            text.encode()
            # Tuples and keys that are no strings would come back as others, and render otherwise.
            if json.loads(text) != conversation:
                raise TypeError("tuples, or keys that are not strings")
            check_bounds(text, conversation)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"the conversation holds something that JSON can't express ({error})"
            ) from error
        return text

    @classmethod
    def from_json(cls, text: str) -> Conversation:
        """The conversation that a text tells.

        Raises:
            ValueError: It is none.
        """
        entry = read_object(text)
        instructions = entry.get("instructions")
        history, kwargs = entry.get("history"), entry.get("template_kwargs", {})
        if not isinstance(instructions, str | None) or not isinstance(kwargs, dict):
            raise ValueError("its instructions or template arguments are of a wrong type")
        try:
            if not isinstance(history, list):
                raise TypeError("no list")
            conversation = cls(instructions, tuple(Message(**entry) for entry in history), kwargs)
        except (TypeError, MessageError) as error:
            raise ValueError("its messages are not of the form they should have") from error
        conversation.to_json()  # JSON's readers take lone surrogates and NaN, its writers don't
        return conversation


def ledger_to_json(ledger: TokenLedger) -> str:
    """Ids, their text and its seams as JSON."""
    entry = {"ids": ledger.ids, "text": ledger.text, "seams": ledger.seams}
    return json.dumps(entry, ensure_ascii=False)


def ledger_from_json(text: str) -> TokenLedger:
    """The ledger that a text tells.

    Raises:
        ValueError: It is none, or not a sound one.
    """
    entry = read_object(text)
    try:
        ids, spelled, seams = entry["ids"], entry["text"], entry["seams"]
        spelled.encode()
        ledger = TokenLedger(tuple(ids), spelled, tuple(Seam(at, chars) for at, chars in seams))
        sound = (
            isinstance(spelled, str)
            and all(type(number) is int for seam in ledger.seams for number in seam)
            and all(type(token) is int and 0 <= token < 2**32 for token in ledger.ids)
            and ledger.seams[0] == (0, 0)
            and all(
                a.ids < b.ids and a.chars <= b.chars
                for a, b in zip(ledger.seams, ledger.seams[1:], strict=False)
            )
            and ledger.seams[-1].ids <= len(ledger.ids)
            and ledger.seams[-1].chars == len(spelled)
        )
    except (AttributeError, LookupError, TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError("its tokens are not of the form they should have")
    return ledger
