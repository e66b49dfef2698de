"""Prompt caches in sessions: known ones are read on, opaque ones stay in front of everything."""

from __future__ import annotations

import importlib
import json
import sys

import mlx.core as mx
import pytest
from mlx_lm.models.cache import load_prompt_cache as mlx_lm_load

import segue
from kit.contexts import read
from kit.logits import assert_close, check_next_logits
from kit.mlx_sessions import KINDS, SHORT, counted, foreign
from kit.models import disturbed, toy_engine, write_folder
from kit.probe import (
    cut_cache,
    draft_ids,
    give_cache,
    has_draft_model,
    ids_of,
    next_logits,
)
from segue import (
    CacheConfig,
    ChatSession,
    ConfigurationError,
    GenerationConfig,
    PromptCacheError,
    PromptCacheFormatError,
    PromptCacheMismatchError,
)
from segue.testing import FakeEngine

pytestmark = pytest.mark.capable


@pytest.fixture(params=KINDS)
def kind(request):
    make, kwargs, settings = KINDS[request.param]
    return toy_engine(make, **kwargs), CacheConfig(**settings)


def test_a_saved_conversation_goes_on_where_it_was(kind, tmp_path):
    engine, config = kind
    first = ChatSession(engine, instructions="the", generation=SHORT, cache=config)
    first.respond("hello world hello world")
    first.save_cache(tmp_path / "c.safetensors")
    cache = segue.load_prompt_cache(tmp_path / "c.safetensors", engine)
    assert cache.ids == ids_of(first)
    second = ChatSession(engine, generation=SHORT, prompt_cache=cache)
    assert second.history == first.history
    assert second.instructions == "the"
    assert second.cached_tokens == first.cached_tokens
    assert second.cache.max_kv_size == config.max_kv_size
    assert counted(second, "go on") == counted(first, "go on")
    assert_close(next_logits(second), next_logits(first))
    # The cache itself is as it was: another session can begin with it.
    third = ChatSession(engine, generation=SHORT, prompt_cache=cache)
    assert third.cached_tokens == len(cache.ids)
    assert counted(third, "go on")[0] == first.history[-1].content


def test_mlx_lm_opens_what_a_session_saved(kind, tmp_path):
    engine, config = kind
    session = ChatSession(engine, generation=SHORT, cache=config)
    session.respond("hello")
    session.save_cache(tmp_path / "c.safetensors")
    layers, metadata = mlx_lm_load(str(tmp_path / "c.safetensors"), return_metadata=True)
    got = engine.model(mx.array([[65]]), cache=layers)[0, -1]
    own = next_logits(session)
    assert_close(got, own)
    assert json.loads(metadata["segue_tokens"])["ids"] == list(ids_of(session))


@pytest.mark.parametrize("spelled", [None, "./model/"])
def test_mlx_lms_command_generates_on_top_of_what_a_session_read(
    tmp_path, monkeypatch, capsys, spelled
):
    write_folder(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    engine = segue.load(spelled or "model")
    assert repr(engine.source) == repr(spelled or "model")
    session = ChatSession(engine, instructions="hello to the world", generation=SHORT)
    session.prewarm()
    session.save_cache(tmp_path / "c.safetensors")
    command = ["--prompt-cache-file", str(tmp_path / "c.safetensors"), "--prompt", "the fox"]
    # A model that is named must be named as it was, to the letter.
    command += ["--model", spelled] if spelled else []
    monkeypatch.setattr(sys, "argv", ["mlx_lm.generate", *command, "--max-tokens", "8"])
    importlib.import_module("mlx_lm.generate").main()
    assert session.respond("the fox") in capsys.readouterr().out
    assert session.history[-1].content


@pytest.mark.parametrize("name", ["bounded", "quantized"])
def test_the_files_own_kind_of_cache_is_gone_on_with(name, tmp_path):
    make, _, settings = KINDS[name]
    engine = toy_engine(make)
    foreign(engine, tmp_path / "c.safetensors", list(range(40, 60)), CacheConfig(**settings))
    cache = segue.load_prompt_cache(tmp_path / "c.safetensors", engine)
    session = ChatSession(engine, prompt_cache=cache, generation=SHORT)
    for key in ("max_kv_size", "kv_bits"):
        assert getattr(session.cache, key) == settings.get(key)
    session.respond("hello")
    assert session.cached_tokens > 20
    others = {"kv_bits": 4, "kv_group_size": 32} if name == "quantized" else {"max_kv_size": 30}
    with pytest.raises(ConfigurationError):
        ChatSession(engine, prompt_cache=cache, cache=CacheConfig(**others))


def test_a_plain_known_cache_may_be_quantized_later(tmp_path):
    engine = toy_engine()
    session = ChatSession(engine, generation=SHORT)
    session.respond("hello")
    session.save_cache(tmp_path / "c.safetensors")
    config = CacheConfig(kv_bits=8, kv_group_size=32, quantized_kv_start=0)
    cache = segue.load_prompt_cache(tmp_path / "c.safetensors", engine)
    second = ChatSession(engine, generation=SHORT, cache=config, prompt_cache=cache)
    _, fed = counted(second, "on")
    assert fed < second.cached_tokens - len(cache.ids)


@pytest.mark.parametrize("draft", ["model", "lookup"])
def test_with_a_draft_known_ids_are_read_by_it_and_unknown_ones_are_not(draft, tmp_path):
    engine = toy_engine()
    proposer = disturbed(engine, noise=0.1) if draft == "model" else "prompt-lookup"
    config = GenerationConfig(max_tokens=8, num_draft_tokens=4)
    plain = ChatSession(engine, generation=SHORT)
    plain.respond("hello hello hello")
    plain.save_cache(tmp_path / "known.safetensors")
    known = segue.load_prompt_cache(tmp_path / "known.safetensors", engine)
    session = ChatSession(engine, generation=config, prompt_cache=known, draft=proposer)
    assert counted(session, "the") == counted(plain, "the")
    assert has_draft_model(session) == (draft == "model")
    assert tuple(draft_ids(session)[: len(known.ids)]) == known.ids
    session.save_cache(tmp_path / "again.safetensors")
    again = segue.load_prompt_cache(tmp_path / "again.safetensors", engine)
    assert again.ids == ids_of(session)

    foreign(engine, tmp_path / "foreign.safetensors", [7, 8, 9] * 5)
    opaque = segue.load_prompt_cache(tmp_path / "foreign.safetensors", engine)
    with_draft = ChatSession(engine, generation=config, prompt_cache=opaque, draft=proposer)
    without = ChatSession(engine, generation=SHORT, prompt_cache=opaque)
    for text in ("hello hello", "the the"):
        assert counted(with_draft, text) == counted(without, text)


def test_given_instructions_or_history_stand(tmp_path):
    engine = toy_engine()
    first = ChatSession(engine, instructions="the", generation=SHORT)
    first.respond("hello")
    first.save_cache(tmp_path / "c.safetensors")
    cache = segue.load_prompt_cache(tmp_path / "c.safetensors", engine)
    same = ChatSession(engine, instructions="the", generation=SHORT, prompt_cache=cache)
    assert same.history == ()
    assert counted(same, "hello")[1] < 5
    other = ChatSession(engine, instructions="world", generation=SHORT, prompt_cache=cache)
    other.respond("hello")
    check_next_logits(other)


def test_without_a_cache_nothing_is_saved(tmp_path):
    session = ChatSession(toy_engine())
    with pytest.raises(PromptCacheError, match="no cache yet"):
        session.save_cache(tmp_path / "c.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_saving_closes_a_live_reply(tmp_path):
    engine = toy_engine()
    session = ChatSession(engine, generation=SHORT)
    reply = session.stream("hello")
    next(reply)
    session.save_cache(tmp_path / "c.safetensors")
    assert reply.ended
    cache = segue.load_prompt_cache(tmp_path / "c.safetensors", engine)
    assert cache.conversation.messages == session.history
    assert len(cache.conversation.messages) == 2


def test_a_folder_that_is_not_there_is_told(tmp_path):
    session = ChatSession(toy_engine(), generation=SHORT)
    session.respond("hello")
    with pytest.raises(PromptCacheError, match="could not be written"):
        session.save_cache(tmp_path / "no" / "c")


def test_another_model_is_refused(tmp_path):
    engine = toy_engine()
    session = ChatSession(engine, generation=SHORT)
    session.respond("hello")
    session.save_cache(tmp_path / "c.safetensors")
    other = disturbed(engine, noise=0.01)
    with pytest.raises(PromptCacheMismatchError, match="another model"):
        segue.load_prompt_cache(tmp_path / "c.safetensors", other)
    with pytest.raises(PromptCacheMismatchError):
        segue.load_prompt_cache(tmp_path / "c.safetensors", toy_engine(head_dim=64))


def test_a_cache_goes_with_its_own_engine_only(tmp_path):
    engine = toy_engine()
    session = ChatSession(engine, generation=SHORT)
    session.respond("hello")
    session.save_cache(tmp_path / "c.safetensors")
    cache = segue.load_prompt_cache(tmp_path / "c.safetensors", engine)
    with pytest.raises(ConfigurationError, match="another engine"):
        ChatSession(toy_engine(), prompt_cache=cache)
    with pytest.raises(ConfigurationError, match="not str"):
        ChatSession(engine, prompt_cache=str(tmp_path / "c.safetensors"))


def test_a_cache_of_the_fake_engine_works_as_a_real_one(tmp_path):
    engine = FakeEngine(["one", "two"])
    session = ChatSession(engine, instructions="be brief")
    session.respond("hi")
    session.save_cache(tmp_path / "c.safetensors")
    second = ChatSession(
        engine, prompt_cache=segue.load_prompt_cache(tmp_path / "c.safetensors", engine)
    )
    reply = second.stream("on")
    assert reply.cached_tokens == session.cached_tokens
    assert "".join(response.text for response in reply) == "two"
    (tmp_path / "broken").write_text("{")
    with pytest.raises(PromptCacheFormatError):
        segue.load_prompt_cache(tmp_path / "broken", engine)
    with pytest.raises(PromptCacheError):
        segue.load_prompt_cache(tmp_path / "missing", engine)


METADATA = {
    "segue_tokens": [
        "{",
        "[]",
        "{}",
        '{"ids": 3, "text": "", "seams": [[0, 0]]}',
        '{"ids": ["a"], "text": "a", "seams": [[0, 0], [1, 1]]}',
        '{"ids": [-1], "text": "a", "seams": [[0, 0], [1, 1]]}',
        '{"ids": [1], "text": "ab", "seams": [[0, 0], [1, 1]]}',
        '{"ids": [1], "text": "a", "seams": [[0, 0], [2, 1]]}',
        '{"ids": [1], "text": "a", "seams": [[1, 1]]}',
        '{"ids": [1], "text": "", "seams": []}',
        '{"ids": [1, 2], "text": "a", "seams": [[0, 0], [1, 1]]}',
        '{"ids": [1], "text": 3, "seams": [[0, 0]]}',
    ],
    "segue_conversation": [
        "",
        "3",
        "[" * 5000,
        '{"history": [{"role": "nobody", "content": ""}]}',
        '{"history": [{"content": ""}]}',
        '{"history": [{"role": "user", "content": "", "more": 1}]}',
        '{"history": 3}',
        '{"instructions": 3}',
        '{"template_kwargs": []}',
    ],
}


@pytest.mark.parametrize(
    ("key", "text"), [(key, text) for key, texts in METADATA.items() for text in texts]
)
def test_metadata_of_another_form_is_refused(key, text, tmp_path):
    engine = FakeEngine(["one"])
    entry = {"ids": [1], "metadata": {key: text}}
    (tmp_path / "c.safetensors").write_text(json.dumps(entry))
    with pytest.raises(PromptCacheFormatError):
        segue.load_prompt_cache(tmp_path / "c.safetensors", engine)


def test_what_json_can_not_express_is_refused_before_anything_is_written(tmp_path):
    session = ChatSession(FakeEngine(["one"]), template_kwargs={"tools": {1, 2}})
    session.respond("hi")
    with pytest.raises(PromptCacheError, match="JSON"):
        session.save_cache(tmp_path / "c.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_file_holds_nothing_that_was_taken_back(tmp_path):
    engine = toy_engine()
    session = ChatSession(engine, generation=SHORT)
    session.respond("hello " * 30)
    cut_cache(session, 20)
    session.save_cache(tmp_path / "c.safetensors")
    layers = mlx_lm_load(str(tmp_path / "c.safetensors"))
    assert all(layer.keys.shape[2] == layer.offset == 20 for layer in layers)


@pytest.mark.parametrize("path", [None, 3, b"c"])
def test_what_is_no_path_is_refused_before_the_live_reply_is_closed(path):
    session = ChatSession(FakeEngine(["one two"]))
    reply = session.stream("hi")
    next(reply)
    with pytest.raises(ConfigurationError, match="must be a string"):
        session.save_cache(path)
    assert not reply.ended
    with pytest.raises(ConfigurationError, match="must be a string"):
        segue.load_prompt_cache(path, FakeEngine())
    with pytest.raises(ConfigurationError, match="must be an engine"):
        segue.load_prompt_cache("c", "smollm2")


def test_a_conversation_of_brackets_is_saved(tmp_path):
    engine = toy_engine()
    session = ChatSession(engine, instructions="[{" * 60_000, generation=SHORT)
    context = engine.context(CacheConfig())
    read(context, [1, 2])
    give_cache(session, context, [1, 2], "[{" * 60_000)
    session.save_cache(tmp_path / "c.safetensors")
    cache = segue.load_prompt_cache(tmp_path / "c.safetensors", engine)
    assert cache.conversation.instructions == "[{" * 60_000


@pytest.mark.parametrize("kwargs", [{"tools": (1, 2)}, {"by": {1: 2}}, {"x": float("nan")}])
def test_arguments_that_json_would_change_are_refused(kwargs, tmp_path):
    session = ChatSession(FakeEngine(["one"]), template_kwargs=kwargs)
    session.respond("hi")
    with pytest.raises(PromptCacheError, match="JSON"):
        session.save_cache(tmp_path / "c")
