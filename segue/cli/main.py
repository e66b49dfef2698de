"""Entry point: ``segue chat``, ``segue sessions``, ``segue cache-prompt``, ``segue doctor``."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import click

from .. import __version__
from ..config import GenerationConfig
from ..errors import SegueError
from .options import CACHE_SETTINGS, generation_options, given_settings, is_default
from .sessions.commands import complete_name, sessions

# MLX and transformers take seconds to import: the modules that need them are imported inside the
# commands, so that --help and a wrong option answer at once.

FAILURE = 2
INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="segue %(version)s")
def cli() -> None:
    """Talk with a local language model that never reads a token twice."""


model_option = click.option(
    "--model",
    default="smollm2",
    show_default=True,
    metavar="NAME",
    help="smollm2, a .gguf file, an mlx-lm folder, or a Hugging Face repository id.",
)
file = click.Path(path_type=Path)


@cli.command()
@model_option
@click.option("--system", default=None, metavar="TEXT", help="The system message.")
@click.option(
    "--session",
    default=None,
    metavar="NAME",
    shell_complete=complete_name,
    help="Go on with this saved session, or begin it; saved after every turn. A name, or a path "
    "(with a slash, or ending in .segue).",
)
@click.option(
    "--cache",
    type=file,
    default=None,
    metavar="FILE",
    help="Talk on top of this prompt cache, from cache-prompt or /save-cache.",
)
@click.option(
    "--draft",
    default=None,
    metavar="NAME",
    help="Decode faster: prompt-lookup, or a smaller model of the same vocabulary.",
)
@click.option(
    "--num-draft-tokens",
    type=int,
    default=5,
    show_default=True,
    help="Tokens drafted at a time, at most.",
)
@generation_options()
@click.pass_context
def chat(
    context: click.Context,
    model: str,
    system: str | None,
    session: str | None,
    cache: Path | None,
    draft: str | None,
    num_draft_tokens: int,
    generation: GenerationConfig,
) -> None:
    """Hold a conversation in the terminal.

    Where standard input or output is not a terminal, answer each line of input plainly; there are
    no slash commands then.

    A saved session goes on with its own model and settings, but for those given here.
    """
    if session is not None and cache is not None:
        raise click.UsageError(
            "--session and --cache can't go together: a saved session has a cache of its own."
        )
    from .chat.chat import run
    from .chat.start import Start

    given = given_settings(context)
    start = Start(system, cache, draft, num_draft_tokens, session, given)
    chosen = None if session is not None and is_default(context, "model") else model
    run(chosen, start, generation)


@cli.command(name="cache-prompt")
@model_option
@click.argument("source", metavar="FILE|-")
@click.option(
    "-o",
    "--output",
    type=file,
    required=True,
    metavar="OUT",
    help="The prompt cache to write, .safetensors by custom.",
)
@generation_options(*CACHE_SETTINGS)
def cache_prompt(model: str, source: str, output: Path, generation: GenerationConfig) -> None:
    """Read a long text once and keep its KV cache.

    The text becomes the system message; segue chat --cache OUT talks on top of it.
    """
    from .cache_prompt import run

    run(model, source, output, generation)


cli.add_command(sessions)


@cli.command()
def doctor() -> None:
    """Show what runs models here, and what could speed them up."""
    from .doctor import report

    click.echo(report())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, or 2 with one line that says what is wrong."""
    warnings.showwarning = _show_warning
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        # Bytes that are no text, and characters that the terminal can't show, must not end us.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = cli.main(args=arguments, prog_name="segue", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(FAILURE)
    except click.ClickException as error:
        _complain(error.format_message())
    except SegueError as error:
        _complain(str(error))
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    # The last resort: a bug of ours, or of what we call, is told in a line too.
    except Exception as error:
        _complain(f"this should not have happened ({type(error).__name__}): {error}")
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str) -> None:
    click.echo("segue: " + " ".join(message.split()), err=True)
    sys.exit(FAILURE)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """One line for a warning, without the place in the code that means nothing to a user."""
    click.echo(f"segue: {message}", err=True)


if __name__ == "__main__":
    main()
