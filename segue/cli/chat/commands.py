"""The slash commands of the chat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ...conversation import turns_taken
from ...errors import HistoryError
from ...messages import Role
from ..sessions.folder import count, expanded
from ..sessions.show import print_history
from .statistics import usage_table

if TYPE_CHECKING:
    from .chat import TerminalChat


@dataclass(frozen=True, slots=True)
class Command:
    """A slash command: how it is written, what it does, and the code that does it."""

    usage: str
    help: str
    run: Callable[[TerminalChat, str], None]


def _help(chat: TerminalChat, _: str) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    for command in COMMANDS.values():
        table.add_row(command.usage, command.help)
    table.add_row("//...", "say something that begins with a slash")
    chat.console.print(table)


def _clear(chat: TerminalChat, _: str) -> None:
    chat.session.clear()
    chat.tell("The conversation is forgotten; the system message stays.")


def _system(chat: TerminalChat, text: str) -> None:
    if text:
        chat.session.instructions = text
        chat.tell("The system message changes with your next message.")
    else:
        chat.console.print(chat.session.instructions or "There is no system message.", markup=False)


def _history(chat: TerminalChat, _: str) -> None:
    if not chat.session.history:
        chat.tell("Nothing has been said yet.")
    print_history(chat.console, chat.session.history)


def _undo(chat: TerminalChat, number: str) -> None:
    try:
        turns = int(number or 1)
    except ValueError:
        chat.console.print("Say how many turns: /undo [N]", markup=False)
        return
    chat.session.undo(turns)
    left = count(len(turns_taken(chat.session.history)), "turn")
    chat.tell(f"{count(turns, 'turn')} taken back; the conversation has {left}.")


def _retry(chat: TerminalChat, _: str) -> None:
    session = chat.session
    overrides: dict[str, Any] = {}
    if session.generation.temperature == 0:
        if chat.finished == chat.state:
            chat.tell("At temperature 0 the model always gives this reply; see --temperature.")
            return
    elif session.generation.seed is not None:
        # One that no earlier reply to this had: each of them counted as a turn.
        seed = session.generation.seed + len(session.usage.turns) + 1
        overrides["seed"] = seed % 2**64
    if not chat.answer(partial(session.stream_again, **overrides)):
        chat.tell("What was said before stays.")


def _edit(chat: TerminalChat, text: str) -> None:
    if not text:
        chat.console.print("Say what your last message should be: /edit TEXT", markup=False)
        return
    session, history = chat.session, chat.session.history
    asked = [place for place, message in enumerate(history) if message.role is Role.USER]
    if not asked:
        raise HistoryError("You have not said anything yet.", remedy="Say it, without /edit.")
    # What the model would refuse is refused before anything changes.
    trial = session.fork()
    trial.edit(asked[-1], text)
    trial.stream_again().close()
    del trial
    session.edit(asked[-1], text)
    if not chat.answer(session.stream_again):
        chat.tell("Your message stays in the conversation; /retry answers it.")


def _fork(chat: TerminalChat, name: str) -> None:
    if not name:
        chat.console.print("Name the branch: /fork NAME", markup=False)
        return
    before = chat.branches.current.name
    chat.branches.fork(name)
    current = chat.branches.current
    kept = "in memory until /save" if current.path is None else "saved after every turn"
    chat.tell(f"This is {current.name} now, {kept}; /switch {before} goes back.")


def _switch(chat: TerminalChat, name: str) -> None:
    if not name:
        names = ", ".join(chat.branches.names)
        chat.console.print(f"Name a branch ({names}): /switch NAME", markup=False)
        return
    before = chat.branches.current
    chat.branches.switch(name)
    current = chat.branches.current
    chat.tell(f"This is {current.name} already." if current is before else current.told)


def _save(chat: TerminalChat, target: str) -> None:
    chat.branches.save(target)
    chat.tell(f"Saved as {chat.branches.current.name}, from here on after every turn.")


def _open(chat: TerminalChat, target: str) -> None:
    if not target:
        told = "Name a session (segue sessions lists them): /open NAME or /open PATH"
        chat.console.print(told, markup=False)
        return
    chat.branches.open(target)
    chat.tell(chat.branches.current.told)


def _stats(chat: TerminalChat, _: str) -> None:
    chat.console.print(usage_table(chat.session))


def _save_cache(chat: TerminalChat, path: str) -> None:
    if not path:
        chat.console.print("Name the file: /save-cache PATH", markup=False)
        return
    place = expanded(path)
    chat.session.save_cache(place)
    chat.tell(f"{chat.session.cached_tokens:,} tokens are in {place}; --cache takes them up again.")


def _quit(chat: TerminalChat, _: str) -> None:
    raise EOFError  # as Ctrl-D does


COMMANDS = {
    "help": Command("/help", "list the commands", _help),
    "clear": Command("/clear", "forget the conversation, keep the system message", _clear),
    "system": Command("/system [TEXT]", "set the system message, or show it", _system),
    "history": Command("/history", "show what was said", _history),
    "undo": Command("/undo [N]", "take back the last turn, or the last N", _undo),
    "retry": Command("/retry", "have your last message answered once more", _retry),
    "edit": Command("/edit TEXT", "replace your last message, and have it answered", _edit),
    "fork": Command("/fork NAME", "go on in a branch of the conversation", _fork),
    "switch": Command("/switch NAME", "go on in another branch, or saved session", _switch),
    "save": Command("/save [NAME|PATH]", "save the session, now and after every turn", _save),
    "open": Command("/open NAME|PATH", "go on with a saved session", _open),
    "save-cache": Command("/save-cache PATH", "keep the KV cache in a file", _save_cache),
    "stats": Command("/stats", "show what the conversation has cost", _stats),
    "quit": Command("/quit", "leave (as Ctrl-D does)", _quit),
}
