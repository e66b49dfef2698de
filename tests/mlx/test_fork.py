"""Forks of a context: independent, exact, and small."""

from __future__ import annotations

import gc
import itertools
import random

import mlx.core as mx
import pytest

from kit.contexts import (
    KINDS,
    SEEDED,
    Line,
    begun,
    cache_of,
    check_fresh,
    config_of,
    context_for,
    elsewhere,
    engine_for,
    run,
    words,
)
from kit.mlx_sessions import foreign
from kit.models import disturbed, tiny_llama, toy_engine
from kit.probe import draft_ids, draft_offset, layers_of, put_model, resting_layers, shares_rows
from segue import GenerationError


def check(line: Line, kind: str, past: list[tuple[list[int], dict]], engine) -> None:
    """The oracle: a context that was never forked, and was told the same."""
    alone = begun(kind, engine=engine)
    for new, settings in past:
        alone.say(new, config_of(**settings))
    assert line.ids == alone.ids
    assert mx.array_equal(line.logits(), alone.logits())
    assert line.context.checkpoints.offsets == alone.context.checkpoints.offsets
    check_fresh(line, engine, cache_of(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["parent first", "fork first", "in turns"])
def test_both_go_on_as_if_alone(kind, order):
    engine = engine_for(kind)
    parent = begun(kind, engine=engine)
    fork = parent.fork()
    assert fork.context.checkpoints == parent.context.checkpoints
    lines = [(parent, 5, []), (fork, 6, [])]
    if order == "fork first":
        lines.reverse()
    turns = [(line, turn) for line in lines for turn in range(2)]
    if order == "in turns":
        turns = [(line, turn) for turn in range(2) for line in lines]
    for (line, seed, past), turn in turns:
        settings = SEEDED if turn else {"max_tokens": 12}
        past.append((words(seed + turn, 8), settings))
        line.say(words(seed + turn, 8), config_of(**settings))
    for line, _, past in lines:
        check(line, kind, past, engine)


@pytest.mark.parametrize("kind", KINDS)
def test_both_come_back_to_where_they_could(kind):
    """Rewound as one that was never forked: into what is shared, and into what is not."""
    engine = engine_for(kind)
    fork = (parent := begun(kind, engine=engine)).fork()
    for line, seed in ((fork, 5), (parent, 6)):
        alone = begun(kind, engine=engine)
        for each in (line, alone):
            each.say(words(seed, 9), config_of(max_tokens=4))
        for offset in (len(line.ids) - 6, 33, 15, 2):
            assert line.back(offset) == alone.back(offset)
            if line.ids:
                assert mx.array_equal(line.logits(), alone.logits())
        again = words(seed + 2, 4)
        assert line.say(again, config_of()) == alone.say(again, config_of())
        check_fresh(line, engine, cache_of(kind))


@pytest.mark.parametrize("kind", ["full", "quantized"])
def test_what_one_thread_put_together_another_works_on(kind):
    engine = engine_for(kind)
    fork = begun(kind, engine=engine).fork()
    other = fork.fork()
    fork.say(words(5, 5), config_of())
    elsewhere(lambda: layers_of(fork.context))
    fork.say(words(6, 5), config_of())
    check(fork, kind, [(words(5, 5), {}), (words(6, 5), {})], engine)
    check(other, kind, [], engine)


@pytest.mark.parametrize("kind", KINDS)
def test_any_thread_may_go_on_with_either(kind):
    engine = engine_for(kind)
    parent = begun(kind, engine=engine)
    lines: list[Line] = [parent]
    elsewhere(lambda: lines.append(parent.fork()))
    fork = lines[1]
    elsewhere(lambda: parent.say(words(5, 5), config_of()))
    elsewhere(lambda: fork.say(words(6, 5), config_of()))
    parent.say(words(7, 5), config_of())
    elsewhere(lambda: fork.say(words(8, 5), config_of()))
    check(parent, kind, [(words(5, 5), {}), (words(7, 5), {})], engine)
    check(fork, kind, [(words(6, 5), {}), (words(8, 5), {})], engine)


@pytest.mark.proof
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_a_tree_of_forks(kind, seed):
    """Turns, rewinds, forks and deaths in any order; each is what one that read the same is."""
    dice = random.Random(f"{kind} {seed}")
    engine = engine_for(kind)
    lines = [begun(kind, 1, engine=engine)]
    for step in range(40):
        line = dice.choice(lines)
        action = dice.choice(["turn", "turn", "rewind", "fork", "fork", "drop", "closed"])
        if action == "turn":
            line.say(words(step, dice.randint(1, 9)), config_of(max_tokens=dice.randint(0, 5)))
        elif action == "closed":
            prompt = [*line.ids, *words(step, 3)]
            reply = run(line.context, prompt, config_of(), checkpoints=(len(prompt),), pinned=6)
            line.ids = [*prompt, *(step.token for step in itertools.islice(reply, 2))]
            reply.close()
        elif action == "rewind":
            line.back(dice.randint(0, line.context.offset))
        elif action == "fork" and len(lines) < 6:
            lines.append(line.fork())
        elif action == "drop" and len(lines) > 1:
            lines.remove(line)
        # What the turns' passes rounded otherwise adds up, and is not what is asked here.
        if KINDS[kind][2].get("kv_bits") is None:
            check_fresh(dice.choice(lines), engine, cache_of(kind))
    assert len(lines) > 1


@pytest.mark.usefixtures("never_paused")
@pytest.mark.parametrize("settings", [{}, SEEDED])
@pytest.mark.parametrize("draft", ["model", "lookup"])
def test_the_draft_is_forked_as_well(draft, settings):
    engine = toy_engine()
    proposer = disturbed(engine, noise=0.1) if draft == "model" else "prompt-lookup"
    config = config_of(max_tokens=16, num_draft_tokens=4, **settings)

    def begin() -> Line:
        line = Line(context_for(engine, cache_of("full"), draft=proposer))
        line.say([*words(1, 9)] * 3, config)
        return line

    parent = begin()
    # What is drawn by chance repeats nothing that could be looked up.
    assert parent.context.acceptance.proposed or (draft, settings) == ("lookup", SEEDED)
    fork = parent.fork()
    assert fork.context.acceptance == (0, 0)
    for line, seed in ((fork, 2), (parent, 3), (fork, 4)):
        alone = begin()
        if seed == 4:
            alone.say(words(2, 5), config)
        line_said, alone_said = (
            list(run(each.context, [*each.ids, *words(seed, 5)], config)) for each in (line, alone)
        )
        assert line_said == alone_said
        line.ids += [*words(seed, 5), *(step.token for step in line_said)]
        alone.ids = line.ids
        assert mx.array_equal(line.logits(), alone.logits())
        if draft == "model":
            assert draft_ids(line.context) == draft_ids(alone.context)
            for each in (line, alone, parent, fork):
                assert draft_offset(each.context) == len(draft_ids(each.context))


def test_a_failure_in_one_is_none_of_the_others(monkeypatch):
    engine = toy_engine()
    fork = (parent := begun("full", engine=engine)).fork()
    before = parent.logits()
    model = engine.model

    def failing(inputs, cache):
        model(inputs, cache=[*cache[:2], None, None])
        raise RuntimeError("out of memory")

    put_model(fork.context, failing)
    with pytest.raises(GenerationError):
        fork.say(words(5, 5), config_of())
    assert fork.context.offset == 0
    assert mx.array_equal(parent.logits(), before)
    put_model(fork.context, model)
    fork.ids = []
    fork.say(words(5, 5), config_of())
    check_fresh(fork, engine, cache_of("full"))
    check_fresh(parent, engine, cache_of("full"))


def test_an_opaque_prefix_is_in_front_of_both(tmp_path):
    engine, config, cache = toy_engine(), config_of(), cache_of("full")
    foreign(engine, tmp_path / "c.safetensors", words(3, 20))
    stored = engine.load_cache(tmp_path / "c.safetensors")
    parent = Line(context_for(engine, cache, start=stored))
    at_once = parent.fork()
    parent.say(words(1, 9), config)
    fork = parent.fork()
    assert fork.back(0) == 20
    for line in (fork, at_once):
        line.say(words(1, 9), config)
        assert line.ids == parent.ids
        assert mx.array_equal(line.logits(), parent.logits())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_of_a_fork_is_what_is_stored_of_one_alone(kind, tmp_path):
    engine = engine_for(kind)
    fork = (parent := begun(kind, engine=engine)).fork()
    alone = begun(kind, engine=engine)
    for turn in range(2):
        for line in (fork, alone):
            line.say(words(5 + turn, 9), config_of())
            line.context.save(tmp_path / f"{line is fork}", {})
        saved = [engine.load_cache(tmp_path / f"{of}") for of in (True, False)]
        again = [Line(engine.context(cache_of(kind)), fork.ids) for _ in saved]
        for started, each in zip(again, saved, strict=True):
            started.context.start_from(each, opaque=False)
        assert mx.array_equal(again[0].logits(), again[1].logits())
        assert fork.context.stored() == alone.context.stored()
    assert parent.context.stored() == begun(kind, engine=engine).context.stored()


# --- memory -------------------------------------------------------------------------------------


def held() -> int:
    gc.collect()
    mx.synchronize()
    mx.clear_cache()
    return mx.get_active_memory()


@pytest.mark.proof
@pytest.mark.parametrize(
    ("tokens", "settings"),
    [(4000, {}), (1500, {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 0})],
)
def test_ten_forks_share_what_they_have_in_common(tokens, settings):
    engine = toy_engine(tiny_llama, head_dim=256, layers=2)
    config = config_of(prefill_step_size=512, max_tokens=10)
    cache = cache_of("full", **settings)
    parent = Line(engine.context(cache))
    before = held()
    parent.say(words(1, tokens), config)
    copy_size = held() - before
    # Its rows have room for at most 256 more.
    forks = [parent.fork() for _ in range(10)]
    assert held() - before - copy_size < 2**14, "a fork allocates nothing"
    for seed, fork in enumerate(forks):
        fork.say(words(seed, 40), config)
    own = held() - before - copy_size
    row = copy_size / (-(-(tokens + 10) // 256) * 256)
    assert own < 10 * 51 * row * 1.3
    assert own < 0.5 * copy_size
    # At work, one holds a copy of its own, and not two.
    rested = held()
    mx.reset_peak_memory()
    forks[0].say(words(3, 40), config)
    # Beside what attention itself needs, which is more than a quantized copy.
    if not settings:
        assert mx.get_peak_memory() - rested < 1.2 * copy_size
    assert held() - rested < 80 * row
    # Once they are alone with it, nothing of it is held twice.
    del forks[1:]
    parent.say(words(3, 40), config)
    del parent
    forks[0].say(words(9, 5), config)
    assert held() - before < 1.2 * copy_size
    check_fresh(forks[0], engine, cache)


def test_forks_of_forks_share_what_they_have_in_common():
    engine = toy_engine(tiny_llama, head_dim=256, layers=2)
    config, cache = config_of(prefill_step_size=512, max_tokens=10), cache_of("full")
    lines = [Line(engine.context(cache))]
    before = held()
    lines[0].say(words(1, 2000), config)
    copy_size = held() - before
    for seed in range(8):
        lines.append(lines[-1].fork())
        lines[-1].say(words(seed, 40), config)
    assert held() - before < 1.4 * copy_size
    # Rewound to what the first one said, each holds that alone.
    for line in lines[1:]:
        assert line.back(1500) == 1500
    assert held() - before < 1.05 * copy_size
    lines[4].say(words(2, 3), config)
    check_fresh(lines[4], engine, cache)
    check_fresh(lines[0], engine, cache)


def test_without_forks_nothing_is_put_away():
    line = begun("full")
    assert not shares_rows(line.context)
    assert all(layer.keys is not None for layer in resting_layers(line.context))
    fork = line.fork()
    assert all(layer.keys is None for layer in resting_layers(line.context))
    del fork
    # The only one left holds its rows as ever, and they are not copied for it.
    before = held()
    line.say(words(5, 3), config_of())
    assert all(layer.keys is not None for layer in resting_layers(line.context))
    assert held() - before < 2**14
