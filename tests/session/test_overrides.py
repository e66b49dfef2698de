"""Settings of one reply, given by keyword."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from segue import CacheConfig, ChatSession, ConfigurationError, GenerationConfig
from segue.config import GenerationOverrides
from segue.testing import FakeEngine


def session() -> ChatSession:
    return ChatSession(FakeEngine(["hello world", "fine", "well"]))


@pytest.mark.parametrize("verb", ["respond", "stream", "retry", "stream_retry", "preview"])
def test_every_verb_that_replies_takes_overrides(verb):
    chat = session()
    chat.respond("hi")
    arguments = () if "retry" in verb else ("and?",)
    result = getattr(chat, verb)(*arguments, max_tokens=2, stop=["x"])
    if verb in ("stream", "stream_retry"):
        list(result)
        result = result.text
    if verb != "preview":
        assert result == "fi"
    assert chat.generation == GenerationConfig()


def test_overrides_last_for_one_reply():
    chat = session()
    assert chat.respond("hi", max_tokens=1) == "hello"
    assert chat.respond("hi") == "fine"


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("temprature", "temperature"),
        ("max_token", "max_tokens"),
        ("kv_bits", "CacheConfig"),
        ("nothing_like_it", "GenerationConfig"),
    ],
)
@pytest.mark.parametrize("verb", ["respond", "stream", "retry", "stream_retry", "preview"])
def test_a_misspelt_override_is_refused_with_the_near_name(verb, name, advice):
    chat = session()
    chat.respond("hi")
    history, cached = chat.history, chat.cached_tokens
    arguments = () if "retry" in verb else ("and?",)
    with pytest.raises(ConfigurationError, match=advice) as refused:
        getattr(chat, verb)(*arguments, **{name: 1})
    assert name in refused.value.what
    assert (chat.history, chat.cached_tokens) == (history, cached)


def test_the_keywords_are_the_settings():
    fields = {field.name: field.type for field in dataclasses.fields(GenerationConfig)}
    assert typing.get_type_hints(GenerationOverrides) == fields


@pytest.mark.capable
def test_the_cache_of_a_session_is_fixed():
    chat = ChatSession(FakeEngine(), cache=CacheConfig(max_checkpoints=2))
    assert chat.cache == CacheConfig(max_checkpoints=2)
    with pytest.raises(AttributeError):
        chat.cache = CacheConfig()


@pytest.mark.parametrize("cache", [None, {}, GenerationConfig(), "full"])
def test_a_cache_of_another_type_is_refused(cache):
    with pytest.raises(ConfigurationError, match="CacheConfig"):
        ChatSession(FakeEngine(), cache=cache)
