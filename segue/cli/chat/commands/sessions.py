"""Commands that branch the conversation, and save and open sessions."""

from __future__ import annotations

import os

from ....errors import ConfigurationError
from ....files.atomic import is_written_in_place
from ...output.screen import show_remark
from ...sessions.folder import expanded
from .command import Chat, Commands

COMMANDS = Commands()


@COMMANDS.add("/fork NAME", "continue in a new branch of the conversation")
def fork(chat: Chat, name: str) -> None:
    """Continue in a new branch."""
    if not name:
        show_remark(chat.console, "Name the branch: /fork NAME")
        return
    before = chat.branches.current.name
    chat.branches.fork(name)
    current = chat.branches.current
    saved = "in memory until /save" if current.path is None else "saved after every turn"
    chat.note(f"You are now in {current.name}, {saved}; /switch {before} goes back.")


@COMMANDS.add("/switch NAME", "continue in another branch, or another saved session")
def switch(chat: Chat, name: str) -> None:
    """Continue in another branch."""
    if not name:
        names = ", ".join(chat.branches.names)
        show_remark(chat.console, f"Name a branch ({names}): /switch NAME")
        return
    before = chat.branches.current
    chat.branches.switch(name)
    current = chat.branches.current
    chat.note(f"You are already in {current.name}." if current is before else current.summary)


@COMMANDS.add("/save [NAME|PATH]", "save the session, now and after every turn")
def save(chat: Chat, target: str) -> None:
    """Save the session."""
    chat.branches.save(target)
    chat.note(f"Saved as {chat.branches.current.name}, and from now on after every turn.")


@COMMANDS.add("/open NAME|PATH", "resume a saved session")
def open_session(chat: Chat, target: str) -> None:
    """Resume a saved session."""
    if not target:
        usage = "Name a session (segue sessions lists them): /open NAME or /open PATH"
        show_remark(chat.console, usage)
        return
    chat.branches.open(target)
    chat.note(chat.branches.current.summary)


@COMMANDS.add("/save-cache PATH", "save the KV cache as a prompt cache")
def save_cache(chat: Chat, target: str) -> None:
    """Save the KV cache as a prompt cache."""
    if not target:
        show_remark(chat.console, "Name the file: /save-cache PATH")
        return
    path = expanded(target)
    if os.path.lexists(path) and not is_written_in_place(path):
        # It may be anything, and a slip of the hand must not replace it.
        raise ConfigurationError(
            f"{path} already exists.", remedy="Use another name, or delete it first."
        )
    chat.session.save_cache(path)
    chat.note(f"Saved {chat.session.cached_tokens:,} tokens in {path}; --cache starts from them.")
