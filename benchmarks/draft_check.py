"""Whether greedy replies with a draft are the plain ones, and where they part if not."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import segue
import segue.mlx  # a good BLAS, before MLX

# isort: split
import mlx.core as mx
import mlx_lm

from benchmarks.decoding import prompt_ids
from benchmarks.speculative import QUESTIONS, REPEAT, TEXTS

TOKENS = 48
PROMPTS = [*(REPEAT.format(word=word, text=text) for word, text in TEXTS), *QUESTIONS]


def gap(engine: segue.MlxEngine, ids: list[int], plain: int, other: int) -> float:
    """By how many logits the model prefers one token to another behind `ids`, read at once."""
    logits = engine.model(mx.array(ids)[None])[0, -1].astype(mx.float32)
    return round((logits[plain] - logits[other]).item(), 4)


def check_drafts(engine: segue.MlxEngine) -> dict[str, Any]:
    """Replies with prompt lookup and with the model as its own draft, against plain ones."""
    config = segue.GenerationConfig(max_tokens=TOKENS)

    def session(draft: segue.MlxEngine | str | None) -> Callable[[str], tuple[list[int], Any]]:
        def reply(prompt: str) -> tuple[list[int], Any]:
            chat = segue.ChatSession(engine, generation=config, draft=draft)
            with chat.stream(prompt) as replies:
                tokens = [response.token for response in replies]
            return tokens, chat.acceptance_rate

        return reply

    def stream_generate(prompt: str) -> tuple[list[int], Any]:
        ids = prompt_ids(engine, [segue.Message.user(prompt)])
        wrapped = engine.tokenizer.wrapped
        replies = mlx_lm.stream_generate(engine.model, wrapped, ids, max_tokens=TOKENS)
        return [response.token for response in replies], None

    plain = [session(None)(prompt)[0] for prompt in PROMPTS]
    ways = {
        "prompt-lookup": session("prompt-lookup"),
        "own-model": session(engine),
        "plain-again": session(None),
        "stream_generate": stream_generate,
    }
    found: dict[str, Any] = {}
    for name, way in ways.items():
        differences, rates, seconds = [], [], 0.0
        for number, prompt in enumerate(PROMPTS):
            started = perf_counter()
            tokens, acceptance = way(prompt)
            seconds += perf_counter() - started
            if acceptance is not None:
                rates.append(acceptance)
            if tokens == plain[number]:
                continue
            pairs = enumerate(zip(plain[number], tokens, strict=False))
            place = next((place for place, (one, two) in pairs if one != two), None)
            difference: dict[str, Any] = {"reply": number, "place": place}
            if place is not None:
                ids = prompt_ids(engine, [segue.Message.user(prompt)]) + tokens[:place]
                tokens_there = (plain[number][place], tokens[place])
                difference["tokens"] = tokens_there
                difference["gap"] = gap(engine, ids, *tokens_there)
            differences.append(difference)
        found[name] = {
            "same": len(PROMPTS) - len(differences),
            "differences": differences,
            "seconds": round(seconds, 3),
            "acceptance": round(sum(rates) / len(rates), 4) if rates else None,
        }
    return {"ways": found, "replies": len(PROMPTS), "tokens": TOKENS}
