"""Reading a long text once, into a prompt cache file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from time import perf_counter

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..config import GenerationConfig
from ..engine import Engine
from ..messages import Message
from ..session import ChatSession


def run(model: str, source: str, output: Path, generation: GenerationConfig) -> None:
    """Read a text as a system message, and save the cache that this makes."""
    text = _read(source)
    _check_output(output)
    from ..loading import load

    engine = load(model)
    _check_template(engine, model, text)
    session = ChatSession(engine, instructions=text, generation=generation)
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
    size = output.stat().st_size / 2**20
    click.echo(
        f"{fed:,} tokens read in {seconds:.1f} s ({fed / seconds:.1f} tokens/s); "
        f"{output} has {size:.1f} MiB"
    )


def _read(source: str) -> str:
    if source == "-" and sys.stdin is None:
        raise click.ClickException("Standard input is closed, so there is no text to read.")
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise click.ClickException(
            f"{source} can't be read: {error.strerror}. Name a text file, or - for standard input."
        ) from error
    try:
        text = data.decode().strip()
    except UnicodeDecodeError as error:
        raise click.ClickException(
            f"{source} is not UTF-8 text (byte {error.start}). Convert it first."
        ) from error
    if not text:
        raise click.ClickException(
            f"{source} holds no text, so there is nothing to read. Name another file."
        )
    return text


def _check_template(engine: Engine, model: str, text: str) -> None:
    messages = [Message.system(text).to_template(), Message.user("a").to_template()]
    rendered = engine.tokenizer.render(messages, add_generation_prompt=True, template_kwargs={})
    if text not in rendered:
        raise click.ClickException(
            f"The chat template of {model} leaves system messages out, so the text would not be "
            "read. Say it in the chat, or use another model."
        )


def _check_output(output: Path) -> None:
    """Refuse what can't be written before minutes go into reading."""
    # A link is written through.
    folder = output.resolve().parent
    if output.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise click.ClickException(
            f"{output} can't be written. Name a file in a folder that is there and yours."
        )
