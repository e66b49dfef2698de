"""The cost of a turn and of a conversation, as the chat shows it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from ...config import GenerationConfig
from ...messages import Message
from ...printable import printable
from ...response import FinishReason, GenerationResponse
from ...session import ChatSession
from ...usage import MissReason, Reuse, TurnUsage
from ..words import count
from .idle import failure

COLUMNS = 80
# Fewer tokens than these are read again without a word.
TOKENS_WORTH_NOTE = 64
# What a person did not ask for: a message that was edited needs no explanation.
MISSED = {
    MissReason.DATE: "another date",
    MissReason.DROPPED: "old turns dropped",
    MissReason.TEMPLATE: "{place} rendered anew",
    MissReason.TOKENS: "{place} tokenized anew",
    MissReason.REWIND: "cache can't go back so far",
    MissReason.LOST: "cache lost",
    MissReason.ENGINE: "engine reused less",
}


def turn_line(
    turn: TurnUsage,
    last: GenerationResponse | None,
    first_token: float | None,
    *,
    stopped: bool,
    reuse: Reuse | None = None,
) -> str:
    """The cost of a turn in one line, of at most 80 columns.

    Args:
        turn: The turn's figures.
        last: The last piece of the reply, if it had any.
        first_token: Seconds until the first token.
        stopped: True if the person stopped the reply.
        reuse: Why not more was reused.
    """
    missed = "" if reuse is None else missed_words(reuse)
    figures = [f"{count(turn.fed_tokens, 'token')} read", f"{turn.cached_tokens:,} reused"]
    if first_token is not None:
        figures.append(f"first token {first_token:.2f} s")
    if last is not None:
        figures.append(f"{last.generation_tps:.1f} tokens/s")
    if stopped:
        figures.insert(0, "stopped")
    elif last is not None and last.finish_reason is FinishReason.LENGTH:
        figures.insert(0, "cut")
    if missed:
        figures.insert(figures.index(f"{turn.cached_tokens:,} reused") + 1, missed)
    # Times are in /stats, too.
    while len(" · ".join(figures)) > COLUMNS and len(figures) > 2:
        figures.pop()
    return " · ".join(figures)


def missed_words(reuse: Reuse) -> str:
    """Why much was read again that nobody expected, in few words; empty if it was not much."""
    if reuse.reason not in MISSED or reuse.held_tokens - reuse.tokens < TOKENS_WORTH_NOTE:
        return ""
    index = reuse.message_index
    return MISSED[reuse.reason].format(place="start" if index is None else f"message {index}")


def cut_note(turn: TurnUsage, generation: GenerationConfig) -> str:
    """Why a reply was cut, and what to do about it.

    Args:
        turn: The turn's figures.
        generation: The settings of replies.
    """
    # What ends a reply earlier than that is the context.
    if turn.generated_tokens < generation.max_tokens:
        return (
            "The reply was cut, because the model's context is full. /undo or /clear makes room; "
            "with /set on-overflow drop-oldest, the oldest turns make room by themselves."
        )
    return (
        f"The reply was cut at {count(generation.max_tokens, 'token')}. /continue goes on with it; "
        "/set max-tokens N allows longer ones."
    )


def dropped_note(dropped: Sequence[Message]) -> str:
    """What was dropped from a conversation to make room."""
    return f"The oldest {count(len(dropped), 'message')} made room, and left the conversation."


def usage_table(session: ChatSession) -> Table:
    """The cost of all turns as a small table."""
    usage = session.usage
    rows = {
        "turns": f"{len(usage.turns):,}",
        "tokens in prompts": f"{usage.prompt_tokens:,}",
        "tokens reused": f"{usage.cached_tokens:,}",
        "tokens read": f"{usage.fed_tokens:,}",
        "tokens read ahead": f"{usage.prewarmed_tokens:,}",
        "tokens generated": f"{usage.generated_tokens:,}",
        "time to first tokens": f"{usage.prefill_seconds:.1f} s",
        "time after them": f"{usage.decode_seconds:.1f} s",
        "tokens in the KV cache": f"{session.cached_tokens:,}",
    }
    if session.reuse is not None:
        rows["latest turn"] = str(session.reuse)
    if session.writes_date:
        rows["date in prompts"] = f"{session.date:%Y-%m-%d}"
    if usage.checkpoints:
        rows["checkpoints in the KV cache"] = (
            f"{usage.checkpoints} ({usage.checkpoint_bytes / 2**20:.1f} MiB)"
        )
    if session.acceptance_rate is not None:
        rows["drafted tokens accepted"] = f"{session.acceptance_rate:.0%}"
    if why := failure(session):
        rows["reading ahead failed"] = why
    table = Table(show_header=False, box=None, pad_edge=False)
    # In a narrow terminal, what is too long for its column goes on in the next line.
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        # Why something failed may quote others.
        table.add_row(name, Text(printable(value)))
    return table
