"""Turns and places in a history: pure functions over messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .errors import HistoryError
from .messages import Message, Role


def split_turns(history: Sequence[Message]) -> list[list[Message]]:
    """A history by turns: each begins with what a person says, tool exchanges are part of it."""
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
    """The turns of a history; system messages in front of them all are none."""
    return [
        turn
        for turn in split_turns(history)
        if any(message.role is not Role.SYSTEM for message in turn)
    ]


class LastTurn(NamedTuple):
    """A history, cut where its last reply is to be given once more."""

    before: tuple[Message, ...]
    """The turns before it."""
    asked: tuple[Message, ...]
    """What the turn has without that reply, if it was given already."""


def last_turn(history: Sequence[Message]) -> LastTurn:
    """The last turn without its reply, and what stands before it.

    Raises:
        HistoryError: Nothing was asked.
    """
    end = len(history)
    if end and history[-1].role is Role.ASSISTANT:
        end -= 1
    if all(message.role is Role.SYSTEM for message in history[:end]):
        raise HistoryError(
            "There is nothing in the history that a reply could be given to.",
            remedy="Ask something first.",
        )
    start = end - len(split_turns(history[:end])[-1])
    return LastTurn(tuple(history[:start]), tuple(history[start:end]))


def start_of_turns(history: Sequence[Message], count: int) -> int:
    """Where the last `count` turns begin.

    Raises:
        HistoryError: There are not that many, or the count is no number of turns.
    """
    turns = turns_taken(history)
    if type(count) is not int or not 1 <= count <= len(turns):
        raise HistoryError(
            f"Turns to take back: {count!r}; turns there are: {len(turns)}.",
            remedy=f"Use a number from 1 to {len(turns)}." if turns else "Take a turn first.",
        )
    return len(history) - sum(map(len, turns[-count:]))


def checked_index(history: Sequence[Message], index: int) -> int:
    """An index into a history, counted from its start; a negative one counts from the end.

    Raises:
        HistoryError: There is no such message.
    """
    if type(index) is not int or not -len(history) <= index < len(history):
        raise HistoryError(
            f"There is no message {index!r}: the history has {len(history)}.",
            remedy=f"Use a number from 0 to {len(history) - 1}."
            if history
            else "Take a turn first.",
        )
    return index % len(history)
