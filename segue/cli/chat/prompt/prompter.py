"""The prompt that a person types at, with history, completion and several lines.

What is pasted is said, and never a command, if it has several lines: whoever pastes a text did not
look at its first word. So a pasted text that begins with a slash comes back after `SAY`.

A Ctrl-C, or a signal that ends the process, may come when Enter has ended the prompt and
prompt_toolkit still takes it, although nothing can be interrupted any more. It is remembered, and
drops the line as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import Completer, WordCompleter
from prompt_toolkit.formatted_text import HTML
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout.screen import Char

from ....printable import printable
from ...process.input import without_mark
from .history import typed_history

SAY = "/say "
# What the terminal sends and isn't text arrives as lone surrogates.
SURROGATE = re.compile("[\ud800-\udfff]")

# What is pasted, or comes back from the file, is shown as all other text is. Of the characters that
# command a terminal, prompt_toolkit leaves these alone.
Char.display_mappings |= {
    letter: printable(letter)
    for letter in map(chr, range(0x2028, 0x2070))
    if printable(letter) != letter
}


class Prompter:
    """Asks for the next line, or lines.

    Args:
        commands: The names of the slash commands, for completion.
        warn: Shows a line, before the prompt or after it.
    """

    def __init__(self, commands: Sequence[str], *, warn: Callable[[str], object]) -> None:
        self._history = typed_history()
        self._warn = warn
        # The first line of what was pasted where the text begins.
        self._pasted = ""
        self._interrupted = False
        self._session: PromptSession[str] = PromptSession(
            HTML("<ansigreen><b>&gt; </b></ansigreen>"),
            history=self._history,
            multiline=True,
            prompt_continuation="  ",
            key_bindings=self._keys(),
            completer=_completer(commands),
            complete_while_typing=False,
        )

    def ask(self) -> str:
        """Return what the person typed.

        Raises:
            KeyboardInterrupt: if the person pressed Ctrl-C.
            EOFError: if the person pressed Ctrl-D.
        """
        self._pasted = ""
        self._interrupted = False
        try:
            text = self._session.prompt()
        finally:
            if self._history.problem is not None:
                self._warn(self._history.problem)
                self._history.problem = None
        if self._interrupted:
            raise KeyboardInterrupt
        text = without_mark(SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text))
        pasted = self._pasted and text.startswith(self._pasted)
        return SAY + text if pasted and text.startswith("/") and "\n" in text.strip() else text

    def _keys(self) -> KeyBindings:
        """Keys: Enter sends, Alt-Enter and Ctrl-J start a new line."""
        keys = KeyBindings()

        @keys.add("enter")
        def _send(event: KeyPressEvent) -> None:
            event.current_buffer.validate_and_handle()

        @keys.add("escape", "enter")
        @keys.add("c-j")
        def _new_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add(Keys.SIGINT)
        def _interrupt(event: KeyPressEvent) -> None:
            # prompt_toolkit's own one fails then, and waits for Enter.
            future = self._session.app.future
            if future is None or future.done():
                self._interrupted = True
            else:
                self._session.app.exit(exception=KeyboardInterrupt, style="class:aborting")

        @keys.add(Keys.BracketedPaste)
        def _paste(event: KeyPressEvent) -> None:
            # Terminals send a line break as Enter.
            text = event.data.replace("\r\n", "\n").replace("\r", "\n")
            if not event.current_buffer.document.text_before_cursor:
                self._pasted = without_mark(text).split("\n")[0]
            event.current_buffer.insert_text(text)

        return keys


def _completer(commands: Sequence[str]) -> Completer:
    return WordCompleter([f"/{name}" for name in commands], sentence=True)
