"""Sessions with drafts, and what their drafts hold."""

from __future__ import annotations

import copy

import mlx.core as mx

from kit.logits import assert_close, fresh_logits
from kit.models import tiny_hybrid, tiny_llama, tiny_mamba
from segue import ChatSession, GenerationConfig, SpeculativeDecodingConfig

PLAIN = GenerationConfig(max_tokens=16)
# Which caches the model has, and which its draft: full, sliding past its window, recurrent, both.
KINDS = {
    "full": (tiny_llama, {}),
    "sliding": (tiny_llama, {"window": 16}),
    "recurrent": (tiny_mamba, {}),
    "hybrid": (tiny_hybrid, {}),
}


def speculative_for(pair, kind, count=4):
    return SpeculativeDecodingConfig("prompt-lookup" if kind == "lookup" else pair[1], count)


def draft_of(session: ChatSession):
    return session._cache.context._drafting._draft


def check_draft(session: ChatSession) -> None:
    """The draft's caches hold what it believes they hold."""
    draft = draft_of(session)
    if hasattr(draft, "_held"):
        assert draft._state.offset == len(draft._held)
        if draft._held:
            cache = copy.deepcopy(draft._state.layers)
            got = draft._state.model(mx.array([[65]]), cache=cache)[0, -1]
            assert_close(got, fresh_logits(draft._state.model, [*draft._held, 65]))
