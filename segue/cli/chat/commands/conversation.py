"""Commands that show and change the conversation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from ....conversation import turns_taken
from ....errors import HistoryError
from ....messages import Role
from ....session import ChatSession
from ...output.screen import show_remark, show_text
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


@COMMANDS.add("/system [TEXT]", "set the system message, or show it")
def system(chat: Chat, text: str) -> None:
    """Set the system message, or show it."""
    if text:
        chat.session.instructions = text
        chat.note("The new system message takes effect with your next message.")
    else:
        show_text(chat.console, chat.session.instructions or "There is no system message.")


@COMMANDS.add("/clear", "clear the conversation, but not the system message")
def clear(chat: Chat, _: str) -> None:
    """Clear the conversation."""
    chat.session.clear()
    chat.note("The conversation is cleared; the system message stays.")


@COMMANDS.add("/undo [N]", "take back the last turn, or the last N turns")
def undo(chat: Chat, number: str) -> None:
    """Take back the last turns."""
    try:
        turns = int(number or 1)
    except ValueError:
        show_remark(chat.console, f"N must be a number, not {number!r}: /undo [N]")
        return
    chat.session.undo(turns)
    left = count(len(turns_taken(chat.session.history)), "turn")
    chat.note(f"Took back {count(turns, 'turn')}; the conversation has {left}.")


@COMMANDS.add("/retry", "replace the last reply with another one")
def retry(chat: Chat, _: str) -> None:
    """Have the last message answered again."""
    session = chat.session
    overrides: dict[str, Any] = {}
    if session.generation.temperature == 0:
        if chat.reply_complete:
            chat.note(
                "At temperature 0 the reply would be the same again; "
                "/save the session, and continue it with --temperature 0.7."
            )
            return
    elif session.generation.seed is not None:
        # A seed that no earlier reply to this message had: each of them counted as a turn.
        seed = session.generation.seed + len(session.usage.turns) + 1
        overrides["seed"] = seed % 2**64
    if not chat.answer(partial(session.stream_retry, **overrides)):
        chat.note("The earlier reply stays.")


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
    session.edit(indices[-1], text)
    if not chat.answer(session.stream_retry):
        chat.note("Your message stays in the conversation; /retry answers it.")


def _check_edit(session: ChatSession, index: int, text: str) -> None:
    """Raise what the model would refuse of an edit, before anything changes."""
    edited = replace(session.history[index], content=text)
    session.preview(edited, history=session.history[:index])
