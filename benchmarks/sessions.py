"""What a session costs beside mlx-lm's own calls, in one process: growth, saving, forking.

Every figure of Segue's has its counterpart measured right after it: the machine's own ups and downs
meet both.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import segue
import segue.mlx  # a good BLAS, before MLX

# isort: split
import mlx.core as mx
import mlx_lm
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import (
    load_prompt_cache,
    make_prompt_cache,
    save_prompt_cache,
    trim_prompt_cache,
)

from benchmarks.report import Told, spread
from benchmarks.workloads import Workload

# Times are taken in this many turns behind each of these.
STRETCH = 5


class BareEngine:
    """mlx-lm's own loop over a cache of which nothing is known but its length.

    Args:
        engine: Whose model.
    """

    def __init__(self, engine: segue.MlxEngine) -> None:
        self._model = engine.model
        self._cache = make_prompt_cache(engine.model)
        self._held = 0

    def first_token_seconds(self, offset: int, count: int) -> float:
        """Time to the first token behind `count` tokens, fed at an offset."""
        if self._held < offset:
            self._feed(offset - self._held)
            self._held = offset
        started = perf_counter()
        stream = generate_step(_noise(count), self._model, prompt_cache=self._cache, max_tokens=1)
        next(stream)
        elapsed = perf_counter() - started
        stream.close()
        trim_prompt_cache(self._cache, self._cache[0].offset - offset)
        return elapsed

    def _feed(self, count: int) -> None:
        self._model(_noise(count)[None], cache=self._cache)
        mx.eval([layer.state for layer in self._cache])


def _noise(count: int) -> mx.array:
    return mx.random.randint(100, 10000, (count,), key=mx.random.key(count))


def measure_growth(
    engine: segue.MlxEngine, workload: Workload, places: Sequence[int], tell: Told
) -> None:
    """Time to first token behind turns of equal length, beside the bare loop's at the same place.

    At the first and the last place also the stateless way's.
    """
    session = segue.ChatSession(engine, instructions=workload.instructions)
    bare = BareEngine(engine)
    times: dict[int, dict[str, list[float]]] = {}
    counts: dict[int, tuple[int, int]] = {}
    stretches = {turn: place for place in places for turn in range(place, place + STRETCH)}
    for turn, step in enumerate(workload.steps, 1):
        config = segue.GenerationConfig(max_tokens=step.max_tokens, seed=step.seed)
        session.generation = config
        asked = [*session.history, segue.Message.user(step.text)]
        session.respond(step.text)
        usage = session.usage.turns[-1]
        place = stretches.get(turn)
        if place is None:
            continue
        found = times.setdefault(place, {"segue": [], "bare": [], "stateless": []})
        counts.setdefault(place, (usage.cached_tokens, usage.fed_tokens))
        found["segue"].append(usage.prefill_seconds)
        found["bare"].append(bare.first_token_seconds(usage.cached_tokens, usage.fed_tokens))
        if place in (places[0], places[-1]):
            found["stateless"].append(_stateless(engine, session.instructions, asked))
    record = {
        "kind": "growth",
        "places": [
            {"turn": place, "held_tokens": counts[place][0], "fed_tokens": counts[place][1]}
            | {way: spread(values) for way, values in found.items() if values}
            for place, found in times.items()
        ],
    }
    first, last = times[places[0]], times[places[-1]]
    record["growth"] = {
        way: round(statistics.median(last[way]) / statistics.median(first[way]), 4) for way in first
    }
    tell(record)


def _stateless(
    engine: segue.MlxEngine, instructions: str | None, messages: Sequence[segue.Message]
) -> float:
    tokenizer: Any = engine.tokenizer
    whole = [segue.Message.system(instructions), *messages] if instructions else messages
    started = perf_counter()
    prompt = tokenizer.wrapped.apply_chat_template(
        [message.to_template() for message in whole], add_generation_prompt=True
    )
    stream = mlx_lm.stream_generate(engine.model, tokenizer.wrapped, prompt, max_tokens=1)
    next(stream)
    elapsed = perf_counter() - started
    stream.close()
    return elapsed


def held_session(engine: segue.MlxEngine, text: str, tokens: int) -> segue.ChatSession:
    """A session whose cache holds about so many tokens of a text."""
    tokenizer = engine.tokenizer
    cut = tokenizer.decode(list(tokenizer.encode(text))[: tokens - 40])
    config = segue.GenerationConfig(max_tokens=8)
    session = segue.ChatSession(engine, generation=config)
    session.respond(f"{cut}\n\nGive this a title.")
    return session


def measure_saving(
    engine: segue.MlxEngine, session: segue.ChatSession, runs: int, tell: Told
) -> None:
    """Seconds to save and resume, beside mlx-lm's functions on the same cache."""
    seconds: dict[str, list[float]] = {"save": [], "resume": [], "mlx_save": [], "mlx_load": []}
    with tempfile.TemporaryDirectory() as folder:
        path, plain = Path(folder, "session.safetensors"), Path(folder, "cache.safetensors")
        session.save_cache(plain)
        cache = _loaded(plain)
        for run in range(runs + 1):
            for name, action in (
                ("save", lambda: session.save(path)),
                ("mlx_save", lambda: save_prompt_cache(str(plain), cache)),
                ("resume", lambda: _resumed(path, engine)),
                ("mlx_load", lambda: _loaded(plain)),
            ):
                started = perf_counter()
                action()
                if run:
                    seconds[name].append(perf_counter() - started)
        sizes = {"session": path.stat().st_size, "cache": plain.stat().st_size}
    tell(
        {
            "kind": "saving",
            "held_tokens": session.cached_tokens,
            "bytes": sizes,
            "seconds": {name: spread(values) for name, values in seconds.items()},
        }
    )


def _resumed(path: Path, engine: segue.MlxEngine) -> None:
    segue.ChatSession.open(path, engine).close()


def _loaded(path: Path) -> Any:
    cache: Any = load_prompt_cache(str(path))
    # mlx-lm's arrays are read when they are needed.
    mx.eval([layer.state for layer in cache])
    return cache


def measure_forks(session: segue.ChatSession, question: str, forks: int, tell: Told) -> None:
    """What forks cost that each take a short turn, beside a copy of the cache for each.

    One more fork warms up.
    """
    session.fork().respond(question)
    session.generation = segue.GenerationConfig(max_tokens=8)
    before = mx.get_active_memory()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cache.safetensors")
        session.save_cache(path)
        copy = _loaded(path)
        copied = mx.get_active_memory() - before
        del copy
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    children, seconds, first = [], [], []
    for number in range(forks):
        started = perf_counter()
        child = session.fork()
        seconds.append(perf_counter() - started)
        child.respond(f"{number}. {question}")
        first.append(child.usage.turns[-1].prefill_seconds)
        children.append(child)
    fed = [child.usage.turns[-1].fed_tokens for child in children]
    active = mx.get_active_memory() - before
    tell(
        {
            "kind": "forks",
            "held_tokens": session.cached_tokens,
            "forks": forks,
            "fed_tokens": spread(fed),
            "generated_tokens": session.generation.max_tokens,
            "fork_seconds": spread(seconds),
            "first_token_seconds": spread(first),
            "bytes": active,
            "bytes_of_copies": copied * forks,
            "peak_bytes": mx.get_peak_memory() - before,
        }
    )


def measure(
    engine: segue.MlxEngine,
    growing: Workload,
    text: str,
    tell: Told,
    *,
    quick: bool,
) -> None:
    """All of it.

    Args:
        engine: SmolLM2.
        growing: The workload of turns of equal length.
        text: A long text.
        tell: Takes the records.
        quick: For a smoke run.
    """
    last = len(growing.steps) - STRETCH + 1
    places = [place for place in (2, 8, 16, 32) if place + STRETCH <= last]
    measure_growth(engine, growing, [*(places or [1]), last], tell)
    session = held_session(engine, text, 300 if quick else 4000)
    measure_saving(engine, session, 2 if quick else 5, tell)
    question = " ".join(["Say in one word what the text above is about, and nothing else."] * 3)
    measure_forks(session, question, 3 if quick else 10, tell)
