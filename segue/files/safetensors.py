"""Safetensors files: the header, read and checked before anything is loaded.

*How it works.* A file is eight bytes with the header's length, the header (JSON), and the tensors'
data. The header has an entry for each tensor, with its type, its shape and its first and last byte,
and texts by name, the metadata. `read_header` checks each entry by itself, and then that the
tensors together cover the data exactly. So a file that was cut off, or that something was appended
to, is found here, before anything of it is loaded.

*Why not MLX's reader.* It trusts the file: it takes overlapping tensors, trailing bytes and names
that occur twice.

*What does not work.* The data itself is not looked at: whether bytes were flipped, only a checksum
can say, and the format has none (`segue.store.session_layout` and `segue.mlx.stored.prompt_cache`
add their own). Types that MLX does not write, such as 8-bit floats, are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any, BinaryIO, NamedTuple, TypeGuard

from .json_text import too_many_brackets

LENGTH_BYTES = 8
# Segue writes no longer ones: a million token ids take some 7 MB, and their text as much.
LONGEST_HEADER = 64 * 2**20
LARGEST_RANK = 8
LARGEST_DIMENSION = 2**31 - 1

# Bytes of a value of each type that MLX writes.
SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


class NotSafetensorsError(ValueError):
    """A file isn't a safetensors file at all; internal. The message is the end of a sentence."""


class DamagedFileError(ValueError):
    """A file isn't what was once written; internal. The message is the end of a sentence."""


class TensorInfo(NamedTuple):
    """The position of a tensor in its file, its type and its shape."""

    name: str
    dtype: str
    """Its type as safetensors spells it, such as ``"BF16"``."""
    shape: tuple[int, ...]
    begin: int
    """Its first byte, counted from the file's start."""
    end: int
    """The byte after its last."""


class Header(NamedTuple):
    """A checked header."""

    raw: bytes
    """The file up to the first tensor's data."""
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]


def read_header(file: BinaryIO) -> Header:
    """Read and check the header of an open file.

    Each tensor's type, shape and offsets are checked, and that the tensors cover the data exactly:
    no gap, no overlap, nothing missing and nothing left over.

    Args:
        file: The file, at any position; left at the first tensor's data.

    Raises:
        NotSafetensorsError: if it does not begin as a safetensors file does.
        DamagedFileError: if it is truncated or damaged.
        OSError: if it can't be read.
    """
    size = file.seek(0, 2)
    file.seek(0)
    prefix = file.read(LENGTH_BYTES)
    length = int.from_bytes(prefix, "little")
    if size < LENGTH_BYTES or not 2 <= length <= LONGEST_HEADER:
        raise NotSafetensorsError("it isn't a safetensors file")
    if length > size - LENGTH_BYTES:
        raise DamagedFileError("it ends inside its header")
    raw = prefix + file.read(length)
    entries = _parse(raw[LENGTH_BYTES:])
    metadata = entries.pop("__metadata__", None)
    # MLX writes null where it has none.
    metadata = {} if metadata is None else metadata
    if not _all_text(metadata):
        raise DamagedFileError("its metadata are not all text")
    tensors = {name: _tensor(name, entry, len(raw)) for name, entry in entries.items()}
    _check_extents(tensors, len(raw), size)
    return Header(raw, metadata, tensors)


def read_metadata(file: BinaryIO) -> Mapping[str, str] | None:
    """Return the metadata of a file that `read_header` refuses: the damage may come after them.

    Args:
        file: The file, at any position.

    Returns:
        The metadata, unchecked; ``None`` unless they come first in the header and can be read.

    Raises:
        OSError: if the file can't be read.
    """
    file.seek(0)
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    text = file.read(length if length <= LONGEST_HEADER else LONGEST_HEADER)
    begin = b'{"__metadata__":'
    if not text.startswith(begin) or too_many_brackets(text):
        return None
    try:
        metadata, _ = json.JSONDecoder().raw_decode(text[len(begin) :].decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    return metadata if _all_text(metadata) else None


def shown(name: str) -> str:
    """Return a name from a file for a message: quoted and short."""
    return repr(name if len(name) <= 60 else name[:60] + "…")


def _all_text(metadata: object) -> TypeGuard[dict[str, str]]:
    return isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())


def _parse(text: bytes) -> dict[str, Any]:
    if too_many_brackets(text):
        raise DamagedFileError("its header has more entries than any model needs")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise ValueError("a name occurs twice")
        return entries

    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"its header can't be read ({error})") from error
    if not isinstance(entries, dict):
        raise DamagedFileError("its header is not an object")
    return entries


def _tensor(name: str, entry: Any, start: int) -> TensorInfo:
    def wrong(what: str) -> DamagedFileError:
        return DamagedFileError(f"the {what} of its tensor {shown(name)} makes no sense")

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong("description")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise wrong("type")
    # JSON's true is an int to Python.
    if not isinstance(shape, list) or len(shape) > LARGEST_RANK:
        raise wrong("rank")
    if not all(type(extent) is int and 0 <= extent <= LARGEST_DIMENSION for extent in shape):
        raise wrong("shape")
    if not isinstance(offsets, list) or [type(offset) for offset in offsets] != [int, int]:
        raise wrong("position")
    begin, end = offsets
    if begin < 0 or end - begin != prod(shape) * SIZES[dtype]:
        raise wrong("size")
    return TensorInfo(name, dtype, tuple(shape), start + begin, start + end)


def _check_extents(tensors: Mapping[str, TensorInfo], start: int, size: int) -> None:
    offset = start
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.begin, tensor.end)):
        if tensor.begin != offset:
            raise DamagedFileError(
                f"its tensor {shown(tensor.name)} overlaps another or leaves a gap"
            )
        offset = tensor.end
    if offset > size:
        raise DamagedFileError(f"it is cut off: it should have {offset} bytes and has {size}")
    if offset < size:
        raise DamagedFileError(f"{size - offset} bytes follow its last tensor")
