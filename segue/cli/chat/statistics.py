"""The cost of a turn and of a conversation, as the chat shows it."""

from __future__ import annotations

from rich.table import Table

from ...response import FinishReason, GenerationResponse
from ...session import ChatSession
from ...usage import TurnUsage
from ..words import count


def turn_line(
    turn: TurnUsage,
    last: GenerationResponse | None,
    first_token: float | None,
    *,
    stopped: bool,
) -> str:
    """The cost of a turn in one line.

    Args:
        turn: The turn's figures.
        last: The last piece of the reply, if it had any.
        first_token: Seconds until the first token.
        stopped: True if the person stopped the reply.
    """
    figures = [f"{count(turn.fed_tokens, 'token')} read", f"{turn.cached_tokens:,} reused"]
    if first_token is not None:
        figures.append(f"first token {first_token:.2f} s")
    if last is not None:
        figures.append(f"{last.generation_tps:.1f} tokens/s")
    if stopped:
        figures.insert(0, "stopped")
    elif last is not None and last.finish_reason is FinishReason.LENGTH:
        figures.insert(0, "cut")
    return " · ".join(figures)


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
    if usage.checkpoints:
        rows["checkpoints in the KV cache"] = (
            f"{usage.checkpoints} ({usage.checkpoint_bytes / 2**20:.1f} MiB)"
        )
    if session.acceptance_rate is not None:
        rows["drafted tokens accepted"] = f"{session.acceptance_rate:.0%}"
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table
