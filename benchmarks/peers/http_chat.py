"""A streamed request to an OpenAI-style chat endpoint; needs nothing but Python."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Generator
from typing import Any


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


def text_of(chunk: dict[str, Any]) -> str:
    """What a chunk adds to the reply, reasoning included."""
    delta = chunk["choices"][0]["delta"] if chunk.get("choices") else {}
    return (delta.get("reasoning") or delta.get("reasoning_content") or "") + (
        delta.get("content") or ""
    )


def finish_of(chunk: dict[str, Any]) -> str | None:
    """Why the reply ended, if a chunk tells."""
    return chunk["choices"][0].get("finish_reason") if chunk.get("choices") else None
