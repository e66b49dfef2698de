"""A chat from its start to its end: in a terminal, or line by line through a pipe."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text

from ...config import CacheConfig, GenerationConfig
from ...errors import SegueError
from ...printable import printable
from ...response import TextKind
from ...session import ChatSession
from ..output.screen import show_remark
from ..output.streams import write, write_remark
from .branches import Branches
from .chat import TerminalChat
from .commands import COMMANDS
from .prompter import Prompter
from .start import Claim, Start, in_force
from .terminal import quiet_input

GREETING = (
    "{name}. Enter sends, Alt-Enter starts a new line, Ctrl-C stops a reply, Ctrl-D leaves; /help."
)


def run(model: str | None, start: Start, generation: GenerationConfig, cache: CacheConfig) -> None:
    """Load a model and converse until the input ends.

    Args:
        model: The model's name; ``None`` for the one that the session was saved with.
        start: What the chat starts with.
        generation: The settings of replies.
        cache: The settings of the KV cache.
    """
    # A program may be started with its standard streams closed.
    if sys.stdin is None or sys.stdout is None:
        return
    # A session that can't be opened is reported before its model takes seconds to load.
    claim = start.claim()
    from ...names import DEFAULT_MODEL

    try:
        if model is None:
            model = (claim and claim.saved and claim.saved.model) or DEFAULT_MODEL
        if sys.stdin.isatty() and sys.stdout.isatty():
            _converse(model, start, generation, cache, claim)
        else:
            _answer_lines(model, start, generation, cache, claim)
    finally:
        if claim is not None:
            claim.release()


def _converse(
    model: str,
    start: Start,
    generation: GenerationConfig,
    cache: CacheConfig,
    claim: Claim | None,
) -> None:
    from ...loading import load
    from ...names import find

    console = Console(highlight=False)
    if isinstance(find(model), str):
        # A repository: its download shows progress, which a spinner would garble.
        engine = load(model)
    else:
        with quiet_input(), console.status(Text(printable(f"loading {model} …"))):
            engine = load(model)
    branches = start.branches(engine, generation, cache, claim)
    show_remark(console, GREETING.format(name=engine.name), "dim")
    if advice := in_force(engine, branches.session.generation):
        show_remark(console, advice, "dim")
    if start.prompt_cache is not None and branches.session.has_cache:
        tokens = branches.session.cached_tokens
        show_remark(console, f"Starting from {tokens:,} tokens in {start.prompt_cache}.", "dim")
    if claim is not None:
        show_remark(console, branches.current.summary, "dim")
    TerminalChat(branches, console, Prompter(list(COMMANDS)), COMMANDS).run()


def _answer_lines(
    model: str,
    start: Start,
    generation: GenerationConfig,
    cache: CacheConfig,
    claim: Claim | None,
) -> None:
    """Answer each line of standard input on standard output, in plain text, as it comes.

    Raises:
        SessionFileError: if the session could not be saved; all lines were answered.
    """
    from ...loading import load

    branches = start.branches(load(model), generation, cache, claim)
    try:
        for line in sys.stdin:
            if prompt := line.strip():
                try:
                    _answer_line(branches.session, prompt)
                finally:
                    _save_or_warn(branches)
    finally:
        branches.close()


def _answer_line(session: ChatSession, prompt: str) -> None:
    with session.stream(prompt) as reply:
        for response in reply:
            if response.kind is TextKind.ANSWER:
                write(response.text)
    write("\n")


def _save_or_warn(branches: Branches) -> None:
    try:
        branches.save_changes()
    except SegueError as error:
        write_remark(f"segue: {error}", error=True)
