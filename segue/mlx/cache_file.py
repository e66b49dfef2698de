"""Prompt cache files: mlx-lm's own layout, and a checksum besides."""

from __future__ import annotations

import copy
import errno
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    ConcatenateKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    save_prompt_cache,
)

from ..atomic import replacing
from ..errors import PromptCacheError, PromptCacheFormatError, PromptCacheMismatchError
from ..safetensors_file import (
    DamagedFileError,
    Header,
    NotSafetensorsError,
    read_header,
    shown,
)
from .cache_layers import KINDS, SavedLayer, States, damaged, describe, read_layer

VERSION = 1
OURS = "segue_"
VERSION_KEY = f"{OURS}version"
CHECKSUM_KEY = f"{OURS}checksum"
# SHA-256 in hexadecimal; the checksum is taken with these in its own place.
NO_CHECKSUM = "0" * 64
CHUNK_BYTES = 2**20

# What mlx-lm makes of a model's plain layers when told to bound or to quantize them.
STAND_INS = (RotatingKVCache, QuantizedKVCache)


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


def probe_layers(model: Callable[..., mx.array], layers: list[Any]) -> list[Any]:
    """A model's own layers after one token, for `read_cache_file` to compare with.

    Nothing is computed: MLX is lazy, and shapes and types are known before values are.

    Args:
        model: An mlx-lm model.
        layers: Its empty caches, as mlx-lm's ``make_prompt_cache(model)`` makes them; they are fed.
    """
    model(mx.zeros((1, 1), mx.uint32), cache=layers)
    return layers


def tokens_held(layers: Iterable[Any]) -> int | None:
    """How many tokens the layers hold; ``None`` where none of them counts (recurrent models).

    Raises:
        PromptCacheError: The layers don't agree.
    """
    offsets = {layer.offset for layer in _leaves(layers) if hasattr(layer, "offset")}
    if len(offsets) > 1:
        raise PromptCacheError(
            "The layers of the KV cache are out of step: a forward pass was broken off.",
            remedy="Make the cache again from the conversation's start.",
        )
    return int(offsets.pop()) if offsets else None


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
    _check_layers(layers)
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
                save_prompt_cache(file, [_trimmed(layer) for layer in layers], texts)
            with temporary.open("r+b") as file:
                _sign(file, path)
    # A path with a zero byte is a ValueError; MLX reports what the device failed at as a
    # RuntimeError.
    except PromptCacheError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise PromptCacheError(
            f"The prompt cache could not be written to {path}: {_cause(error)}.",
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
    _check_kinds(expected)
    if any(map(_is_empty, _leaves(expected))):
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
            states = States(file, header, kinds, path)
            saved = _read_layers(states, classes, expected)
            file.seek(0)
            # The same open file: what is loaded is what was checked, whoever replaces it meanwhile.
            arrays = mx.load(file, format="safetensors")
            assert isinstance(arrays, dict)
            mx.eval(arrays)
    except (PromptCacheFormatError, PromptCacheMismatchError):
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise PromptCacheError(
            f"The prompt cache {path} could not be read: {_cause(error)}.",
            remedy="Check its path and permissions.",
        ) from error
    for name in (VERSION_KEY, CHECKSUM_KEY):
        texts.pop(name, None)
    return CacheFile([layer.build(arrays) for layer in saved], texts, ours)


def _trimmed(layer: Any) -> Any:
    """A layer without the rows that it holds room in: they may be of tokens taken back."""
    if isinstance(layer, CacheList):
        return CacheList(*map(_trimmed, layer.caches))
    if isinstance(layer, (KVCache, QuantizedKVCache, ConcatenateKVCache, ChunkedKVCache)):
        rows = layer.offset - getattr(layer, "start_position", 0)
    elif isinstance(layer, RotatingKVCache) and layer.offset < layer.keys.shape[2]:
        rows = layer.offset
    else:
        return layer
    trimmed = copy.copy(layer)
    trimmed.keys, trimmed.values = tree_map(
        lambda part: part[..., :rows, :], (layer.keys, layer.values)
    )
    return trimmed


def _leaves(layers: Iterable[Any]) -> Iterator[Any]:
    """The layers, those within lists included."""
    for layer in layers:
        if isinstance(layer, CacheList):
            yield from _leaves(layer.caches)
        else:
            yield layer


def _is_empty(layer: Any) -> bool:
    parts = layer.cache if isinstance(layer, ArraysCache) else [layer.keys]
    return all(part is None for part in parts)


def _check_kinds(layers: list[Any]) -> None:
    for layer in _leaves(layers):
        if type(layer) not in KINDS:
            raise PromptCacheError(
                f"This model's cache has layers of class {type(layer).__name__}, for which "
                "prompt cache files have no form.",
                remedy="Keep the conversation's messages instead; the model reads them again.",
            )


def _check_layers(layers: list[Any]) -> None:
    """Refuse layers that no file could bring back."""
    _check_kinds(layers)
    if not layers or any(map(_is_empty, _leaves(layers))) or tokens_held(layers) == 0:
        raise PromptCacheError(
            "There is no prompt cache to save yet: the model has read nothing.",
            remedy="Take a turn first, or warm the session up.",
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
        raise damaged(path, str(error)) from error


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
        raise damaged(path, "its version or its checksum is missing")
    if _digest(file, header, _checksum_place(header, checksum, path)) != checksum:
        raise damaged(path, "its checksum is not that of its content")


def _checksum_place(header: Header, checksum: str, path: Path) -> int:
    """Where in the file the checksum's text begins."""
    # Quotes inside JSON's strings are escaped, so this can't stand inside one.
    field = f'"0.{CHECKSUM_KEY}":"'.encode()
    place = header.raw.find(field + checksum.encode() + b'"')
    if place < 0:
        raise damaged(path, "its checksum is not where Segue writes it")
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
            raise damaged(path, f"it does not say what its part {shown(name)} stands for")
        kinds[name] = kind
        count += 1
    if not classes or count == 0:
        raise PromptCacheFormatError(
            f"{path} holds tensors, but is no prompt cache: it names no layers.",
            remedy="Pass a file that Segue or mlx_lm.cache_prompt wrote; weights are none.",
        )
    if left:
        raise damaged(path, f"its metadata have an unknown entry {shown(min(left))}")
    return classes, kinds


def _read_layers(states: States, classes: list[str], expected: list[Any]) -> list[SavedLayer]:
    """The layers, checked by themselves, against each other, and against the model's."""
    path = states.path
    if len(classes) != len(expected):
        raise PromptCacheMismatchError(
            f"{path} has {len(classes)} layers, and this model's cache {len(expected)}.",
            remedy="Use the model it was made with.",
        )
    saved = [read_layer(states, kind, str(index)) for index, kind in enumerate(classes)]
    states.check_used_up()
    leaves = [leaf for layer in saved for leaf in layer.leaves()]
    offsets = {leaf.offset for leaf in leaves} - {None}
    if len(offsets) > 1:
        raise damaged(path, "its layers don't hold the same number of tokens")
    if offsets == {0}:
        raise damaged(path, "it holds no tokens")
    plain = [layer for layer, own in zip(saved, expected, strict=True) if type(own) is KVCache]
    if len({(layer.kind, *layer.settings.items()) for layer in plain}) > 1:
        raise damaged(path, "its layers were bounded or quantized in different ways")
    positions: dict[object, tuple[int, ...]] = {}
    for leaf in leaves:
        if positions.setdefault(tuple(leaf.settings.items()), leaf.position) != leaf.position:
            raise damaged(path, "layers of one kind in it have dropped different tokens")
    for index, (layer, own) in enumerate(zip(saved, expected, strict=True)):
        allowed = {type(own), *(STAND_INS if type(own) is KVCache else ())}
        _compare(layer, own, allowed, f"layer {index}", path)
    return saved


def _compare(saved: SavedLayer, own: Any, allowed: Set[type[Any]], where: str, path: Path) -> None:
    """Refuse a saved layer that can't stand in the place of the model's own."""
    if saved.kind not in allowed:
        raise PromptCacheMismatchError(
            f"In {path}, {where} is a {saved.kind.__name__}; this model has a "
            f"{type(own).__name__} there.",
            remedy="Use the model and the settings it was made with.",
        )
    if isinstance(own, CacheList):
        if len(saved.state) != len(own.caches):
            raise PromptCacheMismatchError(
                f"In {path}, {where} is a list of {len(saved.state)}; in this model, of "
                f"{len(own.caches)}.",
                remedy="Use the model it was made with instead.",
            )
        for index, (layer, inner) in enumerate(zip(saved.state, own.caches, strict=True)):
            _compare(layer, inner, {type(inner)}, f"{where}, part {index}", path)
        return
    form, settings = describe(own)
    told = {**saved.form, **(saved.settings if saved.kind is type(own) else {})}
    wanted = {**form, **settings}
    for name in sorted(told.keys() | wanted.keys()):
        if told.get(name) != wanted.get(name):
            raise PromptCacheMismatchError(
                f"In {path}, the {name} of {where} is {told.get(name)}; this model has "
                f"{wanted.get(name)}.",
                remedy="Use the model it was made with, loaded in the same precision.",
            )


def _cause(error: BaseException) -> str:
    """An error's message as part of a sentence."""
    return str(getattr(error, "strerror", None) or error).rstrip(".")
