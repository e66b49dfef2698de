"""Conversations, usage and ledgers as JSON in files.

Messages have a form of their own here, from which each comes back just as it was (the OpenAI shape
of `Message.to_dict` turns some text into mappings): docs/session-files.md has it in full.
"""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from typing import Any

from ..conversation import Conversation
from ..errors import MessageError
from ..files.json_text import check_bounds, read_object
from ..ledger import Seam, TokenLedger
from ..messages import Message
from ..tool_call import ToolCall
from ..usage import TurnUsage, Usage


def conversation_to_json(conversation: Conversation) -> str:
    """Write a conversation as JSON.

    Raises:
        ValueError: if the template's arguments hold something that JSON can't express.
    """
    entry: dict[str, Any] = {
        "instructions": conversation.instructions,
        "history": [_message_to_entry(message) for message in conversation.messages],
        "template_kwargs": dict(conversation.template_kwargs),
    }
    if conversation.date is not None:
        entry["date"] = conversation.date.isoformat()
    if conversation.allow_control_tokens:
        entry["allow_control_tokens"] = True
    return _written(entry)


def conversation_from_json(text: str) -> Conversation:
    """Read what `conversation_to_json` wrote, in this version or an earlier one.

    Raises:
        ValueError: if the text has another form, or holds something that JSON can't express.
    """
    entry = read_object(text)
    instructions = entry.get("instructions")
    history, kwargs = entry.get("history"), entry.get("template_kwargs", {})
    allowed = entry.get("allow_control_tokens", False)
    sound = isinstance(instructions, str | None) and isinstance(kwargs, dict)
    if not sound or not isinstance(allowed, bool):
        raise ValueError("its instructions or template arguments are of a wrong type")
    try:
        if not isinstance(history, list):
            raise TypeError("no list")
        messages = [_message_from_entry(message) for message in history]
    except (AttributeError, LookupError, TypeError, MessageError) as error:
        raise ValueError("its messages are not of the form they should have") from error
    # JSON's readers take lone surrogates and NaN, its writers don't.
    _written({"instructions": instructions, "template_kwargs": kwargs})
    return Conversation(instructions, messages, kwargs, _date(entry.get("date")), allowed)


def _date(text: object) -> datetime | None:
    if text is None:
        return None
    try:
        date = datetime.fromisoformat(text) if isinstance(text, str) else None
        if date is not None and date.utcoffset() is not None:
            return date
    except (ValueError, OverflowError):
        pass
    raise ValueError("its date is not of the form it should have")


def _written(conversation: dict[str, Any]) -> str:
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


def _message_to_entry(message: Message) -> dict[str, Any]:
    entry = message.to_dict()
    if message.tool_calls:
        # Arguments stay what they are, a mapping or text.
        entry["tool_calls"] = [call.to_template() for call in message.tool_calls]
    if message.reasoning is not None:
        entry["reasoning"] = entry.pop("reasoning_content")
    return entry


def _message_from_entry(entry: dict[str, Any]) -> Message:
    calls = entry.get("tool_calls", [])
    if not isinstance(calls, list):
        raise TypeError("no list")
    return Message(**{**entry, "tool_calls": [_call_from_entry(call) for call in calls]})


def _call_from_entry(entry: dict[str, Any]) -> ToolCall:
    # Version 0.1 wrote whatever mapping a caller had passed.
    function = entry.get("function", entry)
    return ToolCall(function["name"], function.get("arguments", {}), entry.get("id"))


def ledger_to_json(ledger: TokenLedger) -> str:
    """Write ids, their text and its seams as JSON; the marks in the text are left out."""
    ledger = ledger.unmarked()
    entry = {"ids": ledger.ids, "text": ledger.text, "seams": ledger.seams}
    return json.dumps(entry, ensure_ascii=False)


def ledger_from_json(text: str) -> TokenLedger:
    """Read what `ledger_to_json` wrote.

    Raises:
        ValueError: if the text has another form, or its parts contradict each other.
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


_COUNTS = ("prewarmed_tokens", "proposed_tokens", "accepted_tokens")
# How many of a turn's fields, the first ones, count tokens.
_TOKENS = 4
# Larger sums may not fit into a float.
_LARGEST = 2**53


def usage_to_json(usage: Usage) -> str:
    """Write what was spent as JSON; checkpoints belong to a live cache, and are left out."""
    turns = [dataclasses.asdict(turn) for turn in usage.turns]
    return json.dumps({"turns": turns, **{name: getattr(usage, name) for name in _COUNTS}})


def usage_from_json(text: str) -> Usage:
    """Read what `usage_to_json` wrote.

    Files of 0.1 count what was read ahead in two fields, `prewarmed_tokens` and `settled_tokens`:
    their sum counts.

    Raises:
        ValueError: if the text has another form, or counts that can't be counts.
    """
    entry = read_object(text)
    try:
        turns = tuple(TurnUsage(**turn) for turn in entry.get("turns", ()))
    except TypeError as error:
        raise ValueError("its turns are not of the form they should have") from error
    counts = {name: entry.get(name, 0) for name in _COUNTS}
    settled = entry.get("settled_tokens", 0)
    spent = [dataclasses.astuple(turn) for turn in turns]
    tokens = [*counts.values(), settled, *(n for turn in spent for n in turn[:_TOKENS])]
    seconds = [number for turn in spent for number in turn[_TOKENS:]]
    # True is an int to Python, and NaN is neither more nor less than any number.
    sound = all(type(number) is int for number in tokens) and all(
        type(number) in (int, float) and 0 <= number <= _LARGEST for number in (*tokens, *seconds)
    )
    if not sound:
        raise ValueError("it counts what can't be counted")
    counts["prewarmed_tokens"] += settled
    return Usage(turns, **counts)
