"""Replies held to a grammar, on each of mlx-lm's model types: forced tokens change nothing."""

from __future__ import annotations

import json

import pytest

from kit import architectures
from kit.architectures import DATA, NO_DATA
from kit.oracle import TOLERANCE, relative_error
from kit.probe import force_nothing, next_logits
from segue import CacheConfig, GenerationConfig
from segue.engine import Request

SCHEMA = {
    "type": "object",
    "properties": {"hello world": {"enum": ["the", "he"]}, "days": {"type": "boolean"}},
    "required": ["hello world", "days"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
GRAMMAR = f"start: %json {json.dumps(SCHEMA)}"
# Fed in parts, its logits are others by themselves, as docs/architectures.md says.
TOKENS_ONLY = {"phi3small"}
PROMPT = [(7 * place) % 90 + 33 for place in range(24)]


def said(context, config, ends):
    ids = []
    run = context.run(Request(PROMPT, config, grammar=GRAMMAR, checkpoints=(len(PROMPT),)))
    for step in run:
        ids.append(step.token)
        if step.token in ends:
            break
    run.close()
    return ids


@pytest.mark.skipif(DATA is None, reason=NO_DATA)
@pytest.mark.parametrize("name", architectures.configurations() or [None])
def test_forced_tokens_change_nothing_on_any_model_type(name):
    try:
        engine = architectures.make_engine(name)
        check(engine, name)
    except Exception as error:
        # Only where there is no other way to compute it, as the page says.
        if name != "bitnet" or "Metal" not in str(error):
            raise
        pytest.skip(str(error))


def check(engine, name):
    ends = engine.tokenizer.eos_token_ids
    for settings in ({}, {"temperature": 1.0, "seed": 5}):
        config = GenerationConfig(max_tokens=80, **settings)
        replies = []
        for forcing in (True, False):
            context = engine.context(CacheConfig())
            if not forcing:
                force_nothing(context)
            replies.append(said(context, config, ends))
            held = [*PROMPT, *replies[-1]]
            context.rewind(len(held))
            if context.offset < len(held) or name in TOKENS_ONLY:  # it may only go back further
                continue
            fresh = engine.context(CacheConfig())
            for _ in fresh.run(Request(held, GenerationConfig(max_tokens=0))):
                pass
            error = relative_error(next_logits(context), next_logits(fresh))
            assert error < TOLERANCE, f"{name}: {error:.1e}"
        assert replies[0] == replies[1], name
        text = engine.tokenizer.decode([token for token in replies[0] if token not in ends])
        assert list(json.loads(text)) == ["hello world", "days"]
