"""Speculative decoding says what plain decoding says, and both caches stay what they should be."""

from __future__ import annotations

import itertools
import random
from array import array
from dataclasses import replace

import mlx.core as mx
import pytest

from kit.contexts import context_for, run
from kit.drafts import KINDS, PLAIN, check_draft, draft_for
from kit.logits import check_next_logits
from kit.models import disturbed, tiny_llama, toy_engine
from kit.probe import acceptance_of, draft_ids, ids_of, ledger_of, model_of, put_model
from segue import (
    CacheConfig,
    ChatSession,
    ConfigurationError,
    GenerationConfig,
    GenerationError,
    MlxEngine,
    SessionFile,
)
from segue.testing import FakeEngine, ToyTokenizer

pytestmark = pytest.mark.usefixtures("never_paused")


def decode(engine, ids, config, draft=None, cache=CacheConfig()):  # noqa: B008 (immutable)
    context = context_for(engine, cache, draft=draft)
    return context, list(run(context, ids, config))


def random_ids(rng: random.Random, most: int = 30) -> list[int]:
    """Few different ids, so that lookups find something."""
    words = [rng.randrange(len(ToyTokenizer())) for _ in range(4)]
    return [rng.choice(words) for _ in range(rng.randint(1, most))]


@pytest.mark.proof
def test_greedy_tokens_are_those_of_plain_decoding():
    engine = toy_engine(layers=1)
    drafts = ["prompt-lookup", *(disturbed(engine, noise=noise, layers=1) for noise in (0.1, 1.0))]
    config = GenerationConfig(max_tokens=10)
    rng = random.Random(0)
    accepted = [0, 0, 0]
    for number in range(1000):
        ids = random_ids(rng)
        plain = [step.token for step in decode(engine, ids, config)[1]]
        config = replace(config, num_draft_tokens=1 + number % 8)
        context, steps = decode(engine, ids, config, drafts[number % 3])
        assert [step.token for step in steps] == plain
        assert sum(step.from_draft for step in steps) == context.acceptance.accepted
        assert context.acceptance.accepted <= context.acceptance.proposed
        accepted[number % 3] += context.acceptance.accepted
    assert all(accepted), "a draft that is never right shows nothing"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("draft", [*KINDS, "lookup"])
def test_every_kind_of_cache_follows_and_is_kept_from_turn_to_turn(kind, draft):
    make, kwargs = KINDS[kind]
    engine = toy_engine(make, **kwargs)
    if draft == "lookup":
        proposer = "prompt-lookup"
    elif draft == kind:
        proposer = disturbed(engine, make, noise=0.05, **kwargs)
    else:
        proposer = toy_engine(KINDS[draft][0], **KINDS[draft][1])
    plain = ChatSession(engine, generation=PLAIN)
    session = ChatSession(engine, generation=replace(PLAIN, num_draft_tokens=3), draft=proposer)
    for text in ("hello world hello world", "the the the the", "he"):
        assert session.respond(text) == plain.respond(text)
        check_next_logits(session)
        check_draft(session)
        assert session.cached_tokens == plain.cached_tokens
    assert session.acceptance_rate is not None
    if draft == kind:
        assert session.acceptance_rate > 0.2


@pytest.mark.proof
@pytest.mark.parametrize("kind", ["full", "sliding", "hybrid"])
@pytest.mark.parametrize("draft", ["model", "lookup"])
def test_closing_at_any_token_leaves_both_caches_exact(kind, draft):
    make, kwargs = KINDS[kind]
    engine = toy_engine(make, **kwargs)
    proposer = disturbed(engine, make, noise=0.1, **kwargs) if draft == "model" else "prompt-lookup"
    for end in range(13):
        plain = ChatSession(engine, generation=PLAIN)
        session = ChatSession(engine, generation=replace(PLAIN, num_draft_tokens=5), draft=proposer)
        for text in ("hello hello hello hello", "world world world"):
            for conversation in (plain, session):
                with conversation.stream(text) as reply:
                    list(itertools.islice(reply, end))
            assert session.history == plain.history
            assert ledger_of(session) == ledger_of(plain)
            check_next_logits(session)
            check_draft(session)


@pytest.mark.proof
@pytest.mark.parametrize("draft", ["model", "lookup"])
@pytest.mark.parametrize(
    "settings",
    [
        {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 0},
        {"kv_bits": 4, "kv_group_size": 32, "quantized_kv_start": 30},
        {"max_kv_size": 40},
        {"max_kv_size": 24, "prefill_step_size": 7},
    ],
)
def test_quantized_and_bounded_caches_decode_as_without_a_draft(pair, draft, settings):
    step_size = settings.pop("prefill_step_size", PLAIN.prefill_step_size)
    config = replace(PLAIN, max_tokens=24, prefill_step_size=step_size)
    cache = CacheConfig(**settings)
    rng = random.Random(3)
    for _ in range(12):
        ids = random_ids(rng, most=24)
        plain = [step.token for step in decode(pair[0], ids, config, cache=cache)[1]]
        _, steps = decode(pair[0], ids, config, draft_for(pair, draft), cache)
        assert [step.token for step in steps] == plain


@pytest.mark.parametrize("draft", ["model", "lookup"])
@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.3},
        {"presence_penalty": 2.0, "presence_context_size": 6},
        {"frequency_penalty": 1.0, "frequency_context_size": 8},
        {"logit_bias": {101: 3.0, 257: -100.0}},
        {"logprobs": 3},
        {"stop": ("e", "th")},
    ],
)
def test_settings_work_as_in_plain_decoding(pair, draft, settings):
    config = GenerationConfig(max_tokens=24, **settings)
    plain = ChatSession(pair[0], generation=config)
    session = ChatSession(pair[0], generation=config, draft=draft_for(pair, draft))
    for text in ("hello world, hello world, hello", "the the he he the the he he"):
        expected, got = list(plain.stream(text)), list(session.stream(text))
        assert [response.token for response in got] == [response.token for response in expected]
        for one, other in zip(got, expected, strict=True):
            assert (one.logprobs is None) == (other.logprobs is None)
            if one.logprobs is not None:
                assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
                assert list(one.logprobs) == list(other.logprobs)
        assert session.history == plain.history
        check_next_logits(session)


class Remembering:
    """A processor with a state: it forbids the token it has seen most, and counts its calls."""

    calls: list[list[int]] = []

    def __init__(self):
        self.seen: dict[int, int] = {}
        self.length = 0

    def __call__(self, tokens, logits):
        ids = tokens.tolist()
        Remembering.calls.append(ids)
        for token in ids[self.length :]:
            self.seen[token] = self.seen.get(token, 0) + 1
        self.length = len(ids)
        worst = max(self.seen, key=lambda token: (self.seen[token], token))
        return mx.where(mx.arange(logits.shape[-1]) == worst, -1e9, logits)


@pytest.mark.parametrize("draft", ["model", "lookup"])
def test_a_processor_with_a_state_sees_what_it_sees_in_plain_decoding(pair, draft):
    config = GenerationConfig(max_tokens=20, logits_processors=(Remembering(),))
    ids = [1, 2, 3, 4] * 5
    seen = []
    for proposer in (None, draft_for(pair, draft)):
        Remembering.calls = []
        context, steps = decode(pair[0], ids, config, proposer)
        # Plain decoding is one token ahead of what it tells.
        seen.append((Remembering.calls[:20], [step.token for step in steps]))
    assert seen[0] == seen[1]
    assert context.acceptance.accepted > 0


@pytest.mark.proof
@pytest.mark.parametrize("temperature", [0.5, 1.5])
def test_with_a_seed_lookups_say_exactly_what_plain_decoding_says(pair, temperature):
    config = GenerationConfig(
        max_tokens=40, temperature=temperature, top_k=4, min_p=0.1, xtc_probability=0.3, seed=11
    )
    rng = random.Random(5)
    accepted = 0
    for _ in range(10):
        ids = random_ids(rng)
        plain = [step.token for step in decode(pair[0], ids, config)[1]]
        context, steps = decode(pair[0], ids, config, draft_for(pair, "lookup"))
        assert [step.token for step in steps] == plain
        accepted += context.acceptance.accepted
    assert accepted > 0


def test_with_a_seed_a_draft_model_repeats_itself_whatever_was_said_before(pair):
    config = GenerationConfig(max_tokens=20, temperature=1.0, seed=3)
    session = ChatSession(pair[0], generation=config, draft=draft_for(pair, "model"))
    other = ChatSession(pair[0], generation=config, draft=draft_for(pair, "model"))
    first = session.respond("hello")
    session.clear()
    other.respond("something else")
    other.clear()
    assert session.respond("hello") == other.respond("hello") == first


def test_eos_inside_what_was_accepted_ends_the_reply():
    engine = toy_engine()
    expected = [step.token for step in decode(engine, [5, 6, 7], PLAIN)[1]]

    class Ends(ToyTokenizer):
        @property
        def eos_token_ids(self):
            return {expected[3]}

    engine.tokenizer = Ends()
    end = expected.index(expected[3])
    draft = toy_engine()
    session = ChatSession(engine, generation=replace(PLAIN, num_draft_tokens=6), draft=draft)
    plain = ChatSession(engine, generation=PLAIN)
    assert end <= 3
    for text in ("he", "the"):
        assert session.respond(text) == plain.respond(text)
        assert ledger_of(session) == ledger_of(plain)
        check_next_logits(session)
        check_draft(session)


def test_a_draft_reads_each_turn_only_what_is_new(pair):
    fed = []
    draft = toy_engine()
    model = draft.model

    class Counting:
        args = model.args
        layers = model.layers

        def __call__(self, inputs, cache=None):
            fed.append(inputs.shape[1])
            return model(inputs, cache=cache)

    counted = MlxEngine(Counting(), ToyTokenizer(), name="counted")
    session = ChatSession(pair[0], generation=replace(PLAIN, num_draft_tokens=2), draft=counted)
    session.respond("hello world " * 20)
    held = len(draft_ids(session))
    fed.clear()
    session.respond("he")
    # What is read at once, before the drafts of one token each: the rest of the first reply, and
    # the second prompt's new tokens.
    new = len(ids_of(session)) - 16 - held
    assert max(fed) <= new + 3
    check_draft(session)


def test_changed_instructions_and_settings_leave_both_caches_exact(pair):
    session = ChatSession(
        pair[0],
        instructions="hello",
        generation=PLAIN,
        draft=draft_for(pair, "model"),
    )
    plain = ChatSession(pair[0], instructions="hello", generation=PLAIN)
    changes = [
        {"instructions": "world"},
        {"generation": GenerationConfig(max_tokens=9, num_draft_tokens=0)},
        {"instructions": None},
        {"generation": GenerationConfig(max_tokens=9)},
    ]
    rates = []
    for change in [{}, *changes]:
        for conversation in (session, plain):
            for name, value in change.items():
                setattr(conversation, name, value)
        assert session.respond("hello hello hello") == plain.respond("hello hello hello")
        check_draft(session)
        rates.append(acceptance_of(session))
    assert rates == sorted(rates), "a new cache must not forget what was accepted before"
    check_next_logits(session)


def test_a_draft_of_another_vocabulary_is_refused(pair):
    other = MlxEngine(tiny_llama(40), ToyTokenizer(words=("hi",)), name="other")
    with pytest.raises(ConfigurationError, match="another vocabulary"):
        ChatSession(pair[0], draft=other)


def test_a_draft_of_another_kind_of_engine_is_refused(pair):
    with pytest.raises(ConfigurationError, match="can't draft for a model that runs on MLX"):
        ChatSession(pair[0], draft=FakeEngine())


@pytest.mark.parametrize("draft", ["lookup", 3, MlxEngine])
def test_what_is_no_draft_is_refused(pair, draft):
    with pytest.raises(ConfigurationError, match="draft must be 'prompt-lookup' or an engine, not"):
        ChatSession(pair[0], draft=draft)
    with pytest.raises(ConfigurationError, match="can't draft for a model that runs on MLX"):
        context_for(pair[0], CacheConfig(), draft=draft)


@pytest.mark.parametrize("count", [-1, 65, 2.0, True])
def test_counts_out_of_range_are_refused(count):
    with pytest.raises(ConfigurationError, match="num_draft_tokens"):
        GenerationConfig(num_draft_tokens=count)


@pytest.mark.parametrize("width", [-6, 9])
def test_a_draft_whose_embedding_is_padded_otherwise_still_drafts(pair, width):
    vocabulary = len(ToyTokenizer())
    draft = MlxEngine(tiny_llama(vocabulary + width), ToyTokenizer(), name="padded")
    for config in (PLAIN, GenerationConfig(max_tokens=16, temperature=1.0, seed=1)):
        session = ChatSession(pair[0], generation=replace(config, num_draft_tokens=4), draft=draft)
        session.respond("hello")
        check_next_logits(session)


def test_without_a_draft_there_is_no_acceptance_rate(pair):
    session = ChatSession(pair[0], generation=PLAIN)
    session.respond("hello")
    assert session.acceptance_rate is None


@pytest.mark.parametrize("going_back", ["undo", "edit"])
def test_a_draft_forgets_what_was_taken_back_too(pair, going_back, tmp_path):
    session = ChatSession(pair[0], generation=PLAIN, draft=draft_for(pair, "model"))
    plain = ChatSession(pair[0], generation=PLAIN)
    decode = pair[0].tokenizer.decode
    for each in (session, plain):
        each.respond("hello")
        each.respond("SECRET word")
        assert each is plain or "SECRET" in decode(draft_ids(each))
        if going_back == "undo":
            each.undo()
        else:
            each.edit(2, "hello again")
    session.save(tmp_path / "talk.segue")
    part = SessionFile.read(tmp_path / "talk.segue", load=True).stored["draft"]
    kept = array("I", bytes(part.tensors["ids"].data)).tolist()
    assert kept
    assert "SECRET" not in decode(kept) + decode(draft_ids(session))
    assert session.respond("the") == plain.respond("the")
    check_next_logits(session)
    check_draft(session)


@pytest.mark.parametrize("draft", ["model", "lookup"])
def test_a_reply_may_do_without_the_draft(pair, draft):
    plain = ChatSession(pair[0], generation=PLAIN)
    session = ChatSession(pair[0], generation=PLAIN, draft=draft_for(pair, draft))
    for text, count in (("hello hello hello", 4), ("the the the", 0), ("hello the hello", 4)):
        before = acceptance_of(session)
        assert session.respond(text, num_draft_tokens=count) == plain.respond(text)
        assert (acceptance_of(session) == before) == (count == 0)
        check_next_logits(session)
        check_draft(session)


@pytest.mark.parametrize("draft", ["model", "lookup"])
def test_back_at_its_start_a_context_is_as_good_as_new(pair, draft):
    config = replace(PLAIN, temperature=1.0, seed=4)
    context = context_for(pair[0], CacheConfig(), draft=draft_for(pair, draft))
    list(run(context, [1, 2, 3, 4] * 9, config))
    assert "cache" in context.stored()
    assert draft_ids(context)
    proposed = context.acceptance.proposed
    assert context.rewind(0) == 0
    assert draft_ids(context) == []
    assert context.stored() == {}
    again, fresh = list(run(context, [7, 8, 9] * 5, config)), []
    new = context_for(pair[0], CacheConfig(), draft=draft_for(pair, draft))
    fresh = list(run(new, [7, 8, 9] * 5, config))
    assert again == fresh
    assert draft_ids(context) == draft_ids(new)
    assert context.acceptance.proposed == proposed + new.acceptance.proposed


def test_with_a_cache_that_a_failure_emptied_the_draft_knows_nothing_either(pair):
    session = ChatSession(pair[0], generation=PLAIN, draft=draft_for(pair, "model"))
    session.respond("SECRET word")
    model = model_of(session)

    def failing(inputs, cache):
        raise RuntimeError("out of memory")

    put_model(session, failing)
    with pytest.raises(GenerationError):
        session.respond("the")
    put_model(session, model)
    assert session.cached_tokens == 0
    assert draft_ids(session) == []
    session.respond("again")
    check_next_logits(session)
    check_draft(session)
