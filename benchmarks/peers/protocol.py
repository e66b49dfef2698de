"""How a peer is asked to do a workload: one JSON object a line, over standard input and output.

A peer runs in a process, and perhaps an environment, of its own. It needs nothing but Python here.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

Messages = Sequence[dict[str, str]]


@dataclass
class Measure:
    """What became of one turn.

    Attributes:
        text: The reply, as the client's history records it.
        fed_tokens: Tokens of the prompt that the model read in this turn.
        prompt_tokens: Tokens of the whole prompt; ``None`` where that is not told.
        generated_tokens: Tokens of the reply.
        first_token_seconds: From the question to the first token (over HTTP: to the first text).
        decode_tokens_per_second: From the first token to the last; 0 for fewer than two.
        tokens: The sampled ids, a final end included; ``None`` where they are not told.
        ended: The model ended the reply itself.
        other_text: What the model read is not what the template writes.
        instead: What was done, where the step itself can't be.
    """

    text: str
    fed_tokens: int
    prompt_tokens: int | None
    generated_tokens: int
    first_token_seconds: float
    decode_tokens_per_second: float
    tokens: list[int] | None = None
    ended: bool = False
    other_text: bool = False
    instead: str | None = None


class Peer:
    """One way to hold a conversation; this one keeps nothing between turns."""

    def begin(self, workload: dict[str, Any], paths: dict[str, str]) -> None:
        """Load the workload's model and forget every conversation."""
        raise NotImplementedError

    def take(self, step: dict[str, Any], messages: Messages) -> Measure:
        """Answer what a step asks, all messages of the conversation given."""
        raise NotImplementedError

    def mark(self) -> None:
        """Note this place of the conversation."""

    def branch(self) -> None:
        """Go on from the noted place, in a new branch."""

    def save(self, path: str) -> dict[str, Any]:
        """Write what a new process needs to go on; the process ends then."""
        return {}

    def resume(self, path: str) -> dict[str, Any]:
        """Go on, in a new process that has begun the same workload."""
        return {}

    def end(self) -> None:
        """Let go of everything."""


class LoadingPeer(Peer):
    """A peer that has one model at a time in its own process."""

    _place: str | None = None
    _model: Any = None

    def begin(self, workload: dict[str, Any], paths: dict[str, str]) -> None:
        place = place_of(workload, paths)
        if place != self._place:
            self._place = self._model = None
            self.let_go()
            self._model = self.load(place)
            self._place = place
        self._workload = workload

    def load(self, place: str) -> Any:
        """The model in a folder."""
        raise NotImplementedError

    def let_go(self) -> None:
        """Hold nothing that belongs to the model any more."""


def place_of(workload: dict[str, Any], paths: dict[str, str]) -> str:
    """The folder of a workload's model, with its template."""
    return paths[f"{workload['model']}/{workload['template']}"]


def filed(started: float, path: str) -> dict[str, Any]:
    """What is told of a file that was just written or read."""
    return {"seconds": perf_counter() - started, "bytes": os.path.getsize(path)}


def rate(tokens: int, first: float, last: float) -> float:
    """Tokens per second behind the first one."""
    return (tokens - 1) / (last - first) if tokens > 1 and last > first else 0.0


def peak_rss(process_id: int | None = None) -> int | None:
    """The most memory that a process (this one, if none is named) has had, in bytes.

    ``None`` where the system does not tell. What `resource` tells on Linux includes what the parent
    had when it made the process.
    """
    try:
        with open(f"/proc/{process_id or 'self'}/status") as status:
            found = [line.split()[1] for line in status if line.startswith("VmHWM:")]
        return int(found[0]) * 1024
    except (OSError, IndexError):
        if process_id is not None:
            return None
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def versions(*names: str) -> dict[str, str]:
    """The versions of installed packages."""
    from importlib import metadata

    return {name: metadata.version(name) for name in names}


def serve(peer: Peer) -> None:
    """Do what standard input says, until it ends."""
    # Libraries print: only answers go where the driver reads.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        operation = asked.pop("op")
        peak = peak_rss(getattr(peer, "server_process_id", None)) if operation == "end" else None
        try:
            said = getattr(peer, operation)(**asked)
            answer = asdict(said) if isinstance(said, Measure) else said or {}
        # A peer that can't do a workload is a result, and the others go on.
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        if operation == "end":
            answer = {"peak_rss_bytes": peak}
        print(json.dumps(answer), file=answers, flush=True)
        if operation == "end":
            return
    peer.end()  # the driver is gone
