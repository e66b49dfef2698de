"""The invariants of a session over caches of every kind, with real models (Hypothesis)."""

from __future__ import annotations

import copy
import itertools
import os
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kit.models import tiny_chunked, tiny_hybrid, tiny_lists, tiny_llama, tiny_mamba
from kit.oracle import Expected, Recorder, Talk, wrap
from kit.probe import context_of, ids_of, layers_of
from kit.sessions import common_prefix, rendered
from segue import (
    CacheConfig,
    ChatSession,
    ConfigurationError,
    GenerationConfig,
    GenerationError,
    HistoryError,
    Message,
    Role,
)

BASE = GenerationConfig(max_tokens=3, prefill_step_size=16)
CACHE = CacheConfig(max_checkpoints=3, kv_group_size=32)
KINDS = {
    "full": (lambda size: tiny_llama(size, layers=2), {}),
    "rotating": (lambda size: tiny_llama(size, layers=2, window=16), {}),
    "recurrent": (tiny_mamba, {}),
    "hybrid": (tiny_hybrid, {}),
    "quantized": (
        lambda size: tiny_llama(size, layers=2),
        {"kv_bits": 8, "quantized_kv_start": 20},
    ),
    "chunked": (tiny_chunked, {}),
    "cache lists": (tiny_lists, {}),
}
# None of them is ever edited: a session is told of new instructions, they don't change behind it.
INSTRUCTIONS = st.none() | st.sampled_from(["Be brief.", "Be long.", "Bé"])
TEXTS = st.sampled_from(["", "the", "he", "é", "hello world", "why?"])


class Failing(Recorder):
    """A model that fails in the middle of a pass: some layers advanced, others did not."""

    fail_in = 0

    def __call__(self, tokens: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        if self.fail_in:
            self.fail_in -= 1
            if not self.fail_in:
                layers = kwargs["cache"]
                rest = list(layers[1:])
                self.model(tokens, cache=layers)
                # Only the first layer keeps what it read.
                layers[1:] = [type(layer).__new__(type(layer)) for layer in rest]
                raise RuntimeError("out of memory")
        return super().__call__(tokens, *args, **kwargs)


@cache
def engine_of(kind: str) -> Any:
    engine = wrap(KINDS[kind][0](262), kind)
    engine.model = Failing(engine.model.model)
    return engine


class CacheMachine(RuleBasedStateMachine):
    """Takes turns, breaks them off, makes them fail, and asks for caches of other kinds."""

    @initialize(kind=st.sampled_from(sorted(KINDS)), instructions=INSTRUCTIONS)
    def begin(self, kind, instructions):
        self.engine = engine_of(kind)
        self.engine.model.fail_in = 0
        self.engine.tokenizer.edits.clear()
        self.talk = Talk(self.engine, replace(CACHE, **KINDS[kind][1]))
        self.session.instructions = instructions
        self.session.generation = BASE
        self.said: list[Message] = []
        self.parked, self.saved = [], None
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "talk.segue"

    @property
    def session(self) -> ChatSession:
        return self.talk.session

    def record(self, text):
        self.said.append(Message.user(text))
        self.said.append(self.session.history[-1])
        assert self.said[-1].role is Role.ASSISTANT

    @rule(text=TEXTS, tokens=st.none() | st.integers(0, 3), look=st.booleans())
    def turn(self, text, tokens, look):
        # Fed exactly what had to be, and the logits those of a fresh context: see `Talk.turn`.
        self.talk.turn(text, close_after=tokens, look=look)
        self.record(text)

    @rule(text=TEXTS)
    def turn_beside_a_replay(self, text):
        """The oracle: the same messages on a session of its own get the same reply."""
        again = ChatSession(
            self.engine,
            instructions=self.session.instructions,
            history=self.said,
            generation=self.session.generation,
            cache=self.session.cache,
        )
        ours = self.talk.expected.held
        self.talk.turn(text, look=False)
        self.record(text)
        said = again.respond(text)
        # Where ids that were sampled stand that the tokenizer would not make, texts may differ.
        theirs = ids_of(again)
        prompt = self.talk.prompt_length
        if tuple(self.talk.expected.held[:prompt]) == theirs[:prompt]:
            if self.session.cache.kv_bits is None:
                assert said == self.said[-1].content
        else:
            assert common_prefix(ours, theirs) < len(ours)

    @rule(text=TEXTS, calls=st.integers(1, 4))
    def turn_that_fails(self, text, calls):
        reply = self.session.stream(text)
        self.talk.expected.turn_to(ids_of(self.session))
        self.engine.model.fail_in = calls
        self.engine.model.passes.clear()
        try:
            list(reply)
        except GenerationError:
            assert self.session.cached_tokens == 0
            self.talk.expected.clear()
        else:
            self.talk.fed(reply.prompt_tokens)
        finally:
            self.engine.model.fail_in = 0
        self.record(text)

    @rule(text=TEXTS, new=TEXTS)
    def edit_what_was_said(self, text, new):
        if new != text:
            self.engine.tokenizer.edits = {text: new}

    @rule(instructions=INSTRUCTIONS)
    def change_instructions(self, instructions):
        self.session.instructions = instructions

    @rule(
        wanted=st.sampled_from(
            [
                {},
                {"max_kv_size": 40},
                {"max_kv_size": 64},
                {"kv_bits": 8, "quantized_kv_start": 0},
                {"kv_bits": 8, "quantized_kv_start": 40},
            ]
        ),
        most=st.integers(0, 4),
    )
    def move_to_another_kind_of_cache(self, wanted, most):
        """A cache is of one kind for life: the conversation is saved, and opened with another."""
        config = replace(CACHE, max_checkpoints=most, **wanted)
        self.session.save(self.path)
        self.saved = None
        try:
            self.engine.context(config)
        except ConfigurationError:
            # What the model can't do is refused, and nothing changes.
            with pytest.raises(ConfigurationError):
                ChatSession.open(self.path, self.engine, cache=config)
            return
        same = config.kind == self.session.cache.kind
        self.session.close()
        self.talk.session = ChatSession.open(self.path, self.engine, cache=config)
        if not same:
            self.talk.expected = Expected(self.engine, config)
        self.talk.expected.most_checkpoints = most
        assert self.session.cached_tokens == len(self.talk.expected.held)

    @rule(step=st.integers(8, 60))
    def read_in_other_steps(self, step):
        self.session.generation = replace(BASE, prefill_step_size=step)

    @rule(turns=st.integers(1, 3))
    def undo(self, turns):
        if turns > len(self.said) // 2:
            with pytest.raises(HistoryError):
                self.session.undo(turns)
            return
        before = self.engine.tokenizer.decode(self.talk.expected.held)
        can_trim = self.talk.expected.can_trim() and not self.talk.expected.whole_before
        taken = self.session.undo(turns)
        assert list(taken) == self.said[-2 * turns :]
        del self.said[-2 * turns :]
        self.talk.went_back()
        # Of what stays, nothing is read again that is in the cache and can stay there.
        stays = rendered(self.session, self.said, prompt=False).rstrip()
        if can_trim and self.said and before.startswith(stays):
            assert self.engine.tokenizer.decode(self.talk.expected.held).startswith(stays)

    @precondition(lambda self: self.said)
    @rule(tokens=st.none() | st.integers(1, 3), look=st.booleans())
    def regenerate(self, tokens, look):
        self.said.pop()
        self.talk.take(lambda: self.session.stream_retry(seed=1), close_after=tokens, look=look)
        self.said.append(self.session.history[-1])

    @precondition(lambda self: self.said)
    @rule(turn=st.integers(0, 5), new=TEXTS, look=st.booleans())
    def edit_a_question(self, turn, new, look):
        place = 2 * (turn % (len(self.said) // 2))
        assert list(self.session.edit(place, new)) == self.said[place:]
        self.said[place:] = [Message.user(new)]
        self.talk.went_back()
        self.talk.take(self.session.stream_retry, look=look)
        self.said.append(self.session.history[-1])

    @rule(stay=st.booleans())
    def fork(self, stay):
        twin = copy.copy(self.talk)
        twin.session = self.session.fork()
        twin.expected = copy.deepcopy(self.talk.expected)
        mine, theirs = (self.talk, list(self.said)), (twin, list(self.said))
        self.parked.append(theirs if stay else mine)
        self.talk, self.said = mine if stay else theirs

    @precondition(lambda self: self.parked)
    @rule(look=st.booleans())
    def switch(self, look):
        self.parked.append((self.talk, self.said))
        self.talk, self.said = self.parked.pop(0)
        if look and self.talk.expected.held:
            self.talk.check_logits()

    @precondition(lambda self: self.parked)
    @rule(look=st.booleans())
    def return_to(self, look):
        fork, said = self.parked[0]
        if fork.session.cache != self.session.cache:
            with pytest.raises(ConfigurationError):
                self.session.return_to(fork.session)
            return
        self.session.return_to(fork.session)
        self.talk.expected, self.said = copy.deepcopy(fork.expected), list(said)
        if look and self.talk.expected.held:
            self.talk.check_logits()

    @rule()
    def save(self):
        self.session.save(self.path)
        self.saved = (
            copy.deepcopy(self.talk.expected),
            list(self.said),
            self.session.generation,
            self.session.instructions,
        )

    @precondition(lambda self: self.saved is not None)
    @rule(look=st.booleans())
    def die_and_reopen(self, look):
        expected, said, generation, instructions = self.saved
        self.talk.session = ChatSession.open(self.path, self.engine)
        assert self.session.generation == generation
        assert self.session.instructions == instructions
        self.talk.expected, self.said = copy.deepcopy(expected), list(said)
        assert self.session.cached_tokens == len(expected.held)
        if look and expected.held:
            self.talk.check_logits()

    @rule()
    def clear(self):
        self.session.clear()
        self.said = []
        self.talk.expected.clear()

    @precondition(lambda self: self.said)
    @invariant()
    def nothing_is_lost(self):
        assert list(self.session.history) == self.said
        context, held = context_of(self.session), ids_of(self.session)
        assert len(held) == context.offset
        assert held == tuple(self.talk.expected.held)
        assert len(context.checkpoints.offsets) <= 4

    @invariant()
    def other_branches_stay_as_they_were(self):
        for talk, said in getattr(self, "parked", ()):
            assert list(talk.session.history) == said
            assert ids_of(talk.session) == tuple(talk.expected.held)

    def teardown(self):
        if hasattr(self, "folder"):
            self.session.close()
            self.folder.cleanup()


CacheMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("SEGUE_MACHINE_RUNS", "100")), stateful_step_count=50
)
# A template that writes other words than were said, or none, is warned of.
TestCaches = pytest.mark.filterwarnings("ignore::segue.TemplateWarning")(
    pytest.mark.timeout(3600)(CacheMachine.TestCase)
)


def test_every_kind_of_cache_is_among_them():
    names = {
        type(layer).__name__
        for kind in KINDS
        for layer in layers_of(engine_of(kind).context(CACHE))
    }
    assert names == {"KVCache", "RotatingKVCache", "ArraysCache", "ChunkedKVCache", "CacheList"}
    assert len(list(itertools.chain(KINDS))) == 7
