"""A chat from its start to its end: in a terminal, or through a pipe."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from functools import partial

from rich.console import Console
from rich.text import Text

from ...config import CacheConfig, GenerationConfig
from ...engine import Engine
from ...errors import ModelNotFoundError, SegueError
from ...printable import printable
from ...response import TextKind
from ...session import ChatSession
from ..output.screen import show_remark
from ..output.streams import write, write_remark
from ..process.input import read_lines, read_standard_input
from ..process.termination import is_ending, stop_if_ending
from ..remedies import for_person
from .branches import Branches
from .chat import TerminalChat
from .commands import COMMANDS
from .prompt.prompter import Prompter
from .prompt.terminal import is_terminal
from .start import Claim, Start, in_force
from .statistics import dropped_note

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
        if is_terminal():
            _converse(model, start, generation, cache, claim)
        else:
            _answer_input(model, start, generation, cache, claim)
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
    from ...names import find

    console = Console(highlight=False)
    try:
        downloads = isinstance(find(model), str)
    except ModelNotFoundError as error:
        raise _of_session(error, model, claim) from error
    # A download shows its progress, which a spinner would garble.
    with nullcontext() if downloads else console.status(Text(printable(f"loading {model} …"))):
        engine = _load(model, claim)
    branches = start.branches(engine, generation, cache, claim)
    show_remark(console, GREETING.format(name=engine.name), "dim")
    if advice := in_force(engine, branches.session.generation):
        show_remark(console, advice, "dim")
    if start.prompt_cache is not None and branches.session.has_cache:
        tokens = branches.session.cached_tokens
        show_remark(console, f"Starting from {tokens:,} tokens in {start.prompt_cache}.", "dim")
    if claim is not None:
        show_remark(console, branches.current.summary, "dim")
    prompter = Prompter(list(COMMANDS), warn=partial(show_remark, console, style="yellow"))
    TerminalChat(branches, console, prompter, COMMANDS).run()


def _answer_input(
    model: str,
    start: Start,
    generation: GenerationConfig,
    cache: CacheConfig,
    claim: Claim | None,
) -> None:
    """Answer standard input on standard output, in plain text: as one message, or line by line.

    Raises:
        ClickException: if the input isn't text, or is empty.
        SessionFileError: if the session could not be saved; all was answered.
    """
    branches = start.branches(_load(model, claim), generation, cache, claim)
    try:
        # Of somebody who types, nobody knows where the message ends.
        by_line = start.lines or sys.stdin.isatty()
        for prompt in read_lines() if by_line else [read_standard_input()]:
            try:
                _answer(branches.session, prompt)
            finally:
                _save_or_warn(branches)
            if is_ending():
                break
    finally:
        branches.close()


def _answer(session: ChatSession, prompt: str) -> None:
    def progress(fed: int, total: int) -> None:
        stop_if_ending()

    with session.stream(prompt, prompt_progress_callback=progress) as reply:
        if reply.dropped:
            write_remark(f"segue: {dropped_note(reply.dropped)}", error=True)
        for response in reply:
            stop_if_ending()
            if response.kind is TextKind.ANSWER:
                write(response.text)
    write("\n")


def _save_or_warn(branches: Branches) -> None:
    try:
        branches.save_changes()
    except SegueError as error:
        write_remark(f"segue: {for_person(error)}", error=True)


def _load(model: str, claim: Claim | None) -> Engine:
    """Load the chat's model.

    Raises:
        ModelNotFoundError: if there is none of that name; says so of a session's own model.
    """
    from ...loading import load

    try:
        return load(model)
    except ModelNotFoundError as error:
        raise _of_session(error, model, claim) from error


def _of_session(error: ModelNotFoundError, model: str, claim: Claim | None) -> ModelNotFoundError:
    """Return an error that names the session, if the model was the one that it was saved with."""
    saved = None if claim is None else claim.saved
    if saved is None or saved.model != model:
        return error
    where = (
        " Its path was recorded relative to the folder in which the session began."
        if os.sep in model and not model.startswith((os.sep, "~"))
        else ""
    )
    return ModelNotFoundError(
        f"The model that session {saved.name!r} was saved with can't be found: {error.what}{where}",
        remedy="Name the model with --model.",
    )
