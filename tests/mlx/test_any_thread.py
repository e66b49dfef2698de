"""Models run on any thread, whatever they compute late, and whoever loaded them."""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models import llama
from mlx_lm.models.rope_utils import initialize_rope
from mlx_lm.tuner.utils import linear_to_lora_layers

from kit import architectures
from kit.architectures import DATA, NO_DATA
from kit.models import tiny_llama
from kit.oracle import EditingTokenizer, wrap
from segue import ChatSession, GenerationConfig, MlxEngine
from segue.mlx.process.arrays import arrays_of

Result = TypeVar("Result")
VOCABULARY = len(EditingTokenizer())
SHORT = GenerationConfig(max_tokens=4)
SCALINGS: dict[str, dict[str, Any]] = {
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "none": {"rope_type": "default"},
}


def on_a_thread(work: Callable[[], Result]) -> Result:
    """What the work returns or raises on a thread of its own."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def scaled(name: str) -> Any:
    """A llama whose rotary embedding is scaled, as files of such models say."""
    model = tiny_llama(VOCABULARY)
    for layer in model.layers:
        layer.self_attn.rope = initialize_rope(
            32, 10000.0, False, SCALINGS[name], max_position_embeddings=256
        )
    return model


@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_rotary_embeddings(name):
    here = ChatSession(wrap(scaled(name)), generation=SHORT)
    engine = wrap(scaled(name))
    there = ChatSession(engine, generation=SHORT)
    for prompt in ("Hello", "And now?"):
        assert on_a_thread(functools.partial(there.respond, prompt)) == here.respond(prompt)
    assert on_a_thread(there.fork().prewarm) == here.fork().prewarm()


def test_a_model_loaded_on_a_thread_that_is_gone():
    engine = on_a_thread(lambda: wrap(scaled("yarn")))
    ChatSession(engine, generation=SHORT).respond("Hello")


def test_a_draft_made_elsewhere():
    engine, draft = wrap(scaled("llama3")), wrap(scaled("llama3"))
    session = ChatSession(engine, draft=draft, generation=SHORT)
    on_a_thread(lambda: session.respond("Hello", max_tokens=30, logit_bias={257: -1e6}))
    assert session.usage.proposed_tokens


def test_weights_that_nobody_computed_yet():
    model = llama.Model(tiny_llama(VOCABULARY).args)
    session = ChatSession(wrap(model), generation=SHORT)
    on_a_thread(lambda: session.respond("Hello"))


@pytest.mark.parametrize("quantized", [False, True])
def test_adapters(quantized):
    model = scaled("llama3")
    if quantized:
        nn.quantize(model, group_size=32, bits=4)
    linear_to_lora_layers(model, 2, {"rank": 4, "scale": 2.0, "dropout": 0.0})
    session = ChatSession(wrap(model), generation=SHORT)
    on_a_thread(lambda: session.respond("Hello"))


class Slots:
    __slots__ = ("__private", "unset", "value")

    def __init__(self, value: object) -> None:
        self.value = value
        self.__private = value


class Bound:
    def __init__(self, value: object) -> None:
        self.value = value

    def method(self) -> object:
        return self.value


def closure(value: object) -> Callable[[], object]:
    return lambda: value


def default(value: object) -> Callable[..., object]:
    def with_default(*, value: object = value) -> object:
        return value

    return with_default


def module(value: object) -> nn.Module:
    made = nn.Module()
    made["_value"] = value  # as an attribute is kept
    return made


PLACES: dict[str, Callable[[object], object]] = {
    "a private attribute": module,
    "a list in a module": lambda value: module([1, (2, value)]),
    "a dict in a module": lambda value: module({"a": {"b": value}}),
    "a plain object": lambda value: SimpleNamespace(_a=SimpleNamespace(_b=value)),
    "slots": Slots,
    "a closure": closure,
    "a default": default,
    "a partial": lambda value: functools.partial(print, [value], sep={"a": value}),
    "a bound method": lambda value: Bound(value).method,
    "a compiled function": lambda value: mx.compile(closure(value)),
    "a queue": lambda value: deque([value]),
    "a wrapped function": lambda value: functools.wraps(closure(value))(lambda: None),
}


@pytest.mark.parametrize("place", PLACES)
def test_arrays_are_found_wherever_they_are(place):
    hidden = mx.ones((3,)) + 1
    held = PLACES[place](hidden)
    outer = module(SimpleNamespace(inner=held))
    outer.itself = [outer, held]  # a circle
    assert [id(array) for array in arrays_of(outer)] == [id(hidden)]


def test_a_walk_ends_at_what_is_not_the_models_own():
    assert list(arrays_of(SimpleNamespace(module=mx, kind=nn.Linear, text="x", call=mx.add))) == []


def test_a_deep_nest():
    nest: list[Any] = [mx.ones((1,))]
    for _ in range(100_000):
        nest = [nest]
    assert len(list(arrays_of(nest))) == 1
    while nest:  # a list this deep can't be freed at once
        nest = nest[0] if isinstance(nest[0], list) else []


class Lazy(nn.Module):
    """A model that keeps an array where nothing but a walk finds it."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.inner = tiny_llama(VOCABULARY)
        self._bias = PLACES[place](mx.zeros((1,)) + mx.array(0.0))
        self.args = self.inner.args

    @property
    def layers(self) -> Any:
        return self.inner.layers

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        return self.inner(inputs, cache=cache) + next(arrays_of(self._bias))


@pytest.mark.parametrize("place", PLACES)
def test_a_model_that_keeps_an_array_anywhere(place):
    session = ChatSession(MlxEngine(Lazy(place), EditingTokenizer()), generation=SHORT)
    on_a_thread(lambda: session.respond("Hello"))


@pytest.mark.proof
@pytest.mark.skipif(DATA is None, reason=NO_DATA)
@pytest.mark.parametrize("name", architectures.configurations() or [None])
def test_models_of_every_type_go_from_thread_to_thread(name):
    engine = on_a_thread(lambda: architectures.make_engine(name))
    session = ChatSession(engine, generation=SHORT)
    try:
        on_a_thread(lambda: session.respond("Hello"))
    except Exception as error:
        if name != "bitnet" or "Metal" not in str(error):
            raise
        pytest.skip(str(error))
    on_a_thread(lambda: session.respond("And now?"))
    branch = on_a_thread(session.fork)
    on_a_thread(lambda: branch.respond("And then?"))
    session.respond("And here?")
