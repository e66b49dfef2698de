"""Sampling: filters, penalties, seeds and what is reported, through sessions on a tiny model."""

from __future__ import annotations

import dataclasses
import math

import mlx.core as mx
import pytest

from kit.logits import fresh_logits
from kit.models import toy_engine
from kit.probe import ids_of
from segue import ChatSession, ConfigurationError, GenerationConfig, Message
from segue.mlx.sampling import Sampling
from segue.testing import ToyTokenizer

HOT = GenerationConfig(max_tokens=24, temperature=1.0, seed=7)
VOCABULARY = len(ToyTokenizer())


@pytest.fixture(scope="module")
def engine():
    return toy_engine()


def tokens(engine, config, prompt="hello", **kwargs):
    with ChatSession(engine, generation=config, **kwargs).stream(prompt) as reply:
        return [response.token for response in reply]


def sampling(**settings) -> Sampling:
    return Sampling(
        GenerationConfig(**settings), vocabulary=lambda: VOCABULARY, xtc_special_tokens=[]
    )


def draws(count=200, *, logits, seed=0, **settings) -> set[int]:
    sample = sampling(seed=seed, **{"temperature": 1.0, **settings})
    return {sample(mx.array([logits]), None).id() for _ in range(count)}


# --- seeds --------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_reply(engine):
    assert tokens(engine, HOT) == tokens(engine, HOT)
    assert tokens(engine, HOT) != tokens(engine, dataclasses.replace(HOT, seed=8))


def test_every_turn_starts_from_the_seed(engine):
    session = ChatSession(engine, generation=GenerationConfig(max_tokens=0))
    session.respond("hello")
    history, session.generation = session.history, HOT
    with session.stream("again") as reply:
        said = [response.token for response in reply]
    assert said == tokens(engine, HOT, "again", history=history)


def test_seeded_sessions_that_take_turns_do_not_disturb_each_other(engine):
    alone = tokens(engine, HOT)
    one = ChatSession(engine, generation=HOT).stream("hello")
    other = ChatSession(engine, generation=dataclasses.replace(HOT, seed=9)).stream("hello")
    mixed = []
    for response in one:
        mixed.append(response.token)
        next(other, None)
        mx.random.normal((3,))
    other.close()
    assert mixed == alone


def test_without_a_seed_mlx_s_own_state_decides(engine):
    config = dataclasses.replace(HOT, seed=None)
    mx.random.seed(3)
    first = tokens(engine, config)
    second = tokens(engine, config)
    mx.random.seed(3)
    assert tokens(engine, config) == first
    assert first != second


# --- filters ------------------------------------------------------------------------------------

LOGITS = [0.0, math.log(2), math.log(4), math.log(8)]  # probabilities 1, 2, 4 and 8 of 15


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 2}, {2, 3}),
        ({"top_k": 1}, {3}),
        ({"top_k": 4}, {0, 1, 2, 3}),
        ({"top_k": 99}, {0, 1, 2, 3}),
        ({"top_p": 0.5}, {3}),
        ({"top_p": 0.7}, {2, 3}),
        ({"top_p": 0.0}, {0, 1, 2, 3}),
        ({"min_p": 0.45}, {2, 3}),
        ({"min_p": 0.45, "min_tokens_to_keep": 3}, {1, 2, 3}),
        ({"min_p": 0.9, "min_tokens_to_keep": 99}, {0, 1, 2, 3}),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.2}, {0, 1, 2}),
        ({"xtc_probability": 0.0, "xtc_threshold": 0.2}, {0, 1, 2, 3}),
    ],
)
def test_filters_leave_exactly_these_tokens(settings, allowed):
    assert draws(400, logits=LOGITS, **settings) == allowed


def test_xtc_excludes_as_often_as_it_is_told():
    sample = sampling(temperature=1.0, seed=1, xtc_probability=0.5, xtc_threshold=0.2)
    likeliest = sum(sample(mx.array([LOGITS]), None).id() == 3 for _ in range(600))
    # 8 of 15 without exclusion, never with it: 0.27 in all.
    assert 0.2 < likeliest / 600 < 0.34


def test_sampling_follows_the_distribution():
    sample = sampling(temperature=1.0, seed=5)
    counts = [0] * 4
    for _ in range(1500):
        counts[sample(mx.array([LOGITS]), None).id()] += 1
    expected = [1500 * share / 15 for share in (1, 2, 4, 8)]
    chi_squared = sum((n - e) ** 2 / e for n, e in zip(counts, expected, strict=True))
    assert chi_squared < 16.3  # the 0.999 quantile at three degrees of freedom


def test_temperature_sharpens():
    cold = sampling(temperature=0.2, seed=5)
    hits = sum(cold(mx.array([LOGITS]), None).id() == 3 for _ in range(300))
    assert hits > 270


# --- penalties and bias -------------------------------------------------------------------------


def test_penalties_see_the_conversation_in_the_cache_not_only_this_turn(engine):
    seen = []

    def look(tokens, logits):
        seen.append(tokens.tolist())
        return logits

    config = GenerationConfig(max_tokens=4, logits_processors=(look,))
    session = ChatSession(engine, generation=config)
    session.respond("hello")
    seen.clear()
    with session.stream("again") as reply:
        list(reply)
    assert reply.cached_tokens > 0
    ids = list(ids_of(session))
    said = len(reply.tokens)
    assert seen[: said + 1] == [ids[: reply.prompt_tokens + n] for n in range(said + 1)]


def test_a_repetition_penalty_forbids_what_the_first_turn_said(engine):
    plain = tokens(engine, GenerationConfig(max_tokens=1))
    banned = GenerationConfig(max_tokens=1, repetition_penalty=1e6, repetition_context_size=500)
    history = [Message.user("x"), Message.assistant(engine.tokenizer.decode(plain))]
    free = tokens(engine, GenerationConfig(max_tokens=1), history=history)
    again = tokens(engine, banned, history=history)
    ids = engine.tokenizer.encode("")
    session = ChatSession(engine, generation=banned, history=history)
    session.respond("hello")
    ids = ids_of(session)[: session.cached_tokens - 1]
    logits = fresh_logits(engine.model, ids)
    expected = mx.argmax(
        mx.where(
            (mx.arange(logits.size)[:, None] == mx.array(list(ids))).any(axis=1),
            mx.where(logits < 0, logits * 1e6, logits / 1e6),
            logits,
        )
    )
    assert again == [expected.item()]
    assert isinstance(free, list)


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
def test_other_penalties_keep_tokens_from_coming_back(engine, name):
    config = GenerationConfig(
        max_tokens=30, logit_bias={257: -100.0}, **{name: 100.0, f"{name[:-7]}context_size": 500}
    )
    said = tokens(engine, config)
    assert len(set(said)) == len(said)


def test_logit_bias_forces_and_forbids(engine):
    assert tokens(engine, GenerationConfig(max_tokens=3, logit_bias={65: 1000.0})) == [65] * 3
    first = tokens(engine, GenerationConfig(max_tokens=1))[0]
    assert tokens(engine, GenerationConfig(max_tokens=1, logit_bias={first: -1000.0})) != [first]


def test_logit_bias_outside_the_vocabulary_is_refused_before_anything_changes(engine):
    session = ChatSession(engine, generation=GenerationConfig(logit_bias={VOCABULARY: 1.0}))
    with pytest.raises(ConfigurationError, match=f"below {VOCABULARY}"):
        session.respond("hi")
    assert session.history == ()


# --- processors ---------------------------------------------------------------------------------


class Counting:
    """Allows only token 65 + n in its n-th call."""

    def __init__(self):
        self.calls = 0

    def __call__(self, tokens, logits):
        allowed = 65 + self.calls
        self.calls += 1
        return mx.where(mx.arange(logits.shape[-1]) == allowed, logits, -mx.inf)


def test_stateful_processors_start_afresh_each_turn(engine):
    processor = Counting()
    session = ChatSession(
        engine, generation=GenerationConfig(max_tokens=3, logits_processors=(processor,))
    )
    assert session.respond("a") == session.respond("b") == "ABC"
    assert processor.calls == 0


def test_a_processor_that_can_not_be_copied_is_refused_before_anything_changes(engine):
    class Stubborn(Counting):
        def __deepcopy__(self, memo):
            raise TypeError("no copies")

    config = GenerationConfig(logits_processors=(Stubborn(),))
    session = ChatSession(engine, generation=config)
    with pytest.raises(ConfigurationError, match="no copies"):
        session.respond("a")
    assert session.history == ()


def test_a_processor_that_fails_ends_the_turn_with_its_error(engine):
    def fail(tokens, logits):
        raise ZeroDivisionError

    session = ChatSession(engine, generation=GenerationConfig(logits_processors=(fail,)))
    with pytest.raises(ZeroDivisionError):
        session.respond("a")
    session.generation = GenerationConfig(max_tokens=2)
    session.respond("b")


# --- logprobs -----------------------------------------------------------------------------------


def test_logprobs_are_those_of_a_fresh_prefill(engine):
    config = GenerationConfig(max_tokens=4, logprobs=3)
    session = ChatSession(engine, generation=config)
    with session.stream("hello") as reply:
        responses = list(reply)
    for n, response in enumerate(responses):
        ids = ids_of(session)[: reply.prompt_tokens + n]
        logits = fresh_logits(engine.model, ids)
        expected = logits - mx.logsumexp(logits)
        assert len(response.logprobs) == 3
        assert next(iter(response.logprobs)) == response.token
        values = list(response.logprobs.values())
        assert values == sorted(values, reverse=True)
        best = mx.sort(expected)[::-1][:3].tolist()
        assert values == pytest.approx(best, rel=1e-3)
        for token, value in response.logprobs.items():
            assert expected[token].item() == pytest.approx(value, rel=1e-3)


def test_logprobs_include_the_sampled_token(engine):
    config = dataclasses.replace(HOT, logprobs=1)
    with ChatSession(engine, generation=config).stream("hello") as reply:
        responses = list(reply)
    assert all(response.token in response.logprobs for response in responses)
    assert any(len(response.logprobs) == 2 for response in responses)


def test_logprobs_of_more_tokens_than_there_are(engine):
    config = GenerationConfig(max_tokens=1, logprobs=10_000)
    with ChatSession(engine, generation=config).stream("hello") as reply:
        assert len(next(reply).logprobs) == VOCABULARY


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [({"temperature": 1e-40}, {3}), ({"top_p": 1e-300}, {3}), ({"min_p": 1.0}, {3})],
)
def test_extreme_settings_mean_what_they_say(settings, allowed):
    assert draws(50, logits=LOGITS, **settings) == allowed


def test_an_eos_outside_the_vocabulary_does_not_reach_xtc():
    engine = toy_engine()
    engine.tokenizer.__class__ = type(
        "Odd", (ToyTokenizer,), {"eos_token_ids": property(lambda _: {10**9, 257})}
    )
    config = GenerationConfig(max_tokens=4, temperature=1.0, xtc_probability=1.0, seed=1)
    assert len(tokens(engine, config)) <= 4
