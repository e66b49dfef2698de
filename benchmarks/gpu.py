"""What Segue gains and costs on one GPU: runs unattended, and writes JSON lines.

    python -m benchmarks.gpu --output FILE [--models 1B 8B smollm2] [--contexts 1024 4096 ...]
        [--decode-contexts 1024 ...] [--runs N] [--decode-runs N] [--tokens N] [--bandwidth-gb N]

Needs `mlx[cuda13]`, or Metal. A model is a name in `shapes.py` (a llama of that shape with random
bfloat16 weights) or whatever `segue.load` takes; `tiny` tries the script out on a CPU. Everything
is warmed up first, since the first use of a kernel compiles it. Figures are medians with the least
and the greatest; ratios come first in each line. A line has a `measure`:

`bandwidth`: what plain MLX kernels move over `gigabytes` of float32 (`copy` reads and writes,
`sum` and `row_sums` read), several launched at once, in 10^9 bytes per second. `gb_per_s` is the
fastest one's median.

`time_to_first_token`: the wait for the first token of a new short turn, from the call with the
turn's text on, rendering and encoding included; the prompt is a little shorter than `context`.
`stateless_over_segue` is how many times longer `mlx_lm.stream_generate` on the whole history takes
than a session that holds it, run by run; `segue_ms` and `stateless_ms` are the waits, `held_tokens`
what the session's KV cache holds before the turn, `fed_tokens` what each way feeds in it, `read_ms`
what reading the held ones took the session. Both get the same text. No two turns are equally long:
on CUDA, MLX plans attention anew, on the host, for each pair of lengths it meets, which takes
longer than a short turn itself. So there are two lines: where `lengths` is `new`, they had not been
met, as in a real conversation; where it is `met`, the same turns are taken once more.
`same_first_token` counts the runs in which both ways said the same: they read the prompt in other
portions, which half precision rounds otherwise.

`decode`: tokens per second in turns of a few tokens, the ways interleaved (`decoding.py`) behind
`prompt_tokens`. `segue_over_generate_step` is paired turn by turn; `share_of_bandwidth` is what has
to be read for a token (`weight_bytes`: all weights, but of an embedding that is not the output
layer's only a row; `kv_bytes`: keys and values half way through the run), over the time it takes,
over `gb_per_s` of the same run. `same_tokens_as_generate_step` compares the greedy tokens.

`drafts`: greedy replies with a draft against plain ones, where the model is a real one. `same`
counts equal replies of `replies`; `differences` has for each other one where it parts, and by how
much the model, on a fresh prefill, prefers the plain token there (`gap`, in logits).
`stream_generate` is compared likewise, as a measure of what rounding alone does. `seconds` are
those of all replies, prefill included, one after the other and once: an impression, no benchmark.

`skipped` and `failed`: what could not be measured, and why; a failure makes the exit status 1.
`summary`: the ratios of all of them, the last line of the output and of the file.

MLX raises an error once a process has met more lengths than twice its store of plans holds (512),
and this script meets more: `segue.mlx` switches that check off.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import segue
import segue.mlx  # a good BLAS, before MLX

# isort: split
import mlx.core as mx
import mlx_lm
from mlx.utils import tree_flatten
from mlx_lm.generate import generation_stream
from mlx_lm.models.cache import make_prompt_cache

from benchmarks.decoding import BARE, decoding_ways, endless, needed, prompt_ids, take_turns
from benchmarks.draft_check import check_drafts
from benchmarks.report import circumstances, spread
from benchmarks.shapes import SHAPES, random_engine
from segue import Message

SENTENCE = "{}. The river carries sand and stones down from the hills to the plain. "
READ = "I have read it."
# Longer by a word in every run.
QUESTION = "What does it carry"
REPLY_TOKENS = 8
# So much is held less than the context, for the turn. Then what a session feeds is never the last
# portion of the stateless way's prompt as well, whose plans one of them would find made.
LEFT = 64
BANDWIDTH_RUNS = 20
AT_ONCE = 8
ROW = 8192


def wait_for_device() -> None:
    """Let everything finish that is under way."""
    mx.synchronize()
    with mx.stream(generation_stream):
        mx.synchronize()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds that some work takes on an idle device, and what it returns."""
    wait_for_device()
    started = perf_counter()
    result = work()
    return 1e3 * (perf_counter() - started), result


def bandwidth(gigabytes: float) -> dict[str, Any]:
    """Bytes per second of kernels that do nothing but move memory."""
    values = mx.random.uniform(shape=(max(int(gigabytes * 1e9 / 4 / ROW), 1), ROW))
    mx.eval(values)

    def copies() -> mx.array:
        copy = values
        for _ in range(AT_ONCE):
            copy = copy + 1
        return copy

    kernels: dict[str, tuple[int, Callable[[], Any]]] = {
        "copy": (2, copies),
        "sum": (1, lambda: [mx.sum(values) for _ in range(AT_ONCE)]),
        "row_sums": (1, lambda: [mx.sum(values, axis=-1) for _ in range(AT_ONCE)]),
    }
    rates: dict[str, list[float]] = {name: [] for name in kernels}
    for run in range(-3, BANDWIDTH_RUNS):
        for name, (passes, kernel) in kernels.items():
            milliseconds, _ = timed(lambda kernel=kernel: mx.eval(kernel()))
            if run >= 0:
                moved = AT_ONCE * passes * values.nbytes
                rates[name].append(moved / milliseconds / 1e6)
    return {
        "gb_per_s": max(round(statistics.median(found), 1) for found in rates.values()),
        "kernels": {name: spread(found) for name, found in rates.items()},
        "gigabytes": round(values.nbytes / 1e9, 3),
    }


def long_history(engine: segue.MlxEngine, tokens: int) -> list[Message]:
    """A question and an answer that take about so many tokens, rendered."""
    tokenizer = engine.tokenizer
    text = "".join(SENTENCE.format(number) for number in range(1, tokens))
    text = text[: 8 * tokens]
    history = [Message.user("x"), Message.assistant(READ)]
    around = len(prompt_ids(engine, [*history, Message.user("x")])) - 2
    kept = tokenizer.decode(tokenizer.encode(text)[: max(tokens - around, 1)])
    return [Message.user(kept), Message.assistant(READ)]


def time_to_first_token(
    engine: segue.MlxEngine, context: int, *, runs: int, lengths: str
) -> dict[str, Any]:
    """The wait for a new short turn's first token, held against read from the beginning.

    Called twice with the same arguments, the second time all lengths have been met.
    """
    history = long_history(engine, context - LEFT)
    config = segue.GenerationConfig(max_tokens=REPLY_TOKENS)
    waits: dict[str, list[float]] = {"segue": [], "stateless": []}
    held, fed, prompts, read = [], [], [], []
    same = 0
    for run in range(runs + 1):
        question = QUESTION + " then" * run + "?"
        chat = segue.ChatSession(engine, history=history, generation=config)
        took, _ = timed(chat.prewarm)
        before = chat.cached_tokens

        def session(
            chat: segue.ChatSession = chat, question: str = question
        ) -> tuple[segue.Reply, int]:
            reply = chat.stream(question)
            return reply, next(reply).token

        def stateless(question: str = question) -> tuple[Iterator[Any], int]:
            replies = mlx_lm.stream_generate(
                engine.model,
                engine.tokenizer.wrapped,
                prompt_ids(engine, [*history, Message.user(question)]),
                max_tokens=REPLY_TOKENS,
            )
            return replies, next(replies).token

        ways: dict[str, Callable[[], tuple[Any, int]]] = {"segue": session, "stateless": stateless}
        first: dict[str, int] = {}
        for name in list(ways)[:: 1 if run % 2 else -1]:
            milliseconds, (stream, first[name]) = timed(ways[name])
            if name == "segue":
                total, kept = stream.prompt_tokens, stream.cached_tokens
            stream.close()
            del stream
            if run:
                waits[name].append(milliseconds)
        if run:
            held.append(before)
            fed.append(total - kept)
            prompts.append(total)
            read.append(took)
            same += first["segue"] == first["stateless"]
        del chat, session, ways
    pairs = zip(waits["stateless"], waits["segue"], strict=True)
    return {
        "stateless_over_segue": spread([stateless / held for stateless, held in pairs]),
        "segue_ms": spread(waits["segue"]),
        "stateless_ms": spread(waits["stateless"]),
        "read_ms": spread(read),
        "context": context,
        "lengths": lengths,
        "held_tokens": spread(held),
        "fed_tokens": {"segue": spread(fed), "stateless": spread(prompts)},
        "same_first_token": same,
        "runs": runs,
    }


def read_for_a_token(engine: segue.MlxEngine) -> tuple[int, int]:
    """Bytes of weights that decoding a token reads, and bytes of KV cache for each held token."""
    weights = dict(tree_flatten(engine.model.parameters()))
    size = sum(weight.nbytes for weight in weights.values())
    if any(name.startswith("lm_head") for name in weights):
        size -= sum(weight.nbytes for name, weight in weights.items() if "embed_tokens" in name)
    cache = make_prompt_cache(engine.model)
    mx.eval(engine.model(mx.zeros((1, 1), mx.uint32), cache=cache))
    # Caches are made longer than what they hold.
    held = [part for layer in cache for _, part in tree_flatten(layer.state)]
    return size, sum(p.nbytes // p.shape[2] for p in held if isinstance(p, mx.array))


def decode(
    engine: segue.MlxEngine, context: int, *, runs: int, tokens: int, gb_per_s: float
) -> dict[str, Any]:
    """Decode speed of a session beside mlx-lm's, and beside what memory can deliver."""
    history, total = long_history(engine, context), needed(runs, tokens)
    question = QUESTION + "?"
    ways = decoding_ways(engine, history, question, total)
    with endless(engine):
        turns = take_turns(ways, runs=runs, tokens=tokens)
    wait_for_device()
    weight_bytes, kv_bytes = read_for_a_token(engine)
    prompt_tokens = len(prompt_ids(engine, [*history, Message.user(question)]))
    kv_bytes *= prompt_tokens + total // 2
    gigabytes = (weight_bytes + kv_bytes) / 1e9
    return {
        "segue_over_generate_step": turns.paired("segue"),
        "stream_generate_over_generate_step": turns.paired("stream_generate"),
        "share_of_bandwidth": {
            name: round(gigabytes * statistics.median(rates) / gb_per_s, 4)
            for name, rates in turns.rates.items()
        },
        "ratio_of_medians": turns.of_medians("segue"),
        "tokens_per_second": {name: spread(rates) for name, rates in turns.rates.items()},
        "same_tokens_as_generate_step": {name: turns.same(name) for name in ways if name != BARE},
        "context": context,
        "prompt_tokens": prompt_tokens,
        "weight_bytes": weight_bytes,
        "kv_bytes": kv_bytes,
        "gb_per_s": gb_per_s,
        "runs": runs,
        "tokens": tokens,
    }


def measure(options: argparse.Namespace, name: str) -> Iterator[dict[str, Any]]:
    """All lines of one model."""
    engine = random_engine(name) if name in SHAPES else segue.load(name)
    where = circumstances("gpu", engine.name)

    def attempt(kind: str, work: Callable[[], dict[str, Any]], **about: Any) -> dict[str, Any]:
        started = perf_counter()
        try:
            line = {"measure": kind, **work()}
        # Whatever fails, the rest of an unattended run is worth having.
        except Exception as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}"
            line = {"measure": "failed", "of": kind, "why": reason, **about}
        gc.collect()
        mx.clear_cache()
        return {**line, "took_s": round(perf_counter() - started, 1), **where}

    speed = attempt("bandwidth", lambda: bandwidth(options.bandwidth_gb))
    yield speed
    limit = engine.context_length or sys.maxsize
    room = {
        "time_to_first_token": (options.contexts, 0),
        "decode": (options.decode_contexts, needed(options.decode_runs, options.tokens)),
    }
    for kind, (contexts, more) in room.items():
        for context in contexts:
            # The question and its template, too, must fit.
            if context + more + 256 > limit:
                why = f"the model's context is {limit} tokens"
                yield {"measure": "skipped", "of": kind, "context": context, "why": why, **where}
                continue
            if kind == "decode":
                work = partial(
                    decode,
                    engine,
                    context,
                    runs=options.decode_runs,
                    tokens=options.tokens,
                    gb_per_s=speed.get("gb_per_s", float("nan")),
                )
                yield attempt(kind, work, context=context)
                continue
            for lengths in ("new", "met"):
                work = partial(
                    time_to_first_token, engine, context, runs=options.runs, lengths=lengths
                )
                yield attempt(kind, work, context=context, lengths=lengths)
    if name not in SHAPES:
        yield attempt("drafts", lambda: check_drafts(engine))


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The ratios of all lines, by model and context."""
    models: dict[str, Any] = {}
    for line in lines:
        found = models.setdefault(line["model"], {})
        context = str(line.get("context"))
        match line["measure"]:
            case "bandwidth":
                found["gb_per_s"] = line["gb_per_s"]
            case "time_to_first_token":
                for figure in ("stateless_over_segue", "segue_ms"):
                    by_lengths = found.setdefault(figure, {}).setdefault(line["lengths"], {})
                    by_lengths[context] = line[figure]["median"]
            case "decode":
                ratio = line["segue_over_generate_step"]["median"]
                found.setdefault("segue_over_generate_step", {})[context] = ratio
                share = line["share_of_bandwidth"]["segue"]
                found.setdefault("share_of_bandwidth", {})[context] = share
            case "drafts":
                found["same_with_drafts"] = {
                    name: f"{way['same']} of {line['replies']}"
                    for name, way in line["ways"].items()
                }
            case kind:
                found.setdefault(kind, []).append(line["of"] + f" at {context}")
    about = ("benchmark", "machine", "device", "segue", "versions")
    return {"measure": "summary", "models": models, **{name: lines[0][name] for name in about}}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["1B", "8B", "smollm2"])
    parser.add_argument("--contexts", nargs="*", type=int, default=[1024, 4096, 16384, 32768])
    parser.add_argument("--decode-contexts", nargs="*", type=int, default=[1024, 4096, 32768])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--decode-runs", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--bandwidth-gb", type=float, default=4.0)
    options = parser.parse_args()

    lines: list[dict[str, Any]] = []
    with options.output.open("w", encoding="utf-8") as file:

        def tell(line: dict[str, Any]) -> None:
            print(json.dumps(line), file=file, flush=True)
            print(json.dumps(line), flush=True)

        for name in options.models:
            for line in measure(options, name):
                lines.append(line)
                tell(line)
            gc.collect()
            mx.clear_cache()
        tell(summary(lines))
    sys.exit(any(line["measure"] == "failed" for line in lines))


if __name__ == "__main__":
    main()
