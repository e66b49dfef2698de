"""Commands that show and change the conversation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from ....conversation import turns_taken
from ....errors import HistoryError
from ....messages import Role
from ....session import ChatSession
from ...output.screen import show_remark
from ...sessions.show import print_history
from ...words import count
from .command import Chat, Commands

COMMANDS = Commands()


@COMMANDS.add("/history", "show the conversation")
def history(chat: Chat, _: str) -> None:
    """Show the conversation."""
    if not chat.session.history:
        chat.note("Nothing has been said yet.")
    print_history(chat.console, chat.session.history)


@COMMANDS.add("/clear", "clear the conversation, but not the system message")
def clear(chat: Chat, _: str) -> None:
    """Clear the conversation."""
    with chat.branches.current.changes.noting(chat.session, "/clear"):
        chat.session.clear()
    chat.note("The conversation is cleared; the system message stays. /undo brings it back.")


@COMMANDS.add("/undo [N]", "take back the last turn or change, or the last N turns")
def undo(chat: Chat, number: str) -> None:
    """Take back what the last command changed, or the last turns."""
    changes = chat.branches.current.changes
    what = None if number else changes.undo(chat.session)
    if what is None:
        try:
            turns = int(number or 1)
        except ValueError:
            show_remark(chat.console, f"N must be a number, not {number!r}: /undo [N]")
            return
        with changes.noting_undo(chat.session):
            chat.session.undo(turns)
        what = count(turns, "turn")
    chat.note(f"Took back {what}; the conversation has {_turns(chat)}. /redo brings it back.")


@COMMANDS.add("/redo", "bring back what /undo took back")
def redo(chat: Chat, _: str) -> None:
    """Bring back what was taken back."""
    what = chat.branches.current.changes.redo(chat.session)
    again = f"Did {what} again" if what else "Brought it back"
    chat.note(f"{again}; the conversation has {_turns(chat)}.")


def _turns(chat: Chat) -> str:
    return count(len(turns_taken(chat.session.history)), "turn")


@COMMANDS.add("/retry", "replace the last reply with another one")
def retry(chat: Chat, _: str) -> None:
    """Have the last message answered again."""
    session = chat.session
    overrides: dict[str, Any] = {}
    if session.generation.temperature == 0:
        if chat.reply_complete:
            chat.note(
                "At temperature 0 the reply would be the same again; try /set temperature 0.7."
            )
            return
    elif session.generation.seed is not None:
        # A seed that no earlier reply to this message had: each of them counted as a turn.
        seed = session.generation.seed + len(session.usage.turns) + 1
        overrides["seed"] = seed % 2**64
    with chat.branches.current.changes.noting(session, "/retry"):
        begun = chat.answer(partial(session.stream_retry, **overrides))
    if not begun:
        chat.note("The earlier reply stays.")


@COMMANDS.add("/continue", "continue a reply that was cut or stopped")
def continue_reply(chat: Chat, _: str) -> None:
    """Continue the last reply where it ended."""
    before = chat.session.history
    with chat.branches.current.changes.noting(chat.session, "/continue"):
        begun = chat.answer(chat.session.stream_continue)
    if begun and chat.session.history == before:
        chat.note("The model added nothing; the reply stays as it was.")


@COMMANDS.add("/edit TEXT", "replace your last message, and have it answered")
def edit(chat: Chat, text: str) -> None:
    """Replace the person's last message, and have it answered."""
    if not text:
        show_remark(chat.console, "Give the new text of your last message: /edit TEXT")
        return
    session = chat.session
    indices = [i for i, message in enumerate(session.history) if message.role is Role.USER]
    if not indices:
        raise HistoryError(
            "There is no message of yours to edit yet.", remedy="Type it without /edit."
        )
    _check_edit(session, indices[-1], text)
    with chat.branches.current.changes.noting(session, "/edit"):
        session.edit(indices[-1], text)
        begun = chat.answer(session.stream_retry)
    if not begun:
        chat.note("Your message stays in the conversation; /retry answers it.")


def _check_edit(session: ChatSession, index: int, text: str) -> None:
    """Raise what the model would refuse of an edit, before anything changes."""
    edited = replace(session.history[index], content=text)
    session.preview(edited, history=session.history[:index])
