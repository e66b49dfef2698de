"""The hand-kept cache, the way `mlx_lm.chat` does it.

The cache stays from turn to turn, and each new message is rendered alone and fed behind it. So the
model reads, in every turn, whatever the template writes in front of a first message (the system
message), and never what it writes behind a reply. There is no way back: what changes what was said
begins anew with the whole history. Branches copy the cache, as `mlx_lm.server` does.
"""

from __future__ import annotations

import copy
from time import perf_counter
from typing import Any

import segue.mlx  # noqa: F401 (a good BLAS, before MLX)

# isort: split
import mlx_lm
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache

from benchmarks.peers.mlx_generation import say
from benchmarks.peers.protocol import LoadingPeer, Measure, Messages, filed, rate, serve


class HandKeptPeer(LoadingPeer):
    """One prompt cache, and what was fed into it."""

    def begin(self, workload: dict[str, Any], paths: dict[str, str]) -> None:
        super().begin(workload, paths)
        self._cache: Any = make_prompt_cache(self._model)
        self._fed: list[int] = []

    def load(self, place: str) -> Any:
        model, self._tokenizer = mlx_lm.load(place)
        return model

    def let_go(self) -> None:
        self._cache = self._marked = None

    def _render(self, messages: Messages) -> list[int]:
        return self._tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tools=self._workload["tools"] or None
        )

    def take(self, step: dict[str, Any], messages: Messages) -> Measure:
        started = perf_counter()
        anew = step["kind"] in ("edit", "regenerate")
        if anew:
            self._cache, self._fed = make_prompt_cache(self._model), []
            new = list(messages)
        else:
            system = [message for message in messages[:1] if message["role"] == "system"]
            new = [*system, messages[-1]]
        prompt = self._render(new)
        self._fed += prompt
        read = self._tokenizer.decode(self._fed)
        temperature = self._workload["temperature"]
        said = say(self._model, self._tokenizer, prompt, step, temperature, self._cache)
        # What was yielded is in the cache.
        self._fed += said.tokens
        return Measure(
            said.text,
            len(prompt),
            None,
            len(said.tokens),
            said.first - started,
            rate(len(said.tokens), said.first, said.last),
            said.tokens,
            other_text=read != self._tokenizer.decode(self._render(messages)),
            instead="begins anew with the whole history" if anew else None,
        )

    def mark(self) -> None:
        self._marked = (copy.deepcopy(self._cache), list(self._fed))

    def branch(self) -> None:
        self._cache, self._fed = copy.deepcopy(self._marked)

    def save(self, path: str) -> dict[str, Any]:
        started = perf_counter()
        save_prompt_cache(path, self._cache, {"fed": ",".join(map(str, self._fed))})
        return filed(started, path)

    def resume(self, path: str) -> dict[str, Any]:
        started = perf_counter()
        self._cache, metadata = load_prompt_cache(path, return_metadata=True)
        self._fed = [int(token) for token in metadata["fed"].split(",")]
        return filed(started, path)


if __name__ == "__main__":
    serve(HandKeptPeer())
