"""What holding a reply to a grammar costs, and what it saves where the grammar forces text.

    python -m benchmarks.typed_answers [--model NAME] [--tokens N] [--runs N]

Two measures, each beside free decoding of the same model in the same run:

- *any text*: a grammar that forces nothing. The tokens are the same, and the ratio its whole cost;
- *a form*: a JSON object with long keys, in time per token of it.

The ways take turns, run by run, after one that warms up. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from time import perf_counter

import segue
import segue.mlx  # a good BLAS, before MLX

# isort: split
from benchmarks.decoding import prompt_ids
from benchmarks.report import circumstances, spread
from segue.engine import Request

PROMPT = "Tell me a long story about a fox and a river, with many turns."
ANY_TEXT = "start: TEXT\nTEXT: /(.|\\n)*/"
FORM = {
    "type": "object",
    "properties": {
        "the name of the animal": {"type": "string", "maxLength": 12},
        "is it a mammal or not": {"type": "boolean"},
        "preferred environment": {"enum": ["a temperate forest", "an arid desert"]},
        "number of legs": {"type": "integer", "minimum": 0, "maximum": 8},
    },
    "required": [
        "the name of the animal",
        "is it a mammal or not",
        "preferred environment",
        "number of legs",
    ],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
}
WAYS = {"free": None, "any text": ANY_TEXT, "a form": f"start: %json {json.dumps(FORM)}"}


def decode(
    engine: segue.MlxEngine, ids: list[int], grammar: str | None, most: int
) -> tuple[float, list[int]]:
    """Seconds per token after the first one, and the tokens."""
    ends = engine.tokenizer.eos_token_ids
    context = engine.context(segue.CacheConfig())
    steps = context.run(Request(ids, segue.GenerationConfig(max_tokens=most), grammar=grammar))
    said = [next(steps).token]
    started = perf_counter()
    for step in steps:
        said.append(step.token)
        if step.token in ends:
            break
    seconds = (perf_counter() - started) / (len(said) - 1)
    steps.close()
    return seconds, said


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()

    engine = segue.load(options.model)
    ids = prompt_ids(engine, [segue.Message.user(PROMPT)])
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    said: dict[str, list[int]] = {}
    for run in range(options.runs + 1):
        order = list(WAYS)[run % len(WAYS) :] + list(WAYS)[: run % len(WAYS)]
        for name in order:
            taken, said[name] = decode(engine, ids, WAYS[name], options.tokens)
            if run:
                seconds[name].append(taken)
    assert said["any text"] == said["free"], "the greedy tokens differ"
    json.loads(engine.tokenizer.decode(said["a form"][:-1]))
    ratios = {
        name: spread(
            [mine / free for mine, free in zip(seconds[name], seconds["free"], strict=True)]
        )
        for name in ("any text", "a form")
    }
    result = {
        **circumstances("typed_answers", engine.name),
        "tokens": {name: len(tokens) for name, tokens in said.items()},
        "runs": options.runs,
        "milliseconds_per_token": {
            name: round(1e3 * statistics.median(values), 2) for name, values in seconds.items()
        },
        "paired_ratio_to_free": ratios,
    }
    for name, ratio in ratios.items():
        print(f"{name}: {ratio['median']:.3f} of the time per token without a grammar")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
