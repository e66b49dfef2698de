"""The MLX engine against a fresh prefill, on tiny random models and mlx-lm's real caches."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import ChunkedKVCache, KVCache, RotatingKVCache

from kit.contexts import read, run
from kit.logits import assert_close, check_next_logits, fresh_logits
from kit.models import (
    byte_level_tokenizer,
    randomize,
    tiny_hybrid,
    tiny_llama,
    tiny_mamba,
    toy_engine,
)
from kit.probe import context_of, hugging_face, ids_of, layers_of, next_logits
from kit.sessions import say
from segue import (
    CacheConfig,
    ChatSession,
    ConfigurationError,
    GenerationConfig,
    GenerationError,
    Message,
    MissingTemplateError,
    MlxEngine,
)
from segue.engine import (
    Checkpoints,
    Drafts,
    Forks,
    ProcessesLogits,
    ReportsMemory,
    Stores,
    StoresPrompts,
)
from segue.testing import ToyTokenizer
from segue.testing.mlx import CachingModel

KINDS = {
    "full": lambda: toy_engine(tiny_llama),
    "sliding": lambda: toy_engine(tiny_llama, window=24),
    "recurrent": lambda: toy_engine(tiny_mamba),
    "hybrid": lambda: toy_engine(tiny_hybrid),
}
SHORT = GenerationConfig(max_tokens=12, prefill_step_size=16)


@pytest.fixture(params=KINDS)
def engine(request) -> MlxEngine:
    return KINDS[request.param]()


def test_a_conversation_never_differs_from_a_fresh_prefill(engine):
    session = ChatSession(engine, instructions="Be brief.", generation=SHORT)
    session.respond("hello there")
    check_next_logits(session)
    session.respond("and then?")
    check_next_logits(session)
    with session.stream("stop early") as reply:
        for _ in range(3):
            next(reply)
    check_next_logits(session)
    session.instructions = "Be long."
    session.respond("now?")
    check_next_logits(session)
    session.generation = GenerationConfig(max_tokens=0)
    session.respond("say nothing")
    check_next_logits(session)
    session.generation = SHORT
    session.respond("hello world")
    check_next_logits(session)


def test_a_reply_is_the_one_a_fresh_session_would_give(engine):
    session = ChatSession(engine, generation=SHORT)
    for prompt in ("hello", "the world", "he"):
        session.respond(prompt)
    with session.stream("last") as reply:
        list(reply)
    # The ids, not the text: a fresh context fed what this one was fed.
    held = ids_of(session)
    ids = held[: len(held) - len(reply.tokens)]
    context = engine.context(CacheConfig())
    assert [step.token for step in run(context, ids, SHORT)][: len(reply.tokens)] == list(
        reply.tokens
    )


def test_the_offset_is_right_at_every_yield(engine):
    context = engine.context(CacheConfig())
    ids = list(range(60, 90))
    said = []
    for step in run(context, ids, SHORT):
        said.append(step.token)
        assert context.offset == len(ids) + len(said)
    assert len(said) == SHORT.max_tokens


def test_rewind_says_where_it_got_to(engine):
    context = engine.context(CacheConfig())
    read(context, list(range(60, 75)))
    assert context.rewind(20) == 15
    reached = context.rewind(9)
    assert reached == context.offset
    assert reached in (0, 9)
    rest = list(range(60, 69))
    read(context, [*rest, 99])
    logits = next_logits(context)
    assert_close(logits, fresh_logits(engine.model, [*rest, 99, 65]))


def test_full_caches_are_trimmed_not_rebuilt():
    context = toy_engine(tiny_llama).context(CacheConfig())
    read(context, list(range(60, 75)))
    assert context.rewind(9) == 9


def test_the_tokens_are_those_of_mlx_lm(engine):
    ids = list(range(60, 100))
    config = GenerationConfig(max_tokens=20, prefill_step_size=16)
    ours = [step.token for step in run(engine.context(CacheConfig()), ids, config)]
    theirs = [
        token
        for token, _ in generate_step(
            mx.array(ids), engine.model, max_tokens=20, prefill_step_size=16
        )
    ]
    assert ours == theirs


def test_all_layers_stay_in_lockstep():
    engine = toy_engine(tiny_llama)
    session = ChatSession(engine, generation=SHORT)
    for prompt in ("hello", "again"):
        session.respond(prompt)
        layers = layers_of(session)
        assert {layer.offset for layer in layers} == {session.cached_tokens}


# --- caches of other kinds ----------------------------------------------------------------------


def test_max_kv_size_bounds_the_cache_of_models_that_make_their_own():
    engine = toy_engine(tiny_llama)
    session = ChatSession(
        engine, generation=GenerationConfig(max_tokens=30), cache=CacheConfig(max_kv_size=16)
    )
    session.respond("a prompt that is longer than sixteen tokens")
    session.respond("another")
    for layer in layers_of(session):
        assert isinstance(layer, RotatingKVCache)
        # One step of prefill may stand above the bound until the next token is written.
        assert layer.size() <= 16
    assert session.cached_tokens > 16


def test_max_kv_size_is_refused_where_it_would_do_nothing():
    with pytest.raises(ConfigurationError, match="max_kv_size has no effect"):
        toy_engine(tiny_mamba).context(CacheConfig(max_kv_size=16))


def test_kv_bits_quantize_the_cache_from_the_start_that_was_set():
    engine = toy_engine(tiny_llama)
    session = ChatSession(
        engine,
        generation=GenerationConfig(max_tokens=4, prefill_step_size=8),
        cache=CacheConfig(kv_bits=8, kv_group_size=32, quantized_kv_start=30),
    )
    session.respond("a")
    assert all(type(layer) is KVCache for layer in layers_of(session))
    session.respond("a longer prompt than before")
    names = {type(layer).__name__ for layer in layers_of(session)}
    assert names == {"QuantizedKVCache"}
    before = session.cached_tokens
    with session.stream("more") as reply:
        list(reply)
    assert reply.cached_tokens == before
    # Eight bits are close to the whole numbers, and the reply goes on from the same state.
    got = next_logits(session)
    expected = fresh_logits(engine.model, [*ids_of(session), 65])
    error = mx.abs(got - expected).max() / mx.abs(expected).max()
    assert error.item() < 0.1


@pytest.mark.parametrize("make", [tiny_mamba, lambda size: tiny_llama(size, window=24)])
def test_kv_bits_are_refused_where_they_can_not_be_had(make):
    with pytest.raises(ConfigurationError, match="can't be quantized"):
        toy_engine(make).context(CacheConfig(kv_bits=8))


# --- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [None, KeyboardInterrupt(), ZeroDivisionError()])
@pytest.mark.parametrize("call", [1, 2, 3, 6])
def test_a_forward_pass_that_fails_half_way_empties_the_context(call, failure):
    model = CachingModel(say, 300, fail_at=[call], failure=failure)
    config = GenerationConfig(max_tokens=8, prefill_step_size=16)
    session = ChatSession(MlxEngine(model, ToyTokenizer()), generation=config)
    streamed = ""
    with pytest.raises(type(failure) if failure else GenerationError):
        for response in session.stream("a prompt of two chunks"):
            streamed += response.text
    assert not session.has_cache
    assert session.history[-1] == Message.assistant(streamed)
    with session.stream("again") as reply:
        list(reply)
    check_cache(session)
    fresh = ChatSession(
        MlxEngine(CachingModel(say, 300), ToyTokenizer()),
        history=session.history[:2],
        generation=config,
    )
    assert fresh.respond("again") == session.history[-1].content


def check_cache(session: ChatSession) -> None:
    """Each layer holds the very ids of the ledger."""
    for layer in layers_of(session):
        keys = layer.keys_and_values()[0][0, 0, :, 0].tolist()
        assert tuple(int(key) for key in keys) == ids_of(session)


def test_a_failure_of_mlx_is_mapped_and_names_its_cause():
    model = CachingModel(say, 300, fail_at=[1])
    session = ChatSession(MlxEngine(model, ToyTokenizer()))
    with pytest.raises(GenerationError, match="forward pass 1") as raised:
        session.respond("hi")
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert isinstance(raised.value, RuntimeError)


@pytest.mark.parametrize("fail_when", [0, 16, -1])
def test_a_progress_callback_that_fails_leaves_the_chunks_that_were_read(fail_when):
    session = ChatSession(MlxEngine(CachingModel(say, 300), ToyTokenizer()), generation=SHORT)

    def fail(fed, total):
        if fed == (total if fail_when == -1 else fail_when):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        session.respond("a prompt of more than one chunk", prompt_progress_callback=fail)
    if fail_when != -1:
        assert session.cached_tokens == fail_when
    else:
        assert session.cached_tokens > 0
    session.respond("again")
    check_cache(session)


def test_early_close_at_every_token_keeps_the_cache_exact():
    for count in range(5):
        session = ChatSession(MlxEngine(CachingModel(say, 300), ToyTokenizer()), generation=SHORT)
        with session.stream("hi") as reply:
            for _ in range(count):
                next(reply)
        if count:
            check_cache(session)
        assert session.history[-1].content == reply.text
        before = session.cached_tokens
        with session.stream("again") as reply:
            list(reply)
        assert reply.cached_tokens == before
        check_cache(session)


def test_dropping_a_reply_leaves_no_stream_behind():
    session = ChatSession(toy_engine(tiny_llama), generation=SHORT)
    reply = session.stream("hi")
    next(reply)
    del reply
    gc.collect()
    session.respond("again")
    check_next_logits(session)


# --- tokenizers as mlx-lm wraps them ------------------------------------------------------------


def test_a_lone_lead_byte_is_withheld_and_flushed_on_early_close_and_on_error():
    tokenizer = byte_level_tokenizer()
    lead = tokenizer.convert_tokens_to_ids("Ã")  # the byte 0xC3, the first of an é
    size = len(tokenizer)
    letter = tokenizer.convert_tokens_to_ids("h")

    def say(ids):
        return lead if ids[-1] == letter else letter

    def session(**kwargs) -> ChatSession:
        return ChatSession(MlxEngine(CachingModel(say, size, **kwargs), tokenizer))

    early = session()
    with early.stream("hi") as reply:
        assert [next(reply).text for _ in range(2)] == ["h", ""]
    assert early.history[-1] == Message.assistant("h\ufffd")
    before = early.cached_tokens
    with early.stream("go on") as reply:
        next(reply)
    assert reply.cached_tokens == before

    failed = session(fail_at=[5])
    streamed = ""
    with pytest.raises(GenerationError):
        for response in failed.stream("hi"):
            streamed += response.text
    assert failed.history[-1].content == "h\ufffd"
    assert streamed == "h"


def test_a_plain_hugging_face_tokenizer_is_wrapped():
    tokenizer = hugging_face(byte_level_tokenizer())
    session = ChatSession(
        MlxEngine(tiny_llama(len(tokenizer)), tokenizer), generation=GenerationConfig(max_tokens=8)
    )
    with session.stream("hello to the world") as reply:
        streamed = "".join(response.text for response in reply)
    assert streamed == reply.text == session.history[-1].content
    check_next_logits(session)


def test_a_tokenizer_without_a_chat_template_is_refused():
    tokenizer = byte_level_tokenizer(template=None)
    with pytest.raises(MissingTemplateError, match="no chat template"):
        MlxEngine(tiny_llama(len(tokenizer)), tokenizer)


def test_random_weights_tell_tokens_apart():
    model = randomize(tiny_llama(300))
    assert not mx.allclose(fresh_logits(model, [1, 2, 3]), fresh_logits(model, [3, 2, 1]))


# --- rewinds that a layer does not follow --------------------------------------------------------


class HalfTrimming(KVCache):
    """Says it can be trimmed, and gives back less than it was asked, as chunked caches do."""

    def trim(self, n):
        return super().trim(min(n, 2))


class BreakingTrim(KVCache):
    def trim(self, n):
        raise KeyboardInterrupt


@pytest.mark.parametrize("last", [HalfTrimming, BreakingTrim])
def test_a_rewind_that_one_layer_does_not_follow_empties_the_context(last):
    engine = toy_engine(tiny_llama)
    engine.model.make_cache = lambda: [*(KVCache() for _ in range(3)), last()]
    context = engine.context(CacheConfig())
    read(context, list(range(60, 75)))
    try:
        assert context.rewind(5) == 0
    except KeyboardInterrupt:
        assert last is BreakingTrim
    assert context.offset == 0
    assert all(layer.empty() for layer in layers_of(context))


def test_a_chunked_cache_that_dropped_its_front_is_rebuilt():
    engine = toy_engine(tiny_llama)
    engine.model.make_cache = lambda: [ChunkedKVCache(64) for _ in range(4)]
    context = engine.context(CacheConfig())
    read(context, list(range(60, 75)))
    for layer in layers_of(context):
        layer.chunk_size = 8
        layer.maybe_trim_front()
    assert context.rewind(14) == 0


# --- what does not belong together ---------------------------------------------------------------


def test_a_tokenizer_larger_than_the_model_is_refused_before_its_ids_are_fed():
    engine = MlxEngine(tiny_llama(100), ToyTokenizer())
    session = ChatSession(engine)
    with pytest.raises(ConfigurationError, match="don't belong together"):
        session.respond("hello")
    assert session.history == ()


@pytest.mark.parametrize(
    "settings", [{"kv_bits": 4, "kv_group_size": 64}, {"kv_bits": 8, "kv_group_size": 128}]
)
def test_kv_bits_that_do_not_fit_the_heads_are_refused_before_the_turn(settings):
    cache = CacheConfig(quantized_kv_start=100, **settings)
    with pytest.raises(ConfigurationError, match="can't be quantized"):
        ChatSession(toy_engine(tiny_llama), cache=cache)


def test_a_processors_own_runtime_error_is_not_called_the_models():
    def fail(tokens, logits):
        raise RuntimeError("mine")

    config = GenerationConfig(logits_processors=(fail,))
    session = ChatSession(toy_engine(tiny_llama), generation=config)
    with pytest.raises(RuntimeError, match="mine") as raised:
        session.respond("hello")
    assert not isinstance(raised.value, GenerationError)


def test_max_kv_size_keeps_the_instructions():
    engine = toy_engine(tiny_llama)
    config, cache = (
        GenerationConfig(max_tokens=20, prefill_step_size=7),
        CacheConfig(max_kv_size=48),
    )
    session = ChatSession(engine, instructions="be kind", generation=config, cache=cache)
    opening = len(ToyTokenizer().encode("<|start|>system\nbe kind<|end|>\n<|start|>user\n"))
    for text in ("a first question", "a second one", "a third"):
        session.respond(text)
    context: Any = context_of(session)
    assert context.offset > 48
    ids = ids_of(session)
    # The last line break might join with a question's first.
    kept = opening - 1
    assert all(layer.keep == kept for layer in layers_of(context))
    fresh = engine.context(cache)
    list(run(fresh, ids, replace(config, max_tokens=0), pinned=kept))
    assert_close(next_logits(context), next_logits(fresh))
    # The first layer holds the keys of the instructions' own tokens, and of the latest.
    alone = engine.context(CacheConfig())
    read(alone, ids)
    held, whole = layers_of(context)[0].keys, layers_of(alone)[0].keys
    assert mx.allclose(held[..., :kept, :], whole[..., :kept, :], atol=1e-5).item()


def test_instructions_that_max_kv_size_has_no_room_for_are_refused():
    cache = CacheConfig(max_kv_size=24)
    session = ChatSession(toy_engine(tiny_llama), instructions="x" * 24, cache=cache)
    with pytest.raises(ConfigurationError, match="no room beside them"):
        session.respond("hi")
    assert session.history == ()


# --- the seam ------------------------------------------------------------------------------------


def test_a_context_has_every_capability():
    engine = toy_engine(tiny_llama)
    context = engine.context(CacheConfig())
    for capability in (Checkpoints, Forks, Drafts, Stores, ReportsMemory, ProcessesLogits):
        assert isinstance(context, capability)
    assert isinstance(engine, StoresPrompts)
    assert context.logits_type is mx.array


def test_what_is_reused_is_what_was_cached_before(engine):
    context = engine.context(CacheConfig())
    assert context.reused is None
    ids = list(range(60, 90))
    said = [step.token for step in run(context, ids, SHORT)]
    assert context.reused == 0
    more = run(context, [*ids, *said, 5, 6], SHORT)
    assert context.reused == 0, "nothing changes before the first step"
    next(more)
    assert context.reused == len(ids) + len(said)
    more.close()


def test_a_closed_context_holds_nothing(engine):
    context = engine.context(CacheConfig())
    steps = run(context, list(range(60, 90)), SHORT)
    next(steps)
    steps.close()
    twin = context.fork()
    offset = twin.offset
    context.close()
    assert layers_of(context) == []
    assert context.offset == 0
    # Its fork is another one.
    assert twin.offset == offset
    next_logits(twin)


def test_a_context_may_be_closed_before_its_reply():
    context = toy_engine(tiny_llama).context(CacheConfig())
    steps = run(context, list(range(60, 90)), SHORT)
    next(steps)
    context.close()
    steps.close()
    assert context.offset == 0
