"""Prompt caches that do not tell their tokens stay in front of everything."""

from __future__ import annotations

import itertools

import pytest

import segue
from kit.contexts import read
from kit.logits import assert_close
from kit.mlx_sessions import KINDS, SHORT, counted, foreign
from kit.models import toy_engine
from kit.probe import context_of, ids_of, next_logits, put_model
from segue import (
    CacheConfig,
    ChatSession,
    ConfigurationError,
    Conversation,
    GenerationError,
)

pytestmark = pytest.mark.capable


def fresh(engine, config, ids):
    context = engine.context(config)
    read(context, ids)
    return next_logits(context)


# Caches whose content does not depend on the passes it was read in (a quantized one's first pass is
# not quantized yet; a bounded one drops tokens).
@pytest.mark.parametrize("name", ["full", "sliding", "recurrent", "hybrid"])
def test_an_opaque_prefix_stays_in_front_whatever_happens(name, tmp_path):
    make, kwargs, settings = KINDS[name]
    engine, config = toy_engine(make, **kwargs), CacheConfig(**settings)
    prefix = foreign(engine, tmp_path / "c.safetensors", [1, 2, 3, *range(60, 90)], config)
    cache = segue.load_prompt_cache(tmp_path / "c.safetensors", engine)
    assert cache.ids is None
    session = ChatSession(engine, generation=SHORT, cache=config, prompt_cache=cache)
    count = 0 if name == "recurrent" else len(prefix)
    assert session.cached_tokens == count

    def check():
        context = context_of(session)
        ids = ids_of(session)
        assert context.offset == count + len(ids)
        assert context.prefix == count
        assert_close(next_logits(session), fresh(engine, config, [*prefix, *ids]))

    # A first prompt is fed whole, though it be shorter than the prefix, or longer.
    said, fed = counted(session, "hi")
    assert fed == len(ids_of(session)) - 8
    check()
    reply = session.stream("more")
    assert reply.prompt_tokens - reply.cached_tokens < reply.prompt_tokens - count
    list(itertools.islice(reply, 3))
    reply.close()
    check()
    session.instructions = "the world"
    _, fed = counted(session, "again")
    assert fed >= len(engine.tokenizer.encode("<|start|>system\nthe world"))
    check()
    session.clear()
    assert session.respond("hi") != ""
    check()
    session.instructions = None
    session.clear()
    assert session.respond("hi") == said
    check()


def test_an_opaque_prefix_survives_a_failure(tmp_path):
    engine = toy_engine()
    prefix = foreign(engine, tmp_path / "c.safetensors", [5, 6, 7, 8])
    session = ChatSession(
        engine,
        generation=SHORT,
        prompt_cache=segue.load_prompt_cache(tmp_path / "c.safetensors", engine),
    )
    session.respond("hello")
    model = engine.model

    def failing(inputs, cache):
        model(inputs, cache=[*cache[:2], None, None])
        raise RuntimeError("out of memory")

    failing.layers = model.layers
    put_model(session, failing)
    with pytest.raises(GenerationError):
        session.respond("the")
    put_model(session, model)
    assert session.cached_tokens == len(prefix)
    assert_close(next_logits(session), fresh(engine, CacheConfig(), prefix))
    session.respond("on")
    ids = ids_of(session)
    assert_close(next_logits(session), fresh(engine, CacheConfig(), [*prefix, *ids]))


def test_an_opaque_prefix_allows_no_other_kind_of_cache(tmp_path):
    engine = toy_engine()
    foreign(engine, tmp_path / "c.safetensors", [5, 6, 7, 8])
    cache = segue.load_prompt_cache(tmp_path / "c.safetensors", engine)
    with pytest.raises(ConfigurationError, match="max_kv_size=None"):
        ChatSession(engine, prompt_cache=cache, cache=CacheConfig(max_kv_size=16))
    assert ChatSession(engine, prompt_cache=cache).cache == CacheConfig()


@pytest.mark.parametrize("name", ["full", "recurrent"])
def test_what_goes_on_from_an_opaque_prefix_is_saved_as_one(name, tmp_path):
    make, kwargs, _ = KINDS[name]
    engine = toy_engine(make, **kwargs)
    foreign(engine, tmp_path / "f.safetensors", [1, 2, 3, 4, 5])
    opaque = segue.load_prompt_cache(tmp_path / "f.safetensors", engine)
    session = ChatSession(engine, instructions="the", generation=SHORT, prompt_cache=opaque)
    assert session.has_cache
    session.save_cache(tmp_path / "at once.safetensors")
    session.respond("hello")
    session.save_cache(tmp_path / "c.safetensors")
    cache = segue.load_prompt_cache(tmp_path / "c.safetensors", engine)
    assert cache.ids is None
    assert cache.conversation == Conversation()
    second = ChatSession(engine, generation=SHORT, prompt_cache=cache)
    assert_close(next_logits(second), next_logits(session))


def test_a_plain_prefix_of_a_cache_that_is_quantized_from_the_start_comes_back(tmp_path):
    engine = toy_engine()
    foreign(engine, tmp_path / "prefix.safetensors", list(range(60, 70)))
    cache = segue.load_prompt_cache(tmp_path / "prefix.safetensors", engine)
    config = CacheConfig(kv_bits=8, kv_group_size=32, quantized_kv_start=0)
    session = ChatSession(engine, generation=SHORT, cache=config, prompt_cache=cache)
    session.respond("hello")
    session.save(tmp_path / "talk.segue")
    again = ChatSession.open(tmp_path / "talk.segue", engine)
    assert again.cached_tokens == session.cached_tokens
    assert again.respond("why?") == session.respond("why?")
    assert again.usage.turns[-1].fed_tokens == session.usage.turns[-1].fed_tokens


def test_another_reply_can_not_ask_for_a_cache_that_the_prefix_is_not_of(tmp_path):
    engine = toy_engine()
    foreign(engine, tmp_path / "prefix.safetensors", list(range(60, 70)))
    cache = segue.load_prompt_cache(tmp_path / "prefix.safetensors", engine)
    session = ChatSession(engine, generation=SHORT, prompt_cache=cache)
    session.respond("hello")
    before = session.history, session.cached_tokens
    with pytest.raises(ConfigurationError):
        session.retry(max_kv_size=64)
    with pytest.raises(ConfigurationError):
        session.save(tmp_path / "talk.segue")
        session.close()
        ChatSession.open(tmp_path / "talk.segue", engine, cache=CacheConfig(max_kv_size=64))
    assert (session.history, session.cached_tokens) == before
