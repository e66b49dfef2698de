"""Tensors of GGUF files: their numbers, the form they are held in, what reading them takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import segue
from kit.gguf_files import K_KINDS, KINDS, MEASURE, pack, write_model
from kit.logits import fresh_logits
from segue import ModelFormatError
from segue.gguf.header import BLOCKS, GGUFFile, TensorType
from segue.mlx.gguf import tensors as gguf_tensors
from segue.mlx.gguf.model import load_model
from segue.mlx.gguf.tensors import GROUP_SIZE, QUANTIZED_BITS, TensorReader

KIND = gguf.GGMLQuantizationType
IDS = list(range(20, 60))
# What half precision leaves of a number: half a unit in its last place.
ROUNDING = {mx.float32: 2.0**-24, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> tuple[GGUFFile, dict[str, np.ndarray]]:
    """A file with a tensor of each type, of an odd number of rows, and their values."""
    path = tmp_path_factory.mktemp("tensors") / "rows.gguf"
    weight = np.random.default_rng(1).normal(size=(37, 768)).astype(np.float32)
    writer = gguf.GGUFWriter(path, "llama")
    expected = {}
    for seed, kind in enumerate([*KINDS, *K_KINDS]):
        packed, expected[kind.name] = pack(weight, kind, seed)
        raw = None if kind in (KIND.F32, KIND.F16) else kind
        writer.add_tensor(kind.name, packed, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUFFile.open(path), expected


def test_blocks_are_of_the_size_that_the_gguf_package_says():
    assert {kind.name: BLOCKS[kind] for kind in BLOCKS} == {
        kind.name: gguf.GGML_QUANT_SIZES[KIND[kind.name]] for kind in BLOCKS
    }
    assert {kind.name for kind in BLOCKS} == {kind.name for kind in [*KINDS, *K_KINDS]}


@pytest.mark.parametrize("chunk", [1 << 20, 256])
def test_dequantized_tensors_are_what_the_gguf_package_makes_of_them(rows, monkeypatch, chunk):
    monkeypatch.setattr(gguf_tensors, "CHUNK", chunk)
    file, expected = rows
    with TensorReader(file) as reader:
        for name, values in expected.items():
            for dtype in ROUNDING:
                got = reader.dense(file.tensors[name], dtype)
                assert (got.dtype, got.shape) == (dtype, values.shape)
                error = np.abs(np.array(got.astype(mx.float32)) - values)
                limit = 0 if dtype == mx.float32 else ROUNDING[dtype]
                # Below float16's range of exponents, its steps are all alike.
                assert (error <= np.abs(values) * limit + (2**-25 if limit else 0)).all(), name


@pytest.mark.parametrize("kind", QUANTIZED_BITS, ids=lambda kind: kind.name)
def test_mlx_s_quantization_holds_the_same_numbers(rows, kind):
    file, expected = rows
    with TensorReader(file) as reader:
        for dtype, rounding in ROUNDING.items():
            weight, scales, biases = reader.quantized(file.tensors[kind.name], dtype)
            assert scales.dtype == biases.dtype == dtype
            bits = QUANTIZED_BITS[kind]
            scales, biases = (part.astype(mx.float32) for part in (scales, biases))
            got = mx.dequantize(weight, scales, biases, group_size=GROUP_SIZE, bits=bits)
            # The scale is rounded, and the bias; a multiply-add may round once less than ggml's.
            if dtype == mx.float16 and kind is not TensorType.Q4_K:
                rounding = ROUNDING[mx.float32]  # the file's own numbers
            terms = np.array(mx.abs(scales) * 2**bits + mx.abs(biases))
            limit = np.repeat(terms, GROUP_SIZE, axis=-1) * 2 * rounding
            assert (np.abs(np.array(got) - expected[kind.name]) <= limit).all()


@pytest.mark.parametrize(("architecture", "half"), [("llama", mx.float16), ("gemma3", mx.bfloat16)])
@pytest.mark.parametrize("kind", [KIND.Q4_0, KIND.Q4_1, KIND.Q4_K, KIND.Q8_0, KIND.Q6_K, KIND.BF16])
def test_what_is_not_held_in_float32_is_quantized_or_in_half(tmp_path, architecture, half, kind):
    path = tmp_path / "tiny.gguf"
    reference = write_model(path, architecture, kind=kind, tied=False)
    model = load_model(GGUFFile.open(path))
    layer = model.model.layers[0].mlp.up_proj
    bits = QUANTIZED_BITS.get(TensorType(kind))
    if bits is None:
        assert type(layer) is nn.Linear
    else:
        assert (layer.bits, layer.group_size) == (bits, 32)
    # One type all through: another would carry what is computed with it into float32.
    half = mx.bfloat16 if kind is KIND.BF16 else half
    assert {weight.dtype for _, weight in tree_flatten(model.parameters())} <= {half, mx.uint32}
    assert fresh_logits(model, IDS).dtype == half
    # What is held, computed with in full: MLX's kernels on a CPU add up in half precision.
    model.set_dtype(mx.float32)
    expected = fresh_logits(reference, IDS)
    error = mx.abs(fresh_logits(model, IDS) - expected).max() / mx.abs(expected).max()
    assert error.item() < (0.002 if half == mx.float16 else 0.03)


def test_weights_that_would_not_fit_in_float32_are_never_dequantized(tmp_path, monkeypatch):
    path = tmp_path / "tiny.gguf"
    write_model(path, kind=KIND.Q4_K)
    monkeypatch.setattr("segue.mlx.loading.FLOAT32_SHARE", 1e-9)
    engine = segue.load(path)
    assert engine.model.model.embed_tokens.bits == 4


def test_a_file_cut_off_while_it_is_read(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_model(path)
    file = GGUFFile.open(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelFormatError, match="shrank while"):
        load_model(file)
    path.unlink()
    with pytest.raises(ModelFormatError, match="No such file"):
        load_model(file)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.gguf"
    write_model(path, kind=KIND.Q4_K, num_hidden_layers=6, hidden_size=1024, intermediate_size=4096)
    return path


@pytest.mark.proof
@pytest.mark.parametrize("held_as", ["float32", "quantized"])
def test_loading_needs_less_than_twice_the_memory_of_the_weights(large, held_as):
    command = [sys.executable, "-c", MEASURE, str(large), held_as]
    measured = subprocess.run(command, capture_output=True, text=True, check=True)
    held, peak = map(int, measured.stdout.split())
    assert held > (200e6 if held_as == "float32" else 30e6)
    assert held * 0.5 < peak < 2 * held
