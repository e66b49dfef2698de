"""A conversation with a person at a terminal.

How it works
    The chat goes in rounds. Each asks for a line (meanwhile the model reads ahead, see `idle`),
    runs it as a slash command or a turn (see `commands.line`), and saves the branch if it has a
    file and changed. An error ends its round only: it is printed in red, and the chat asks for the
    next line. An EOFError (Ctrl-D, ``/quit``) ends the chat; the first one only says so if branches
    would be lost.

    What Ctrl-C does depends on when it comes. While the person types: the line is dropped. While a
    reply is shown: the reply ends, and its text so far is in the history. While a session is saved
    or opened: `Branches` finishes that first. In a command: the command ends. A signal that asks
    the process to end does the same (see `process.termination`), and then ends the chat.

What does not work
    - Letting a stopped reply be closed by garbage collection. The line below a reply shows the
      turn's figures, and a turn is counted only once its reply is closed. So `answer` closes the
      reply itself, whatever happens, and ignores a second Ctrl-C while it does.
    - Showing only what the iteration yields. A reply withholds text that may be the start of a stop
      string, and gives it back when it is closed. So the rest is shown from the reply's own text.
    - Saving inside the turn. A disk that is full would then look like a turn that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from functools import partial
from time import perf_counter
from typing import Protocol

from rich.console import Console

from ...conversation import turns_taken
from ...errors import SegueError
from ...interrupt import InterruptHold
from ...response import FinishReason, GenerationResponse, TextKind
from ...session import ChatSession
from ...turn.reply import Reply
from ..output.screen import show_remark
from ..process.termination import is_ending, stop_if_ending
from ..remedies import for_person
from ..words import count
from .branches import Branches
from .commands.command import BeginReply, Command
from .commands.line import Called, Refused, read
from .idle import reading_ahead
from .markdown import MarkdownStream
from .statistics import cut_note, dropped_note, turn_line

# Below this many tokens, a prompt is read before anybody could look at its progress.
TOKENS_WORTH_PROGRESS = 64


class AsksForText(Protocol):
    """What asks the person for the next line, or lines."""

    def ask(self) -> str:
        """Return what the person typed.

        Raises:
            KeyboardInterrupt: if the person pressed Ctrl-C.
            EOFError: if the person pressed Ctrl-D.
        """


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
        prompter: AsksForText,
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
        # True if the person wanted to leave, and was told what would be lost.
        self._warned = False

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
            while not is_ending():
                try:
                    self._round()
                except EOFError:
                    if self._may_leave():
                        break
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
        with MarkdownStream(self.console) as shown:

            def progress(fed: int, total: int) -> None:
                stop_if_ending()
                if total >= TOKENS_WORTH_PROGRESS:
                    shown.note(f"reading {fed:,} of {total:,} tokens …")

            reply = begin(prompt_progress_callback=progress)
            view = _ReplyView(shown)
            try:
                for response in reply:
                    stop_if_ending()
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
        turn = reply.usage
        line = turn_line(turn, last, first_token, stopped=stopped, reuse=reply.reuse)
        self.note(line)
        if reply.dropped:
            self.note(dropped_note(reply.dropped))
        if reply.finish_reason is FinishReason.LENGTH and not stopped:
            self.note(cut_note(turn, self.session.generation))
        return last is not None or not stopped

    def say(self, text: str) -> None:
        """Take a turn with a message."""
        self._warned = False
        if not self.answer(partial(self.session.stream, text)):
            self.note("Your message stays in the conversation, and is read with the next one.")

    def _round(self) -> None:
        try:
            with reading_ahead(self.session) if self._read_ahead else nullcontext():
                text = self._prompter.ask()
        except KeyboardInterrupt:
            return
        if not text.strip():
            return
        try:
            match read(text, self.commands):
                case Called(command, argument):
                    # Only /quit again, at once, leaves in spite of what would be lost.
                    self._warned &= command.name == "quit"
                    command.run(self, argument)
                case Refused(answer):
                    show_remark(self.console, answer)
                case said:
                    self.say(said.text)
        except EOFError:
            raise
        except KeyboardInterrupt:
            pass
        except SegueError as error:
            self._complain(for_person(error, in_chat=True))
        # A model's code may raise anything, and that ends the turn only.
        except Exception as error:
            self._complain(f"The turn failed ({type(error).__name__}): {error}")
        self._save(self.branches.save_changes)

    def _may_leave(self) -> bool:
        """Return False, once, if that would lose branches of the chat; says which."""
        unsaved = self.branches.unsaved
        if not unsaved or self._warned or is_ending():
            return True
        self._warned = True
        names = ", ".join(
            f"{branch.name} ({count(len(turns_taken(branch.session.history)), 'turn')})"
            for branch in unsaved
            if branch.session
        )
        self.note(f"Not saved: {names}. /switch NAME and /save NAME keep one; /quit again leaves.")
        return False

    def _save(self, save: Callable[[], None]) -> None:
        """Save the session; if that fails, the chat continues."""
        try:
            save()
        except SegueError as error:
            self._complain(for_person(error, in_chat=True))
        except Exception as error:
            self._complain(f"The session could not be saved ({type(error).__name__}): {error}")
        # The file is complete all the same, and there is nothing else to stop.
        except KeyboardInterrupt:
            pass

    def _complain(self, text: str) -> None:
        show_remark(self.console, text, "red")

    def _state(self) -> object:
        """Everything that a reply depends on."""
        return self.session.history, self.session.instructions, self.session.generation


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
