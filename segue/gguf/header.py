"""The header of a GGUF file, read and checked before anything is loaded.

How it works: the header has the metadata, as typed values by name, and a description of each tensor
(ggml's docs/gguf.md has the format). The file is mapped into memory and read by a cursor that
checks each read against the file's end, and each count against what could still follow, before
anything is allocated. Tensors of known types must lie within the file. So time and memory are
bounded by the header's own size, whatever is in it.

What does not work: MLX's own reader (``mx.load``). It knows five types of tensors, crashes on some
metadata, and trusts the file. Arrays of arrays are refused here, for no model has them.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from enum import IntEnum
from math import prod
from pathlib import Path
from typing import Any

from ..errors import ModelFormatError, ModelNotFoundError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
LARGEST_TENSOR_RANK = 8


class ValueType(IntEnum):
    """Types of metadata values, as the file numbers them."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_SCALARS = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}


class TensorType(IntEnum):
    """Tensor types, as ggml numbers them."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39


# Values in a block and bytes it takes, for the types that Segue reads.
BLOCKS = {
    TensorType.F32: (1, 4),
    TensorType.F16: (1, 2),
    TensorType.BF16: (1, 2),
    TensorType.Q4_0: (32, 18),
    TensorType.Q4_1: (32, 20),
    TensorType.Q5_0: (32, 22),
    TensorType.Q5_1: (32, 24),
    TensorType.Q8_0: (32, 34),
    TensorType.Q2_K: (256, 84),
    TensorType.Q3_K: (256, 110),
    TensorType.Q4_K: (256, 144),
    TensorType.Q5_K: (256, 176),
    TensorType.Q6_K: (256, 210),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's name, type, shape and position."""

    name: str
    shape: tuple[int, ...]
    """Row-major, as arrays have it; the file lists dimensions in the opposite order."""
    type: TensorType | int
    """A bare number if ggml has added a type since."""
    offset: int
    """From the file's first byte."""


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """A GGUF file's header."""

    path: Path
    """The file's path."""
    metadata: dict[str, Any]
    """Its key-value pairs."""
    tensors: dict[str, TensorInfo]
    """Its tensors, by name."""

    @property
    def parameters(self) -> int:
        """How many values its tensors hold together."""
        return sum(prod(tensor.shape) for tensor in self.tensors.values())

    @classmethod
    def open(cls, path: Path) -> GGUFFile:
        """Read and check a header; time and memory are bounded by its own size.

        Raises:
            ModelNotFoundError: if the file can't be opened.
            ModelFormatError: if it is not a GGUF file, is of another version, or is damaged.
        """
        try:
            with path.open("rb") as file:
                if file.read(len(MAGIC)) != MAGIC:
                    raise ModelFormatError(
                        f"{path} is not a GGUF file.",
                        remedy="Pass a .gguf file, or the folder of an mlx-lm model.",
                    )
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    return _Header(path, data).read()
        except OSError as error:
            raise ModelNotFoundError(
                f"{path} can't be read: {error.strerror}.", remedy="Check its path and permissions."
            ) from error

    def text(self, key: str) -> str | None:
        """Return a string of the metadata; ``None`` if there is no string of that name."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | float | None:
        """Return a number of the metadata; ``None`` if there is no number of that name."""
        value = self.metadata.get(key)
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


class _Header:
    """A cursor over the header; every read is checked against the file's end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._size = len(data)
        self._at = len(MAGIC)

    def read(self) -> GGUFFile:
        version = self._scalar("I")
        if version not in VERSIONS:
            raise ModelFormatError(
                f"{self._path} is GGUF version {version}, which Segue does not read.",
                remedy="Convert the model again with a current llama.cpp (little-endian).",
            )
        tensor_count, pair_count = self._scalar("Q"), self._scalar("Q")
        metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            key = self._name()
            metadata[key] = self._value(self._type())
        tensors = [self._tensor() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise self._damaged(f"its alignment is {alignment!r}")
        start = -(-self._at // alignment) * alignment
        located = {tensor.name: self._locate(tensor, start, alignment) for tensor in tensors}
        if len(located) != tensor_count:
            raise self._damaged("two tensors have the same name")
        return GGUFFile(self._path, metadata, located)

    def _tensor(self) -> TensorInfo:
        name = self._name()
        rank = self._scalar("I")
        if rank > LARGEST_TENSOR_RANK:
            raise self._damaged(f"the tensor {name!r} has {rank} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(rank))[::-1]
        number = self._scalar("I")
        kind = TensorType(number) if number in TensorType._value2member_map_ else number
        return TensorInfo(name, shape, kind, self._scalar("Q"))

    def _locate(self, tensor: TensorInfo, start: int, alignment: int) -> TensorInfo:
        """Return a tensor with its offset in the file, checked as far as its type is known."""
        offset = start + tensor.offset
        known = isinstance(tensor.type, TensorType)
        # The size of other types is not known here, nor needed: they are refused when loaded.
        values, size = BLOCKS.get(TensorType(tensor.type), (1, 0)) if known else (1, 0)
        if 0 in tensor.shape:
            raise self._damaged(f"the tensor {tensor.name!r} is empty")
        if tensor.offset % alignment or (tensor.shape and tensor.shape[-1] % values):
            raise self._damaged(f"the tensor {tensor.name!r} is not aligned")
        if offset + prod(tensor.shape) // values * size > self._size:
            raise ModelFormatError(
                f"{self._path} ends before its tensor {tensor.name!r} does: the file was cut off.",
                remedy="Download or copy it again.",
            )
        return TensorInfo(tensor.name, tensor.shape, tensor.type, offset)

    def _take(self, size: int) -> int:
        """Skip `size` bytes, and return where they begin."""
        at = self._at
        if size > self._size - at:
            raise self._damaged("its header ends too early")
        self._at = at + size
        return at

    def _scalar(self, code: str) -> Any:
        return struct.unpack_from("<" + code, self._data, self._take(struct.calcsize("<" + code)))[
            0
        ]

    def _bytes(self) -> bytes:
        size = self._scalar("Q")
        at = self._take(size)
        return self._data[at : at + size]

    def _string(self) -> str:
        # Some vocabularies have tokens that are not valid UTF-8.
        return self._bytes().decode("utf-8", "replace")

    def _name(self) -> str:
        try:
            return self._bytes().decode("utf-8")
        except UnicodeDecodeError:
            raise self._damaged("a name in it is not valid UTF-8") from None

    def _type(self) -> ValueType:
        number = self._scalar("I")
        try:
            return ValueType(number)
        except ValueError:
            raise self._damaged(f"a metadata value has the unknown type {number}") from None

    def _value(self, kind: ValueType) -> Any:
        if kind is ValueType.STRING:
            return self._string()
        if kind is not ValueType.ARRAY:
            return self._scalar(_SCALARS[kind])
        inner, count = self._type(), self._scalar("Q")
        if inner is ValueType.ARRAY:
            raise self._damaged("it has arrays of arrays")
        if inner is ValueType.STRING:
            # Each string takes at least its length field.
            self._require(count * 8)
            return [self._string() for _ in range(count)]
        code = f"{count}{_SCALARS[inner]}"
        self._require(count)
        return list(
            struct.unpack_from("<" + code, self._data, self._take(struct.calcsize("<" + code)))
        )

    def _require(self, size: int) -> None:
        """Refuse a count that the rest of the file can't hold, before anything is allocated."""
        if size > self._size - self._at:
            raise self._damaged("its header ends too early")

    def _damaged(self, how: str) -> ModelFormatError:
        return ModelFormatError(
            f"{self._path} is damaged or cut off: {how}.", remedy="Download or copy it again."
        )
