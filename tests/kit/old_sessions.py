"""What the session files in tests/data/sessions were made from, of version 1 of the format."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kit.models import (
    disturbed,
    tiny_chunked,
    tiny_hybrid,
    tiny_lists,
    tiny_llama,
    tiny_mamba,
    toy_engine,
)
from kit.settings import arguments
from segue import ChatSession, Message, MlxEngine


def next_token(ids: Sequence[int]) -> int:
    """A letter that depends on every id, in every version of Python."""
    return 97 + zlib.crc32(str(list(ids)).encode()) % 26


@dataclass(frozen=True)
class Made:
    """One session, before it was saved."""

    questions: tuple[str, ...] = ()
    instructions: str | None = None
    history: tuple[Message, ...] = ()
    generation: Mapping[str, Any] = field(default_factory=lambda: {"max_tokens": 4})
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    on_overflow: str = "error"
    trimmable: bool = True
    prefix: tuple[int, ...] = ()
    kv: bool = True


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"in": "Zürich", "n": 1}}}

SESSIONS = {
    "plain": Made(("Hello", "And now?"), instructions="Be brief."),
    "tools": Made(
        ("Danke 🌍",),
        instructions='Sprich Deutsch: äöü, \\ " \u2028 and \U0001f600.',
        history=(
            Message.user("Wie ist das Wetter?", name="Ada"),
            Message.assistant("", tool_calls=[CALL], reasoning="I should\nlook it up."),
            Message.tool("21 °C", name="weather", tool_call_id="call-1"),
            Message.assistant("Warm.", reasoning="Not hot."),
        ),
        generation={
            "max_tokens": 5,
            "temperature": 0.7,
            "top_p": 0.9,
            "seed": 2**63,
            "stop": ["é", "zz"],
            "logit_bias": {3: -1.5},
            "repetition_penalty": 1.1,
            "max_checkpoints": 3,
        },
        template_kwargs={"tools": [{"name": "weather", "strict": None}], "enable_thinking": False},
        on_overflow="drop-oldest",
    ),
    "prefix": Made(("Hello",), prefix=(65, 66, 67)),
    "marks": Made(("Hello", "And now?"), instructions="Be brief.", trimmable=False),
    "without-kv": Made(("Hello",), kv=False),
    "long": Made(
        tuple(f"This is question number {number}, about the world." for number in range(12)),
        instructions="Be brief.",
        generation={"max_tokens": 20},
    ),
}

MLX_QUESTIONS = ("hello the world", "why?")

# The model, and settings of the cache.
MLX_KINDS = {
    "full": (tiny_llama, {}, {}),
    "sliding": (tiny_llama, {"window": 16}, {}),
    "recurrent": (tiny_mamba, {}, {}),
    "hybrid": (tiny_hybrid, {}, {}),
    "chunked": (tiny_chunked, {}, {}),
    "cache-lists": (tiny_lists, {}, {}),
    "bounded": (tiny_llama, {}, {"max_kv_size": 48}),
    "quantized": (tiny_llama, {}, {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 0}),
    "draft": (tiny_llama, {}, {}),
}


def begin_mlx(kind: str) -> tuple[ChatSession, MlxEngine | None]:
    """A session as the kept one was, before anything was said."""
    make, shape, settings = MLX_KINDS[kind]
    engine = toy_engine(make, **shape)
    draft = disturbed(engine, noise=0.05) if kind == "draft" else None
    session = ChatSession(
        engine,
        instructions="Be brief.",
        draft=draft,
        **arguments(max_tokens=6, num_draft_tokens=3, max_checkpoints=3, **settings),
    )
    return session, draft
