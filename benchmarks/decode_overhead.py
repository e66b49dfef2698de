"""What a session costs per token, beside mlx-lm's bare decode loop on the same work.

    python benchmarks/decode_overhead.py [--model NAME | --shape 135M|1B|8B] [--tokens N] [--runs N]

`--shape` takes a llama of that shape with random bfloat16 weights, for machines without a model.

All ways are under way at once, on the same model, prompt and machine, and take turns of a few
tokens: the bare loop (`mlx_lm.generate_step`, no text made), `mlx_lm.stream_generate` (text made,
no session), and `ChatSession.stream`. So the machine's own ups and downs, far larger than what is
measured, meet all of them alike. Their greedy tokens must be the same. Apart from that, the
session's own work is timed alone, over an engine that takes no time. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Generator, Iterator
from itertools import islice
from time import perf_counter
from typing import Any

import segue
import segue.mlx  # a good BLAS, before MLX

# isort: split
import mlx.core as mx
import mlx_lm
from mlx_lm.generate import generate_step
from mlx_lm.models import llama
from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, TokenizerWrapper
from report import circumstances, spread
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from segue.engine import Acceptance, Marks, Step

PROMPT = "Explain, step by step and with examples, how a river shapes the land that it flows over."


# Hidden size, layers, heads, KV heads, inner size, vocabulary.
SHAPES = {
    "135M": (576, 30, 9, 3, 1536, 49152),
    "1B": (2048, 16, 32, 8, 8192, 128256),
    "8B": (4096, 32, 32, 8, 14336, 128256),
}


def random_engine(shape: str) -> segue.MlxEngine:
    """A llama with random weights, and a byte-level tokenizer filled up to its vocabulary."""
    hidden, layers, heads, kv_heads, inner, vocabulary = SHAPES[shape]
    model = llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=hidden,
            num_hidden_layers=layers,
            intermediate_size=inner,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            rms_norm_eps=1e-5,
            vocab_size=vocabulary,
        )
    )
    model.set_dtype(mx.bfloat16)
    mx.eval(model.parameters())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    names = [*alphabet, *(f"w{index}" for index in range(len(alphabet), vocabulary))]
    tokenizer = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template)
    return segue.MlxEngine(
        model, TokenizerWrapper(wrapped, BPEStreamingDetokenizer), name=f"random llama {shape}"
    )


PASSED = 2


class InstantContext:
    """Yields tokens that are there already."""

    offset = 0
    prefix = 0
    peak_memory = 0
    acceptance = Acceptance()
    marks = Marks()
    wants_marks = False

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens

    def rewind(self, offset: int) -> int:
        return 0

    def generate(self, ids: Any, config: Any, progress: Any, **kwargs: Any) -> Iterator[Step]:
        for token in self._tokens:
            yield Step(token)


class InstantEngine:
    """An engine that takes no time, with a real tokenizer."""

    context_length = None

    def __init__(self, tokenizer: Any, tokens: list[int]) -> None:
        self.tokenizer = tokenizer
        self._tokens = tokens

    def context(self, config: Any, **kwargs: Any) -> InstantContext:
        return InstantContext(self._tokens)


def rate(stream: Iterator[int]) -> tuple[float, list[int]]:
    """Tokens per second between the first token and the last, and the tokens."""
    tokens = [next(stream)]
    started = perf_counter()
    tokens.extend(stream)
    return (len(tokens) - 1) / (perf_counter() - started), tokens


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--tokens", type=int, default=10)
    parser.add_argument("--runs", type=int, default=40)
    options = parser.parse_args()

    engine = random_engine(options.shape) if options.shape else segue.load(options.model)
    model, tokenizer = engine.model, engine.tokenizer.wrapped
    # No token ends a reply early: every way generates the same number.
    tokenizer.eos_token_ids = set()
    total = (options.runs + 1) * (PASSED + options.tokens)
    config = segue.GenerationConfig(max_tokens=total)
    text = engine.tokenizer.render(
        [{"role": "user", "content": PROMPT}], add_generation_prompt=True, template_kwargs={}
    )
    ids = engine.tokenizer.encode(text)

    def bare() -> Generator[int, None, None]:
        for token, _ in generate_step(mx.array(ids), model, max_tokens=total):
            yield token

    def stream_generate() -> Generator[int, None, None]:
        for response in mlx_lm.stream_generate(model, tokenizer, ids, max_tokens=total):
            yield response.token

    def session() -> Generator[int, None, None]:
        for response in segue.ChatSession(engine, generation=config).stream(PROMPT):
            yield response.token

    ways = {
        "generate_step": bare,
        "stream_generate": stream_generate,
        "segue": session,
    }
    streams = {name: way() for name, way in ways.items()}
    said: dict[str, list[int]] = {name: [] for name in ways}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(options.runs + 1):
        # Each run begins with another way, so that none always follows the same one.
        order = list(ways)[run % len(ways) :] + list(ways)[: run % len(ways)]
        for name in order:
            # What was under way while the others took their turn is let pass.
            said[name].extend(islice(streams[name], PASSED))
            speed, tokens = rate(islice(streams[name], options.tokens))
            said[name].extend(tokens)
            if run:  # the first one warms up
                rates[name].append(speed)
    for stream in streams.values():
        stream.close()

    own = []
    instant = InstantEngine(engine.tokenizer, said["segue"])
    long = segue.GenerationConfig(max_tokens=len(said["segue"]))
    for run in range(options.runs + 1):
        speed, _ = rate(
            response.token
            for response in segue.ChatSession(instant, generation=long).stream(PROMPT)
        )
        if run:
            own.append(1e6 / speed)

    per_token = 1e6 / statistics.median(rates["generate_step"])
    result = {
        **circumstances("decode_overhead", engine),
        "prompt_tokens": len(ids),
        "tokens": options.tokens,
        "runs": options.runs,
        "tokens_per_second": {name: spread(values) for name, values in rates.items()},
        # Turn by turn, since neighbours meet the same ups and downs; and, coarser, of the medians.
        "paired_ratio_to_generate_step": {
            name: spread([a / b for a, b in zip(rates[name], rates["generate_step"], strict=True)])
            for name in ("stream_generate", "segue")
        },
        "ratio_of_medians_to_generate_step": {
            name: round(
                statistics.median(rates[name]) / statistics.median(rates["generate_step"]), 4
            )
            for name in ("stream_generate", "segue")
        },
        "same_tokens_as_generate_step": {
            name: said[name] == said["generate_step"] for name in ("stream_generate", "segue")
        },
        "own_microseconds_per_token": spread(own),
        "own_share_of_a_token": round(statistics.median(own) / per_token, 5),
    }
    # Where a device's kernels are not repeatable, mlx-lm's two ways differ as well.
    same = result["same_tokens_as_generate_step"]
    assert same["segue"] or not same["stream_generate"], "the greedy tokens differ"
    for name, values in result["tokens_per_second"].items():
        print(f"{name:16} {values['median']:8.1f} tokens/s")
    ratio = result["paired_ratio_to_generate_step"]["segue"]["median"]
    print(f"segue over generate_step, turn by turn: {ratio:.3f}")
    print(f"session's own work: {result['own_microseconds_per_token']['median']:.1f} µs per token")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
