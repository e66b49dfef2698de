"""The conversation in the terminal."""

from __future__ import annotations

import sys
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.text import Text

from ..config import PROMPT_LOOKUP, GenerationConfig, SpeculativeDecodingConfig
from ..engine import Engine
from ..errors import SegueError
from ..prompt_cache import load_prompt_cache
from ..reply import Reply
from ..response import GenerationResponse, TextKind
from ..session import ChatSession
from .commands import COMMANDS
from .idle import reading_ahead
from .markdown import MarkdownStream
from .prompter import Prompter
from .statistics import turn_line
from .terminal import quiet_input

GREETING = (
    "{name}. Enter sends, Alt-Enter begins a new line, Ctrl-C stops a reply, Ctrl-D leaves; /help."
)

# Below this many tokens, reading a prompt is over before a progress display could be read.
TOKENS_WORTH_PROGRESS = 64


@dataclass(frozen=True, slots=True)
class Start:
    """What a chat begins with, as the command line names it.

    Attributes:
        system: The system message.
        cache: A prompt cache file.
        draft: ``"prompt-lookup"``, or the name of a model that drafts.
        num_draft_tokens: How many tokens it drafts at a time.
    """

    system: str | None = None
    cache: Path | None = None
    draft: str | None = None
    num_draft_tokens: int = 5

    def session(self, engine: Engine, generation: GenerationConfig) -> ChatSession:
        """The session that this begins."""
        from ..mlx.loading import load

        speculative = None
        if self.draft is not None:
            lookup = self.draft.replace("_", "-") == PROMPT_LOOKUP
            draft = PROMPT_LOOKUP if lookup else load(self.draft)
            speculative = SpeculativeDecodingConfig(draft, self.num_draft_tokens)
        cache = None if self.cache is None else load_prompt_cache(self.cache, engine)
        session = ChatSession(engine, generation=generation, speculative=speculative, cache=cache)
        if self.system is not None:
            session.instructions = self.system
        return session


def run(model: str, start: Start, generation: GenerationConfig) -> None:
    """Load a model and converse until the input ends."""
    console = Console(highlight=False)
    # A program may be started with its standard streams closed.
    if sys.stdin is None or sys.stdout is None:
        return
    from ..mlx.loading import load
    from ..mlx.names import find

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        answer_lines(start.session(load(model), generation))
        return
    if isinstance(find(model), str):
        # A repository: the download shows its own progress, which a spinner would garble.
        engine = load(model)
    else:
        with quiet_input(), console.status(Text(f"loading {model} …")):
            engine = load(model)
    session = start.session(engine, generation)
    console.print(GREETING.format(name=engine.name), style="dim", markup=False)
    if session.has_cache:
        told = f"The model has read {session.cached_tokens:,} tokens already, from {start.cache}."
        console.print(told, style="dim", markup=False)
    TerminalChat(session, console, Prompter(list(COMMANDS))).run()


def answer_lines(session: ChatSession) -> None:
    """Answer each line of standard input on standard output, plainly, as it comes."""
    for line in sys.stdin:
        if prompt := line.strip():
            with session.stream(prompt) as reply:
                for response in reply:
                    if response.kind is TextKind.ANSWER:
                        sys.stdout.write(response.text)
                        sys.stdout.flush()
            sys.stdout.write("\n")
            sys.stdout.flush()


class TerminalChat:
    """A conversation with a person at a terminal.

    Args:
        session: The conversation.
        console: Where it is shown.
        prompter: Asks for the person's next message.
        read_ahead: Whether the model reads ahead meanwhile.
    """

    def __init__(
        self,
        session: ChatSession,
        console: Console,
        prompter: Prompter,
        *,
        read_ahead: bool = True,
    ) -> None:
        self.session = session
        self.console = console
        self._read_ahead = read_ahead
        self._prompter = prompter

    def run(self) -> None:
        """Converse until Ctrl-D or /quit."""
        while True:
            try:
                with reading_ahead(self.session) if self._read_ahead else nullcontext():
                    text = self._prompter.ask()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if not text.strip():
                continue
            try:
                if text.startswith("/") and not text.startswith("//"):
                    self._command(text)
                else:
                    self._turn(text.removeprefix("/"))
            except EOFError:
                return
            except SegueError as error:
                self.console.print(str(error), style="red", markup=False)
            # Whatever else a model does wrong ends the turn, not the conversation.
            except Exception as error:
                told = f"The turn failed ({type(error).__name__}): {error}"
                self.console.print(told, style="red", markup=False)

    def _command(self, text: str) -> None:
        name, _, argument = text[1:].partition(" ")
        command = COMMANDS.get(name)
        if command is None:
            self.console.print(f"There is no /{name}; /help lists the commands.", markup=False)
        else:
            command.run(self, argument.strip())

    def _turn(self, text: str) -> None:
        started = perf_counter()
        first_token = None
        last: GenerationResponse | None = None
        stopped = False
        with quiet_input(), MarkdownStream(self.console) as shown:

            def progress(fed: int, total: int) -> None:
                if total >= TOKENS_WORTH_PROGRESS:
                    shown.note(f"reading {fed:,} of {total:,} tokens …")

            reply = self.session.stream(text, prompt_progress_callback=progress)
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
        line = turn_line(self.session.usage.turns[-1], last, first_token, stopped=stopped)
        self.console.print(line, style="dim", markup=False)
        if stopped and last is None:
            told = "Your message stays in the conversation, and is read with the next one."
            self.console.print(told, style="dim")


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
