"""The invariants of a session with a draft, over any sequence of operations (real caches)."""

from __future__ import annotations

import itertools
import os
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import segue
from kit.probe import (
    context_of,
    draft_ids,
    draft_layers,
    draft_offset,
    has_draft_model,
    ids_of,
    layers_of,
)
from segue import (
    ChatSession,
    GenerationConfig,
    GenerationError,
    Message,
    MlxEngine,
)
from segue.testing import ToyTokenizer
from segue.testing.mlx import CachingModel

TOKENIZER = ToyTokenizer()
SPOKEN = [*TOKENIZER.encode("the"), *TOKENIZER.encode("he"), *b"t e", TOKENIZER.end_id]
TEXTS = st.text(alphabet="the ", max_size=8)


def say(ids):
    """Depends on the last few tokens, so that texts repeat and lookups find something."""
    return SPOKEN[zlib.crc32(bytes(str(ids[-3:]), "ascii")) % len(SPOKEN)]


def guess(ids):
    """What a draft says: wrong every now and then."""
    token = say(ids)
    return token if zlib.crc32(bytes(str(ids[-5:]), "ascii")) % 3 else SPOKEN[0]


def keys(layers) -> set[tuple[int, ...]]:
    """What each of some layers holds, read back from its keys."""
    return {
        tuple(int(key) for key in layer.keys[0, 0, : layer.offset, 0].tolist())
        if layer.offset
        else ()
        for layer in layers
    }


class SpeculativeMachine(RuleBasedStateMachine):
    """Takes turns with a draft, breaks them off in every way, and compares with none."""

    @initialize(lookup=st.booleans(), count=st.integers(1, 6), instructions=st.none() | TEXTS)
    def begin(self, lookup, count, instructions):
        self.main = CachingModel(say, len(TOKENIZER), layers=3)
        self.draft = CachingModel(guess, len(TOKENIZER) + 3, layers=2)
        self.engine = MlxEngine(self.main, TOKENIZER, name="main")
        proposer = "prompt-lookup" if lookup else MlxEngine(self.draft, TOKENIZER, name="draft")
        self.proposer, self.count = proposer, count
        self.session = ChatSession(
            self.engine,
            instructions=instructions,
            generation=GenerationConfig(max_tokens=9, prefill_step_size=8, num_draft_tokens=count),
            draft=proposer,
        )
        self.live = None

    def settle(self):
        if self.live is not None:
            self.live.close()
            self.live = None

    @rule(text=TEXTS)
    def whole_turn(self, text):
        self.settle()
        plain = ChatSession(
            self.engine,
            instructions=self.session.instructions,
            history=self.session.history,
            generation=self.session.generation,
        )
        assert self.session.respond(text) == plain.respond(text)

    @rule(text=TEXTS, tokens=st.integers(0, 9))
    def turn_left_live(self, text, tokens):
        self.settle()
        self.live = self.session.stream(text)
        list(itertools.islice(self.live, tokens))

    @precondition(lambda self: self.live is not None)
    @rule()
    def drop_the_live_reply(self):
        self.live = None

    @rule(text=TEXTS, calls=st.integers(1, 8), in_draft=st.booleans(), interrupt=st.booleans())
    def turn_that_fails(self, text, calls, in_draft, interrupt):
        self.settle()
        model = self.draft if in_draft else self.main
        model.fail_at = {model.calls + calls}
        model.failure = KeyboardInterrupt() if interrupt else None
        before = self.session.cached_tokens
        reply = self.session.stream(text)
        try:
            for _ in reply:
                pass
        except (GenerationError, KeyboardInterrupt):
            if in_draft:
                assert self.session.cached_tokens >= reply.cached_tokens
            else:
                assert self.session.cached_tokens == 0
        model.fail_at = set()
        assert reply.ended
        assert before >= reply.cached_tokens

    @rule(instructions=st.none() | TEXTS)
    def change_instructions(self, instructions):
        self.session.instructions = instructions

    @rule(
        max_tokens=st.integers(0, 12),
        step=st.integers(1, 20),
        stop=st.sampled_from(["", "ee"]),
        drafts=st.sampled_from([True, True, False]),
    )
    def change_settings(self, max_tokens, step, stop, drafts):
        self.session.generation = GenerationConfig(
            max_tokens=max_tokens,
            prefill_step_size=step,
            stop=stop or (),
            num_draft_tokens=self.count if drafts else 0,
        )

    @rule()
    def prewarm(self):
        self.settle()
        self.session.prewarm()

    @rule()
    def clear(self):
        self.settle()
        self.session.clear()

    @precondition(lambda self: self.session.has_cache and self.session.history)
    @rule()
    def save_and_go_on_from_the_file(self):
        self.settle()
        # The end of a live reply may have emptied the cache.
        if not self.session.has_cache:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "c.safetensors"
            self.session.save_cache(path)
            cache = segue.load_prompt_cache(path, self.engine)
        generation, held = self.session.generation, self.session.cached_tokens
        history = self.session.history
        self.session = ChatSession(
            self.engine, generation=generation, draft=self.proposer, prompt_cache=cache
        )
        assert self.session.cached_tokens == held
        assert self.session.history == history

    @invariant()
    def the_ledger_is_what_the_cache_holds(self):
        if not hasattr(self, "session") or self.live is not None:
            return
        context = context_of(self.session)
        if context is not None:
            ids = ids_of(self.session)
            assert keys(layers_of(context)) == {ids}
            assert context.offset == len(ids)

    @invariant()
    def the_draft_holds_what_it_believes(self):
        context = context_of(self.session) if hasattr(self, "session") else None
        if context is not None and has_draft_model(context):
            ids = draft_ids(context)
            assert keys(draft_layers(context)) == {tuple(ids)}
            assert draft_offset(context) == len(ids)

    @invariant()
    def history_alternates(self):
        if hasattr(self, "session") and self.live is None:
            assert all(isinstance(message, Message) for message in self.session.history)
            assert len(self.session.history) % 2 == 0

    def teardown(self):
        if hasattr(self, "session"):
            self.settle()


SpeculativeMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("SEGUE_MACHINE_RUNS", "40")), stateful_step_count=30
)


TestSpeculation = pytest.mark.timeout(600)(
    pytest.mark.usefixtures("never_paused")(SpeculativeMachine.TestCase)
)
