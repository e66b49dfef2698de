"""Prompt cache files: mlx-lm's own layout, with a checksum added.

How it works: mlx-lm's own function writes the file, so that ``mlx_lm.generate`` can read it. It is
a safetensors file whose tensors are the fields of each layer's state, named by where they are in
it, and whose metadata have, under ``0.``, the texts that were saved along; under ``1.``, the
layers' classes; and under ``2.``, which tensors stand for numbers, texts or nothing. Two of the
texts are ours, the version and a checksum: SHA-256 of the whole file, header included, with zeros
where the checksum itself is. A file with any text whose name begins with ``segue_`` must have both.

A file is written to a temporary file, signed there, and renamed: after a kill there is the old file
or the new one.

Reading trusts nothing: the header's bounds, extents and types; the checksum, if there is one; the
classes; each field (`layers.py`); the layers against each other and against the model
(`checks.py`). Only then is anything loaded, from the same open file, so that what is loaded is what
was checked.

What does not work:

- Noticing flipped bits among the values of a file without a checksum, from another program.
- Reading what a newer Segue wrote. The version is checked before anything else of ours: what else a
  newer version has, this one can't tell from damage.
- mlx-lm's writing in place. A kill while it overwrote a 256 MB file left 18 of 25 unreadable.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
from mlx_lm.models.cache import (
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    save_prompt_cache,
)

from ...config import LARGEST_INT
from ...errors import PromptCacheError, PromptCacheFormatError, PromptCacheMismatchError, cause
from ...files.atomic import writing
from ...files.path import writing_remedy
from ...files.safetensors import (
    DamagedFileError,
    Header,
    NotSafetensorsError,
    TensorInfo,
    read_header,
    shown,
)
from .checks import (
    StandIns,
    check_kinds,
    check_layers,
    check_saved,
    is_empty,
    leaves,
    trimmed,
)
from .layers import LONGEST_NAME, read_layer

VERSION = 1
OURS = "segue_"
VERSION_KEY = f"{OURS}version"
CHECKSUM_KEY = f"{OURS}checksum"
# SHA-256 in hexadecimal; the checksum is that of the file with these digits instead of its own.
NO_CHECKSUM = "0" * 64
CHUNK_BYTES = 2**20

# What mlx-lm makes of a model's plain layers if asked to bound or to quantize them.
STAND_INS: StandIns = {KVCache: {KVCache, RotatingKVCache, QuantizedKVCache}}


@dataclass(frozen=True)
class CacheFile:
    """What a prompt cache file holds."""

    layers: list[Any]
    """mlx-lm's caches, one a layer, their arrays evaluated."""
    metadata: dict[str, str]
    """The texts saved along with them, without the version and the checksum."""
    ours: bool
    """True if Segue wrote the file, so that its checksum was verified. Of other files, only what
    follows from shapes, types and numbers is known to be sound."""


def write_cache_file(path: Path, layers: list[Any], metadata: Mapping[str, str]) -> None:
    """Write a prompt cache; a kill at any moment leaves the old file or the new one.

    mlx-lm's ``load_prompt_cache`` opens the file and returns `metadata`, with the version of the
    format and the checksum added.

    Args:
        path: The file, replaced if there is one.
        layers: mlx-lm's caches, one a layer.
        metadata: Texts to save along. Names have no dots, and don't begin with a digit: mlx-lm
            takes them as names of nested values.

    Raises:
        PromptCacheError: if the layers are empty or can't be saved, or `path` can't be written.
    """
    check_layers(layers)
    if not all(name.isidentifier() for name in metadata) or {VERSION_KEY, CHECKSUM_KEY} & set(
        metadata
    ):
        raise PromptCacheError(
            f"A prompt cache can't be saved with metadata of these names: {sorted(metadata)}.",
            remedy="Use names of letters, digits and underscores that don't begin with segue_.",
        )
    texts = {**metadata, VERSION_KEY: str(VERSION), CHECKSUM_KEY: NO_CHECKSUM}
    try:
        with writing(path) as temporary:
            with temporary.open("wb") as file:
                save_prompt_cache(file, [trimmed(layer) for layer in layers], texts)
            with temporary.open("r+b") as file:
                _sign(file, path)
    # A path with a zero byte is a ValueError; MLX reports what the device failed at as a
    # RuntimeError.
    except PromptCacheError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise PromptCacheError(
            f"The prompt cache could not be written to {path}: {cause(error)}.",
            remedy=writing_remedy(error),
        ) from error


def read_cache_file(path: Path, reference: list[Any]) -> CacheFile:
    """Read a prompt cache that Segue or mlx-lm wrote, checking everything before it is loaded.

    Args:
        path: The file.
        reference: The reference layers of this model. A plain ``KVCache`` of the model may be in
            the file as a ``RotatingKVCache`` or a ``QuantizedKVCache``, as mlx-lm makes them on
            request; other classes as themselves.

    Raises:
        PromptCacheFormatError: if the file is truncated, damaged, of a newer version or not a
            prompt cache.
        PromptCacheMismatchError: if it was made with another model, or with other settings.
        PromptCacheError: if it can't be opened or read, or this model's cache can't be saved.
    """
    check_kinds(reference)
    if any(map(is_empty, leaves(reference))):
        raise PromptCacheError(
            "This model leaves layers of its cache unused, so what a file holds can't be checked.",
            remedy="Keep the conversation's messages, and let the model read them again.",
        )
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            # Opening a pipe would wait for someone to write.
            raise OSError(errno.EINVAL, "it is not a regular file")
        with path.open("rb") as file:
            header = _header(file, path)
            texts = {
                name[2:]: text for name, text in header.metadata.items() if name.startswith("0.")
            }
            ours = any(name.startswith(OURS) for name in texts)
            if ours:
                _verify(file, header, texts, path)
            classes, kinds = _layout(header, path)
            fields = _FileFields(file, header, kinds, path)
            saved = [read_layer(fields, kind, str(index)) for index, kind in enumerate(classes)]
            fields.check_used_up()
            check_saved(saved, reference, STAND_INS, fields)
            file.seek(0)
            # The same open file: what is loaded is what was checked, even if it is replaced now.
            arrays = mx.load(file, format="safetensors")
            assert isinstance(arrays, dict)
            mx.eval(arrays)
    except (PromptCacheFormatError, PromptCacheMismatchError):
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise PromptCacheError(
            f"The prompt cache {path} could not be read: {cause(error)}.",
            remedy="Check its path and permissions.",
        ) from error
    for name in (VERSION_KEY, CHECKSUM_KEY):
        texts.pop(name, None)
    return CacheFile([layer.build(arrays) for layer in saved], texts, ours)


class _FileFields:
    """The fields of the layers' states in an open file; implements `Fields`.

    Args:
        file: The open file.
        header: Its header.
        kinds: The tensors that stand for something other than an array, by name: ``"scalar"``,
            ``"string"`` or ``"none"``.
        path: The file's path.
    """

    def __init__(
        self, file: BinaryIO, header: Header, kinds: Mapping[str, str], path: Path
    ) -> None:
        self.name = str(path)
        self._path = path
        self._file = file
        self._tensors = header.tensors
        self._kinds = kinds
        self._left = set(header.tensors)

    def has(self, name: str) -> bool:
        """See `Fields.has`."""
        return name in self._tensors

    def array(self, name: str) -> TensorInfo:
        """See `Fields.array`."""
        return self._take(name, None)

    def optional_array(self, name: str) -> TensorInfo | None:
        """See `Fields.optional_array`."""
        if self._kinds.get(name) == "none":
            self._take(name, "none")
            return None
        return self.array(name)

    def number(self, name: str, least: int = 0, most: int = LARGEST_INT) -> int:
        """See `Fields.number`."""
        field = self._take(name, "scalar")
        if field.shape or field.dtype[0] not in "IU":
            raise self.damaged(f"its field {shown(name)} is not a whole number")
        self._file.seek(field.begin)
        data = self._file.read(field.end - field.begin)
        value = int.from_bytes(data, "little", signed=field.dtype[0] == "I")
        if not least <= value <= most:
            raise self.damaged(f"its field {shown(name)} is {value}, which can't be")
        return value

    def text(self, name: str) -> str:
        """See `Fields.text`; mlx-lm writes a text as the numbers of its characters."""
        field = self._take(name, "string")
        if field.dtype != "I32" or len(field.shape) != 1 or field.shape[0] > LONGEST_NAME:
            raise self.damaged(f"its field {shown(name)} is not a text")
        self._file.seek(field.begin)
        return self._file.read(field.end - field.begin).decode("utf-32-le", "replace")

    def damaged(self, how: str) -> PromptCacheFormatError:
        """See `Fields.damaged`."""
        return _damaged(self._path, how)

    def check_used_up(self) -> None:
        """Refuse tensors that belong to no layer.

        Raises:
            PromptCacheFormatError: if there is one.
        """
        if self._left:
            name = shown(min(self._left))
            raise self.damaged(f"its tensor {name} belongs to none of its layers")

    def _take(self, name: str, kind: str | None) -> TensorInfo:
        field = self._tensors.get(name)
        if field is None or self._kinds.get(name) != kind:
            raise self.damaged(f"its layers lack the field {shown(name)}")
        self._left.discard(name)
        return field


def _damaged(path: Path, how: str) -> PromptCacheFormatError:
    return PromptCacheFormatError(
        f"{path} is damaged, or not a prompt cache: {how}.",
        remedy="Make the prompt cache again, or restore the file from a copy.",
    )


def _header(file: BinaryIO, path: Path) -> Header:
    try:
        return read_header(file)
    except NotSafetensorsError:
        raise PromptCacheFormatError(
            f"{path} is not a safetensors file, so it can't be a prompt cache.",
            remedy="Pass a file that Segue or mlx_lm.cache_prompt wrote.",
        ) from None
    except DamagedFileError as error:
        raise _damaged(path, str(error)) from error


def _sign(file: BinaryIO, path: Path) -> None:
    """Write the checksum into a file that was written with zeros instead of it."""
    header = read_header(file)
    offset = _checksum_offset(header, NO_CHECKSUM, path)
    digest = _digest(file, header, offset)
    file.seek(offset)
    file.write(digest.encode())


def _verify(file: BinaryIO, header: Header, texts: Mapping[str, str], path: Path) -> None:
    """Check the version and the checksum of a file of ours."""
    version, checksum = texts.get(VERSION_KEY, ""), texts.get(CHECKSUM_KEY, "")
    if version.isdecimal() and int(version[:9]) > VERSION:
        raise PromptCacheFormatError(
            f"{path} is a prompt cache of version {version[:9]}, newer than this Segue reads "
            f"({VERSION}).",
            remedy="Update Segue, or make the prompt cache again.",
        )
    if version != str(VERSION) or len(checksum) != len(NO_CHECKSUM):
        raise _damaged(path, "its version or its checksum is missing")
    if _digest(file, header, _checksum_offset(header, checksum, path)) != checksum:
        raise _damaged(path, "its checksum is not that of its content")


def _checksum_offset(header: Header, checksum: str, path: Path) -> int:
    """Return where in the file the checksum's text begins."""
    # Quotes inside JSON's strings are escaped, so this can't be inside one.
    field = f'"0.{CHECKSUM_KEY}":"'.encode()
    offset = header.raw.find(field + checksum.encode() + b'"')
    if offset < 0:
        raise _damaged(path, "its checksum is not where Segue writes it")
    return offset + len(field)


def _digest(file: BinaryIO, header: Header, offset: int) -> str:
    """Return the checksum of the whole file, with zeros where the checksum itself is."""
    digest = hashlib.sha256(header.raw[:offset])
    digest.update(NO_CHECKSUM.encode())
    digest.update(header.raw[offset + len(NO_CHECKSUM) :])
    file.seek(len(header.raw))
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _layout(header: Header, path: Path) -> tuple[list[str], dict[str, str]]:
    """Return what else is in mlx-lm's metadata: the layers' classes, and what is not an array."""
    left = {name: text for name, text in header.metadata.items() if not name.startswith("0.")}
    classes: list[str] = []
    while (kind := left.pop(f"1.{len(classes)}", None)) is not None:
        classes.append(kind)
    kinds: dict[str, str] = {}
    # The first entry is empty: mlx-lm would not find the list without one.
    count = 1 if left.pop("2.0", None) == "" else 0
    while (name := left.pop(f"2.{count}.0", None)) is not None:
        kind = left.pop(f"2.{count}.1", None)
        if kind not in ("scalar", "string", "none") or name in kinds:
            raise _damaged(path, f"it does not say what its field {shown(name)} stands for")
        kinds[name] = kind
        count += 1
    if left.get("segue.format") == "session":
        raise PromptCacheFormatError(
            f"{path} is a session, not a prompt cache.",
            remedy="Open it with ChatSession.open.",
        )
    if not classes or count == 0:
        raise PromptCacheFormatError(
            f"{path} has tensors, but is not a prompt cache: it names no layers.",
            remedy="Pass a file that Segue or mlx_lm.cache_prompt wrote; this looks like weights.",
        )
    if left:
        raise _damaged(path, f"its metadata have an unknown entry {shown(min(left))}")
    return classes, kinds
