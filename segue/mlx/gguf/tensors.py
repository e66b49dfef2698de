"""The tensors of a GGUF file as MLX arrays, dequantized or in MLX's own quantization.

How it works: a tensor is read in chunks of `CHUNK` values, by several threads, each of which
decodes its chunk (the ``gguf`` package dequantizes) and writes it into its share of the result. So
loading needs a few chunks of memory beside the weights. On a CPU the result is MLX's own memory,
seen through NumPy; on a CUDA device it is copied from the host at the end, for memory that the host
has written to is slow for the device ever after.

What does not work: dequantizing short rows. ``gguf`` works in groups of 16 rows, whatever their
length, so blocks are put into rows of `ROWS` values; shorter rows cost several times the time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from types import TracebackType
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType, quants

from ...errors import ModelFormatError
from ...gguf.header import BLOCKS, GGUFFile, TensorInfo, TensorType

# Types whose blocks are a scale, a bias and whole numbers of 4 or 8 bits: MLX's affine quantization
# in groups of 32, number for number.
QUANTIZED_BITS = {
    TensorType.Q4_0: 4,
    TensorType.Q4_1: 4,
    TensorType.Q4_K: 4,
    TensorType.Q8_0: 8,
}
GROUP_SIZE = 32

# How many values are decoded at once.
CHUNK = 1 << 20
# How many values there are in a row to dequantize: the first of these that divides a chunk.
ROWS = (1 << 14, 1 << 12, 1 << 10, 1 << 8)
MOST_THREADS = 8

_STORED: dict[Any, Any] = {
    mx.float32: np.float32,
    mx.float16: np.float16,
    mx.bfloat16: np.uint16,  # NumPy has no bfloat16: its bits
}
_PLAIN = {TensorType.F32: mx.float32, TensorType.F16: mx.float16, TensorType.BF16: mx.bfloat16}

Decoder = Callable[[np.ndarray], Sequence[np.ndarray]]


class Quantized(NamedTuple):
    """A tensor in MLX's affine quantization, groups of `GROUP_SIZE`."""

    weight: mx.array
    scales: mx.array
    biases: mx.array


class TensorReader:
    """Reads the tensors of one GGUF file, in chunks, on several threads."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        self._descriptor = os.open(file.path, os.O_RDONLY)
        self._threads = ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1))

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown(cancel_futures=True)
        os.close(self._descriptor)

    def dense(self, tensor: TensorInfo, dtype: mx.Dtype) -> mx.array:
        """Return a tensor dequantized, as float32, float16 or bfloat16."""
        kind = TensorType(tensor.type)
        if kind in _PLAIN and _PLAIN[kind] == dtype:

            def decode(blocks: np.ndarray) -> Sequence[np.ndarray]:
                return [blocks.view(_STORED[dtype])]

        else:

            def decode(blocks: np.ndarray) -> Sequence[np.ndarray]:
                return [_narrowed(_dequantized(blocks, kind), dtype)]

        (array,) = self._read(tensor, [_Target(tensor.shape, dtype)], decode)
        return array

    def quantized(self, tensor: TensorInfo, dtype: mx.Dtype) -> Quantized:
        """Return a tensor of a type in `QUANTIZED_BITS`, with scales and biases in `dtype`."""
        kind = TensorType(tensor.type)
        *rows, columns = tensor.shape
        packed = (*rows, columns * QUANTIZED_BITS[kind] // 32)
        groups = (*rows, columns // GROUP_SIZE)

        def decode(blocks: np.ndarray) -> Sequence[np.ndarray]:
            numbers, scales, biases = _affine(blocks, kind)
            return [
                np.ascontiguousarray(numbers).view(np.uint32),
                _narrowed(scales, dtype),
                _narrowed(biases, dtype),
            ]

        targets = [_Target(packed, mx.uint32), _Target(groups, dtype), _Target(groups, dtype)]
        return Quantized(*self._read(tensor, targets, decode))

    def _read(
        self, tensor: TensorInfo, targets: Sequence[_Target], decode: Decoder
    ) -> list[mx.array]:
        values, size = BLOCKS[TensorType(tensor.type)]
        blocks = prod(tensor.shape) // values
        step = CHUNK // values

        def work(first: int) -> None:
            count = min(step, blocks - first)
            raw = os.pread(self._descriptor, count * size, tensor.offset + first * size)
            if len(raw) != count * size:
                raise ModelFormatError(
                    f"{self._file.path} shrank while it was being read.",
                    remedy="Load it again when no other program writes to it.",
                )
            # Damaged scales may be infinite; a new thread has NumPy's own error settings.
            with np.errstate(all="ignore"):
                pieces = decode(np.frombuffer(raw, np.uint8).reshape(count, size))
            for target, piece in zip(targets, pieces, strict=True):
                share = target.view.size // blocks
                target.view[first * share : (first + count) * share] = piece.reshape(-1)

        list(self._threads.map(work, range(0, blocks, step)))
        return [target.array() for target in targets]


class _Target:
    """An MLX array, filled through NumPy's view of its memory."""

    def __init__(self, shape: Sequence[int], dtype: mx.Dtype) -> None:
        self._shape = shape
        self._dtype = dtype
        stored = _STORED.get(dtype, np.uint32)
        self._array: mx.array | None = None
        if mx.cuda.is_available():
            self.view = np.empty(prod(shape), stored)
        else:
            self._array = mx.zeros(prod(shape), mx.uint16 if stored is np.uint16 else dtype)
            mx.eval(self._array)
            self.view = np.asarray(self._array)

    def array(self) -> mx.array:
        array = mx.array(self.view) if self._array is None else self._array
        if self._dtype == mx.bfloat16:
            array = array.view(mx.bfloat16)
        array = array.reshape(self._shape)
        mx.eval(array)
        return array


def _dequantized(blocks: np.ndarray, kind: TensorType) -> np.ndarray:
    """Return the values of some blocks as float32."""
    values, size = BLOCKS[kind]
    count = len(blocks) * values
    row = next((row for row in ROWS if count % row == 0), count)
    rows = blocks.reshape(count // row, row // values * size)
    return quants.dequantize(rows, GGMLQuantizationType(kind)).reshape(-1)


def _narrowed(values: np.ndarray, dtype: mx.Dtype) -> np.ndarray:
    """Return float32 values as another type is stored, rounded to nearest, ties to even."""
    if dtype == mx.bfloat16:
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return values.astype(_STORED[dtype], copy=False)


def _affine(blocks: np.ndarray, kind: TensorType) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return some blocks as bytes in MLX's packing, their scales and their biases."""
    if kind is TensorType.Q8_0:
        scale = _half(blocks[:, :2])
        return blocks[:, 2:] ^ np.uint8(0x80), scale, scale * np.float32(-128)
    if kind is TensorType.Q4_0:
        scale = _half(blocks[:, :2])
        return _nibbles(blocks[:, 2:]), scale, scale * np.float32(-8)
    if kind is TensorType.Q4_1:
        return _nibbles(blocks[:, 4:]), _half(blocks[:, :2]), _half(blocks[:, 2:4])
    scales, minima = quants.Q4_K.get_scale_min(np.ascontiguousarray(blocks[:, 4:16]))
    return (
        _nibbles(blocks[:, 16:].reshape(-1, 4, 32)),
        _half(blocks[:, :2]) * scales.astype(np.float32),
        _half(blocks[:, 2:4]) * -minima.astype(np.float32),
    )


def _half(pairs: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pairs).view(np.float16).astype(np.float32)


def _nibbles(pairs: np.ndarray) -> np.ndarray:
    """Return numbers of four bits, two neighbours to a byte, as MLX packs them.

    ggml has the first half of a run of numbers in the low halves of its bytes, and the second half
    in the high ones.
    """
    even, odd = pairs[..., 0::2], pairs[..., 1::2]
    low = (even & 0x0F) | (odd << 4)
    high = (even >> 4) | (odd & 0xF0)
    return np.concatenate([low, high], axis=-1)
