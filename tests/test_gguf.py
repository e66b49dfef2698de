"""GGUF files: loaded as what they hold, refused for what is wrong with them."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import gguf
import mlx.core as mx
import pytest
from gguf_files import dequantized, write_llama
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from tiny import assert_close, byte_level_tokenizer, fresh_logits

import segue
from segue import (
    ChatSession,
    GenerationConfig,
    MissingTemplateError,
    ModelFormatError,
    ModelLoadError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from segue.mlx.gguf_file import GGUFFile, TensorType
from segue.mlx.gguf_model import load_model

KIND = gguf.GGMLQuantizationType
IDS = list(range(20, 60))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_llama(path)
    return path


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [KIND.F32, KIND.F16, KIND.Q4_0, KIND.Q4_1, KIND.Q8_0])
def test_the_logits_are_those_of_the_model_that_was_written(tmp_path, kind, tied):
    path = tmp_path / "tiny.gguf"
    model = dequantized(write_llama(path, kind=kind, tied=tied), kind)
    engine = segue.load(path)
    assert_close(fresh_logits(engine.model, IDS), fresh_logits(model, IDS))
    dtypes = {weight.dtype for _, weight in tree_flatten(engine.model.parameters())}
    assert dtypes == {mx.float32}


def test_quantized_weights_stay_quantized_where_they_are_not_dequantized(tmp_path):
    path = tmp_path / "tiny.gguf"
    reference = dequantized(write_llama(path, kind=KIND.Q4_1), KIND.Q4_1)
    model = load_model(GGUFFile.open(path))
    layer = model.model.layers[0].mlp.up_proj
    assert (layer.bits, layer.group_size) == (4, 32)
    error = mx.abs(fresh_logits(model, IDS) - fresh_logits(reference, IDS)).max()
    assert error.item() < 0.1


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
    write_llama(path, architecture="bert")
    refused(path, UnsupportedModelError, "architecture 'bert'")


@pytest.mark.parametrize("kind", [KIND.Q5_0, KIND.BF16])
def test_another_tensor_type(tmp_path, kind):
    path = tmp_path / "q5.gguf"
    write_llama(path, kind=kind)
    refused(path, UnsupportedModelError, kind.name)


def test_a_mixture_of_experts(tmp_path):
    path = tmp_path / "moe.gguf"
    write_llama(path, metadata={"llama.expert_count": 8})
    refused(path, UnsupportedModelError, "mixture of experts")


def test_a_stretched_rotary_embedding(tmp_path):
    path = tmp_path / "rope.gguf"
    write_llama(path, metadata={"llama.rope.scaling.type": "yarn"})
    refused(path, UnsupportedModelError, "yarn")
    write_llama(path, extra=("rope_freqs.weight",))
    refused(path, UnsupportedModelError, "rope_freqs")


def test_a_tensor_that_has_no_place(tmp_path):
    path = tmp_path / "odd.gguf"
    write_llama(path, extra=("blk.0.odd.weight",))
    refused(path, UnsupportedModelError, "odd")


def test_a_tensor_that_is_missing(tmp_path):
    path = tmp_path / "less.gguf"
    write_llama(path, left_out=("blk.1.ffn_up.weight",))
    refused(path, ModelFormatError, "don't fit")
    write_llama(path, left_out=("token_embd.weight",))
    refused(path, ModelFormatError, "no token embedding")


def test_a_file_without_a_chat_template(tmp_path):
    path = tmp_path / "base.gguf"
    write_llama(path, template=None)
    refused(path, MissingTemplateError, "no chat template")


def test_an_unknown_pre_tokenizer(tmp_path):
    path = tmp_path / "pre.gguf"
    write_llama(path, pre="martian")
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
    # What passes is bounded by the file: every tensor of a type MLX reads lies inside it.
    for tensor in damaged.tensors.values():
        if tensor.type in (TensorType.F32, TensorType.F16):
            assert tensor.offset < len(content) or 0 in tensor.shape


@given(st.binary(max_size=200))
def test_any_bytes_behind_the_magic_are_refused(tmp_path_factory, tail):
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + tail)
    try:
        GGUFFile.open(path)
    except ModelFormatError:
        return
    assert tail.startswith(b"\0" * 16)


@pytest.mark.parametrize("array", [False, True])
def test_a_64_bit_float_that_mlx_dies_of(tmp_path, array):
    path = tmp_path / "float64.gguf"
    written = 1.5 if not array else [1.5]
    write_llama(path, metadata={"general.odd": written})
    refused(path, UnsupportedModelError, "64-bit float")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("llama.block_count", 131_074, "layers"),
        ("llama.block_count", 0, "no usable llama.block_count"),
        ("llama.attention.head_count", 2.5, "not a whole number"),
        ("llama.rope.freq_base", math.nan, "no usable llama.rope.freq_base"),
        ("llama.attention.layer_norm_rms_epsilon", math.inf, "no usable"),
        ("llama.embedding_length", 2**31, "no usable llama.embedding_length"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, key, value, told):
    path = tmp_path / "odd.gguf"
    write_llama(path, metadata={key: value})
    refused(path, ModelFormatError, told)


def test_heads_that_rotate_in_part(tmp_path):
    path = tmp_path / "rope.gguf"
    write_llama(path, metadata={"llama.rope.dimension_count": 16})
    refused(path, UnsupportedModelError, "rope.dimension_count")


def test_more_tokens_than_the_embedding_has(tmp_path):
    path = tmp_path / "tokens.gguf"
    write_llama(path, more_tokens=40)
    refused(path, ModelFormatError, "alone")
