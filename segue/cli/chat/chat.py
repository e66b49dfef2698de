"""A conversation with a person at a terminal.

How it works
    The chat goes in rounds. Each asks for a line (meanwhile the model reads ahead, see `idle`),
    runs it as a slash command or a turn, and saves the branch if it has a file and changed. An
    error ends its round only: it is printed in red, and the chat asks for the next line. An
    EOFError alone (Ctrl-D, ``/quit``) ends the chat.

    What Ctrl-C does depends on when it comes. While the person types: the line is dropped. While a
    reply is shown: the reply ends, and its text so far is in the history. While a session is saved
    or opened: `Branches` finishes that first. In a command: the command ends.

What does not work
    - Letting a stopped reply be closed by garbage collection. The line below a reply shows the
      turn's figures, and a turn is counted only once its reply is closed. So `answer` closes the
      reply itself, whatever happens, and ignores a second Ctrl-C while it does.
    - Showing only what the iteration yields. A reply withholds text that may be the start of a stop
      string, and gives it back when it is closed. So the rest is shown from the reply's own text.
    - Saving inside the turn. A disk that is full would then look like a turn that failed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from functools import partial
from time import perf_counter

from rich.console import Console

from ...errors import SegueError
from ...interrupt import InterruptHold
from ...response import GenerationResponse, TextKind
from ...session import ChatSession
from ...turn.reply import Reply
from ..output.screen import show_remark
from .branches import Branches
from .commands.command import BeginReply, Command
from .idle import reading_ahead
from .markdown import MarkdownStream
from .prompter import Prompter
from .statistics import turn_line
from .terminal import quiet_input

# Below this many tokens, a prompt is read before anybody could look at its progress.
TOKENS_WORTH_PROGRESS = 64

# A slash command, and the text after it.
SLASHED = re.compile(r"/(\S*)(.*)", re.DOTALL)


class TerminalChat:
    """A conversation with a person at a terminal.

    Args:
        branches: The branches of the conversation.
        console: The terminal.
        prompter: Asks for the person's next line.
        commands: The slash commands, by name.
        read_ahead: Whether the model reads ahead while the person types.
    """

    def __init__(
        self,
        branches: Branches,
        console: Console,
        prompter: Prompter,
        commands: Mapping[str, Command],
        *,
        read_ahead: bool = True,
    ) -> None:
        self.branches = branches
        self.console = console
        self.commands = commands
        # What the last reply depended on, if it ended by itself.
        self._complete: object = None
        self._read_ahead = read_ahead
        self._prompter = prompter

    @property
    def session(self) -> ChatSession:
        """The session of the current branch."""
        return self.branches.session

    @property
    def reply_complete(self) -> bool:
        """True if the last reply ended by itself, and nothing that it depends on changed since."""
        return self._complete == self._state()

    def note(self, text: str) -> None:
        """Print a quiet line."""
        show_remark(self.console, text, "dim")

    def run(self) -> None:
        """Converse until Ctrl-D or /quit."""
        try:
            with suppress(EOFError):
                while True:
                    self._round()
        finally:
            self._save(self.branches.close)

    def answer(self, begin: BeginReply) -> bool:
        """Show a reply as it comes, and a line with its figures.

        Args:
            begin: Begins the reply.

        Returns:
            False if the person stopped the reply before its first token.
        """
        started = perf_counter()
        first_token = None
        last: GenerationResponse | None = None
        stopped = False
        with quiet_input(), MarkdownStream(self.console) as shown:

            def progress(fed: int, total: int) -> None:
                if total >= TOKENS_WORTH_PROGRESS:
                    shown.note(f"reading {fed:,} of {total:,} tokens …")

            reply = begin(prompt_progress_callback=progress)
            view = _ReplyView(shown)
            try:
                for response in reply:
                    if first_token is None:
                        first_token = perf_counter() - started
                    last = response
                    view.write(response.kind, response.text)
            except KeyboardInterrupt:
                stopped = True
            finally:
                # A Ctrl-C that comes now asks for what is being done.
                with suppress(KeyboardInterrupt):
                    reply.close()
                view.finish(reply)
        self._complete = None if stopped else self._state()
        turn = self.session.usage.turns[-1]
        line = turn_line(turn, last, first_token, stopped=stopped, reuse=reply.reuse)
        self.note(line)
        return last is not None or not stopped

    def _round(self) -> None:
        try:
            with reading_ahead(self.session) if self._read_ahead else nullcontext():
                text = self._prompter.ask()
        except KeyboardInterrupt:
            return
        if not text.strip():
            return
        try:
            if text.startswith("/") and not text.startswith("//"):
                self._command(text)
            else:
                self._turn(text.removeprefix("/"))
        except EOFError:
            raise
        except KeyboardInterrupt:
            pass
        except SegueError as error:
            self._complain(str(error))
        # A model's code may raise anything, and that ends the turn only.
        except Exception as error:
            self._complain(f"The turn failed ({type(error).__name__}): {error}")
        self._save(self.branches.save_changes)

    def _command(self, text: str) -> None:
        name, argument = SLASHED.fullmatch(text).groups()  # type: ignore[union-attr]
        command = self.commands.get(name)
        if command is None:
            show_remark(self.console, f"There is no command /{name}; /help lists them.")
        elif argument.strip() and not command.takes_text:
            show_remark(self.console, f"/{name} takes nothing after it: {command.usage}")
        else:
            command.run(self, argument.strip())

    def _turn(self, text: str) -> None:
        if not self.answer(partial(self.session.stream, text)):
            self.note("Your message stays in the conversation, and is read with the next one.")

    def _save(self, save: Callable[[], None]) -> None:
        """Save the session; if that fails, the chat continues."""
        try:
            save()
        except SegueError as error:
            self._complain(str(error))
        except Exception as error:
            self._complain(f"The session could not be saved ({type(error).__name__}): {error}")
        # The file is complete all the same, and there is nothing else to stop.
        except KeyboardInterrupt:
            pass

    def _complain(self, text: str) -> None:
        show_remark(self.console, text, "red")

    def _state(self) -> object:
        """Everything that a reply depends on, except settings."""
        return self.session.history, self.session.instructions


class _ReplyView:
    """Shows a reply's text: reasoning and answer under headings of their own, if it has both."""

    def __init__(self, shown: MarkdownStream) -> None:
        self._shown = shown
        self._written = dict.fromkeys(TextKind, 0)
        self._kind = TextKind.ANSWER
        self._hold = InterruptHold()

    def write(self, kind: TextKind, text: str) -> None:
        if not text:
            return
        # A Ctrl-C between showing and counting would have the text shown twice.
        with self._hold:
            said = text
            if kind is not self._kind:
                self._shown.begin(f"{kind}:", quiet=kind is TextKind.REASONING)
                self._kind = kind
                # Between two parts of the same kind; the heading parts them here.
                said = text.removeprefix("\n\n")
            self._shown.write(said)
            self._written[kind] += len(text)
        self._hold.deliver()

    def finish(self, reply: Reply) -> None:
        """Show the text that was withheld until the reply was closed."""
        self.write(TextKind.REASONING, reply.reasoning[self._written[TextKind.REASONING] :])
        self.write(TextKind.ANSWER, reply.text[self._written[TextKind.ANSWER] :])
