"""A conversation as one value, and the turns of a history.

A turn begins with what the person says and ends before they speak again: it includes the model's
answer, its calls of tools and their results. The functions here work on any sequence of messages.
"""

# No postponed annotations here: type hints must resolve when a class says it is `segue`'s.

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, Self

from .checks import check_text, surrogate_in
from .errors import ConfigurationError, HistoryError
from .messages import Message, Role, check_messages


@dataclass(frozen=True, slots=True, init=False)
class Conversation:
    """Everything that prompts are made from; immutable.

    Examples:
        >>> asked = Conversation("Be brief.", [Message.user("Hi"), Message.assistant("Hello.")])
        >>> asked.instructions
        'Be brief.'
        >>> len(asked.turns)
        1

    Args:
        instructions: The system message, or ``None`` for none.
        messages: The messages, oldest first.
        template_kwargs: Arguments for the chat template (``tools``, ``enable_thinking``); copied.
        date: The time that the template writes, if it writes the date; without a zone, it is taken
            as local time. ``None``: the time at which the prompt is made.
        allow_control_tokens: True if control tokens that are spelled in what people and tools say
            (``<|im_end|>``) are control tokens for the model. By default they are text, as far as
            the tokenizer can tell (see `segue.engine.ControlTokens`).

    Raises:
        ConfigurationError: if the instructions aren't text, `allow_control_tokens` isn't a bool,
            the date isn't a datetime, or the template's arguments aren't a mapping from text, can't
            be copied, or contain a lone surrogate.
        MessageError: if the messages aren't Messages, or the instructions contain a lone surrogate.
    """

    instructions: str | None
    """The system message, which comes before all messages and isn't one of them."""
    messages: tuple[Message, ...]
    """The messages, oldest first."""
    template_kwargs: Mapping[str, Any] = field(hash=False)
    """Arguments for the chat template."""
    date: datetime | None = field(compare=False)
    """The time that the template writes, with its zone. Conversations are compared without it."""
    allow_control_tokens: bool
    """True if control tokens that are spelled in contents are control tokens for the model."""

    def __init__(
        self,
        instructions: str | None = None,
        messages: Iterable[Message] = (),
        template_kwargs: Mapping[str, Any] | None = None,
        date: datetime | None = None,
        allow_control_tokens: bool = False,
    ) -> None:
        if not isinstance(allow_control_tokens, bool):
            raise ConfigurationError(
                f"allow_control_tokens must be True or False, not {allow_control_tokens!r}.",
                remedy="Leave it out, unless what people and tools say may steer the model.",
            )
        checked = {
            "instructions": _checked_instructions(instructions),
            "messages": check_messages(messages),
            "template_kwargs": _copied({} if template_kwargs is None else template_kwargs),
            "date": _checked_date(date),
            "allow_control_tokens": allow_control_tokens,
        }
        # The dataclass is frozen: checked values go in through the base class.
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def system(self) -> Message | None:
        """The instructions as a message."""
        return None if self.instructions is None else Message.system(self.instructions)

    @property
    def turns(self) -> tuple[tuple[Message, ...], ...]:
        """The messages by turns. System messages before the first turn are in none."""
        return tuple(map(tuple, turns_taken(self.messages)))

    def with_messages(self, messages: Iterable[Message]) -> Self:
        """Return a conversation that has other messages.

        `dataclasses.replace` does the same, but copies the template's arguments.
        """
        # By hand: a reply that is dropped as Python exits is recorded, when `copy` is gone.
        twin = object.__new__(type(self))
        object.__setattr__(twin, "instructions", self.instructions)
        object.__setattr__(twin, "messages", check_messages(messages))
        object.__setattr__(twin, "template_kwargs", self.template_kwargs)
        object.__setattr__(twin, "date", self.date)
        object.__setattr__(twin, "allow_control_tokens", self.allow_control_tokens)
        return twin

    def extended(self, *messages: Message) -> Self:
        """Return a conversation with more messages."""
        return self.with_messages((*self.messages, *messages))


def _checked_instructions(instructions: object) -> str | None:
    if instructions is None:
        return None
    if not isinstance(instructions, str):
        raise ConfigurationError(
            f"instructions must be text or None, not {type(instructions).__name__}.",
            remedy="Pass a string, or None for no system message.",
        )
    check_text(instructions, "The text of instructions")
    return instructions


def _checked_date(date: object) -> datetime | None:
    if date is None:
        return None
    remedy = "Pass datetime.now(), say, or None."
    if not isinstance(date, datetime):
        raise ConfigurationError(
            f"date must be a datetime or None, not {type(date).__name__}.", remedy=remedy
        )
    try:
        return date if date.utcoffset() is not None else date.astimezone()
    except (ValueError, OverflowError, OSError) as error:
        raise ConfigurationError(
            f"date must be a time that has a local zone, and {date} has none.", remedy=remedy
        ) from error


def _copied(template_kwargs: object) -> dict[str, Any]:
    if not isinstance(template_kwargs, Mapping):
        raise ConfigurationError(
            f"template_kwargs must be a mapping of names to values, not "
            f"{type(template_kwargs).__name__}.",
            remedy="Pass a dict such as {'enable_thinking': False}.",
        )
    for name in template_kwargs:
        if not isinstance(name, str):
            raise ConfigurationError(
                f"The names in template_kwargs must be text, not {name!r}.",
                remedy="Pass a dict such as {'enable_thinking': False}.",
            )
    try:
        copied = copy.deepcopy(dict(template_kwargs))
        where = surrogate_in(copied, "template_kwargs")
    except (TypeError, RecursionError) as error:
        raise ConfigurationError(
            f"template_kwargs must be values that can be copied, and one can't: {error}.",
            remedy="Use strings, numbers, lists and dicts.",
        ) from None
    if where is not None:
        raise ConfigurationError(
            f"template_kwargs contain a lone surrogate, which isn't a character, in {where}.",
            remedy="Decode the text with errors='replace' where it comes from.",
        )
    return copied


def split_turns(history: Sequence[Message]) -> list[list[Message]]:
    """Split a history into turns; the first one may be system messages alone."""
    turns: list[list[Message]] = []
    asking = False
    for message in history:
        begins = message.role is Role.USER and not asking
        asking = message.role is Role.USER or (asking and message.role is Role.SYSTEM)
        if begins or not turns:
            turns.append([message])
        else:
            turns[-1].append(message)
    return turns


def turns_taken(history: Sequence[Message]) -> list[list[Message]]:
    """Return the turns of a history. System messages before them are not a turn."""
    return [
        turn
        for turn in split_turns(history)
        if any(message.role is not Role.SYSTEM for message in turn)
    ]


class LastTurn(NamedTuple):
    """A history, cut where a new reply is to replace the last one."""

    before: tuple[Message, ...]
    """The turns before the last one."""
    asked: tuple[Message, ...]
    """The messages of the last turn that await a reply."""


def last_turn(history: Sequence[Message]) -> LastTurn:
    """Return the last turn without its reply, and the messages before it.

    Raises:
        HistoryError: if nothing in the history awaits or has a reply.
    """
    end = len(history)
    if end and history[-1].role is Role.ASSISTANT:
        end -= 1
    if all(message.role is Role.SYSTEM for message in history[:end]):
        raise HistoryError(
            "The history has no question that could be answered.",
            remedy="Ask something first.",
        )
    start = end - len(split_turns(history[:end])[-1])
    return LastTurn(tuple(history[:start]), tuple(history[start:end]))


def last_reply(history: Sequence[Message]) -> Message:
    """Return the reply that a history ends in, if it can be continued.

    Raises:
        HistoryError: if the history ends otherwise, or the reply calls tools.
    """
    if not history or history[-1].role is not Role.ASSISTANT:
        raise HistoryError(
            "The history does not end in a reply, so there is none to continue.",
            remedy="Ask something first; retry() answers a question that has no reply.",
        )
    if history[-1].tool_calls:
        raise HistoryError(
            "The last reply calls tools, so it waits for their results.",
            remedy="Pass them: respond([Message.tool(result, call=call)]).",
        )
    return history[-1]


def start_of_turns(history: Sequence[Message], count: int) -> int:
    """Return the index at which the last `count` turns begin.

    Raises:
        HistoryError: if `count` isn't a number from 1 to that of the turns.
    """
    turns = turns_taken(history)
    if not turns:
        raise HistoryError("The history has no turn to take back.", remedy="Take a turn first.")
    if type(count) is not int or not 1 <= count <= len(turns):
        most = "1, for there is one" if len(turns) == 1 else f"from 1 to {len(turns)}"
        raise HistoryError(
            f"The number of turns to take back must be {most}, not {count!r}.",
            remedy="Pass a whole number of turns, or leave it out for the last one.",
        )
    return len(history) - sum(map(len, turns[-count:]))


def checked_index(history: Sequence[Message], index: int) -> int:
    """Return an index into a history as one from its start; a negative one counts from its end.

    Raises:
        HistoryError: if there is no message at that index.
    """
    if not history:
        raise HistoryError("The history has no messages.", remedy="Take a turn first.")
    if type(index) is not int or not -len(history) <= index < len(history):
        raise HistoryError(
            f"The index of a message must be from 0 to {len(history) - 1}, not {index!r}.",
            remedy="Use an index into `history`; a negative one counts from its end.",
        )
    return index % len(history)
