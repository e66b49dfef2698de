"""``segue sessions``: list, show, export and delete saved sessions."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...errors import SessionFileError, cause
from ...files.atomic import writing
from ...files.lock import FileLock
from ...files.path import writing_remedy
from ...store.session_file import SessionFile
from ..groups import FilePath
from ..output.streams import ask, write, write_remark
from .folder import (
    ENDING,
    composed,
    existing_path,
    is_name,
    lock_session,
    saved_sessions,
    session_names,
)

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

NONE_SAVED = "There are no saved sessions. Start one with: segue chat --session NAME"


def complete_name(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The names of sessions that begin with what was typed, for shells."""
    from click.shell_completion import CompletionItem

    try:
        names = session_names()
    except SessionFileError:
        return []
    begun = composed(incomplete)
    # A file that was named otherwise is opened by its path.
    return [CompletionItem(name) for name in names if name.startswith(begun) and is_name(name)]


name_argument = click.argument("name", metavar="NAME", shell_complete=complete_name)


@click.group(invoke_without_command=True, subcommand_metavar="[COMMAND] [ARGS]...")
@click.pass_context
def sessions(context: click.Context) -> None:
    """List, show, export and delete saved sessions.

    Without a command, the sessions are listed. A NAME with a slash, or ending in .segue, is a path.
    """
    if context.invoked_subcommand is None:
        _list()


@sessions.command(name="list")
def list_command() -> None:
    """List the saved sessions, newest first."""
    _list()


@sessions.command()
@name_argument
def show(name: str) -> None:
    """Show a session's conversation."""
    from rich.console import Console

    from .show import all_messages, print_history, to_text

    messages = all_messages(_read(name).conversation)
    console = Console(highlight=False)
    if console.is_terminal:
        print_history(console, messages)
    elif messages:
        write(to_text(messages) + "\n")


@sessions.command()
@name_argument
@click.option(
    "-f",
    "--format",
    "form",
    type=click.Choice(["markdown", "json"]),
    default="markdown",
    show_default=True,
    help="Markdown, or JSON with messages as chat APIs take them.",
)
@click.option(
    "-o",
    "--output",
    type=FilePath(),
    default=None,
    metavar="FILE",
    help="The file to write, instead of standard output.",
)
def export(name: str, form: str, output: Path | None) -> None:
    """Write a session's conversation as Markdown or JSON."""
    from .show import to_json, to_markdown

    conversation = _read(name).conversation
    text = to_json(conversation) if form == "json" else to_markdown(conversation)
    if output is None:
        write(text)
        return
    try:
        with writing(output) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise click.ClickException(
            f"{output} can't be written: {cause(error)}. {writing_remedy(error)}"
        ) from error


@sessions.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_name)
@click.option("-y", "--yes", is_flag=True, help="Delete without asking.")
def delete(names: tuple[str, ...], yes: bool) -> None:
    """Delete sessions."""
    paths = {existing_path(name): name for name in names}
    with ExitStack() as locks:
        for path in paths:
            if path.suffix != ENDING:
                # A slip of the hand must not delete a file that isn't a session.
                SessionFile.read(path, check=False)
            locks.callback(FileLock.release, lock_session(path))
        listed = ", ".join(paths.values())
        if not (yes or ask(f"Delete {listed}?")):
            return
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise SessionFileError(
                    f"{path} could not be deleted: {error.strerror}.",
                    remedy="Check that you may write to its folder.",
                ) from error
    write_remark(f"Deleted {listed}.")


def _read(name: str) -> SessionFile:
    return SessionFile.read(existing_path(name), check=False)


def _list() -> None:
    from .list import print_sessions

    listed = saved_sessions()
    if listed:
        print_sessions(listed)
    else:
        write_remark(NONE_SAVED, error=True)
