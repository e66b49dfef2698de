"""Where a person types: history, completion and several lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import platformdirs
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import Completer, WordCompleter
from prompt_toolkit.formatted_text import HTML
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent


class Prompter:
    """Asks for a message.

    Args:
        commands: Names of slash commands, for completion.
    """

    def __init__(self, commands: Sequence[str]) -> None:
        self._session: PromptSession[str] = PromptSession(
            HTML("<ansigreen><b>&gt; </b></ansigreen>"),
            history=_history(),
            multiline=True,
            prompt_continuation="  ",
            key_bindings=_keys(),
            completer=_completer(commands),
            complete_while_typing=False,
        )

    def ask(self) -> str:
        """What the person typed.

        Raises:
            KeyboardInterrupt: Ctrl-C.
            EOFError: Ctrl-D.
        """
        return self._session.prompt()


def _completer(commands: Sequence[str]) -> Completer:
    return WordCompleter([f"/{name}" for name in commands], sentence=True)


def _keys() -> KeyBindings:
    """Enter sends, Alt-Enter and Ctrl-J begin a new line."""
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _history() -> History:
    """What was typed before, kept in the user's data folder; forgotten where that can't be."""
    folder = Path(platformdirs.user_data_dir("segue", appauthor=False))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "prompts"
        file.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(file))
