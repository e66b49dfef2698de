"""The oracle of next-token logits: a fresh prefill of the same ids, in one go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from kit.probe import context_of, ids_of, layers_of, model_of, next_logits
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
    offset, ids = context_of(session).offset, ids_of(session)
    assert len(ids) == offset
    for layer in layers_of(session):
        if hasattr(layer, "offset"):
            assert layer.offset == offset, "the layers are out of step"
    if ids:
        expected = fresh_logits(model_of(session), [*ids, probe])
        assert_close(next_logits(session, probe), expected)
