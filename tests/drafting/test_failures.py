"""What goes wrong with a draft, and what a session is spared."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from kit.contexts import context_for, run
from kit.drafts import KINDS, PLAIN, check_draft, draft_for
from kit.logits import check_next_logits
from kit.models import disturbed, toy_engine
from kit.probe import acceptance_of, draft_ids, layers_of, put_model
from segue import (
    CacheConfig,
    ChatSession,
    GenerationConfig,
    GenerationError,
    MlxEngine,
)
from segue.testing import ToyTokenizer

pytestmark = pytest.mark.usefixtures("never_paused")


def test_a_failing_draft_costs_no_cache_of_the_models(pair):
    draft = toy_engine()
    model, failing = draft.model, []

    class Failing:
        args = model.args
        layers = model.layers

        def __call__(self, inputs, cache=None):
            if failing and failing.pop():
                model(inputs, cache=cache[: len(cache) // 2] + [None] * 2)
                raise RuntimeError("out of memory")
            return model(inputs, cache=cache)

    unsound = MlxEngine(Failing(), ToyTokenizer(), name="unsound")
    for good in range(8):
        session = ChatSession(pair[0], generation=replace(PLAIN, num_draft_tokens=3), draft=unsound)
        plain = ChatSession(pair[0], generation=PLAIN)
        assert session.respond("hello world") == plain.respond("hello world")
        before = session.cached_tokens
        failing[:] = [True, *[False] * good]
        with pytest.raises(GenerationError, match="The draft model failed"):
            session.respond("the")
        assert session.cached_tokens >= before
        assert not draft_ids(session)
        assert not failing
        check_next_logits(session)
        session.respond("again")
        check_next_logits(session)
        check_draft(session)


@pytest.mark.parametrize("kind", ["full", "sliding"])
def test_a_checkpoint_of_an_earlier_reply_is_never_gone_back_to(kind):
    make, kwargs = KINDS[kind]
    engine = toy_engine(make, **kwargs)
    session = ChatSession(
        engine,
        generation=PLAIN,
        draft=disturbed(engine, make, noise=0.05, **kwargs),
    )
    session.respond("hello world hello world")
    assert acceptance_of(session).proposed > 0
    session.instructions = "the hello world the hello world the hello world"

    def fail_when_read(fed, total):
        if fed == total:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        session.respond("he he he he", prompt_progress_callback=fail_when_read)
    check_next_logits(session)
    session.respond("he")
    check_next_logits(session)


@pytest.mark.proof
@pytest.mark.parametrize("kind", ["hybrid", "recurrent"])
def test_a_failure_while_a_closed_reply_is_tidied_up_empties_the_cache(kind):
    make, kwargs = KINDS[kind]
    engine = toy_engine(make, **kwargs)
    draft = disturbed(engine, make, noise=0.1, **kwargs)
    model = engine.model
    failed = 0
    for taken in range(1, 10):
        session = ChatSession(engine, generation=replace(PLAIN, num_draft_tokens=4), draft=draft)
        session.respond("hello world hello world")
        reply = session.stream("the the the")
        list(itertools.islice(reply, taken))

        def failing(inputs, cache):
            layers = len(cache) // 2
            model(inputs, cache=[*cache[:layers], *[None] * (len(cache) - layers)])
            raise RuntimeError("out of memory")

        put_model(session, failing)
        try:
            reply.close()
        except GenerationError:
            failed += 1
            assert session.cached_tokens == 0
        put_model(session, model)
        assert reply.ended
        assert len(session.history) == 4
        check_next_logits(session)
        session.respond("he")
        check_next_logits(session)
    assert failed > 2, "no close had anything to read again"


@pytest.mark.parametrize("draft", [None, "model", "lookup"])
@pytest.mark.parametrize("kind", KINDS)
def test_turns_may_come_from_different_threads(kind, draft):
    make, kwargs = KINDS[kind]
    engine = toy_engine(make, **kwargs)
    proposer = (
        "prompt-lookup" if draft == "lookup" else disturbed(engine, make, noise=0.1, **kwargs)
    )
    proposer = None if draft is None else proposer
    config = replace(PLAIN, num_draft_tokens=3)
    session = ChatSession(engine, generation=config, draft=proposer)
    other = ChatSession(engine, generation=config, draft=proposer)
    for number, text in enumerate(("hello hello hello", "the the", "he")):
        with ThreadPoolExecutor(1) as elsewhere:
            assert elsewhere.submit(session.respond, text).result() == other.respond(text)
        with session.stream("more") as reply, other.stream("more") as same:
            list(itertools.islice(reply, number))
            list(itertools.islice(same, number))
    check_next_logits(session)


def test_with_a_seed_a_bad_draft_model_switches_itself_off_all_the_same(pair, monkeypatch):
    monkeypatch.undo()
    bad = toy_engine(head_dim=64)
    config = GenerationConfig(max_tokens=150, temperature=0.7, seed=1)
    replies = []
    for _ in range(2):
        session = ChatSession(pair[0], generation=replace(config, num_draft_tokens=5), draft=bad)
        replies.append(session.respond("hello"))
        proposed, _ = acceptance_of(session)
        assert 0 < proposed <= 60
    assert replies[0] == replies[1]


def test_for_a_single_token_nothing_is_drafted_or_read_by_the_draft(pair):
    session = ChatSession(
        pair[0],
        generation=GenerationConfig(max_tokens=1),
        draft=draft_for(pair, "model"),
    )
    session.respond("hello world")
    assert draft_ids(session) == []
    assert session.acceptance_rate is None


def test_progress_counts_what_this_turn_reads(pair):
    for proposer in (None, draft_for(pair, "lookup")):
        session = ChatSession(
            pair[0],
            generation=GenerationConfig(max_tokens=8, prefill_step_size=8),
            draft=proposer,
        )
        session.respond("hello hello hello hello")
        told = []

        def note(fed, total, session=session, told=told):
            told.append((fed, total, session.cached_tokens))

        reply = session.stream("the the the", prompt_progress_callback=note)
        list(reply)
        total = reply.prompt_tokens - reply.cached_tokens
        assert told[0][:2] == (0, total)
        assert told[-1][:2] == (total, total)
        assert all(held == reply.cached_tokens + fed for fed, _, held in told)


def test_a_pass_that_fails_after_all_proposals_were_rejected_empties_the_cache(pair):
    """The caches were in step after the rejection, and no longer in the pass after it.

    Before the last token, nothing is proposed any more.
    """
    model, config = pair[0].model, replace(PLAIN, max_tokens=12)
    failed = 0
    for good in range(1, config.max_tokens + 3):
        context = context_for(pair[0], CacheConfig(), draft=toy_engine(head_dim=64))
        left = [good]

        def failing(inputs, cache, left=left):
            left[0] -= 1
            if left[0]:
                return model(inputs, cache=cache)
            model(inputs, cache=[*cache[:2], None, None])
            raise RuntimeError("out of memory")

        put_model(context, failing)
        with pytest.raises(GenerationError):
            list(run(context, [5, 6, 7], config))
        assert context.offset == 0
        assert all(layer.empty() for layer in layers_of(context))
        failed += context.acceptance.proposed > context.acceptance.accepted == 0
    assert failed > 3
