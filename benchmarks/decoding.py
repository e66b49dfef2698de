"""Several ways of decoding the same prompt, measured while they take turns.

All ways are under way at once, on the same model, prompt and machine, and take turns of a few
tokens. So the machine's own ups and downs, far larger than what is measured, meet all of them
alike. Their greedy tokens must be the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import Any

import segue
import segue.mlx  # a good BLAS, before MLX

# isort: split
import mlx.core as mx
import mlx_lm
from mlx_lm.generate import generate_step

from benchmarks.report import spread

Way = Callable[[], Generator[int, None, None]]
BARE = "generate_step"
# What was under way while the others took their turn is let pass.
PASSED = 2


@dataclass(frozen=True)
class Rates:
    """What taking turns measured.

    Attributes:
        rates: Each way's tokens per second, a number for each of its turns.
        said: Each way's tokens, those of the warm-up included.
    """

    rates: Mapping[str, list[float]]
    said: Mapping[str, list[int]]

    def paired(self, name: str) -> dict[str, float]:
        """A way's rate over the bare loop's, each turn over its neighbour."""
        pairs = zip(self.rates[name], self.rates[BARE], strict=True)
        return spread([rate / bare for rate, bare in pairs])

    def of_medians(self, name: str) -> float:
        """The ratio of the medians, which is coarser."""
        bare = statistics.median(self.rates[BARE])
        return round(statistics.median(self.rates[name]) / bare, 4)

    def same(self, name: str) -> bool:
        """Whether a way said what the bare loop said."""
        return self.said[name] == self.said[BARE]

    def check(self) -> None:
        """Refuse a session whose tokens differ, unless the device's kernels are not repeatable.

        mlx-lm's own two ways differ as well then.
        """
        assert self.same("segue") or not self.same("stream_generate"), "the greedy tokens differ"


class _Endless:
    """A tokenizer that knows of no end of a reply."""

    eos_token_ids: frozenset[int] = frozenset()

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@contextmanager
def endless(engine: Any) -> Iterator[None]:
    """Have no token end a reply early: every way generates the same number."""
    tokenizer = engine.tokenizer
    wrapped = tokenizer.wrapped
    ends = set(wrapped.eos_token_ids)
    wrapped.eos_token_ids, engine.tokenizer = set(), _Endless(tokenizer)
    try:
        yield
    finally:
        wrapped.eos_token_ids, engine.tokenizer = ends, tokenizer


def needed(runs: int, tokens: int) -> int:
    """How many tokens each way generates in so many runs of so many timed tokens."""
    return (runs + 1) * (PASSED + tokens)


def decoding_ways(
    engine: segue.MlxEngine, history: Sequence[segue.Message], prompt: str, total: int
) -> dict[str, Way]:
    """The bare loop (no text made), `stream_generate` (no session), and a session.

    The engine's tokenizer must end no reply early: every way generates `total` tokens.
    """
    messages = [*history, segue.Message.user(prompt)]
    ids = prompt_ids(engine, messages)

    def bare() -> Generator[int, None, None]:
        for token, _ in generate_step(mx.array(ids), engine.model, max_tokens=total):
            yield token

    def stream_generate() -> Generator[int, None, None]:
        wrapped = engine.tokenizer.wrapped
        for response in mlx_lm.stream_generate(engine.model, wrapped, ids, max_tokens=total):
            yield response.token

    def session() -> Generator[int, None, None]:
        config = segue.GenerationConfig(max_tokens=total)
        chat = segue.ChatSession(engine, history=history, generation=config)
        for response in chat.stream(prompt):
            yield response.token

    return {BARE: bare, "stream_generate": stream_generate, "segue": session}


def prompt_ids(engine: segue.MlxEngine, messages: Sequence[segue.Message]) -> list[int]:
    """The ids of a whole conversation that asks something, encoded at once."""
    rendered = [message.to_template() for message in messages]
    text = engine.tokenizer.render(rendered, add_generation_prompt=True, template_kwargs={})
    return list(engine.tokenizer.encode(text))


def rate(stream: Iterator[int]) -> tuple[float, list[int]]:
    """Tokens per second between the first token and the last, and the tokens."""
    tokens = [next(stream)]
    started = perf_counter()
    tokens.extend(stream)
    return (len(tokens) - 1) / (perf_counter() - started), tokens


def take_turns(ways: Mapping[str, Way], *, runs: int, tokens: int) -> Rates:
    """Time `runs` turns of `tokens` tokens of each way, after one that warms up."""
    streams: dict[str, Any] = {name: way() for name, way in ways.items()}
    rates = Rates({name: [] for name in ways}, {name: [] for name in ways})
    for run in range(runs + 1):
        # Each run begins with another way, so that none always follows the same one.
        order = list(ways)[run % len(ways) :] + list(ways)[: run % len(ways)]
        for name in order:
            rates.said[name].extend(islice(streams[name], PASSED))
            speed, said = rate(islice(streams[name], tokens))
            rates.said[name].extend(said)
            if run:
                rates.rates[name].append(speed)
    for stream in streams.values():
        stream.close()
    return rates
