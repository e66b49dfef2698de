"""A turn's moments: planning changes nothing, opening and committing do what a session does."""

from __future__ import annotations

import gc

import pytest

from kit import probe
from segue import CacheConfig, ChatSession, ContextLengthError, GenerationConfig, Message
from segue.conversation import Conversation
from segue.testing import BareEngine, FakeContext, FakeEngine
from segue.turn.core import SessionCore

ENGINES = [FakeEngine, lambda script: FakeEngine(script, trimmable=False), BareEngine]
KINDS = ["trimmable", "checkpoints", "bare"]
engines = pytest.mark.parametrize("make", ENGINES, ids=KINDS)


def core_over(engine) -> SessionCore:
    return SessionCore(
        engine,
        Conversation("Be brief."),
        generation=GenerationConfig(),
        cache=CacheConfig(),
    )


def drive(core: SessionCore, plan) -> str:
    """A driver as small as one can be: no clock, no signal."""
    steps, reader = core.run(plan, None), core.reader(plan)
    cached = core.open(plan)
    for step in steps:
        reader.push(step.token)
        if reader.finish_reason is not None:
            break
    steps.close()
    reader.close()
    core.commit(plan, reader, probe.no_usage(cached))
    return reader.text


def snapshot(core: SessionCore) -> object:
    return (
        core.conversation,
        core.usage,
        core.cache.offset,
        core.cache.ledger,
        core.cache.checkpoints,
        core.engine.model.calls,
        len(getattr(core.engine, "contexts", ())),
    )


@engines
def test_a_plan_builds_nothing_changes_nothing_and_may_be_thrown_away(make):
    core = core_over(make(["hello", "fine", "well"]))
    for question in ("hi", "how are you?"):
        before = snapshot(core)
        plans = [core.plan_turn([Message.user("other " * n)], core.generation) for n in range(1, 4)]
        ahead = core.plan_ahead(core.generation)
        core.plan_cut(())
        if core.conversation.messages:
            core.plan_retry(core.generation)
        assert snapshot(core) == before
        assert ahead is not None
        assert len({plan.length for plan in plans}) == 3
        assert drive(core, core.plan_turn([Message.user(question)], core.generation))


@engines
def test_any_driver_makes_the_same_turn_as_a_session(make):
    core, session = core_over(make(["hello", "fine"])), None
    session = ChatSession(make(["hello", "fine"]), instructions="Be brief.")
    for question in ("hi", "how are you?"):
        plan = core.plan_turn([Message.user(question)], core.generation)
        assert drive(core, plan) == session.respond(question)
        assert core.conversation == session.conversation
        assert core.cache.ledger == probe.ledger_of(session)
        assert core.cache.offset == session.cached_tokens


@engines
def test_a_preview_is_what_the_turn_then_costs(make):
    session = ChatSession(make(["hello", "fine"]), instructions="Be brief.")
    for question in ("hi", "how are you?"):
        preview = session.preview(question)
        assert session.preview(question, history=session.history) == preview
        reply = session.stream(question)
        assert (preview.prompt_tokens, preview.cached_tokens) == (
            reply.prompt_tokens,
            reply.cached_tokens,
        )
        reply.close()


def test_a_preview_over_another_history_leaves_the_session_as_it_is():
    engine = FakeEngine(["hello"], context_length=200)
    session = ChatSession(engine)
    session.respond("hi")
    history, cached = session.history, session.cached_tokens
    assert session.preview("hi", history=()).prompt_tokens < session.preview("hi").prompt_tokens
    with pytest.raises(ContextLengthError):
        session.preview("long " * 100, history=())
    assert (session.history, session.cached_tokens) == (history, cached)
    assert engine.model.calls == len(engine.model.fed)


def test_a_preview_names_what_would_be_dropped():
    session = ChatSession(
        FakeEngine(["hello", "fine"], context_length=80),
        on_overflow="drop-oldest",
        generation=GenerationConfig(max_tokens=6),
    )
    session.respond("the first question")
    preview = session.preview("the second question, which is long")
    assert [message.text for message in preview.dropped] == ["the first question", "hello"]
    assert session.stream("the second question, which is long").dropped == preview.dropped


def test_a_context_is_closed_when_nobody_can_use_it_any_more():
    closed = []

    class Closing(FakeContext):
        def close(self):
            closed.append(self)

        def fork(self):
            twin = super().fork()
            twin.__class__ = Closing
            return twin

    class Engine(FakeEngine):
        def context(self, cache):
            return Closing(self.model, cache)

    session = ChatSession(Engine(["hello", "fine"]))
    session.respond("hi")
    branch = session.fork()
    reply = branch.stream("ho")
    next(reply)
    del session
    gc.collect()
    assert len(closed) == 1
    # A live reply uses its session's context, whoever else let go of it.
    del branch
    gc.collect()
    assert len(closed) == 1
    assert reply.text + "".join(response.text for response in reply) == "fine"
    del reply
    gc.collect()
    assert len(closed) == 2
