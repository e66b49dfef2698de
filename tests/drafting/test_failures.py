"""What goes wrong with a draft, and what a session is spared."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest

from kit.drafts import KINDS, PLAIN, check_draft, speculative_for
from kit.logits import check_next_logits
from kit.models import disturbed, toy_engine
from kit.probe import acceptance_of, draft_ids, put_model
from segue import (
    ChatSession,
    GenerationConfig,
    GenerationError,
    MlxEngine,
    SpeculativeDecodingConfig,
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
        session = ChatSession(
            pair[0], generation=PLAIN, speculative=SpeculativeDecodingConfig(unsound, 3)
        )
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
def test_a_mark_of_an_earlier_reply_is_never_gone_back_to(kind):
    make, kwargs = KINDS[kind]
    engine = toy_engine(make, **kwargs)
    session = ChatSession(
        engine,
        generation=PLAIN,
        speculative=SpeculativeDecodingConfig(disturbed(engine, make, noise=0.05, **kwargs), 4),
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
        session = ChatSession(
            engine, generation=PLAIN, speculative=SpeculativeDecodingConfig(draft, 4)
        )
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
    speculative = None if draft is None else SpeculativeDecodingConfig(proposer, 3)
    session = ChatSession(engine, generation=PLAIN, speculative=speculative)
    other = ChatSession(engine, generation=PLAIN, speculative=speculative)
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
        session = ChatSession(
            pair[0], generation=config, speculative=SpeculativeDecodingConfig(bad, 5)
        )
        replies.append(session.respond("hello"))
        proposed, _ = acceptance_of(session)
        assert 0 < proposed <= 60
    assert replies[0] == replies[1]


def test_for_a_single_token_nothing_is_drafted_or_read_by_the_draft(pair):
    session = ChatSession(
        pair[0],
        generation=GenerationConfig(max_tokens=1),
        speculative=speculative_for(pair, "model"),
    )
    session.respond("hello world")
    assert draft_ids(session) == []
    assert session.acceptance_rate is None


def test_progress_counts_what_this_turn_reads(pair):
    for speculative in (None, speculative_for(pair, "lookup")):
        session = ChatSession(
            pair[0],
            generation=GenerationConfig(max_tokens=8, prefill_step_size=8),
            speculative=speculative,
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
