"""What a session over the fake engine really holds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from segue import ChatSession, GenerationConfig, Message
from segue.testing import FakeEngine

SHORT = GenerationConfig(max_tokens=5)


def held(session: ChatSession) -> tuple[int, ...]:
    """The ids in the session's KV cache; every layer must hold the same."""
    context = session._cache.context
    assert context is not None
    assert context.offset == len(context.cache[0])  # type: ignore[attr-defined]
    return tuple(context.cache[0])  # type: ignore[attr-defined]


def rendered(session: ChatSession, messages: Sequence[Message], *, prompt: bool) -> str:
    tokenizer = session._engine.tokenizer
    system = [Message.system(session.instructions)] if session.instructions is not None else []
    return tokenizer.render(
        [message.to_template() for message in [*system, *messages]],
        add_generation_prompt=prompt,
        template_kwargs=session.template_kwargs,
    )


def check_ledger(session: ChatSession) -> None:
    """The ledger invariant: what we believe the cache holds is what it holds."""
    if session.has_cache:
        assert session._cache.ledger.ids == held(session)
        assert len(session._cache.ledger.ids) == session.cached_tokens


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
