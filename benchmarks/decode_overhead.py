"""What a session costs per token, beside mlx-lm's bare decode loop on the same work.

    python -m benchmarks.decode_overhead [--model NAME | --shape 135M|1B|8B] [--tokens N] [--runs N]

`--shape` takes a llama of that shape with random bfloat16 weights, for machines without a model.

Three ways take turns (`decoding.py`): the bare loop (`mlx_lm.generate_step`, no text made),
`mlx_lm.stream_generate` (text made, no session), and `ChatSession.stream`. Apart from that, the
session's own work is timed alone, over an engine that takes no time. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from typing import Any

import segue
import segue.mlx  # a good BLAS, before MLX

# isort: split
from benchmarks.decoding import BARE, decoding_ways, endless, needed, prompt_ids, rate, take_turns
from benchmarks.report import circumstances, spread
from benchmarks.shapes import SHAPES, random_engine
from segue.engine import Request, Step

PROMPT = "Explain, step by step and with examples, how a river shapes the land that it flows over."


class InstantContext:
    """Yields tokens that are there already."""

    offset = 0
    reused = 0

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens

    def rewind(self, offset: int) -> int:
        return 0

    def close(self) -> None:
        pass

    def run(self, request: Request) -> Iterator[Step]:
        for token in self._tokens:
            yield Step(token)


class InstantEngine:
    """An engine that takes no time, with a real tokenizer."""

    name = source = fingerprint = "instant"
    context_length = None

    def __init__(self, tokenizer: Any, tokens: list[int]) -> None:
        self.tokenizer = tokenizer
        self._tokens = tokens

    def context(self, cache: segue.CacheConfig) -> InstantContext:
        return InstantContext(self._tokens)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--tokens", type=int, default=10)
    parser.add_argument("--runs", type=int, default=40)
    options = parser.parse_args()

    engine = random_engine(options.shape) if options.shape else segue.load(options.model)
    with endless(engine):
        measure(engine, options)


def measure(engine: segue.MlxEngine, options: argparse.Namespace) -> None:
    total = needed(options.runs, options.tokens)
    ways = decoding_ways(engine, [], PROMPT, total)
    turns = take_turns(ways, runs=options.runs, tokens=options.tokens)

    own = []
    instant = InstantEngine(engine.tokenizer, turns.said["segue"])
    long = segue.GenerationConfig(max_tokens=total)
    for run in range(options.runs + 1):
        speed, _ = rate(
            response.token
            for response in segue.ChatSession(instant, generation=long).stream(PROMPT)
        )
        if run:
            own.append(1e6 / speed)

    per_token = 1e6 / statistics.median(turns.rates[BARE])
    others = ("stream_generate", "segue")
    result = {
        **circumstances("decode_overhead", engine.name),
        "prompt_tokens": len(prompt_ids(engine, [segue.Message.user(PROMPT)])),
        "tokens": options.tokens,
        "runs": options.runs,
        "tokens_per_second": {name: spread(values) for name, values in turns.rates.items()},
        "paired_ratio_to_generate_step": {name: turns.paired(name) for name in others},
        "ratio_of_medians_to_generate_step": {name: turns.of_medians(name) for name in others},
        "same_tokens_as_generate_step": {name: turns.same(name) for name in others},
        "own_microseconds_per_token": spread(own),
        "own_share_of_a_token": round(statistics.median(own) / per_token, 5),
    }
    turns.check()
    for name, values in result["tokens_per_second"].items():
        print(f"{name:16} {values['median']:8.1f} tokens/s")
    ratio = result["paired_ratio_to_generate_step"]["segue"]["median"]
    print(f"segue over generate_step, turn by turn: {ratio:.3f}")
    print(f"session's own work: {result['own_microseconds_per_token']['median']:.1f} µs per token")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
