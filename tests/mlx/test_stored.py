"""A context that was stored and restored goes on as if it had never stopped."""

from __future__ import annotations

import copy
import gc

import mlx.core as mx
import pytest
from mlx_lm.models.deepseek_v41 import LayerCache

import segue
from kit.contexts import (
    KINDS,
    SEEDED,
    Line,
    begun,
    cache_of,
    check_fresh,
    config_of,
    context_for,
    elsewhere,
    engine_for,
    run,
    through_a_file,
    words,
)
from kit.drafts import KINDS as DRAFTS
from kit.mlx_sessions import foreign
from kit.models import disturbed, tiny_mamba, toy_engine
from kit.probe import draft_ids, layers_of, put_layers, resting_layers
from segue import PromptCacheError


def restored(line: Line, kind: str, **kwargs) -> Line:
    """The same in a context of another engine, as in another process."""
    context = context_for(engine_for(kind), cache_of(kind), **kwargs)
    assert context.restore(through_a_file(line.context.stored())) == {}
    return Line(context, line.ids)


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_token_for_token(kind):
    line = begun(kind)
    again = restored(line, kind)
    assert again.context.offset == line.context.offset
    assert again.context.checkpoints.offsets == line.context.checkpoints.offsets
    assert mx.array_equal(again.logits(), line.logits())
    check_fresh(again, engine_for(kind), cache_of(kind))
    for turn, settings in enumerate([{}, SEEDED, {"max_tokens": 20}]):
        config = config_of(**settings)
        assert again.say(words(turn + 5, 9), config) == line.say(words(turn + 5, 9), config)
        assert mx.array_equal(again.logits(), line.logits())
    assert again.context.checkpoints.offsets == line.context.checkpoints.offsets
    check_fresh(again, engine_for(kind), cache_of(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turns", [1, 3])
def test_it_comes_back_to_every_checkpoint(kind, turns):
    line = begun(kind, turns)
    offsets = line.context.checkpoints.offsets or (line.context.offset - 5,)
    for offset in offsets:
        # A context can go back once: there are as many as there are checkpoints.
        one, other = restored(line, kind), restored(line, kind)
        reached = one.back(offset)
        alike = begun(kind, turns)
        assert reached == alike.back(offset)
        assert reached in (0, offset)
        assert mx.array_equal(one.logits(), alike.logits()) if reached else not one.ids
        check_fresh(one, engine_for(kind), cache_of(kind))
        assert one.say(words(8, 9), config_of()) == alike.say(words(8, 9), config_of())
        assert other.ids == line.ids


@pytest.mark.parametrize("turns", [1, 3])
def test_a_cache_that_is_yet_to_be_quantized_comes_back_as_it_was(turns):
    line = begun("quantized later", turns)
    again = restored(line, "quantized later")
    kinds = [type(layer) for layer in layers_of(line.context)]
    assert [type(layer) for layer in layers_of(again.context)] == kinds
    assert again.back(20) == line.back(20) == (20 if turns == 1 else 0)


def test_pinned_tokens_stay_pinned():
    again = restored(begun("bounded"), "bounded")
    assert {layer.keep for layer in layers_of(again.context)} == {6}


@pytest.mark.parametrize("kind", DRAFTS)
@pytest.mark.parametrize("settings", [{}, SEEDED])
@pytest.mark.usefixtures("never_paused")
def test_a_draft_goes_on_as_well(kind, settings):
    def context():
        make, kwargs = DRAFTS[kind]
        engine = toy_engine()
        draft = disturbed(engine, noise=0.1)
        if kind != "full":
            draft = toy_engine(make, **kwargs)
        return context_for(engine, cache_of("full"), draft=draft)

    config = config_of(max_tokens=20, num_draft_tokens=4, **settings)
    line = Line(context())
    line.say(words(1, 20), config)
    again = Line(context(), line.ids)
    assert again.context.restore(through_a_file(line.context.stored())) == {}
    assert again.context.acceptance == (0, 0)
    assert draft_ids(line.context) == draft_ids(again.context) != []
    for turn in range(3):
        replies = [
            list(run(each.context, [*line.ids, *words(turn, 5)], config)) for each in (line, again)
        ]
        assert replies[0] == replies[1]
        line.ids += [*words(turn, 5), *(step.token for step in replies[0])]
        assert mx.array_equal(again.logits(), line.logits())
        assert draft_ids(line.context) == draft_ids(again.context)


@pytest.mark.parametrize("kind", ["full", "sliding", "recurrent", "hybrid"])
def test_an_opaque_prefix_comes_back(kind, tmp_path):
    engine, config, cache = engine_for(kind), config_of(), cache_of(kind)
    foreign(engine, tmp_path / "c.safetensors", words(3, 20))
    stored = engine.load_cache(tmp_path / "c.safetensors")
    line = Line(context_for(engine, cache, start=stored))
    # Nothing but the prefix is something, too.
    assert set(line.context.stored()) == {"cache", "prefix"}
    line.say(words(1, 9), config)
    parts = through_a_file(line.context.stored())
    other = engine_for(kind)
    prefix = other.read_prefix(parts["prefix"], cache)
    assert prefix.offset == stored.offset
    again = Line(context_for(other, cache, start=prefix), line.ids)
    assert again.context.restore(parts) == {}
    assert again.context.prefix == line.context.prefix
    assert mx.array_equal(again.logits(), line.logits())
    assert again.back(0) == line.back(0) == (stored.offset or 0)
    assert mx.array_equal(again.logits(), line.logits())
    without = engine.context(cache)
    if stored.offset:
        with pytest.raises(segue.PromptCacheMismatchError, match="opaque prefix"):
            without.restore(parts)


def test_what_was_begun_from_a_quantized_file_comes_back(tmp_path):
    kind = "quantized"
    engine, config = engine_for(kind), config_of()
    foreign(engine, tmp_path / "c.safetensors", words(3, 20), cache_of(kind))
    stored = engine.load_cache(tmp_path / "c.safetensors")
    # It is quantized earlier than a conversation without it would be.
    cache = cache_of(kind, quantized_kv_start=1000)
    line = Line(context_for(engine, cache, start=stored))
    line.say(words(1, 9), config)
    parts = through_a_file(line.context.stored())
    prefix = engine.read_prefix(parts["prefix"], cache)
    assert (prefix.kv_bits, prefix.kv_group_size) == (8, 32)
    again = Line(context_for(engine, cache, start=prefix), line.ids)
    assert again.context.restore(parts) == {}
    assert mx.array_equal(again.logits(), line.logits())


def test_rows_of_several_heads_come_back():
    """Theirs lie apart in the buffer, with room between them."""
    engine = engine_for("full")
    context = engine.context(cache_of("full"))
    layers = [copy.deepcopy(layer) for layer in resting_layers(context)]
    for layer in layers:
        rows = mx.arange(2 * 9 * 8, dtype=mx.float32).reshape(1, 2, 9, 8)
        layer.update_and_fetch(rows, rows)
    put_layers(context, layers, 9)
    part = through_a_file(context.stored())["cache"]
    for name in ("layers.0.0", "layers.3.1"):
        data = memoryview(part.tensors[name].data).cast("f").tolist()
        assert data == list(range(2 * 9 * 8))


def test_nothing_is_stored_of_nothing():
    assert engine_for("full").context(cache_of("full")).stored() == {}


@pytest.mark.parametrize("kind", KINDS)
def test_parts_stay_as_they_are_while_the_context_goes_on(kind):
    line = begun(kind)
    before = line.logits()
    parts = line.context.stored()
    kept = through_a_file(parts)
    assert mx.array_equal(line.logits(), before)
    line.say(words(4, 9), config_of())
    line.context.rewind(0)
    line.say(words(5, 9), config_of())
    del line
    gc.collect()
    assert through_a_file(parts) == kept
    assert all(
        memoryview(tensor.data).nbytes and not isinstance(tensor.data, bytes)
        for part in parts.values()
        for tensor in part.tensors.values()
    )


def test_rows_that_fill_their_buffer_are_not_copied():
    line = begun("full")
    layer = layers_of(line.context)[0]
    layer.keys = mx.contiguous(layer.keys[..., : layer.offset, :])
    mx.eval(layer.keys)
    before = mx.get_active_memory()
    parts = line.context.stored()
    others = sum(
        memoryview(tensor.data).nbytes
        for name, tensor in parts["cache"].tensors.items()
        if name != "layers.0.0"
    )
    assert mx.get_active_memory() - before <= others + 2**14


@pytest.mark.parametrize("kind", KINDS)
def test_another_thread_goes_on_where_a_reply_was_as_long_as_it_may_be(kind):
    line, same = begun(kind), begun(kind)
    said = []
    elsewhere(lambda: said.append(line.say(words(7, 5), config_of())))
    assert said == [same.say(words(7, 5), config_of())]


@pytest.mark.parametrize("kind", ["full", "hybrid", "quantized"])
def test_another_thread_may_store_and_restore(kind):
    line = begun(kind)
    results = []

    def work():
        again = restored(line, kind)
        results.append((again, again.say(words(7, 5), config_of())))

    elsewhere(work)
    again, said = results[0]
    assert line.say(words(7, 5), config_of()) == said
    assert line.say(words(8, 5), config_of()) == again.say(words(8, 5), config_of())


def test_a_cache_without_a_form_is_not_stored():
    line = begun("full")
    resting_layers(line.context)[1] = LayerCache(8)
    with pytest.raises(PromptCacheError, match="no form"):
        line.context.stored()
    line = Line(toy_engine(tiny_mamba).context(cache_of("recurrent")))
    line.say(words(1, 3), config_of())
    resting_layers(line.context)[1] = copy.deepcopy(toy_engine(tiny_mamba).model.make_cache()[0])
    with pytest.raises(PromptCacheError):
        line.context.stored()
