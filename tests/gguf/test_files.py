"""GGUF files: loaded as what they hold, refused for what is wrong with them."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten

import segue
from kit.gguf_files import HEAD_DIM, K_KINDS, KINDS, THETA, write_model
from kit.logits import assert_close, fresh_logits
from kit.models import byte_level_tokenizer
from kit.probe import rope_frequencies
from segue import (
    ChatSession,
    GenerationConfig,
    MissingTemplateError,
    ModelFormatError,
    ModelLoadError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from segue.gguf.header import BLOCKS, GGUFFile
from segue.mlx.gguf.model import load_model

KIND = gguf.GGMLQuantizationType
IDS = list(range(20, 60))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_model(path)
    return path


def check(path: Path, reference: object, ids: list[int] = IDS) -> None:
    """What the file loads as on a CPU is the reference, in float32 throughout."""
    model = load_model(GGUFFile.open(path), float32=True)
    assert_close(fresh_logits(model, ids), fresh_logits(reference, ids))
    assert {weight.dtype for _, weight in tree_flatten(model.parameters())} == {mx.float32}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3"])
def test_the_logits_are_those_of_the_model_that_was_written(tmp_path, architecture, tied):
    path = tmp_path / "tiny.gguf"
    # Gemma 3's window is of 8 tokens here; a prefill of 40 goes past it.
    check(path, write_model(path, architecture, tied=tied))


@pytest.mark.parametrize("kind", [*KINDS, *K_KINDS], ids=lambda kind: kind.name)
def test_every_tensor_type(tmp_path, kind):
    path = tmp_path / "tiny.gguf"
    check(path, write_model(path, kind=kind))


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "gemma3"])
def test_quantized_tensors_of_every_architecture(tmp_path, architecture):
    path = tmp_path / "tiny.gguf"
    check(path, write_model(path, architecture, kind=KIND.Q6_K))


def test_gemma_3_has_one_layer_in_six_that_does_not_slide(tmp_path):
    path = tmp_path / "tiny.gguf"
    settings = {"num_hidden_layers": 7, "sliding_window_pattern": 6}
    check(
        path,
        write_model(
            path, "gemma3", metadata={"gemma3.attention.sliding_window_pattern": None}, **settings
        ),
    )
    write_model(path, "gemma3", metadata={"gemma3.attention.sliding_window_pattern": None})
    refused(path, UnsupportedModelError, "one in 6")


def test_gemma_3_27b_scales_its_queries_by_another_number(tmp_path):
    path = tmp_path / "tiny.gguf"
    written = write_model(
        path,
        "gemma3",
        num_hidden_layers=62,
        hidden_size=64,
        intermediate_size=32,
        query_pre_attn_scalar=32,
    )
    check(path, written)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize("key", ["rope.scaling.factor", "rope.scale_linear"])
def test_rotary_positions_stretched_linearly(tmp_path, architecture, key):
    path = tmp_path / "tiny.gguf"
    scaling = {"type": "linear", "factor": 4.0}
    metadata = {f"{architecture}.{key}": 4.0}
    written = write_model(path, architecture, metadata=metadata, rope_scaling=scaling)
    check(path, written)
    metadata[f"{architecture}.rope.scaling.type"] = "none"
    check(path, write_model(path, architecture, metadata=metadata))


def test_llama_3_s_rotary_frequencies(tmp_path):
    path = tmp_path / "tiny.gguf"
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    # The file holds numbers where the configuration holds the rule that they come from.
    rule = write_model(path, rope_scaling=scaling).layers[0].self_attn.rope
    plain = THETA ** (np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    divisors = (np.array(rope_frequencies(rule)) / plain).astype(np.float32)
    assert divisors.min() == pytest.approx(1)
    assert divisors.max() == pytest.approx(8)
    written = write_model(path, extra={"rope_freqs.weight": divisors}, rope_scaling=scaling)
    check(path, written)
    write_model(path, extra={"rope_freqs.weight": divisors[:-1]})
    refused(path, ModelFormatError, "rotary divisors")


def test_the_tokenizer_is_the_one_that_was_written(whole):
    ours, theirs = segue.load(whole).tokenizer, byte_level_tokenizer()
    for text in ("hello to the quick world", "naïve 😀", "<|im_start|>user\nhi<|im_end|>", " ", ""):
        assert list(ours.encode(text)) == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ours.encode(text)) == text
    assert ours.eos_token_ids == {theirs.convert_tokens_to_ids("<|im_end|>")}


def test_a_session_runs_on_it(whole):
    session = ChatSession(segue.load(whole), generation=GenerationConfig(max_tokens=5))
    session.respond("hello")
    before = session.cached_tokens
    with session.stream("again") as reply:
        list(reply)
    assert reply.cached_tokens == before


# --- what is refused ----------------------------------------------------------------------------


def refused(path: Path, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told) as raised:
        segue.load(path)
    assert raised.value.remedy
    assert str(path) in str(raised.value)


def test_a_file_that_is_no_gguf_file(tmp_path):
    path = tmp_path / "no.gguf"
    path.write_bytes(b"PK\x03\x04 something else")
    refused(path, ModelFormatError, "is not a GGUF file")
    path.write_bytes(b"")
    refused(path, ModelFormatError, "is not a GGUF file")


def test_another_version(tmp_path, whole):
    path = tmp_path / "v1.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 1) + whole.read_bytes()[8:])
    refused(path, ModelFormatError, "version 1")


def test_a_file_cut_off_in_its_tensors(tmp_path, whole):
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole.read_bytes()[:-1])
    refused(path, ModelFormatError, "was cut off")


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05])
def test_a_file_cut_off_in_its_header(tmp_path, whole, share):
    data = whole.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: int(len(data) * share)])
    refused(path, ModelFormatError, "cut off")


def test_another_architecture(tmp_path):
    path = tmp_path / "bert.gguf"
    write_model(path, called="bert")
    refused(path, UnsupportedModelError, "architecture 'bert'")


def test_another_tensor_type(tmp_path):
    path = tmp_path / "integers.gguf"
    write_model(path, extra={"blk.0.ffn_norm.bias": np.ones(32, np.int32)})
    refused(path, UnsupportedModelError, "I32")


def test_a_mixture_of_experts(tmp_path):
    path = tmp_path / "moe.gguf"
    write_model(path, metadata={"llama.expert_count": 8})
    refused(path, UnsupportedModelError, "sets llama.expert_count")


def test_a_stretched_rotary_embedding(tmp_path):
    path = tmp_path / "rope.gguf"
    write_model(path, metadata={"llama.rope.scaling.type": "yarn"})
    refused(path, UnsupportedModelError, "yarn")
    write_model(path, "qwen2", extra={"rope_freqs.weight": np.ones(64, np.float32)})
    refused(path, UnsupportedModelError, "rope_freqs")


def test_a_tensor_that_has_no_place(tmp_path):
    path = tmp_path / "odd.gguf"
    write_model(path, extra={"blk.0.odd.weight": np.ones(32, np.float32)})
    refused(path, UnsupportedModelError, "odd")


def test_a_tensor_that_is_missing(tmp_path):
    path = tmp_path / "less.gguf"
    write_model(path, left_out=("blk.1.ffn_up.weight",))
    refused(path, ModelFormatError, "don't fit")
    write_model(path, left_out=("token_embd.weight",))
    refused(path, ModelFormatError, "no token embedding")


def test_a_file_without_a_chat_template(tmp_path):
    path = tmp_path / "base.gguf"
    write_model(path, template=None)
    refused(path, MissingTemplateError, "no chat template")


def test_an_unknown_pre_tokenizer(tmp_path):
    path = tmp_path / "pre.gguf"
    write_model(path, pre="martian")
    refused(path, UnsupportedModelError, "martian")


def test_a_file_that_can_not_be_read(tmp_path):
    refused(tmp_path / "missing.gguf", ModelNotFoundError, "no file or folder")


@given(st.data())
def test_a_damaged_header_is_refused_and_never_crashes(whole, tmp_path_factory, data):
    content = bytearray(whole.read_bytes())
    file = GGUFFile.open(whole)
    header = min(tensor.offset for tensor in file.tensors.values())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, header - 1))
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(content)
    try:
        damaged = GGUFFile.open(path)
    except ModelLoadError:
        return
    # What passes is bounded by the file: every tensor of a type that is read lies inside it.
    for tensor in damaged.tensors.values():
        if tensor.type in BLOCKS:
            values, size = BLOCKS[tensor.type]
            end = tensor.offset + math.prod(tensor.shape) // values * size
            assert end <= len(content)


@given(st.binary(max_size=200))
def test_any_bytes_behind_the_magic_are_refused(tmp_path_factory, tail):
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + tail)
    try:
        GGUFFile.open(path)
    except ModelFormatError:
        return
    assert tail.startswith(b"\0" * 16)


@pytest.mark.parametrize("value", [np.float64(1.5), [np.float64(1.5)]])
def test_a_64_bit_float_among_the_metadata(tmp_path, value):
    path = tmp_path / "float64.gguf"
    write_model(path, metadata={"general.odd": value})
    assert GGUFFile.open(path).metadata["general.odd"] == value
    segue.load(path)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("llama.block_count", 131_074, "layers"),
        ("llama.block_count", 0, "no usable llama.block_count"),
        ("llama.attention.head_count", 2.5, "not a whole number"),
        ("llama.attention.head_count", 512, "heads of 256 values together"),
        ("llama.attention.head_count_kv", 3, "3 key heads among 2"),
        ("llama.rope.freq_base", math.nan, "no usable llama.rope.freq_base"),
        ("llama.attention.layer_norm_rms_epsilon", math.inf, "no usable"),
        ("llama.embedding_length", 2**31, "no usable llama.embedding_length"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, key, value, told):
    path = tmp_path / "odd.gguf"
    write_model(path, metadata={key: value})
    refused(path, ModelFormatError, told)


def test_a_qwen2_whose_heads_are_not_a_share_of_its_width(tmp_path):
    path = tmp_path / "heads.gguf"
    write_model(path, "qwen2", metadata={"qwen2.attention.head_count": 4})
    refused(path, UnsupportedModelError, "attention.key_length of 128")


def test_heads_that_rotate_in_part(tmp_path):
    path = tmp_path / "rope.gguf"
    write_model(path, metadata={"llama.rope.dimension_count": 16})
    refused(path, UnsupportedModelError, "rope.dimension_count")


def test_more_tokens_than_the_embedding_has(tmp_path):
    path = tmp_path / "tokens.gguf"
    write_model(path, more_tokens=40)
    refused(path, ModelFormatError, "but embeddings for only")
