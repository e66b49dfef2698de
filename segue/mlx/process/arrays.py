"""Computes every array that a model keeps, so that any thread can run it.

How it works: MLX is lazy, and an array that was not computed yet belongs to the stream of the
thread that made it; another thread can't compute it ("There is no Stream ... in current thread").
``model.parameters()`` leaves out what is private: the frequencies of scaled rotary embeddings, the
multipliers of Gemma 3n. So everything that the model reaches is walked through, each object once.

What does not work: looking into modules, classes and what functions name outside of themselves.
Arrays there are not the model's alone, and what they lead to has no end.
"""

from __future__ import annotations

import functools
import gc
from collections import deque
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import mlx.core as mx

# What holds no arrays, or is not the model's own.
SKIPPED = (str, bytes, bytearray, int, float, complex, type(None), type, ModuleType, mx.Dtype)
# What MLX makes of a function that it compiles or differentiates, with the function in it.
COMPILED = type(mx.compile(lambda: None))
# How many arrays are computed at a time.
BATCH = 1000


def compute_arrays(model: object) -> None:
    """Compute all arrays that a model keeps.

    Args:
        model: An mlx-lm model, or any object.
    """
    arrays = list(arrays_of(model))
    for start in range(0, len(arrays), BATCH):
        mx.eval(arrays[start : start + BATCH])


def arrays_of(root: object) -> Iterator[mx.array]:
    """Yield the arrays that an object reaches, private ones included, each once."""
    # The objects, too: an id is theirs only while they live.
    seen: dict[int, object] = {}
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, SKIPPED) or id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, mx.array):
            yield value
        else:
            waiting += _held(value)


def _held(value: Any) -> list[Any]:
    """Return what an object holds directly."""
    held: list[Any] = []
    # Other mappings and sequences may compute, or read, what they are asked for.
    if isinstance(value, dict):
        held += dict.values(value)
    elif isinstance(value, MappingProxyType):
        held += value.values()
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        held += value
    elif isinstance(value, COMPILED):
        held += gc.get_referents(value)
    if isinstance(value, functools.partial):
        held += (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, MethodType):
        held += (value.__self__, value.__func__)
    elif isinstance(value, BuiltinFunctionType):
        held.append(value.__self__)
    elif isinstance(value, FunctionType):
        held += value.__defaults__ or ()
        held += (value.__kwdefaults__ or {}).values()
        held += [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        held.append(getattr(value, "__wrapped__", None))
    held += getattr(value, "__dict__", {}).values()
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            # Private names are mangled: those are found as the class spells them.
            member = kind.__dict__.get(name) or kind.__dict__.get(f"_{kind.__name__}{name}")
            try:
                held.append(member.__get__(value) if member is not None else None)
            except AttributeError:  # not set
                continue
    return held


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 (looks whether there is one)
    except ValueError:
        return False
    return True
