"""Sessions with drafts, and what their drafts hold."""

from __future__ import annotations

import copy

import mlx.core as mx

from kit.logits import assert_close, fresh_logits
from kit.models import tiny_hybrid, tiny_llama, tiny_mamba
from kit.probe import draft_ids, draft_layers, draft_model, draft_offset, has_draft_model
from segue import ChatSession, GenerationConfig

PLAIN = GenerationConfig(max_tokens=16, num_draft_tokens=4)
# Which caches the model has, and which its draft: full, sliding past its window, recurrent, both.
KINDS = {
    "full": (tiny_llama, {}),
    "sliding": (tiny_llama, {"window": 16}),
    "recurrent": (tiny_mamba, {}),
    "hybrid": (tiny_hybrid, {}),
}


def draft_for(pair, kind):
    return "prompt-lookup" if kind == "lookup" else pair[1]


def check_draft(session: ChatSession) -> None:
    """The draft's caches hold what it believes they hold."""
    if has_draft_model(session):
        ids = draft_ids(session)
        assert draft_offset(session) == len(ids)
        if ids:
            cache, model = copy.deepcopy(draft_layers(session)), draft_model(session)
            got = model(mx.array([[65]]), cache=cache)[0, -1]
            assert_close(got, fresh_logits(model, [*ids, 65]))
