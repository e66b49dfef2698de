"""What a session over the fake engine really holds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from kit.probe import engine_of, held, ids_of
from segue import ChatSession, GenerationConfig, Message
from segue.testing import FakeEngine, ToyTokenizer

SHORT = GenerationConfig(max_tokens=5)


def rendered(session: ChatSession, messages: Sequence[Message], *, prompt: bool) -> str:
    tokenizer = engine_of(session).tokenizer
    system = [Message.system(session.instructions)] if session.instructions is not None else []
    return tokenizer.render(
        [message.to_template() for message in [*system, *messages]],
        add_generation_prompt=prompt,
        template_kwargs=session.template_kwargs,
    )


def check_ledger(session: ChatSession) -> None:
    """The ledger invariant: what we believe the cache holds is what it holds."""
    if session.has_cache:
        assert ids_of(session) == held(session)
        assert len(ids_of(session)) == session.cached_tokens


def say(ids: Sequence[int]) -> int:
    """A letter that depends on every id in the cache."""
    return 97 + hash(tuple(ids)) % 26


def talk(*questions: str, script: Any = say, trimmable: bool = True, **kwargs: Any) -> ChatSession:
    """A session over the fake engine that was asked these questions."""
    engine = FakeEngine(script, trimmable=trimmable)
    session = ChatSession(engine, **{"generation": SHORT, **kwargs})
    for question in questions:
        session.respond(question)
    return session


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """As plainly as it can be written: the optimum must not come from the code under test."""
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    return sum(1 for _ in alike)


class Thinking(ToyTokenizer):
    """A tokenizer of a model that thinks; its template may open the thought."""

    reasoning_tags = ("<think>", "</think>")

    def __init__(self, *, opens: bool = False) -> None:
        super().__init__()
        self._opens = opens

    def render(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> str:
        text = super().render(messages, **kwargs)
        return text + "<think>\n" if self._opens and kwargs["add_generation_prompt"] else text
