"""A preview changes nothing, MLX's random state included."""

from __future__ import annotations

import mlx.core as mx

from kit.models import tiny_llama
from kit.oracle import EditingTokenizer, wrap
from segue import ChatSession, GenerationConfig


def test_a_preview_draws_no_random_number():
    engine = wrap(tiny_llama(len(EditingTokenizer())), "tiny")
    session = ChatSession(engine, generation=GenerationConfig(temperature=1.5, max_tokens=12))
    mx.random.seed(0)
    before = [key.tolist() for key in mx.random.state]
    session.preview("Hello")
    assert [key.tolist() for key in mx.random.state] == before
