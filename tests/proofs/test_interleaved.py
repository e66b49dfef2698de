"""Many sessions on one engine: each says what it would have said alone."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from kit.logits import check_next_logits
from kit.models import tiny_hybrid, tiny_llama, toy_engine
from kit.probe import ledger_of
from kit.sessions import say
from segue import ChatSession, GenerationConfig, MlxEngine
from segue.testing import FakeEngine

SESSIONS, ROUNDS, CLOSED = 100, 2, 10
OVER = object()
WORDS = ("the", "hello", "he", "world", "é", "why?")


def begin(engine, number: int) -> ChatSession:
    """The sessions differ: in their instructions, and in how they sample."""
    config = GenerationConfig(
        max_tokens=6, temperature=0.0 if number % 2 else 1.0, seed=number, prefill_step_size=16
    )
    instructions = f"You are number {number}." if number % 3 else None
    return ChatSession(engine, instructions=instructions, generation=config)


def turn(session: ChatSession, number: int, round_: int, close_after: int | None) -> Iterator[None]:
    """One turn, a step at a time."""
    reply = session.stream(f"{WORDS[(number + round_) % len(WORDS)]} {round_}")
    for told, _ in enumerate(reply, 1):
        yield
        if told == close_after:
            reply.close()
            return


@pytest.mark.parametrize("make", [None, tiny_llama, tiny_hybrid])
def test_a_hundred_sessions_say_what_they_would_say_alone(make):
    engine = FakeEngine(say) if make is None else toy_engine(make)
    dice = random.Random(5)
    together = [begin(engine, number) for number in range(SESSIONS)]
    closed = [
        {number: dice.randint(1, 4) for number in dice.sample(range(SESSIONS), CLOSED)}
        for _ in range(ROUNDS)
    ]
    for round_ in range(ROUNDS):
        under_way = [
            turn(session, number, round_, closed[round_].get(number))
            for number, session in enumerate(together)
        ]
        while under_way:
            place = dice.randrange(len(under_way))
            if next(under_way[place], OVER) is OVER:
                del under_way[place]
    for number, session in enumerate(together):
        alone = begin(engine, number)
        for round_ in range(ROUNDS):
            for _ in turn(alone, number, round_, closed[round_].get(number)):
                pass
        assert session.history == alone.history
        assert ledger_of(session) == ledger_of(alone)
        assert len(session.history) == 2 * ROUNDS
    if isinstance(engine, MlxEngine):
        for session in together[::25]:
            check_next_logits(session)
