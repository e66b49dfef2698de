"""Segue: one `ChatSession`."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import segue
from benchmarks.peers.protocol import LoadingPeer, Measure, Messages, filed, rate, serve


class SeguePeer(LoadingPeer):
    """A `ChatSession` and its forks.

    Args:
        load: From a folder to an engine.
    """

    def __init__(self, load: Callable[[str], Any] = segue.load) -> None:
        self._load = load
        self._session: Any = None
        self._marked: segue.ChatSession | None = None

    def load(self, place: str) -> Any:
        return self._load(place)

    def let_go(self) -> None:
        self._session = self._marked = None

    def begin(self, workload: dict[str, Any], paths: dict[str, str]) -> None:
        super().begin(workload, paths)
        self._session = segue.ChatSession(
            self._model,
            instructions=workload["instructions"],
            generation=segue.GenerationConfig(temperature=workload["temperature"]),
            template_kwargs={"tools": workload["tools"]} if workload["tools"] else None,
        )

    def take(self, step: dict[str, Any], messages: Messages) -> Measure:
        session, kind = self._session, step["kind"]
        settings = {"max_tokens": step["max_tokens"], "seed": step["seed"]}
        if kind == "edit":
            session.edit(step["index"], step["text"])
        started = perf_counter()
        if kind in ("edit", "regenerate"):
            reply = session.stream_retry(**settings)
        else:
            tool = kind == "tool"
            reply = session.stream(
                segue.Message.tool(step["text"], name="lookup") if tool else step["text"],
                **settings,
            )
        first = last = started
        with reply:
            for _ in reply:
                last = perf_counter()
                first = last if len(reply.tokens) == 1 else first
                if len(reply.tokens) == step["cut"]:
                    break
        usage = session.usage.turns[-1]
        return Measure(
            reply.text,
            usage.fed_tokens,
            usage.prompt_tokens,
            len(reply.tokens),
            first - started,
            rate(len(reply.tokens), first, last),
            list(reply.tokens),
        )

    def mark(self) -> None:
        self._marked = self._session

    def branch(self) -> None:
        assert self._marked is not None
        self._session = self._marked.fork()

    def save(self, path: str) -> dict[str, Any]:
        started = perf_counter()
        self._session.save(path)
        return filed(started, path)

    def resume(self, path: str) -> dict[str, Any]:
        started = perf_counter()
        self._session = segue.ChatSession.open(path, self._model)
        return filed(started, path)

    def end(self) -> None:
        self._marked = None


if __name__ == "__main__":
    serve(SeguePeer())
