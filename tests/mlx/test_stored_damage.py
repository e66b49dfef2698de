"""Sections of a context that were changed: refused or left out; nothing changes or breaks."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.contexts import (
    KINDS,
    SEEDED,
    Line,
    begun,
    cache_of,
    config_of,
    context_for,
    engine_for,
    run,
    through_a_file,
    words,
)
from kit.models import disturbed, tiny_llama, toy_engine
from kit.probe import draft_ids, draft_offset, layers_of
from segue import (
    GenerationConfig,
    PromptCacheError,
    PromptCacheFormatError,
    PromptCacheMismatchError,
)
from segue.engine import StoredState, StoredTensor

Parts = dict[str, StoredState]
Change = Callable[[dict[str, Any], dict[str, StoredTensor]], Any]
KEYS = "layers.0.0"


def stored(kind: str) -> Parts:
    return through_a_file(begun(kind, 3).context.stored())


@pytest.fixture(scope="module")
def kept() -> Callable[[str], Parts]:
    cache: dict[str, Parts] = {}

    def of(kind: str) -> Parts:
        if kind not in cache:
            cache[kind] = stored(kind)
        # Numbers are changed in place, data never.
        return {
            name: StoredState(copy.deepcopy(dict(part.values)), dict(part.tensors))
            for name, part in cache[kind].items()
        }

    return of


def state(**changes: Any) -> Change:
    return lambda values, _: values["state"].update(
        {name.replace("__", "."): value for name, value in changes.items()}
    )


def without(name: str) -> Change:
    return lambda values, tensors: (values["state"].pop(name, None), tensors.pop(name, None))


def tensor(name: str, **changes: Any) -> Change:
    def change(_: Any, tensors: dict[str, StoredTensor]) -> None:
        tensors[name] = tensors[name]._replace(**changes)

    return change


def classes(name: Any) -> Change:
    return lambda values, _: values["classes"].update(layers=name)


CACHE: list[tuple[str, Change, str]] = [
    ("full", lambda values, _: values.clear(), "does not say what it holds"),
    ("full", lambda values, _: values.update(state=[]), "does not say what it holds"),
    ("full", lambda values, _: values.update(classes="x"), "does not say what it holds"),
    ("full", classes(None), "does not name the layers"),
    ("full", classes(["KVCache", 1]), "does not name the layers"),
    ("full", classes(["object"] * 4), "class 'object', which Segue does not know"),
    ("full", classes(["__import__('os')"] * 4), "which Segue does not know"),
    ("full", without("offset"), "lack the field 'offset'"),
    ("full", without(KEYS), "lack the field"),
    ("full", without("layers.0.2"), "lack the field"),
    ("full", state(offset=True), "not a whole number"),
    ("full", state(offset=3.0), "not a whole number"),
    ("full", state(offset="3"), "not a whole number"),
    ("full", state(offset=None), "not a whole number"),
    ("full", state(offset=-1), "is -1, which can't be"),
    ("full", state(offset=10**400), "which can't be"),
    ("full", state(offset=7), "don't hold the 7 tokens"),
    ("full", state(layers__0__2=7), "don't hold the same number"),
    ("full", state(layers__0__2=1000), "1000, which can't be"),
    ("full", state(extra=1), "'extra' belongs to nothing"),
    ("full", lambda _, tensors: tensors.update(extra=tensors[KEYS]), "'extra' belongs to nothing"),
    ("full", state(layers__0__0=None), "lack the field"),
    ("full", lambda _, tensors: tensors.update(offset=tensors[KEYS]), "lack the field 'offset'"),
    ("full", tensor(KEYS, data=b""), "don't agree"),
    ("full", tensor(KEYS, dtype="F16"), "don't agree"),
    ("full", tensor(KEYS, dtype="F64"), "don't agree"),
    ("full", tensor(KEYS, dtype="x"), "don't agree"),
    ("full", tensor(KEYS, shape=(1, 1, -5, 32)), "don't agree"),
    ("full", tensor(KEYS, shape=(1, 1, 2**40, 32)), "don't agree"),
    ("full", tensor(KEYS, shape=(1,) * 30), "don't agree"),
    ("full", tensor(KEYS, shape=(1, 1, 1.5, 32)), "don't agree"),
    ("full", tensor(KEYS, shape=(), data=b"1234"), "not of rank 4"),
    ("full", tensor(KEYS, shape=(1, 1, 0, 32), data=b""), "same number of rows"),
    ("bounded", state(layers__0__3=3), "in different ways"),
    ("bounded", state(layers__0__5=3), "rows and position"),
    ("sliding", state(layers__0__5=3), "dropped different tokens"),
    ("quantized", state(layers__0__4=4), "don't fit together"),
    ("quantized", state(layers__0__3=48), "groups of 48"),
    ("chunked", state(layers__0__4=0), "which can't be"),
    ("lists", state(layers__0__0__1="CacheList"), "a list that holds a list"),
    ("lists", state(layers__0__0__1=1), "not a text"),
    ("lists", state(layers__0__0__1="x" * 1000), "not a text"),
    ("hybrid", state(layers__0__1=1), "lack the field"),
    ("token ids", without("layers.0.0.0"), "number of slots"),
]


def line_of(kind: str) -> Line:
    return Line(engine_for(kind).context(cache_of(kind)))


def unchanged(context: Any) -> None:
    assert context.offset == 0
    assert context.checkpoints.offsets == ()
    assert all(layer.empty() for layer in layers_of(context))


@pytest.mark.parametrize(("kind", "change", "told"), CACHE)
def test_a_cache_that_was_changed_is_refused(kept, kind, change, told):
    parts = kept(kind)
    change(parts["cache"].values, parts["cache"].tensors)
    line = line_of(kind)
    with pytest.raises((PromptCacheFormatError, PromptCacheMismatchError), match=told) as raised:
        line.context.restore(parts)
    assert raised.value.remedy
    assert len(str(raised.value)) < 600
    unchanged(line.context)
    # And the next one may be a good one.
    assert line.context.restore(kept(kind)) == {}


def test_a_cache_that_is_missing_is_refused(kept):
    context = line_of("full").context
    with pytest.raises(PromptCacheFormatError, match="Nothing was saved"):
        context.restore({})
    unchanged(context)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_a_cache_of_another_kind_is_a_mismatch(kept, kind, other):
    if kind.split()[0] == other.split()[0]:
        # Also where the one is quantized from the start, and the other has been by now.
        return
    context = line_of(other).context
    with pytest.raises(PromptCacheMismatchError, match=r"in this model|this model has"):
        context.restore(kept(kind))
    unchanged(context)


@pytest.mark.parametrize(
    ("kind", "wanted", "told"),
    [
        ("bounded", {"max_kv_size": 32}, "max_size of layer 0 is 24; this model has 32"),
        ("quantized", {"kv_bits": 4}, "bits of layer 0 is 8; this model has 4"),
        ("full", {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 9}, "QuantizedKVCache"),
    ],
)
def test_a_cache_of_other_settings_is_a_mismatch(kept, kind, wanted, told):
    context = engine_for(kind).context(cache_of(kind, **wanted))
    with pytest.raises(PromptCacheMismatchError, match=told):
        context.restore(kept(kind))
    unchanged(context)


CHECKPOINTS: list[tuple[str, Change, str]] = [
    ("hybrid", lambda values, _: values.clear(), "does not say what it holds"),
    ("hybrid", state(**{"0.offset": 0}), "is 0, which can't be"),
    ("hybrid", state(**{"1.offset": 1}), "is 1, which can't be"),
    ("hybrid", state(**{"2.offset": 1000}), "is 1000, which can't be"),
    ("hybrid", without("1.offset"), "belongs to nothing"),
    ("hybrid", without("0.0.0.0"), "number of slots|lack the field"),
    ("hybrid", lambda values, _: values["classes"].pop("0"), "does not name the layers of 0"),
    ("hybrid", lambda values, _: values["classes"]["0"].pop(), "there are 2 layers"),
    ("sliding", state(**{"1.offset": 13}), "don't hold the 13 tokens"),
    ("sliding", state(**{"0.0.2": 1}), "rows and position|same number"),
    ("sliding", tensor("0.0.0", data=b"x"), "don't agree"),
]


@pytest.mark.parametrize(("kind", "change", "told"), CHECKPOINTS)
def test_checkpoints_that_were_changed_are_left_out(kept, kind, change, told):
    parts = kept(kind)
    change(parts["checkpoints"].values, parts["checkpoints"].tensors)
    line, whole = line_of(kind), begun(kind, 3)
    unused = line.context.restore(parts)
    assert unused.keys() == {"checkpoints"}
    assert re.search(told, unused["checkpoints"])
    line.ids = whole.ids
    assert line.context.checkpoints.offsets == ()
    assert mx.array_equal(line.logits(), whole.logits())
    assert line.back(10) == 0


# --- the draft's --------------------------------------------------------------------------------

ENGINE = toy_engine()
DRAFT = disturbed(ENGINE, noise=0.1)
WINDOWED = toy_engine(tiny_llama, window=8)


def with_draft(draft: Any = DRAFT) -> Line:
    return Line(context_for(ENGINE, cache_of("full"), draft=draft))


@pytest.fixture
def drafted(never_paused) -> Parts:
    line = with_draft()
    line.say(words(1, 9), config_of(num_draft_tokens=3, **SEEDED))
    return through_a_file(line.context.stored())


@pytest.mark.parametrize(
    ("draft", "told"),
    [
        (None, "no draft model"),
        ("prompt-lookup", "no draft model"),
        (toy_engine(layers=2), "another draft model"),
        (WINDOWED, "another draft model"),
    ],
)
def test_a_draft_of_another_model_is_left_out(drafted, draft, told):
    line = with_draft(draft)
    unused = line.context.restore(drafted)
    assert unused.keys() == {"draft"}
    assert told in unused["draft"]
    assert line.context.offset > 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without("fingerprint"), "lack the field"),
        (state(fingerprint=5), "not a text"),
        (without("ids"), "lack the field 'ids'"),
        (tensor("ids", dtype="I32"), "does not hold token ids"),
        (tensor("ids", shape=(1,), data=b"\0\0\0\0"), "don't hold the 1 tokens"),
        (tensor("ids", shape=(1,), data=b"\xff\xff\xff\xff"), "an id that the model does not have"),
        (state(**{"layers.0.2": 2}), "same number"),
        (state(extra=2), "belongs to nothing"),
    ],
)
def test_what_was_changed_of_a_draft_is_left_out(drafted, change, told):
    change(drafted["draft"].values, drafted["draft"].tensors)
    line = with_draft()
    unused = line.context.restore(drafted)
    assert unused.keys() == {"draft"}
    assert told in unused["draft"]
    assert (draft_ids(line.context), draft_offset(line.context)) == ([], 0)


# --- anything at all ----------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)


@pytest.mark.proof
@settings(max_examples=300)
@given(data=st.data())
def test_whatever_stands_in_a_part_it_is_an_error_or_a_cache(kept, data):
    kind = data.draw(st.sampled_from(["full", "lists", "sliding", "quantized"]))
    parts = kept(kind)
    part = parts[data.draw(st.sampled_from(sorted(parts)))]
    place = data.draw(st.sampled_from(["state", "classes", "tensor", "values"]))
    if place == "tensor":
        name = data.draw(st.sampled_from(sorted(part.tensors)))
        dtype = data.draw(st.sampled_from(["F32", "U32", "BF16", "U8", "BOOL"]))
        shape = tuple(data.draw(st.lists(st.integers(-1, 40), max_size=5)))
        part.tensors[name] = StoredTensor(dtype, shape, bytes(data.draw(st.integers(0, 4000))))
    elif place == "values":
        part.values[data.draw(st.sampled_from(["state", "classes"]))] = data.draw(JSON)
    else:
        name = data.draw(st.sampled_from(sorted(part.values[place])))
        part.values[place][name] = data.draw(JSON)
    line = line_of(kind)
    try:
        line.context.restore(parts)
    except PromptCacheError:
        unchanged(line.context)
    else:
        held = line.context.offset
        list(run(line.context, [1] * (held + 2), GenerationConfig(max_tokens=1)))
        assert line.context.offset == held + 3
