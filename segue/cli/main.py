"""The ``segue`` command: chat, sessions, cache-prompt and doctor."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Literal, TextIO

import click

from .. import __version__
from ..config import CacheConfig, GenerationConfig
from ..errors import SegueError, cause
from ..printable import printable
from .chat.prompt.terminal import is_terminal, quiet_input
from .groups import FilePath, GroupedCommand, GroupedOption
from .options import (
    CACHE_FORM,
    DRAFTS,
    OVERFLOWS,
    REPLIES,
    SAMPLING,
    given_settings,
    is_default,
    settings_options,
)
from .output.streams import write_remark
from .process.streams import discard_output, is_about_output
from .process.termination import ending_on_signals
from .remedies import for_person, in_their_words
from .sessions.commands import complete_name, sessions

# MLX and transformers take seconds to import. So the modules that need them are imported inside the
# commands, and --help or a wrong option answers at once.

FAILURE = 2
CUT_OFF = 1
INTERRUPTED = 130

MODEL, SESSION = "Model", "Session"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="segue %(version)s")
def cli() -> None:
    """Talk with a local language model that never reads a token twice."""


model_option = click.option(
    "-m",
    "--model",
    cls=GroupedOption,
    group=MODEL,
    default="smollm2",
    show_default=True,
    metavar="NAME",
    help="smollm2, a .gguf file, an mlx-lm folder, or a Hugging Face repository id.",
)

file = FilePath()


@cli.command(cls=GroupedCommand)
@model_option
@click.option(
    "-s",
    "--system",
    cls=GroupedOption,
    group=SESSION,
    default=None,
    metavar="TEXT",
    help="The system message: who the model is, and how it should answer; '' for none.",
)
@click.option(
    "--session",
    cls=GroupedOption,
    group=SESSION,
    default=None,
    metavar="NAME",
    shell_complete=complete_name,
    help="Resume this saved session, or start it. Saved after every turn. NAME is a path if it has "
    "a slash or ends in .segue.",
)
@click.option(
    "--cache",
    "prompt_cache",
    cls=GroupedOption,
    group=SESSION,
    type=file,
    default=None,
    metavar="FILE",
    help="Start from this prompt cache, made by cache-prompt or /save-cache.",
)
@click.option(
    "--recommended",
    cls=GroupedOption,
    group=SAMPLING,
    is_flag=True,
    help="Use the settings that the model's publisher recommends, except those given here.",
)
@click.option(
    "--lines",
    cls=GroupedOption,
    group=SESSION,
    is_flag=True,
    help="Answer each line of standard input by itself, as soon as it comes.",
)
@click.option(
    "--on-overflow",
    cls=GroupedOption,
    group=REPLIES,
    type=click.Choice(OVERFLOWS),
    default=None,
    metavar="HOW",
    help="If the context is full: error refuses the message, drop-oldest drops the oldest turns.  "
    "[default: error]",
)
@settings_options(generation=GenerationConfig, cache=CacheConfig)
@click.option(
    "--draft",
    cls=GroupedOption,
    group=DRAFTS,
    default=None,
    metavar="NAME",
    help="Decode faster: prompt-lookup, or a smaller model with the same vocabulary.",
)
@click.pass_context
def chat(
    context: click.Context,
    model: str,
    system: str | None,
    session: str | None,
    prompt_cache: Path | None,
    lines: bool,
    on_overflow: Literal["error", "drop-oldest"] | None,
    draft: str | None,
    recommended: bool,
    generation: GenerationConfig,
    cache: CacheConfig,
) -> None:
    """Talk with a model in the terminal.

    If standard input is not a terminal, all of it is one message, which is answered in plain text,
    without slash commands. With --lines, each line is one.

    A saved session keeps its own model and settings, except those given here. If the model or the
    kind of KV cache changes, the saved cache is dropped and the conversation is read again.
    """
    if session is not None and prompt_cache is not None:
        raise click.UsageError(
            "--session and --cache can't be used together, because a saved session has its own KV "
            "cache. Leave one of them out."
        )
    # What the next lines import takes a while, and somebody may be typing already.
    with quiet_input() if is_terminal() else nullcontext():
        from .chat.run import run
        from .chat.start import Start

        start = Start(
            system,
            prompt_cache,
            draft,
            session,
            given_settings(context),
            recommended,
            lines=lines,
            on_overflow=on_overflow,
        )
        chosen = None if session is not None and is_default(context, "model") else model
        run(chosen, start, generation, cache)


@cli.command(name="cache-prompt", cls=GroupedCommand)
@model_option
@click.argument("source", metavar="FILE|-")
@click.option(
    "-o",
    "--output",
    cls=GroupedOption,
    group="Output",
    type=file,
    required=True,
    metavar="OUT",
    help="The prompt cache to write. mlx-lm opens it if its name ends in .safetensors.",
)
@settings_options(
    ["prefill_step_size", *CACHE_FORM], generation=GenerationConfig, cache=CacheConfig
)
def cache_prompt(
    model: str, source: str, output: Path, generation: GenerationConfig, cache: CacheConfig
) -> None:
    """Read a long text once and save its KV cache.

    The text becomes the system message. `segue chat --cache OUT` starts from it.
    """
    from .cache_prompt import run

    run(model, source, output, generation, cache)


cli.add_command(sessions)


@cli.command()
def doctor() -> None:
    """Show what models run on here, and what would be faster."""
    from .doctor import report

    write_remark(report())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: with 0, or with 2 after one line that names the error."""
    warnings.showwarning = _show_warning
    # Some shells and containers set it so, and then nothing would fit into a line.
    if os.environ.get("COLUMNS") == "0":
        del os.environ["COLUMNS"]
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        # Neither bytes that aren't text, nor characters that the terminal can't show, are fatal.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    with ending_on_signals():
        sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    """Run the command line, and return the exit status."""
    try:
        code = cli.main(args=arguments, prog_name="segue", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        write_remark(error.format_message())
        return FAILURE
    except click.ClickException as error:
        return _complain(error.format_message())
    except SegueError as error:
        return _complain(for_person(error))
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever reads the output has enough of it.
        discard_output()
        return CUT_OFF
    # The last resort: a bug of ours, or of a library, is one line as well.
    except Exception as error:
        if is_about_output(error):
            discard_output()
            return _complain(f"The output could not be written: {cause(error)}.")
        return _complain(f"unexpected error ({type(error).__name__}): {error}")
    return code if isinstance(code, int) else 0


def _complain(message: str) -> int:
    # Nobody may be there any more to read it.
    with suppress(OSError):
        write_remark("segue: " + " ".join(printable(message).split()), error=True)
    return FAILURE


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line, without the line of code that means nothing to a user."""
    with suppress(OSError):
        write_remark(f"segue: {in_their_words(str(message))}", error=True)


if __name__ == "__main__":
    main()
