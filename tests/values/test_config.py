"""GenerationConfig: defaults, ranges, immutability."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segue import CacheConfig, ConfigurationError, GenerationConfig

WRONG = {
    "max_tokens": [-1, 1.5, "3", None, True, 2**31],
    "temperature": [-0.1, math.nan, math.inf, "hot", None, True, 10**400],
    "top_p": [-0.1, 1.1, math.nan],
    "min_p": [-0.1, 1.1],
    "min_tokens_to_keep": [0, 1.0],
    "top_k": [-1, 2.0],
    "xtc_probability": [-0.1, 1.1],
    "xtc_threshold": [-0.1, 0.6],
    "repetition_penalty": [-1.0, 0, math.inf, "no", 10**20, 1e-40],
    "repetition_context_size": [0, -3, 2**63],
    "presence_penalty": [math.nan, "no", -1e300],
    "presence_context_size": [0],
    "frequency_penalty": [math.inf, "no"],
    "frequency_context_size": [0],
    "logit_bias": [{-1: 1.0}, {"a": 1.0}, {1: math.nan}, {1: 2**63}, [(1, 2.0)], 3],
    "stop": ["", [""], [3], 3],
    "stop_in_reasoning": [0, 1, "no", None],
    "seed": [-1, 1.5, 2**64],
    "logprobs": [-1, 1.0, True],
    "prefill_step_size": [0, -1, 2.5],
    "num_draft_tokens": [-1, 65, 1.5, True],
    "logits_processors": [[3], 3, lambda tokens, logits: logits],
}

WRONG_CACHES = {
    "kv_bits": [0, 1, 7, 16, "8", True, 4.0],
    "kv_group_size": [0, 16, 48, None],
    "quantized_kv_start": [-1, 0.5],
    "max_checkpoints": [-1, 1.5, True, None],
    "max_checkpoint_bytes": [-1, 0.5, None, 2**63],
    "max_kv_size": [0, 7, 64.0],
}


def test_every_field_has_wrong_values_to_try():
    assert set(WRONG) == {field.name for field in dataclasses.fields(GenerationConfig)}
    assert set(WRONG_CACHES) == {field.name for field in dataclasses.fields(CacheConfig)}


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (make, name, value)
        for make, wrong in ((GenerationConfig, WRONG), (CacheConfig, WRONG_CACHES))
        for name, values in wrong.items()
        for value in values
    ],
)
def test_out_of_range_values_are_refused(make, name, value):
    with pytest.raises(ConfigurationError) as raised:
        make(**{name: value})
    assert name in str(raised.value) or name == "stop"
    assert raised.value.remedy


def test_a_quantized_cache_of_bounded_size_is_refused():
    with pytest.raises(ConfigurationError, match="kv_bits and max_kv_size"):
        CacheConfig(kv_bits=8, max_kv_size=64)


def test_defaults():
    config = GenerationConfig()
    assert config.max_tokens == 256
    assert config.temperature == 0.0
    assert config.prefill_step_size == 2048
    assert config.num_draft_tokens == 5
    assert config.stop == ()
    cache = CacheConfig()
    assert cache.kv_bits is None
    assert cache.max_kv_size is None


def test_it_is_immutable_and_copies_what_it_is_given():
    bias, stop = {1: 2.0}, ["a"]
    config = GenerationConfig(logit_bias=bias, stop=stop)
    bias[2] = 3.0
    stop.append("b")
    assert config.logit_bias == {1: 2.0}
    assert config.stop == ("a",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.max_tokens = 3  # type: ignore[misc]


def test_a_single_stop_string():
    assert GenerationConfig(stop="END").stop == ("END",)


@given(
    st.builds(
        GenerationConfig,
        max_tokens=st.integers(0, 9),
        temperature=st.floats(0, 9),
        logit_bias=st.dictionaries(st.integers(0, 9), st.floats(-9, 9)),
        stop=st.lists(st.text(min_size=1), max_size=3),
        seed=st.none() | st.integers(0, 2**64 - 1),
    )
)
def test_it_can_be_copied_pickled_and_replaced(config):
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert dataclasses.replace(config) == config
    assert hash(config) == hash(copy.deepcopy(config))


def test_the_kind_of_a_cache():
    base = CacheConfig().kind
    assert CacheConfig(max_checkpoints=1, kv_group_size=32).kind == base
    for changed in ({"kv_bits": 8}, {"max_kv_size": 64}):
        assert CacheConfig(**changed).kind != base
    assert CacheConfig(kv_bits=8, kv_group_size=32).kind != CacheConfig(kv_bits=8).kind
