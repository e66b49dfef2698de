"""The stateless way: `mlx_lm.stream_generate` on the whole history, each turn."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import segue.mlx  # noqa: F401 (a good BLAS, before MLX)

# isort: split
import mlx_lm

from benchmarks.peers.mlx_generation import say
from benchmarks.peers.protocol import LoadingPeer, Measure, Messages, rate, serve


class StatelessPeer(LoadingPeer):
    """Holds nothing."""

    def load(self, place: str) -> Any:
        model, self._tokenizer = mlx_lm.load(place)
        return model

    def take(self, step: dict[str, Any], messages: Messages) -> Measure:
        started = perf_counter()
        prompt = self._tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tools=self._workload["tools"] or None
        )
        said = say(self._model, self._tokenizer, prompt, step, self._workload["temperature"])
        return Measure(
            said.text,
            len(prompt),
            len(prompt),
            len(said.tokens),
            said.first - started,
            rate(len(said.tokens), said.first, said.last),
            said.tokens,
        )


if __name__ == "__main__":
    serve(StatelessPeer())
