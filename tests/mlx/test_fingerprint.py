"""Fingerprints: the same for one model everywhere, others for others."""

from __future__ import annotations

import copy
import hashlib
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from kit.models import tiny_chunked, tiny_lists, tiny_llama, tiny_mamba
from kit.work import times_as_long
from segue.mlx.fingerprint import SAMPLES, fingerprint
from segue.testing.mlx import CachingModel

VOCABULARY = {"a": 0, "b": 1, "\ud800": 2, "ä": 3}


class OneTensor(nn.Module):
    """A model of one weight."""

    def __init__(self, weight: mx.array, **settings: Any) -> None:
        super().__init__()
        self.weight = weight
        self.args = SimpleNamespace(**settings)


def of(weight: mx.array, **settings: Any) -> str:
    return fingerprint(OneTensor(weight, **settings), VOCABULARY)


def test_it_is_a_hash_and_stays():
    model = tiny_llama(80)
    first = fingerprint(model, VOCABULARY)
    assert len(first) == 64
    assert set(first) <= set("0123456789abcdef")
    assert fingerprint(model, dict(reversed(VOCABULARY.items()))) == first
    assert fingerprint(tiny_llama(80), VOCABULARY) == first


def test_two_processes_agree():
    code = (
        "from kit.models import tiny_chunked\n"
        "from segue.mlx.fingerprint import fingerprint\n"
        "from segue.testing.mlx import CachingModel\n"
        f"vocabulary = {VOCABULARY!r}\n"
        "print(fingerprint(tiny_chunked(80), vocabulary))\n"
        "print(fingerprint(CachingModel(lambda ids: 0, 80), vocabulary))\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(filter(None, sys.path))},
    ).stdout
    here = [fingerprint(model, VOCABULARY) for model in (tiny_chunked(80), caching())]
    assert output.split() == here


def caching() -> CachingModel:
    """A model without parameters, whose settings are a plain object."""
    return CachingModel(lambda ids: 0, 80)


def test_models_differ():
    models = [
        tiny_llama(80),
        tiny_llama(81),
        tiny_llama(80, window=8),
        tiny_mamba(80),
        tiny_lists(80),
        tiny_chunked(80),
        caching(),
        lambda tokens, cache: tokens,
    ]
    assert len({fingerprint(model, VOCABULARY) for model in models}) == len(models)


def test_each_weight_counts():
    model = tiny_llama(80)
    seen = {fingerprint(model, VOCABULARY)}
    names = [name for name, _ in tree_flatten(model.parameters())]
    for name in names:
        changed = copy.deepcopy(model)
        weight = dict(tree_flatten(model.parameters()))[name]
        changed.load_weights([(name, weight + 1e-3)], strict=False)
        seen.add(fingerprint(changed, VOCABULARY))
    assert len(seen) == len(names) + 1


def test_a_quantized_model_is_another_and_each_of_its_weights_counts():
    model = tiny_llama(80)
    seen = {fingerprint(model, VOCABULARY)}
    for bits in (4, 8):
        quantized = copy.deepcopy(model)
        nn.quantize(quantized, group_size=32, bits=bits)
        seen.add(fingerprint(quantized, VOCABULARY))
        name = "model.layers.0.self_attn.q_proj"
        for part in ("weight", "scales", "biases"):
            weight = dict(tree_flatten(quantized.parameters()))[f"{name}.{part}"]
            changed = copy.deepcopy(quantized)
            changed.load_weights([(f"{name}.{part}", weight * 2)], strict=False)
            seen.add(fingerprint(changed, VOCABULARY))
    assert len(seen) == 1 + 2 * 4


@given(shape=st.lists(st.integers(1, 7), max_size=4), data=st.data())
def test_small_tensors_count_to_the_last_value_and_large_ones_at_both_ends(shape, data):
    size = 1
    for extent in shape:
        size *= extent
    weight = mx.zeros(shape)
    place = data.draw(st.integers(0, size - 1) if size <= SAMPLES else st.sampled_from([0, -1]))
    flat = mx.zeros(size)
    flat[place] = 1
    assert of(flat.reshape(shape)) != of(weight)


@pytest.mark.parametrize(
    "dtype", [mx.float16, mx.bfloat16, mx.float32, mx.uint8, mx.int32, mx.uint32, mx.bool_]
)
def test_types_and_shapes_count(dtype):
    zeros = [mx.zeros((4, 6), dtype), mx.zeros((6, 4), dtype), mx.zeros((24,), dtype)]
    zeros += [mx.zeros((4, 0), dtype), mx.zeros((), dtype), mx.zeros((4, 6), mx.complex64)]
    assert len({of(weight) for weight in zeros}) == len(zeros)


def test_a_view_has_the_fingerprint_of_its_copy_and_is_not_copied():
    weight = mx.random.normal((2048, 1024)).T
    mx.eval(weight)
    same = of(mx.contiguous(weight))
    mx.reset_peak_memory()
    held = mx.get_active_memory()
    assert of(weight) == same
    assert mx.get_peak_memory() - held < 2**20


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"layers": 1}, {"layers": 2}),
        ({"layers": 1}, {"layers": 1.0}),
        ({"tied": True}, {"tied": 1}),
        ({"tied": None}, {}),
        ({"rope": {"type": "yarn"}}, {"rope": {"type": "su"}}),
        ({"kinds": ["a", "b"]}, {"kinds": ["b", "a"]}),
        ({"text": SimpleNamespace(size=1)}, {"text": SimpleNamespace(size=2)}),
    ],
)
def test_settings_count(one, other):
    weight = mx.zeros(3)
    assert of(weight, **one) != of(weight, **other)
    assert of(weight, **one) == of(weight, **copy.deepcopy(one))


def test_settings_that_are_objects_count_by_their_class():
    weight = mx.zeros(3)
    assert of(weight, hook=object()) == of(weight, hook=object())
    assert of(weight, kinds={"a", "b", "c"}) == of(weight, kinds={"c", "b", "a"})
    assert of(weight, scale=float("nan")) != of(weight, scale=float("inf"))


@pytest.mark.parametrize(
    "other", [{}, {"a": 0}, {**VOCABULARY, "a": 1, "b": 0}, {**VOCABULARY, "c": 4}]
)
def test_the_vocabulary_counts(other):
    model = caching()
    assert fingerprint(model, other) != fingerprint(model, VOCABULARY)


@pytest.mark.smollm2
def test_it_is_quicker_than_a_checksum_of_all_weights(smollm2):
    vocabulary = smollm2.tokenizer.wrapped.get_vocab()
    weights = [memoryview(each).cast("B") for _, each in tree_flatten(smollm2.model.parameters())]

    def checksum() -> None:
        digest = hashlib.sha256()
        for weight in weights:
            digest.update(weight)

    assert times_as_long(lambda: fingerprint(smollm2.model, vocabulary), checksum) < 0.5
