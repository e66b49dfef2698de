"""The oracle of next-token logits: a fresh prefill of the same ids, in one go."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from segue import ChatSession

TOLERANCE = 1e-4


def fresh_logits(model: Any, ids: Sequence[int]) -> mx.array:
    """What the model says after these ids, read in one go into an empty cache."""
    return model(mx.array([list(ids)]), cache=make_prompt_cache(model))[0, -1]


def assert_close(got: mx.array, expected: mx.array) -> None:
    error = mx.abs(got - expected).max() / mx.abs(expected).max()
    assert error.item() < TOLERANCE, f"relative error {error.item():.1e}"
    assert mx.argmax(got).item() == mx.argmax(expected).item()


def check_next_logits(session: ChatSession, *, probe: int = 65) -> None:
    """The never-wrong invariant: the next logits are those of a fresh prefill of the same ids."""
    context: Any = session._cache.context
    ids = session._cache.ledger.ids
    assert len(ids) == context.offset
    for layer in context._state.layers:
        if hasattr(layer, "offset"):
            assert layer.offset == context.offset, "the layers are out of step"
    model = context._state.model
    if not ids:
        return
    cache = copy.deepcopy(context._state.layers)
    assert_close(model(mx.array([[probe]]), cache=cache)[0, -1], fresh_logits(model, [*ids, probe]))


def next_logits(session: ChatSession, probe: int = 65) -> mx.array:
    layers = copy.deepcopy(session._cache.context._state.layers)
    return session._engine.model(mx.array([[probe]]), cache=layers)[0, -1]
