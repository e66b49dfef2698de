"""Prompt cache files: mlx-lm's own layout, and a checksum besides."""

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

from ...errors import PromptCacheError, PromptCacheFormatError, PromptCacheMismatchError, cause
from ...files.atomic import replacing
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
from .layers import LONGEST_NAME, MOST_TOKENS, read_layer

VERSION = 1
OURS = "segue_"
VERSION_KEY = f"{OURS}version"
CHECKSUM_KEY = f"{OURS}checksum"
# SHA-256 in hexadecimal; the checksum is taken with these in its own place.
NO_CHECKSUM = "0" * 64
CHUNK_BYTES = 2**20

# What mlx-lm makes of a model's plain layers when told to bound or to quantize them.
STAND_INS: StandIns = {KVCache: {KVCache, RotatingKVCache, QuantizedKVCache}}


@dataclass(frozen=True)
class CacheFile:
    """What a prompt cache file holds.

    Attributes:
        layers: mlx-lm's caches, one a layer, their arrays evaluated.
        metadata: The texts saved along with them, the version and the checksum left out.
        ours: Whether Segue wrote it, so that its checksum was verified. Of other files only what
            can be told from shapes, types and numbers is known to be sound.
    """

    layers: list[Any]
    metadata: dict[str, str]
    ours: bool


def write_cache_file(path: Path, layers: list[Any], metadata: Mapping[str, str]) -> None:
    """Write a prompt cache, so that a kill at any moment leaves the old file or the new one.

    mlx-lm's ``load_prompt_cache`` opens the file and returns `metadata`, with the version of our
    format and the checksum in addition.

    Args:
        path: The file, replaced if there is one.
        layers: mlx-lm's caches, one a layer.
        metadata: Texts to save along. Names have no dots, and don't begin with a digit; they go
            through mlx-lm's names of nested values.

    Raises:
        PromptCacheError: The layers hold nothing, or can't be saved; or `path` can't be written.
    """
    check_layers(layers)
    if not all(name.isidentifier() for name in metadata) or {VERSION_KEY, CHECKSUM_KEY} & set(
        metadata
    ):
        raise PromptCacheError(
            f"A prompt cache can't be saved with metadata of these names: {sorted(metadata)}.",
            remedy="Use names of letters, digits and underscores, and leave ours alone.",
        )
    texts = {**metadata, VERSION_KEY: str(VERSION), CHECKSUM_KEY: NO_CHECKSUM}
    try:
        with replacing(path) as temporary:
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
            remedy="Check that its folder exists, can be written, and has room.",
        ) from error


def read_cache_file(path: Path, expected: list[Any]) -> CacheFile:
    """Read a prompt cache that Segue or mlx-lm wrote.

    Everything is checked before anything is loaded: the header, our checksum where there is one,
    the layers' classes, their parts, and what they say against what `expected` has. No name in the
    file is looked up as code.

    Args:
        path: The file.
        expected: The layers of this model's own cache, after one token; see `probe_layers`. A
            plain ``KVCache`` of the model may stand in the file as a ``RotatingKVCache`` or a
            ``QuantizedKVCache``, as mlx-lm makes them on request; other classes as themselves.

    Raises:
        PromptCacheFormatError: It is truncated, damaged, of a newer version or no prompt cache.
        PromptCacheMismatchError: It was made with another model, or with other settings.
        PromptCacheError: It can't be opened or read, or this model's cache can't be kept in files.
    """
    check_kinds(expected)
    if any(map(is_empty, leaves(expected))):
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
            # First of all: what else a newer version has, this one can't tell from damage.
            ours = any(name.startswith(OURS) for name in texts)
            if ours:
                _verify(file, header, texts, path)
            classes, kinds = _layout(header, path)
            states = _FileStates(file, header, kinds, path)
            saved = [read_layer(states, kind, str(index)) for index, kind in enumerate(classes)]
            states.check_used_up()
            check_saved(saved, expected, STAND_INS, states)
            file.seek(0)
            # The same open file: what is loaded is what was checked, whoever replaces it meanwhile.
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


class _FileStates:
    """The parts of the layers' states in an open file; remembers which were asked for.

    See `States`.

    Args:
        file: The open file.
        header: Its header.
        kinds: What stands for something other than an array: the name of each such tensor, and
            ``"scalar"``, ``"string"`` or ``"none"``.
        path: The file's.
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
        """See `States.has`."""
        return name in self._tensors

    def array(self, name: str) -> TensorInfo:
        """See `States.array`."""
        return self._take(name, None)

    def optional_array(self, name: str) -> TensorInfo | None:
        """See `States.optional_array`."""
        if self._kinds.get(name) == "none":
            self._take(name, "none")
            return None
        return self.array(name)

    def number(self, name: str, least: int = 0, most: int = MOST_TOKENS) -> int:
        """See `States.number`."""
        part = self._take(name, "scalar")
        if part.shape or part.dtype[0] not in "IU":
            raise self.damaged(f"its part {shown(name)} is no whole number")
        self._file.seek(part.begin)
        data = self._file.read(part.end - part.begin)
        value = int.from_bytes(data, "little", signed=part.dtype[0] == "I")
        if not least <= value <= most:
            raise self.damaged(f"its part {shown(name)} is {value}, which can't be")
        return value

    def text(self, name: str) -> str:
        """See `States.text`; mlx-lm writes one as the numbers of its characters."""
        part = self._take(name, "string")
        if part.dtype != "I32" or len(part.shape) != 1 or part.shape[0] > LONGEST_NAME:
            raise self.damaged(f"its part {shown(name)} is no text")
        self._file.seek(part.begin)
        return self._file.read(part.end - part.begin).decode("utf-32-le", "replace")

    def damaged(self, how: str) -> PromptCacheFormatError:
        """See `States.damaged`."""
        return _damaged(self._path, how)

    def check_used_up(self) -> None:
        """Refuse tensors that belong to no layer.

        Raises:
            PromptCacheFormatError: There is one.
        """
        if self._left:
            name = shown(min(self._left))
            raise self.damaged(f"its tensor {name} belongs to none of its layers")

    def _take(self, name: str, kind: str | None) -> TensorInfo:
        part = self._tensors.get(name)
        if part is None or self._kinds.get(name) != kind:
            raise self.damaged(f"its layers lack the part {shown(name)}")
        self._left.discard(name)
        return part


def _damaged(path: Path, how: str) -> PromptCacheFormatError:
    return PromptCacheFormatError(
        f"{path} is damaged, or no prompt cache: {how}.",
        remedy="Make the prompt cache again, or restore the file from a copy.",
    )


def _header(file: BinaryIO, path: Path) -> Header:
    try:
        return read_header(file)
    except NotSafetensorsError:
        raise PromptCacheFormatError(
            f"{path} is no safetensors file, so it is no prompt cache either.",
            remedy="Pass a file that Segue or mlx_lm.cache_prompt wrote.",
        ) from None
    except DamagedFileError as error:
        raise _damaged(path, str(error)) from error


def _sign(file: BinaryIO, path: Path) -> None:
    """Put the checksum into a file that was written with zeros in its place."""
    header = read_header(file)
    place = _checksum_place(header, NO_CHECKSUM, path)
    digest = _digest(file, header, place)
    file.seek(place)
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
    if _digest(file, header, _checksum_place(header, checksum, path)) != checksum:
        raise _damaged(path, "its checksum is not that of its content")


def _checksum_place(header: Header, checksum: str, path: Path) -> int:
    """Where in the file the checksum's text begins."""
    # Quotes inside JSON's strings are escaped, so this can't stand inside one.
    field = f'"0.{CHECKSUM_KEY}":"'.encode()
    place = header.raw.find(field + checksum.encode() + b'"')
    if place < 0:
        raise _damaged(path, "its checksum is not where Segue writes it")
    return place + len(field)


def _digest(file: BinaryIO, header: Header, place: int) -> str:
    """The checksum of the whole file, zeros in the place of the checksum itself."""
    digest = hashlib.sha256(header.raw[:place])
    digest.update(NO_CHECKSUM.encode())
    digest.update(header.raw[place + len(NO_CHECKSUM) :])
    file.seek(len(header.raw))
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _layout(header: Header, path: Path) -> tuple[list[str], dict[str, str]]:
    """What mlx-lm's metadata say besides texts: the layers' classes, and what is not an array."""
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
            raise _damaged(path, f"it does not say what its part {shown(name)} stands for")
        kinds[name] = kind
        count += 1
    if not classes or count == 0:
        raise PromptCacheFormatError(
            f"{path} holds tensors, but is no prompt cache: it names no layers.",
            remedy="Pass a file that Segue or mlx_lm.cache_prompt wrote; weights are none.",
        )
    if left:
        raise _damaged(path, f"its metadata have an unknown entry {shown(min(left))}")
    return classes, kinds
