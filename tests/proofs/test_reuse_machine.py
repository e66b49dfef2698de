"""The reason for every miss, over any sequence of changes (fake engine, Hypothesis)."""

from __future__ import annotations

import os
import zlib
from datetime import timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from kit.dated import LONG_AGO, Dated
from kit.probe import held
from segue import ChatSession, GenerationConfig, MissReason
from segue.testing import FakeEngine
from segue.testing.tokenizer import END

SPOKEN = [*b"abc ", *Dated().encode("the"), *"é".encode(), Dated().end_id]
TEXTS = st.text("ab the é", min_size=1, max_size=6).filter(str.strip)
ORDER = [
    MissReason.DATE,
    MissReason.TEMPLATE_KWARGS,
    MissReason.INSTRUCTIONS,
    MissReason.MESSAGE,
]


class ReuseMachine(RuleBasedStateMachine):
    """Changes all that prompts are made from, and takes turns in between."""

    @initialize(instructions=st.none() | TEXTS, trimmable=st.booleans())
    def begin(self, instructions, trimmable):
        self.trimmable = trimmable
        self.engine = FakeEngine(self.say, tokenizer=Dated(), trimmable=trimmable)
        self.session = ChatSession(
            self.engine,
            instructions=instructions,
            generation=GenerationConfig(max_tokens=5),
            date=LONG_AGO,
        )
        self.read = None
        self.before = ()
        # Whether messages were taken back while something else was another than before, too:
        # then that was why so much had to go.
        self.cut_otherwise, self.cut = False, None

    def say(self, ids):
        return SPOKEN[zlib.crc32(bytes(str(tuple(ids)), "ascii")) % len(SPOKEN)]

    def check(self, reply, begun):
        reuse = reply.reuse
        assert reuse.tokens == reply.cached_tokens
        assert reuse.held_tokens == (len(self.before) if self.read is not None else 0)
        assert str(reuse)
        if self.read is None:
            assert reuse.reason is None
        else:
            self.check_reason(reuse, begun)
        self.read, self.before = self.session.conversation, held(self.session)
        self.cut_otherwise, self.cut = False, None

    def check_reason(self, reuse, asked):
        lost = Dated().decode(self.before[reuse.tokens :])
        changed = list(self.changed_in(asked))
        if reuse.reason is None:
            # All was reused, or all but the end of the reply, or of what was read ahead.
            rest = lost.replace(END, "").replace("user", "").strip()
            assert not rest or reuse.tokens == reuse.prompt_tokens - 1
        elif reuse.reason in ORDER:
            if reuse.reason is not MissReason.MESSAGE or not self.cut_otherwise:
                assert reuse.reason == changed[0]
            assert reuse.reason in changed
            if reuse.reason is MissReason.MESSAGE:
                first = 0
                for first, message in enumerate(self.read.messages):
                    if first >= len(asked.messages) or asked.messages[first] != message:
                        break
                # What was taken back may have been said again.
                least = first if self.cut is None else min(first, self.cut)
                assert least <= reuse.message_index <= first
        else:
            assert not self.trimmable or reuse.reason is MissReason.TOKENS
            assert lost
        if not changed and self.trimmable and "\ufffd" not in lost:
            assert reuse.reason is None

    def changed_in(self, asked):
        old = self.read
        for reason, name in zip(
            ORDER, ("date", "template_kwargs", "instructions", None), strict=True
        ):
            if name is None:
                if asked.messages[: len(old.messages)] != old.messages:
                    yield reason
            elif getattr(old, name) != getattr(asked, name):
                yield reason

    @rule(text=TEXTS, take=st.none() | st.integers(0, 3))
    def turn(self, text, take):
        with self.session.stream(text) as reply:
            asked = self.session.conversation
            for count, _ in enumerate(reply):
                if take is not None and count >= take:
                    break
        self.check(reply, asked)

    @precondition(lambda self: self.session.history)
    @rule(seed=st.integers(0, 9))
    def retry(self, seed):
        reply = self.session.stream_retry(seed=seed)
        with reply:
            asked = self.session.conversation
            list(reply)
        self.check(reply, asked)

    @rule()
    def prewarm(self):
        if self.session.prewarm():
            self.read, self.before = self.session.conversation, held(self.session)
            self.cut_otherwise, self.cut = False, None

    @rule(instructions=st.none() | TEXTS)
    def change_instructions(self, instructions):
        self.session.instructions = instructions

    @rule(kwargs=st.dictionaries(st.sampled_from("xy"), st.integers(0, 1), max_size=1))
    def change_kwargs(self, kwargs):
        self.session.template_kwargs = kwargs

    @rule(days=st.integers(0, 2))
    def change_date(self, days):
        self.session.date = LONG_AGO + timedelta(days=days)

    @precondition(lambda self: self.session.history)
    @rule(data=st.data(), text=TEXTS)
    def edit(self, data, text):
        index = data.draw(st.integers(0, len(self.session.history) - 1))
        self.note_cut(index)
        self.session.edit(index, text)

    @precondition(lambda self: self.session.conversation.turns)
    @rule()
    def undo(self):
        turn = self.session.conversation.turns[-1]
        self.note_cut(len(self.session.history) - len(turn))
        self.session.undo()

    def note_cut(self, index):
        if self.read is not None:
            changed = set(self.changed_in(self.session.conversation))
            self.cut_otherwise |= bool(changed - {MissReason.MESSAGE})
            self.cut = index if self.cut is None else min(index, self.cut)

    @rule()
    def fork(self):
        self.session = self.session.fork()

    @rule()
    def clear(self):
        self.session.clear()
        self.read, self.before = None, ()


ReuseMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("SEGUE_MACHINE_RUNS", "200")), stateful_step_count=25
)
TestReuse = pytest.mark.timeout(600)(ReuseMachine.TestCase)
