"""The invariants of a session, over any sequence of operations (fake engine, Hypothesis)."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from kit.probe import context_of, held, ids_of
from kit.sessions import common_prefix, rendered
from segue import (
    CacheConfig,
    ChatSession,
    ConfigurationError,
    GenerationConfig,
    GenerationError,
    HistoryError,
    Message,
    MissReason,
    Role,
)
from segue.testing import FakeEngine, ToyTokenizer
from segue.testing.tokenizer import END

TOKENIZER = ToyTokenizer()
# Tokens that a reply is made of: words whose pieces are words too, both bytes of an é, and the end.
SPOKEN = [
    *TOKENIZER.encode("t"),
    *TOKENIZER.encode("h"),
    *TOKENIZER.encode("e"),
    *TOKENIZER.encode("the"),
    *TOKENIZER.encode("he"),
    *"é".encode(),
    *TOKENIZER.encode(" "),
    TOKENIZER.end_id,
]
MOST_CHECKPOINTS = CacheConfig().max_checkpoints
TEXTS = st.text(alphabet="the é\n", max_size=8)


def whole_of(text: str) -> str:
    """What is left of a text without half a character at its end."""
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


def say(ids: Sequence[int]) -> int:
    """The next token, by the text alone: the same conversation gets the same reply."""
    return SPOKEN[zlib.crc32(TOKENIZER.decode(ids).encode()) % len(SPOKEN)]


class SessionMachine(RuleBasedStateMachine):
    """Takes turns, breaks them off in every way, and changes settings in between."""

    @initialize(
        instructions=st.none() | TEXTS,
        trimmable=st.booleans(),
        history=st.lists(TEXTS, max_size=2),
    )
    def begin(self, instructions, trimmable, history):
        self.engine = FakeEngine(say, trimmable=trimmable)
        self.expected = [
            Message(Role.USER if n % 2 == 0 else Role.ASSISTANT, text)
            for n, text in enumerate(history)
        ]
        self.session = ChatSession(
            self.engine,
            instructions=instructions,
            history=self.expected,
            generation=GenerationConfig(max_tokens=6, prefill_step_size=7),
        )
        self.live = None
        # Where a cache that can't be trimmed can come back to, by the policy.
        self.marks = []
        # Whether the cache ends where a turn ended, with nothing of it lost.
        self.spelled = False
        self.parked, self.saved = [], None
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "talk.segue"

    def cache(self) -> tuple[int, ...]:
        return held(self.session)

    def start(self, text, **kwargs):
        """Begin a turn, and check what it will feed before it is fed."""
        self.settle()
        asked = [*self.expected, Message.user(text)]
        return self.start_with(lambda: self.session.stream(text, **kwargs), asked)

    def start_with(self, begin, asked):
        before = self.cache()
        reply = begin()
        self.expected = list(asked)
        ids = ids_of(self.session)
        assert TOKENIZER.decode(ids) == rendered(self.session, self.expected, prompt=True)
        assert reply.prompt_tokens == len(ids)
        best = min(common_prefix(before, ids), len(ids) - 1)
        if not self.engine.trimmable and best < len(before):
            best = max((mark for mark in self.marks if mark <= best), default=0)
        self.marks = [mark for mark in self.marks if mark <= best]
        assert reply.cached_tokens == best
        assert reply.reuse.tokens == best
        # A file without its cache does not say how much that was.
        missed = best < reply.reuse.held_tokens or reply.reuse.reason is MissReason.LOST
        assert missed or reply.reuse.reason is None
        self.places = [self.opening(), len(ids)]
        self.started_at = best
        # Sampled ids stand wherever the render goes on from their text.
        whole = TOKENIZER.decode(ids)
        if self.spelled and len(ids) > len(before):
            assert reply.cached_tokens == len(before) or not whole.startswith(
                TOKENIZER.decode(before)
            )
        return reply

    def opening(self) -> int:
        """How many ids come before the first message. All of a prompt stays in later ones."""
        first = rendered(self.session, [Message.user("")], prompt=False)
        return len(TOKENIZER.encode(first.removesuffix(END + "\n").rstrip()))

    def finish(self, reply, streamed):
        """A turn is over: its text is recorded, with what was withheld behind what was streamed."""
        assert reply.ended
        assert reply.text.startswith(streamed)
        assert len(reply.text) - len(streamed) <= 6
        self.expected.append(Message.assistant(reply.text))
        held = self.session.cached_tokens
        self.spelled = held >= reply.prompt_tokens
        if held == 0:
            self.marks = []
        for place in self.places:
            if self.started_at < place <= held and place not in self.marks:
                self.marks.append(place)
                if len(self.marks) > MOST_CHECKPOINTS:
                    del self.marks[1]

    def settle(self):
        """Whatever comes next closes the live reply."""
        if self.live is not None:
            reply, streamed = self.live
            self.live = None
            reply.close()
            self.finish(reply, streamed)

    @rule(text=TEXTS)
    def whole_turn(self, text):
        reply = self.start(text)
        responses = list(reply)
        self.finish(reply, "".join(response.text for response in responses))
        assert reply.text == "".join(response.text for response in responses)
        reasons = [response.finish_reason for response in responses]
        assert all(reason is None for reason in reasons[:-1])
        assert not responses or reasons[-1] is reply.finish_reason is not None
        # The oracle: the same messages on a fresh engine get the same reply.
        replayed = ChatSession(
            FakeEngine(say),
            instructions=self.session.instructions,
            history=self.expected[:-2],
            generation=self.session.generation,
        )
        assert replayed.respond(text) == reply.text

    @rule(text=TEXTS, tokens=st.integers(0, 5))
    def turn_left_live(self, text, tokens):
        reply = self.start(text)
        streamed = "".join(response.text for response in itertools.islice(reply, tokens))
        if reply.ended:
            self.finish(reply, streamed)
        else:
            self.live = (reply, streamed)

    @precondition(lambda self: self.live is not None)
    @rule()
    def drop_the_live_reply(self):
        reply, streamed = self.live
        self.live = None
        said = reply.text
        del reply
        recorded = self.session.history[-1]
        assert recorded.role is Role.ASSISTANT
        assert recorded.content.startswith(said)
        assert said == streamed
        self.finish(SimpleNamespace(ended=True, text=recorded.content, prompt_tokens=10**6), said)

    @rule(text=TEXTS, calls=st.integers(1, 8), interrupt=st.booleans())
    def turn_that_fails(self, text, calls, interrupt):
        reply = self.start(text)
        self.engine.model.fail_at = {self.engine.model.calls + calls}
        self.engine.model.failure = KeyboardInterrupt() if interrupt else None
        streamed = ""
        try:
            for response in reply:
                streamed += response.text
        except (GenerationError, KeyboardInterrupt):
            assert self.session.cached_tokens == 0
        self.engine.model.fail_at = set()
        self.finish(reply, streamed)

    @rule(text=TEXTS, at=st.integers(0, 30))
    def turn_with_ctrl_c_in_prefill(self, text, at):
        def press(fed, total):
            if fed >= at:
                os.kill(os.getpid(), signal.SIGINT)

        reply = self.start(text, prompt_progress_callback=press)
        streamed = ""
        try:
            for response in reply:
                streamed += response.text
        except KeyboardInterrupt:
            assert self.session.cached_tokens >= min(at, reply.cached_tokens)
        self.finish(reply, streamed)

    @rule(tokens=st.integers(0, 6))
    def continue_the_reply(self, tokens):
        self.settle()
        if not self.expected or self.expected[-1].role is not Role.ASSISTANT:
            with pytest.raises(HistoryError):
                self.session.stream_continue()
            return
        said, before = self.expected.pop(), self.cache()
        reply = self.session.stream_continue()
        ids = ids_of(self.session)
        prompt = rendered(self.session, self.expected, prompt=True)
        # Half a character is said anew, if the cache does not hold the half.
        said = said.text if TOKENIZER.decode(ids) == prompt + said.text else whole_of(said.text)
        assert TOKENIZER.decode(ids) == prompt + said
        best = min(common_prefix(before, ids), len(ids) - 1)
        if not self.engine.trimmable and best < len(before):
            best = max((mark for mark in self.marks if mark <= best), default=0)
        self.marks = [mark for mark in self.marks if mark <= best]
        assert reply.cached_tokens == reply.reuse.tokens == best
        length = next(n for n in range(len(ids) + 1) if TOKENIZER.decode(ids[:n]) == prompt)
        self.places = [self.opening(), length]
        self.started_at = best
        streamed = "".join(response.text for response in itertools.islice(reply, tokens))
        reply.close()
        self.finish(reply, streamed)
        added, whole = self.expected.pop().text, self.session.history[-1].text
        # Half a character becomes one where the two meet.
        assert whole == said + added or whole.startswith(whole_of(said))
        self.expected.append(Message.assistant(whole))

    def after_going_back(self, before):
        """The cache holds less of what it held, and is where it can be."""
        held = self.cache()
        assert held == before[: len(held)]
        if len(held) < len(before):
            # It may end anywhere in what was said.
            self.spelled = False
            assert self.engine.trimmable or not held or len(held) in self.marks
        self.marks = [mark for mark in self.marks if mark <= len(held)]

    @rule(turns=st.integers(1, 3))
    def undo(self, turns):
        self.settle()
        before, questions = (
            self.cache(),
            [
                place
                for place, message in enumerate(self.expected)
                if message.role is Role.USER
                and (place == 0 or self.expected[place - 1].role is not Role.USER)
            ],
        )
        if turns > len(questions):
            with pytest.raises(HistoryError):
                self.session.undo(turns)
            assert self.cache() == before
            return
        taken = self.session.undo(turns)
        assert list(taken) == self.expected[questions[-turns] :]
        del self.expected[questions[-turns] :]
        self.after_going_back(before)
        shown = rendered(self.session, [*self.expected, Message.user("")], prompt=False)
        # It may end within a character.
        kept = TOKENIZER.decode(self.cache()).rstrip("\ufffd")
        assert shown.startswith(kept)

    @rule(index=st.integers(-6, 6), text=TEXTS)
    def edit(self, index, text):
        self.settle()
        before = self.cache()
        if not -len(self.expected) <= index < len(self.expected):
            with pytest.raises(HistoryError):
                self.session.edit(index, text)
            assert self.cache() == before
            return
        place = index % len(self.expected)
        assert list(self.session.edit(index, text)) == self.expected[place:]
        changed = dataclasses.replace(self.expected[place], content=text)
        self.expected[place:] = [changed]
        self.after_going_back(before)

    @rule(tokens=st.none() | st.integers(0, 3))
    def regenerate(self, tokens):
        self.settle()
        asked = list(self.expected)
        if asked and asked[-1].role is Role.ASSISTANT:
            asked.pop()
        if not asked:
            with pytest.raises(HistoryError):
                self.session.retry()
            return
        before = list(self.expected)
        overrides = {} if tokens is None else {"max_tokens": tokens}
        reply = self.start_with(lambda: self.session.stream_retry(**overrides), asked)
        streamed = "".join(response.text for response in reply)
        self.finish(reply, streamed)
        if not reply.tokens:
            self.expected = before

    @rule(stay=st.booleans())
    def fork(self, stay):
        self.settle()
        twin = self.session.fork()
        assert (twin.history, twin.generation) == (self.session.history, self.session.generation)
        mine = (self.session, list(self.expected), list(self.marks), self.spelled)
        theirs = (twin, list(self.expected), list(self.marks), self.spelled)
        self.parked.append(theirs if stay else mine)
        self.take(mine if stay else theirs)

    @precondition(lambda self: self.parked)
    @rule()
    def switch(self):
        self.settle()
        self.parked.append((self.session, self.expected, self.marks, self.spelled))
        self.take(self.parked.pop(0))

    @precondition(lambda self: self.parked)
    @rule()
    def return_to(self):
        self.settle()
        fork, expected, marks, spelled = self.parked[0]
        turns = len(self.session.usage.turns)
        if fork.cache != self.session.cache:
            with pytest.raises(ConfigurationError):
                self.session.return_to(fork)
            return
        self.session.return_to(fork)
        assert self.session.conversation == fork.conversation
        assert self.cache() == held(fork)
        assert len(self.session.usage.turns) == turns
        self.expected, self.marks, self.spelled = list(expected), list(marks), spelled

    @precondition(lambda self: self.parked)
    @rule()
    def read_again_what_a_fork_has_said(self):
        self.settle()
        self.session.conversation = self.parked[0][0].conversation
        self.expected = list(self.parked[0][1])
        self.spelled = False

    def take(self, branch):
        self.session, self.expected, self.marks, self.spelled = branch

    @rule(kv=st.sampled_from([True, True, False]))
    def save(self, kv):
        self.settle()
        self.session.save(self.path, kv=kv)
        self.saved = (
            list(self.expected),
            self.cache() if kv else (),
            list(self.marks) if kv else [],
            self.spelled and kv,
            self.session.generation,
            self.session.instructions,
            self.session.cache,
        )

    @precondition(lambda self: self.saved is not None)
    @rule(kv_bits=st.sampled_from([None, None, None, 8]))
    def die_and_reopen(self, kv_bits):
        self.live = None
        expected, cache, marks, self.spelled, generation, instructions, config = self.saved
        wanted = dataclasses.replace(config, kv_bits=kv_bits)
        self.session = ChatSession.open(self.path, self.engine, cache=wanted)
        if wanted.kind != config.kind:
            # A cache of another kind begins empty.
            cache, marks, self.spelled = (), [], False
        self.expected, self.marks = list(expected), list(marks)
        assert self.cache() == cache
        assert self.session.generation == generation
        assert self.session.instructions == instructions
        assert self.session.cache == wanted

    @rule(instructions=st.none() | TEXTS)
    def change_instructions(self, instructions):
        self.session.instructions = instructions

    @rule(
        max_tokens=st.integers(0, 8),
        stop=st.lists(st.sampled_from(["the", "he ", "é", "ee", "\ufffd"]), max_size=2),
        prefill_step_size=st.integers(1, 20),
    )
    def change_settings(self, **changes):
        self.session.generation = dataclasses.replace(self.session.generation, **changes)

    @rule()
    def clear(self):
        self.settle()
        self.session.clear()
        self.expected = []
        self.marks = []
        self.spelled = False
        assert not self.session.has_cache

    @invariant()
    def history_is_what_was_said(self):
        if hasattr(self, "session"):
            assert list(self.session.history) == self.expected

    @invariant()
    def the_ledger_is_what_the_cache_holds(self):
        if hasattr(self, "session") and self.live is None:
            assert ids_of(self.session)[: self.session.cached_tokens] == self.cache()
            assert len(ids_of(self.session)) == context_of(self.session).offset

    @invariant()
    def other_branches_stay_as_they_were(self):
        for session, expected, marks, _ in getattr(self, "parked", ()):
            assert list(session.history) == expected
            offsets = context_of(session).checkpoints.offsets
            assert ids_of(session) == held(session)
            assert self.engine.trimmable or list(offsets) == marks

    def teardown(self):
        if hasattr(self, "session"):
            self.settle()
            self.session.close()
            self.folder.cleanup()


SessionMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("SEGUE_MACHINE_RUNS", "100")), stateful_step_count=50
)
TestSession = pytest.mark.timeout(600)(SessionMachine.TestCase)
