"""A streamed request to an OpenAI-style chat endpoint; needs nothing but Python."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from benchmarks.peers.protocol import Measure, rate


def stream(address: str, body: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
    """The chunks of a reply, as they come; closing the iterator closes the connection.

    What mlx_lm.server tells of its prefill in comments comes as ``{"read": tokens to read}``.
    """
    request = urllib.request.Request(
        f"{address}/v1/chat/completions",
        json.dumps({"stream": True, **body}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        for line in answer:
            if line.startswith(b": keepalive "):
                yield {"read": int(line.rpartition(b"/")[2])}
            elif line.startswith(b"data: {"):
                yield json.loads(line[len(b"data: ") :])


@dataclass
class Heard:
    """What came of a streamed reply.

    Attributes:
        started: When the question was put.
        first: When its first text came, or it ended without any.
        last: When its last text came.
        pieces: Its text, reasoning included, as it came.
        ended: The model ended it itself.
        told: What the server told beside the text, the latest by its name (``"usage"``).
        read: The most tokens that were to be read.
    """

    started: float
    first: float
    last: float
    pieces: list[str] = field(default_factory=list)
    ended: bool = False
    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    read: int = 1

    def add(self, chunk: dict[str, Any]) -> None:
        """Hear one more chunk."""
        self.told.update((name, chunk[name]) for name in ("usage", "timings") if chunk.get(name))
        self.read = max(self.read, chunk.get("read", 0))
        choice = chunk["choices"][0] if chunk.get("choices") else {}
        self.ended = self.ended or choice.get("finish_reason") == "stop"
        delta = choice.get("delta", {})
        thought = delta.get("reasoning") or delta.get("reasoning_content") or ""
        if text := thought + (delta.get("content") or ""):
            self.last = perf_counter()
            self.first = self.first if self.pieces else self.last
            self.pieces.append(text)

    def measure(self, *, fed: int, prompt: int | None, generated: int) -> Measure:
        """What became of the turn."""
        speed = rate(generated, self.first, self.last)
        seconds = self.first - self.started
        text = "".join(self.pieces)
        return Measure(text, fed, prompt, generated, seconds, speed, ended=self.ended)


def hear(address: str, body: dict[str, Any], enough: Callable[[Heard], bool]) -> Heard:
    """Listen to a reply until it ends, or until it is enough: then hang up."""
    started = perf_counter()
    heard = Heard(started, started, started)
    chunks = stream(address, body)
    for chunk in chunks:
        heard.add(chunk)
        if enough(heard):
            break
    chunks.close()
    if not heard.pieces:
        heard.first = perf_counter()
    return heard
