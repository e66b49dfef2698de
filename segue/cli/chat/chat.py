"""The conversation in the terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from time import perf_counter
from typing import Protocol

import click
from rich.console import Console
from rich.text import Text

from ...config import GenerationConfig
from ...engine import PrefillProgress
from ...errors import SegueError
from ...response import GenerationResponse, TextKind
from ...session import ChatSession
from ...turn.reply import Reply
from .branches import Branches
from .commands import COMMANDS
from .idle import reading_ahead
from .markdown import MarkdownStream
from .prompter import Prompter
from .start import Place, Start
from .statistics import turn_line
from .terminal import quiet_input

GREETING = (
    "{name}. Enter sends, Alt-Enter begins a new line, Ctrl-C stops a reply, Ctrl-D leaves; /help."
)

# Below this many tokens, reading a prompt is over before a progress display could be read.
TOKENS_WORTH_PROGRESS = 64

# A slash command, and what follows it.
SLASHED = re.compile(r"/(\S*)(.*)", re.DOTALL)


class Begin(Protocol):
    """Begins a reply."""

    def __call__(self, *, prompt_progress_callback: PrefillProgress | None) -> Reply:
        """The reply, of which nothing was read yet."""


def run(model: str | None, start: Start, generation: GenerationConfig) -> None:
    """Load a model and converse until the input ends.

    Args:
        model: Its name; ``None`` for the one that the session was saved with.
        start: What the chat begins with.
        generation: The settings of replies.
    """
    # A program may be started with its standard streams closed.
    if sys.stdin is None or sys.stdout is None:
        return
    # Whatever is wrong with a session is told before its model takes seconds to load.
    place = start.place()
    from ...names import DEFAULT_MODEL

    try:
        if model is None:
            model = (place and place.saved and place.saved.model) or DEFAULT_MODEL
        _converse(model, start, generation, place)
    finally:
        if place is not None:
            place.release()


def _converse(model: str, start: Start, generation: GenerationConfig, place: Place | None) -> None:
    from ...loading import load
    from ...names import find

    console = Console(highlight=False)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        answer_lines(start.branches(load(model), generation, place))
        return
    if isinstance(find(model), str):
        # A repository: the download shows its own progress, which a spinner would garble.
        engine = load(model)
    else:
        with quiet_input(), console.status(Text(f"loading {model} …")):
            engine = load(model)
    branches = start.branches(engine, generation, place)
    console.print(GREETING.format(name=engine.name), style="dim", markup=False)
    if start.cache is not None and branches.session.has_cache:
        told = f"{branches.session.cached_tokens:,} tokens already, from {start.cache}."
        console.print(f"The model has read {told}", style="dim", markup=False)
    if place is not None:
        console.print(branches.current.told, style="dim", markup=False)
    TerminalChat(branches, console, Prompter(list(COMMANDS))).run()


def answer_lines(branches: Branches) -> None:
    """Answer each line of standard input on standard output, plainly, as it comes.

    Raises:
        SessionFileError: What was said could not be saved; all lines were answered.
    """
    try:
        for line in sys.stdin:
            if prompt := line.strip():
                try:
                    _answer_line(branches.session, prompt)
                finally:
                    _keep_or_warn(branches)
    finally:
        branches.close()


def _answer_line(session: ChatSession, prompt: str) -> None:
    with session.stream(prompt) as reply:
        for response in reply:
            if response.kind is TextKind.ANSWER:
                sys.stdout.write(response.text)
                sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def _keep_or_warn(branches: Branches) -> None:
    try:
        branches.keep()
    except SegueError as error:
        click.echo(f"segue: {error}", err=True)


class TerminalChat:
    """A conversation with a person at a terminal.

    Args:
        branches: The conversation, and others that it came to have.
        console: Where it is shown.
        prompter: Asks for the person's next message.
        read_ahead: Whether the model reads ahead meanwhile.
    """

    def __init__(
        self,
        branches: Branches,
        console: Console,
        prompter: Prompter,
        *,
        read_ahead: bool = True,
    ) -> None:
        self.branches = branches
        self.console = console
        # The conversation as the last reply left it that ended by itself.
        self.finished: object = None
        self._read_ahead = read_ahead
        self._prompter = prompter

    @property
    def session(self) -> ChatSession:
        """The conversation as it goes on now."""
        return self.branches.session

    @property
    def state(self) -> object:
        """What a reply depends on, settings apart."""
        return self.session.history, self.session.instructions

    def tell(self, text: str) -> None:
        """Print a quiet line."""
        self.console.print(text, style="dim", markup=False)

    def run(self) -> None:
        """Converse until Ctrl-D or /quit."""
        try:
            with suppress(EOFError):
                while True:
                    self._round()
        finally:
            self._keep(self.branches.close)

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
            pass  # it asks for what is being done
        except SegueError as error:
            self._complain(str(error))
        # Whatever else a model does wrong ends the turn, not the conversation.
        except Exception as error:
            self._complain(f"The turn failed ({type(error).__name__}): {error}")
        self._keep(self.branches.keep)

    def _keep(self, save: Callable[[], None]) -> None:
        """Save what was said; if that fails, the conversation goes on."""
        try:
            save()
        except SegueError as error:
            self._complain(str(error))
        except Exception as error:
            self._complain(f"The session could not be saved ({type(error).__name__}): {error}")
        # It is saved all the same, and there is nothing else to stop.
        except KeyboardInterrupt:
            pass

    def _complain(self, text: str) -> None:
        self.console.print(text, style="red", markup=False)

    def _command(self, text: str) -> None:
        name, argument = SLASHED.fullmatch(text).groups()  # type: ignore[union-attr]
        command = COMMANDS.get(name)
        if command is None:
            self.console.print(f"There is no /{name}; /help lists the commands.", markup=False)
        else:
            command.run(self, argument.strip())

    def _turn(self, text: str) -> None:
        if not self.answer(partial(self.session.stream, text)):
            self.tell("Your message stays in the conversation, and is read with the next one.")

    def answer(self, begin: Begin) -> bool:
        """Show a reply as it comes, and what it has cost.

        Args:
            begin: Begins it; called with ``prompt_progress_callback``.

        Returns:
            Whether it came to a first token; where it did not, the person stopped it.
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
            spoken = _Spoken(shown)
            try:
                for response in reply:
                    if first_token is None:
                        first_token = perf_counter() - started
                    last = response
                    spoken.write(response.kind, response.text)
            except KeyboardInterrupt:
                stopped = True
            finally:
                # A Ctrl-C that comes this late asks for what is being done.
                with suppress(KeyboardInterrupt):
                    reply.close()
                # Some text may have been withheld when the reply was stopped.
                spoken.finish(reply)
        self.finished = None if stopped else self.state
        self.tell(turn_line(self.session.usage.turns[-1], last, first_token, stopped=stopped))
        return last is not None or not stopped


class _Spoken:
    """Shows the two kinds of a reply's text: reasoning as a quotation in front of the answer."""

    def __init__(self, shown: MarkdownStream) -> None:
        self._shown = shown
        self._written = dict.fromkeys(TextKind, 0)

    def write(self, kind: TextKind, text: str) -> None:
        if not text:
            return
        if kind is TextKind.REASONING:
            begun = "" if self._written[kind] else "> "
            self._shown.write(begun + text.replace("\n", "\n> "))
        else:
            behind_reasoning = self._written[TextKind.REASONING] and not self._written[kind]
            self._shown.write("\n\n" + text if behind_reasoning else text)
        self._written[kind] += len(text)

    def finish(self, reply: Reply) -> None:
        """Show what of a reply was not shown yet."""
        self.write(TextKind.REASONING, reply.reasoning[self._written[TextKind.REASONING] :])
        self.write(TextKind.ANSWER, reply.text[self._written[TextKind.ANSWER] :])
