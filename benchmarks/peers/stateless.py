"""The stateless way: `mlx_lm.stream_generate` on the whole history, each turn."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import segue.mlx  # noqa: F401 (a good BLAS, before MLX)

# isort: split
import mlx_lm

from peers.mlx_generation import say
from peers.protocol import Measure, Messages, rate, serve


class StatelessPeer:
    """Holds nothing."""

    _model: Any = None
    _place: str | None = None

    def begin(self, workload: dict[str, Any], paths: dict[str, str]) -> None:
        place = paths[f"{workload['model']}/{workload['template']}"]
        if place != self._place:
            self._model = None  # one model at a time
            self._model, self._tokenizer = mlx_lm.load(place)
            self._place = place
        self._workload = workload

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

    def mark(self) -> None:
        pass

    def branch(self) -> None:
        pass

    def save(self, path: str) -> dict[str, Any]:
        return {}

    def resume(self, path: str) -> dict[str, Any]:
        return {}

    def end(self) -> None:
        pass


if __name__ == "__main__":
    serve(StatelessPeer())
