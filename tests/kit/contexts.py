"""Contexts of every kind, what they are told, and the oracle of their logits."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx

from kit.models import (
    tiny_chunked,
    tiny_hybrid,
    tiny_lists,
    tiny_llama,
    tiny_mamba,
    tiny_ngram,
    toy_engine,
)
from kit.probe import next_logits
from segue import CacheConfig, GenerationConfig, MlxEngine
from segue.engine import Request, Step, StoredState, StoredTensor


def tiny_half(vocabulary: int) -> Any:
    model = tiny_llama(vocabulary, layers=2)
    model.set_dtype(mx.bfloat16)
    return model


BITS = {"kv_bits": 8, "kv_group_size": 32}
# Turns go past every window, chunk and size, and past the token from which a cache is quantized.
KINDS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "full": (tiny_llama, {}, {}),
    "half": (tiny_half, {}, {}),
    "sliding": (tiny_llama, {"window": 16}, {}),
    "recurrent": (tiny_mamba, {}, {}),
    "hybrid": (tiny_hybrid, {}, {}),
    "chunked": (tiny_chunked, {}, {}),
    "lists": (tiny_lists, {}, {}),
    "token ids": (tiny_ngram, {}, {}),
    "bounded": (tiny_llama, {}, {"max_kv_size": 24}),
    "quantized": (tiny_llama, {}, {**BITS, "quantized_kv_start": 0}),
    "quantized later": (tiny_llama, {}, {**BITS, "quantized_kv_start": 40}),
}
# How many leading ids a bounded cache never drops.
PINNED = 6
SEEDED = {"temperature": 1.0, "seed": 11}


def engine_for(kind: str) -> MlxEngine:
    make, kwargs, _ = KINDS[kind]
    return toy_engine(make, **kwargs)


def cache_of(kind: str, **settings: Any) -> CacheConfig:
    return CacheConfig(**{"max_checkpoints": 3, **KINDS[kind][2], **settings})


def config_of(**settings: Any) -> GenerationConfig:
    return GenerationConfig(**{"max_tokens": 6, "prefill_step_size": 16, **settings})


def context_for(
    engine: MlxEngine, cache: CacheConfig, *, draft: Any = None, start: Any = None
) -> Any:
    """A new context, with a draft perhaps, and perhaps on an opaque prefix."""
    context = engine.context(cache)
    if start is not None:
        context.start_from(start, opaque=True)
    if draft is not None:
        context.draft_with(draft)
    return context


def words(seed: int, count: int) -> list[int]:
    return [(7 * seed + 13 * place) % 90 + 33 for place in range(count)]


def run(
    context: Any,
    ids: Sequence[int],
    config: GenerationConfig,
    *,
    checkpoints: Sequence[int] = (),
    pinned: int = 0,
) -> Iterator[Step]:
    """Have a context read a prompt and reply, step by step."""
    request = Request(ids, config, checkpoints=checkpoints, pinned=pinned)
    steps: Iterator[Step] = context.run(request)
    return steps


def read(context: Any, ids: Sequence[int], *, pinned: int = 0) -> None:
    """Have a context read ids, and say nothing."""
    for _ in run(context, ids, GenerationConfig(max_tokens=0), pinned=pinned):
        pass


class Line:
    """A context and the ids in it."""

    def __init__(self, context: Any, ids: Sequence[int] = ()) -> None:
        self.context = context
        self.ids = list(ids)

    def say(self, new: Sequence[int], config: GenerationConfig) -> list[int]:
        """A turn; what was replied. Checkpoints are after the opening and the question."""
        prompt = [*self.ids, *new]
        reply = run(self.context, prompt, config, checkpoints=(PINNED, len(prompt)), pinned=PINNED)
        said = [step.token for step in reply]
        self.ids = [*prompt, *said]
        assert self.context.offset - self.context.prefix == len(self.ids)
        return said

    def back(self, offset: int) -> int:
        reached = self.context.rewind(offset)
        del self.ids[reached - self.context.prefix :]
        return reached

    def fork(self) -> Line:
        return Line(self.context.fork(), self.ids)

    def logits(self, probe: int = 65) -> mx.array:
        """Of the next token; nothing changes."""
        return next_logits(self.context, probe)


def begun(kind: str, turns: int = 2, engine: MlxEngine | None = None, **kwargs: Any) -> Line:
    """A conversation of some turns."""
    line = Line(context_for(engine or engine_for(kind), cache_of(kind), **kwargs))
    for turn in range(turns):
        line.say(words(turn, 14 - 3 * turn), config_of())
    return line


def check_fresh(line: Line, engine: MlxEngine, cache: CacheConfig) -> None:
    """The next logits are those of a fresh context that read the same in one go."""
    if not line.ids:
        return
    fresh = Line(engine.context(cache))
    fresh.say(line.ids, GenerationConfig(max_tokens=0))
    got, expected = line.logits(), fresh.logits()
    # What is rounded to steps may be rounded to either of two, depending on the pass it was in.
    tolerance = 1e-4 if cache.kv_bits is None and got.dtype == mx.float32 else 0.1
    error = (mx.abs(got - expected).max() / mx.abs(expected).max()).item()
    assert error < tolerance, f"relative error {error:.1e}"


def through_a_file(parts: Mapping[str, StoredState]) -> dict[str, StoredState]:
    """What is left of parts that were written and read."""
    return {
        name: StoredState(
            json.loads(json.dumps(part.values)),
            {
                at: StoredTensor(dtype, tuple(shape), bytes(data))
                for at, (dtype, shape, data) in part.tensors.items()
            },
        )
        for name, part in parts.items()
    }


def elsewhere(work: Callable[[], Any]) -> None:
    """Do it on a thread of its own."""
    failures = []

    def attempt():
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert not failures
