"""Answers of a given form, from the real SmolLM2, and caches as a fresh prefill makes them."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from kit.oracle import relative_error
from kit.probe import ids_of, next_logits
from segue import CacheConfig, ChatSession, GenerationConfig
from segue.engine import Request

Short = Annotated[str, Field(max_length=12)]


class Recipe(BaseModel):
    name: Short
    minutes: Annotated[int, Field(ge=1, le=90)]
    steps: Annotated[list[Short], Field(min_length=1, max_length=2)]


@pytest.mark.smollm2
@pytest.mark.parametrize("draft", [None, "prompt-lookup"])
@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.8, "seed": 3}], ids=["greedy", "seeded"]
)
def test_a_real_model_is_held_to_forms(draft, settings, smollm2):
    session = ChatSession(smollm2, draft=draft)
    recipe = session.respond("A recipe for bread, please.", schema=Recipe, **settings)
    assert isinstance(recipe, Recipe)
    assert session.respond("Is it vegan?", schema=Literal["yes", "no"], **settings) in ("yes", "no")
    assert 1 <= session.respond("How many loaves?", schema=Literal[1, 2, 3], **settings) <= 3
    # Each turn read its own question, and nothing of what was said before.
    assert all(turn.fed_tokens < 30 for turn in session.usage.turns[1:])
    fresh = smollm2.context(CacheConfig())
    for _ in fresh.run(Request(ids_of(session), GenerationConfig(max_tokens=0))):
        pass
    assert relative_error(next_logits(session), next_logits(fresh)) < 1e-4
