"""The prompt that a person types at, with history, completion and several lines."""

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
    """Asks for the next line, or lines.

    Args:
        commands: The names of the slash commands, for completion.
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
        """Return what the person typed.

        Raises:
            KeyboardInterrupt: if the person pressed Ctrl-C.
            EOFError: if the person pressed Ctrl-D.
        """
        return self._session.prompt()


def _completer(commands: Sequence[str]) -> Completer:
    return WordCompleter([f"/{name}" for name in commands], sentence=True)


def _keys() -> KeyBindings:
    """Keys: Enter sends, Alt-Enter and Ctrl-J start a new line."""
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
    """What was typed in earlier chats: a file in the user's data folder, if it can be written."""
    folder = Path(platformdirs.user_data_dir("segue", appauthor=False))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "prompts"
        file.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(file))
