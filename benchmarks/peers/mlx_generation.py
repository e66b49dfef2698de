"""One reply of `mlx_lm.stream_generate`, timed; for the two peers that call it."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any, NamedTuple

import segue.mlx  # noqa: F401 (a good BLAS, before MLX)

# isort: split
import mlx.core as mx
import mlx_lm
from mlx_lm.sample_utils import make_sampler


class Said(NamedTuple):
    """A reply: its text and ids, and when its first and last token came."""

    text: str
    tokens: list[int]
    first: float
    last: float


def say(
    model: Any,
    tokenizer: Any,
    prompt: Sequence[int],
    step: dict[str, Any],
    temperature: float,
    cache: list[Any] | None = None,
) -> Said:
    """Generate a reply to the ids of a prompt, or of what is new in it, given a cache."""
    mx.random.seed(step["seed"])
    pieces: list[str] = []
    tokens: list[int] = []
    first = last = perf_counter()
    extra = {} if cache is None else {"prompt_cache": cache}
    for response in mlx_lm.stream_generate(
        model,
        tokenizer,
        list(prompt),
        max_tokens=step["max_tokens"],
        sampler=make_sampler(temperature),
        **extra,
    ):
        last = perf_counter()
        first = first if tokens else last
        # The last response repeats no token: it brings the text that was withheld.
        pieces.append(response.text)
        tokens.append(response.token)
        if len(tokens) == step["cut"]:
            break
    return Said("".join(pieces), tokens, first, last)
