"""``segue cache-prompt``: read a long text once, and write a prompt cache file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from time import perf_counter

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..config import CacheConfig, GenerationConfig
from ..conversation import Conversation
from ..engine import Engine
from ..errors import LostWordsError
from ..files.atomic import is_written_in_place
from ..messages import Message
from ..session import ChatSession
from ..turn.prompts.left_out import LeftOut
from ..turn.prompts.rendering import Renderer
from .output.streams import write_remark
from .process.input import decoded
from .process.streams import is_standard_output
from .words import count


def run(
    model: str, source: str, output: Path, generation: GenerationConfig, cache: CacheConfig
) -> None:
    """Read a text as the system message, and save the KV cache that this makes.

    Args:
        model: The model's name.
        source: The text's file, or ``-`` for standard input.
        output: The file to write.
        generation: How the text is read.
        cache: The settings of the KV cache.
    """
    text = _read(source)
    _check_output(output)
    from ..loading import load

    engine = load(model)
    _check_template(engine, model, text)
    session = ChatSession(engine, instructions=text, generation=generation, cache=cache)
    started = perf_counter()
    columns = (TextColumn("reading"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("reading", total=None)
        fed = session.prewarm(
            prompt_progress_callback=lambda fed, total: bar.update(task, completed=fed, total=total)
        )
    seconds = perf_counter() - started
    session.save_cache(output)
    told = f"{count(fed, 'token')} read in {seconds:.1f} s ({fed / seconds:.1f} tokens/s)"
    if output.is_file():
        told += f"; {output} has {output.stat().st_size / 2**20:.1f} MiB"
    # Not in among the bytes, if those go to standard output.
    write_remark(told, error=is_standard_output(output))


def _read(source: str) -> str:
    if source == "-" and sys.stdin is None:
        raise click.ClickException(
            "Standard input is closed, so there is no text to read. Pass a text file."
        )
    try:
        data = (
            sys.stdin.buffer.read()
            if source == "-"
            else Path(os.path.expanduser(source)).read_bytes()
        )
    except OSError as error:
        raise click.ClickException(
            f"{source} can't be read: {error.strerror}. Pass a text file, or - for standard input."
        ) from error
    text = decoded(data, source).strip()
    if not text:
        raise click.ClickException(
            f"{source} has no text, so there is nothing to read. Pass another file."
        )
    return text


def _check_template(engine: Engine, model: str, text: str) -> None:
    """Refuse a model whose prompts would not have the text."""
    renderer, asked = Renderer(engine.tokenizer), Conversation(text, [Message.user("a")])
    try:
        left_out = LeftOut(renderer).check(asked, renderer.render(asked), asked=0)
    except LostWordsError as error:
        raise click.ClickException(
            f"The chat template of {model} leaves system messages out, so the text would not be "
            "read. Put the text into your first message, or use another model."
        ) from error
    for sentence in left_out:
        write_remark(f"segue: {sentence}", error=True)


def _check_output(output: Path) -> None:
    """Refuse a path that can't be written before minutes go into reading."""
    # The file that a link leads to is the one that is written.
    folder = output.resolve().parent
    if is_written_in_place(output) and os.access(output, os.W_OK):
        return
    if output.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise click.ClickException(
            f"{output} can't be written. Choose a file in a folder that exists and that you may "
            "write to."
        )
