"""What prompt lookup gains where a reply repeats its input, and costs where it does not.

    python -m benchmarks.speculative [--model NAME] [--tokens N] [--block N] [--runs N]

Two tasks of five prompts: to repeat a text with one word changed, and to answer a question. For
each prompt, three ways are under way at once and take turns of a few tokens, so that the machine's
own ups and downs meet all alike: a session without a draft, one with prompt lookup, and, as a peer,
`mlx_lm.stream_generate`, which has no prompt lookup. Timed is decoding, from the first token on.
The greedy tokens must be the same. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from itertools import islice
from time import perf_counter
from typing import Literal

import segue
import segue.mlx  # a good BLAS, before MLX

# isort: split
import mlx_lm

from benchmarks.report import circumstances, spread

REPEAT = "Repeat this text, but replace the word {word}:\n\n{text}"
TEXTS = [
    (
        "heavy",
        "The lighthouse keeper climbed the stairs every evening at six, lit the lamp, and wrote "
        "the weather into a heavy leather book. In thirty years he had missed only two nights, "
        "and both times the sea had been calm.",
    ),
    (
        "cool",
        "Mix the flour, the salt and the yeast in a large bowl. Add the warm water and stir until "
        "no dry flour is left. Cover the bowl with a cloth and let the dough rest for twelve "
        "hours in a cool place.",
    ),
    (
        "blue",
        "The parcel left the depot on Monday and reached the border on Wednesday. It was opened, "
        "checked and closed again with blue tape. It should arrive at your office on Friday "
        "before noon; please have someone sign for it.",
    ),
    (
        "quickly",
        "A river carries sand and stones down from the hills. Where it flows quickly, it cuts "
        "into the ground; where it slows down, it drops what it carries. In this way, over many "
        "years, a straight river becomes a winding one.",
    ),
    (
        "north",
        "To reach the museum, leave the station by the north gate and follow the tram line for "
        "ten minutes. Turn left at the old fountain. The entrance is behind the second building, "
        "next to a small garden with benches.",
    ),
]
QUESTIONS = [
    "Why is the sky blue?",
    "Write a short story about a fox who learns to swim.",
    "What should I think about before I buy a used bicycle?",
    "Describe a market in a small town on a rainy morning.",
    "How does a refrigerator keep food cold?",
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--block", type=int, default=12)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--num-draft-tokens", type=int, default=5)
    options = parser.parse_args()

    engine = segue.load(options.model)
    config = segue.GenerationConfig(
        max_tokens=options.tokens, num_draft_tokens=options.num_draft_tokens
    )
    acceptance: list[float] = []

    def session(prompt: str, draft: Literal["prompt-lookup"] | None) -> Iterator[int]:
        chat = segue.ChatSession(engine, generation=config, draft=draft)
        for response in chat.stream(prompt):
            yield response.token
        if chat.acceptance_rate is not None:
            acceptance.append(chat.acceptance_rate)

    def stream_generate(prompt: str) -> Iterator[int]:
        text = engine.tokenizer.render(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, template_kwargs={}
        )
        for response in mlx_lm.stream_generate(
            engine.model, engine.tokenizer.wrapped, text, max_tokens=options.tokens
        ):
            yield response.token

    ways = {
        "plain": lambda prompt: session(prompt, None),
        "prompt-lookup": lambda prompt: session(prompt, "prompt-lookup"),
        "stream_generate": stream_generate,
    }
    tasks = {
        "repeats its input": [REPEAT.format(word=word, text=text) for word, text in TEXTS],
        "does not": QUESTIONS,
    }
    result = {**circumstances("speculative", engine.name), **vars(options), "tasks": {}}
    same = True
    for task, prompts in tasks.items():
        rates: dict[str, list[float]] = {name: [] for name in ways}
        by_prompt: list[float] = []
        acceptance.clear()
        for number, prompt in enumerate(prompts):
            ratios = []
            for run in range(options.runs + (number == 0)):
                seconds = dict.fromkeys(ways, 0.0)
                said: dict[str, list[int]] = {}
                streams = {}
                for name, way in ways.items():
                    streams[name] = way(prompt)
                    said[name] = [next(streams[name])]
                pending = list(ways)
                while pending:
                    pending = pending[1:] + pending[:1]
                    for name in list(pending):
                        started = perf_counter()
                        block = list(islice(streams[name], options.block))
                        seconds[name] += perf_counter() - started
                        said[name] += block
                        if len(block) < options.block:
                            pending.remove(name)
                same = same and said["plain"] == said["prompt-lookup"]
                if number == 0 and run == 0:
                    continue  # warms up
                for name in ways:
                    rates[name].append((len(said[name]) - 1) / seconds[name])
                ratios.append(rates["prompt-lookup"][-1] / rates["plain"][-1])
            by_prompt.append(round(statistics.median(ratios), 3))
        paired = [a / b for a, b in zip(rates["prompt-lookup"], rates["plain"], strict=True)]
        result["tasks"][task] = {
            "tokens_per_second": {name: spread(values) for name, values in rates.items()},
            "prompt_lookup_over_plain": spread(paired),
            "median_by_prompt": by_prompt,
            "acceptance_rate": spread(acceptance) if acceptance else None,
        }
        print(f"{task}: {statistics.median(paired):.2f} times plain decoding; {by_prompt}")
    result["same_tokens"] = same
    assert same, "the greedy tokens differ"
    print(json.dumps(result))


if __name__ == "__main__":
    main()
