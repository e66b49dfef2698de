"""The fingerprint of a loaded model: of its weights, settings and vocabulary."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from math import prod
from types import SimpleNamespace
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten

# Raised whenever a change here gives the same model another fingerprint.
VERSION = 1
# How many values of each tensor are read. Other weights differ nearly everywhere: few will do.
SAMPLES = 64

Indices = tuple[mx.array, ...]


def fingerprint(model: Any, vocabulary: Mapping[str, int]) -> str:
    """Return a text that is the same for a model in every process, and differs for others.

    It covers what a KV cache depends on: the model's class and settings; each weight's name, shape,
    type and a fixed sample of its values, the first and the last among them; and the ids of the
    tokens. The chat template is left out: it decides which ids are fed, and those are compared
    themselves. Two models whose weights differ only between the samples have the same fingerprint.

    Costs a look-up of a few values in each weight; no weight is copied.

    Args:
        model: An mlx-lm model, or any callable that behaves as one.
        vocabulary: Each token's id.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(f"segue fingerprint {VERSION}\n".encode())
    kind = type(model)
    settings = [getattr(model, name, None) for name in ("args", "config")]
    _add(digest, [kind.__module__, kind.__qualname__, *map(_plain, settings)])
    flat: Any = tree_flatten(model.parameters() if hasattr(model, "parameters") else {})
    weights: list[tuple[str, mx.array]] = sorted(flat, key=lambda pair: pair[0])
    # Most tensors of a model are of a few shapes.
    indices = cache(_indices)
    samples = [_sample(weight, indices) for _, weight in weights]
    # All at once: waiting for the device costs more than the values.
    mx.eval(samples)
    for (name, weight), sample in zip(weights, samples, strict=True):
        _add(digest, [name, list(weight.shape), str(weight.dtype)])
        digest.update(bytes(cast(list[int], sample.tolist())))
    _add(digest, sorted(vocabulary.items(), key=lambda item: (item[1], item[0])))
    return digest.hexdigest()


def _add(digest: hashlib._Hash, value: Any) -> None:
    text = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    # With its length before it, no text runs into the next.
    digest.update(b"%d:" % len(text))
    digest.update(text)


def _plain(value: Any) -> Any:
    """Return a setting as JSON has it; of other objects their class: they print addresses."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(json.dumps(_plain(item), sort_keys=True) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, SimpleNamespace):
        return _plain(vars(value))
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _sample(weight: mx.array, indices: Callable[[tuple[int, ...]], Indices]) -> mx.array:
    """Return some values of a tensor as bytes, spread evenly over it; lazy, shape ``(n,)``."""
    if not weight.size:
        return mx.array([], mx.uint8)
    if not weight.ndim:
        weight = weight[None]
    # By an index in each dimension: flattening a transposed tensor would copy it.
    return weight[indices(weight.shape)].view(mx.uint8)


def _indices(shape: tuple[int, ...]) -> Indices:
    """Return where to sample a tensor of this shape: an array ``(n,)`` for each dimension."""
    size = prod(shape)
    count = min(size, SAMPLES)
    offsets = [index * (size - 1) // max(count - 1, 1) for index in range(count)]
    indices = []
    for extent in reversed(shape):
        indices.append(mx.array([offset % extent for offset in offsets], mx.uint32))
        offsets = [offset // extent for offset in offsets]
    return tuple(reversed(indices))
