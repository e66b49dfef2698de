"""What a conversation has cost."""

from __future__ import annotations

from rich.table import Table

from ..reply import Reply
from ..response import GenerationResponse


class Statistics:
    """Counts over the turns of a chat; shows the last turn as a line and all as a table."""

    def __init__(self) -> None:
        self.turns = 0
        self.read = 0
        self.reused = 0
        self.generated = 0
        self._line = ""

    def add(
        self,
        reply: Reply,
        last: GenerationResponse | None,
        first_token: float | None,
        *,
        held: int,
    ) -> None:
        """Count a turn.

        Args:
            reply: The turn's reply, ended.
            last: Its last piece, if it had any.
            first_token: Seconds until its first token.
            held: How many tokens the KV cache holds now.
        """
        read = reply.prompt_tokens - reply.cached_tokens
        if last is None:
            # Stopped while the prompt was being read: only a part of it was.
            read = max(held - reply.cached_tokens, 0)
        self.turns += 1
        self.read += read
        self.reused += reply.cached_tokens
        self.generated += len(reply.tokens)
        parts = [f"{read:,} tokens read", f"{reply.cached_tokens:,} reused"]
        if first_token is not None:
            parts.append(f"first token {first_token:.2f} s")
        if last is not None:
            parts.append(f"{last.generation_tps:.1f} tokens/s")
        self._line = " · ".join(parts)

    def line(self, *, stopped: bool) -> str:
        """The last turn in one line."""
        return ("stopped · " if stopped else "") + self._line

    def table(self, *, cached_tokens: int, acceptance_rate: float | None = None) -> Table:
        """All turns as a small table."""
        table = Table(show_header=False, box=None, pad_edge=False)
        for name, value in (
            ("turns", self.turns),
            ("tokens read", self.read),
            ("tokens reused", self.reused),
            ("tokens generated", self.generated),
            ("tokens in the KV cache", cached_tokens),
        ):
            table.add_row(name, f"{value:,}")
        if acceptance_rate is not None:
            table.add_row("drafted tokens accepted", f"{acceptance_rate:.0%}")
        return table
