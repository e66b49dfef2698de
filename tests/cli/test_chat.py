"""The conversation in the terminal, its person played by a list of lines."""

from __future__ import annotations

import doctest
import io
import re
import sys
import threading

import pytest
from rich.console import Console

from kit.chats import Typed, alone, chat_of, converse
from kit.command import run
from kit.dated import LONG_AGO, Dated
from kit.probe import engine_of
from segue import ChatSession, GenerationConfig, GenerationResponse, Message
from segue.cli.chat.chat import TerminalChat
from segue.cli.chat.commands import COMMANDS, conversation, general, sessions, settings
from segue.cli.chat.commands import command as command_module
from segue.cli.chat.idle import CHUNK, reading_ahead
from segue.cli.chat.statistics import turn_line, usage_table
from segue.testing import FakeEngine, ToyTokenizer
from segue.usage import MissReason, Reuse, TurnUsage


def test_a_turn_shows_the_reply_and_one_quiet_line():
    shown, session = converse("hi", "ho")
    assert [message.content for message in session.history] == ["hi", "hello", "ho", "fine"]
    replies = [line.strip() for line in shown.splitlines() if line.strip()]
    assert replies[0] == "hello"
    assert replies[2] == "fine"
    first, second = replies[1], replies[3]
    assert first.startswith("21 tokens read · 0 reused · first token ")
    assert second.startswith("22 tokens read · 23 reused · first token ")
    assert first.endswith(" tokens/s")


class ReadAhead(ChatSession):
    """Tells whenever it has read ahead all there is."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.done = threading.Semaphore(0)
        self.read = []

    def prewarm(self, **kwargs):
        self.read.append(super().prewarm(**kwargs))
        self.done.release()


class Thinking(Typed):
    """A person who takes their time: until the model has read all there is."""

    def __init__(self, session, *lines):
        super().__init__(*lines)
        self._session = session

    def ask(self):
        assert self._session.done.acquire(timeout=300)
        return super().ask()


def test_the_model_reads_ahead_while_the_person_types():
    session = ReadAhead(FakeEngine(["hello", "fine"]), instructions="be kind " * 20)
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    TerminalChat(alone(session), console, Thinking(session, "hi", "ho"), COMMANDS).run()
    first, second = session.usage.turns
    before_first, before_second, *_ = session.read
    assert first.cached_tokens == before_first > 160
    assert second.fed_tokens <= len("ho<end>\n<start>assistant\n")
    assert before_second > 0
    assert session.usage.prewarmed_tokens == sum(session.read)


def test_whoever_presses_enter_waits_for_one_chunk_at_most():
    session = ChatSession(FakeEngine(["hello"]), instructions="be kind " * 200)
    fed = []
    model = engine_of(session).model
    forward, begun, go_on = model.forward, threading.Event(), threading.Event()

    def slow(cache, ids):
        fed.append(len(ids))
        begun.set()
        assert go_on.wait(20)
        forward(cache, ids)

    model.forward = slow
    with reading_ahead(session):
        assert begun.wait(20)
        threading.Timer(0.05, go_on.set).start()
    assert len(fed) == 1
    assert fed[0] <= CHUNK == session.cached_tokens
    assert session.respond("hi") == "hello"


def test_what_goes_wrong_while_reading_ahead_is_left_to_the_next_turn():
    engine = FakeEngine(["hello"], fail_at=[1])
    session = ChatSession(engine, instructions="be kind")
    forward, begun = engine.model.forward, threading.Event()

    def tell(cache, ids):
        begun.set()
        forward(cache, ids)

    engine.model.forward = tell
    with reading_ahead(session):
        assert begun.wait(20)
    assert session.respond("hi") == "hello"


class Marking(ToyTokenizer):
    reasoning_tags = ("<think>", "</think>")


def test_reasoning_is_shown_before_the_answer_and_left_out_of_pipes(capsys, monkeypatch):
    said = "<think>\nthe world\n</think>\n\nyes"
    shown, session = converse("hi", script=[said], tokenizer=Marking())
    assert shown.startswith("reasoning:\nthe world\nanswer:\nyes\n")
    assert session.history[-1].reasoning == "the world"
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n"))
    engine = FakeEngine([said], tokenizer=Marking())
    monkeypatch.setattr("segue.loading.load", lambda name: engine)
    assert run("chat") == 0
    assert capsys.readouterr().out == "yes\n"


class Channels(ToyTokenizer):
    reasoning_tags = (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    )

    def __init__(self):
        super().__init__(("<|return|>",))

    @property
    def eos_token_ids(self):
        return set(self.encode("<|return|>"))


def test_a_reply_of_several_messages_is_shown_in_its_order(capsys, monkeypatch):
    channels = [("commentary", "I look."), ("analysis", "hm\nso"), ("final", "yes")]
    said = "<|end|><|start|>assistant".join(
        f"<|channel|>{channel}<|message|>{text}" for channel, text in channels
    )
    shown, session = converse("hi", script=[said], tokenizer=Channels())
    assert "I look.\nreasoning:\nhm\nso\nanswer:\nyes\n" in shown
    assert session.history[-1] == Message.assistant("I look.\n\nyes", reasoning="hm\nso")
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n"))
    engine = FakeEngine([said], tokenizer=Channels())
    monkeypatch.setattr("segue.loading.load", lambda name: engine)
    assert run("chat") == 0
    assert capsys.readouterr().out == "I look.\n\nyes\n"


def test_ctrl_c_at_the_prompt_asks_again_and_ctrl_d_leaves():
    _, session = converse(KeyboardInterrupt(), "hi", EOFError(), "never")
    assert len(session.history) == 2


def test_ctrl_c_stops_the_reply_and_keeps_what_was_said():
    shown, session = converse(
        "hi", "ho", script=["hello there", "fine"], fail_at=[4], failure=KeyboardInterrupt()
    )
    assert [message.content for message in session.history] == ["hi", "hello ", "ho", "fine"]
    assert "stopped · " in shown


def test_a_failing_model_is_told_and_the_conversation_goes_on():
    shown, session = converse("hi", "ho", fail_at=[1])
    assert "The fake model failed in forward pass 1" in shown
    assert len(session.history) == 4


def test_commands():
    shown, session = converse(
        "/history",
        "/system Be kind.",
        "hi",
        "/system",
        "/history",
        "/stats",
        "/nope",
        "//x",
        "/quit",
        "no",
    )
    assert session.instructions == "Be kind."
    assert "Nothing has been said yet." in shown
    assert "There is no command /nope; /help lists them." in shown
    assert "user:" in shown
    assert "tokens generated" in shown
    assert session.history[-2].content == "//x"
    cleared, session = converse("hi", "/clear", "/help")
    assert session.history == ()
    for command in COMMANDS.values():
        assert command.usage in cleared
        assert command.help in cleared


def test_the_example_of_a_command_runs_and_no_name_is_taken_twice():
    assert doctest.testmod(command_module).attempted > 1
    assert doctest.testmod(command_module).failed == 0
    tables = (conversation.COMMANDS, settings.COMMANDS, sessions.COMMANDS, general.COMMANDS)
    assert sum(map(len, tables)) == len(COMMANDS) == 19


def test_a_chat_tells_what_it_has_cost():
    session = ChatSession(FakeEngine(["one", "two"]), instructions="be kind")
    session.prewarm()
    session.respond("hi")
    console = Console(file=io.StringIO())
    console.print(usage_table(session))
    shown = console.file.getvalue()
    assert re.search(r"turns +1\b", shown)
    assert re.search(r"tokens read ahead +\d\d\b", shown)
    assert "checkpoints" not in shown
    assert "accepted" not in shown


def test_history_shows_a_persons_words_as_typed():
    shown, _ = converse("*star* [bold] __init__", "/history")
    assert "*star* [bold] __init__" in shown


def test_a_model_that_fails_in_its_own_way_ends_the_turn_not_the_conversation():
    shown, session = converse("hi", "ho", fail_at=[1], failure=ZeroDivisionError("odd"))
    assert "The turn failed (ZeroDivisionError): odd" in shown
    assert len(session.history) == 4


def test_a_prompt_stopped_in_its_middle_counts_what_was_read():
    session = ChatSession(FakeEngine(["x"]), generation=GenerationConfig(prefill_step_size=4))
    with pytest.raises(KeyboardInterrupt):
        session.respond("a longer prompt", prompt_progress_callback=stop_at_eight)
    assert session.usage.fed_tokens == 8
    assert turn_line(session.usage.turns[0], None, None, stopped=True) == (
        "stopped · 8 tokens read · 0 reused"
    )


def test_a_reply_that_was_cut_says_so():
    chat = chat_of(
        alone(
            ChatSession(FakeEngine(["one two three"]), generation=GenerationConfig(max_tokens=3))
        ),
        "hi",
    )
    chat.run()
    assert "cut · 21 tokens read" in chat.console.file.getvalue()


def miss(reason: MissReason | None, *, held: int = 9000, index: int | None = 12) -> Reuse:
    return Reuse(4000, 12000, reason, index, held, 4000, "so it is")


@pytest.mark.parametrize("index", [None, 0, 12345])
@pytest.mark.parametrize("reason", [None, *MissReason])
def test_a_line_says_in_80_columns_what_nobody_expected(reason, index):
    turn = TurnUsage(123_456, 98_765, 24_691, 999, 1.0, 1.0)
    last = GenerationResponse("x", 1, None, False, 1, 1, 1.0, 1, 123.45, 0)
    expected = reason in {
        MissReason.DATE,
        MissReason.DROPPED,
        MissReason.TEMPLATE,
        MissReason.TOKENS,
        MissReason.REWIND,
        MissReason.LOST,
        MissReason.ENGINE,
    }
    plain = turn_line(turn, last, 123.45, stopped=False)
    for held in (9000, 4063):
        for stopped in (False, True):
            said = miss(reason, held=held, index=index)
            line = turn_line(turn, last, 123.45, stopped=stopped, reuse=said)
            assert len(line) <= 80
            assert line.startswith(
                "stopped · " if stopped else "24,691 tokens read · 98,765 reused"
            )
            if not stopped:
                assert (line != plain) == (expected and held == 9000)


def test_statistics_say_why_the_latest_turn_read_again():
    session = ChatSession(FakeEngine(["one", "two"]), instructions="be kind")
    console = Console(file=io.StringIO(), width=200)
    console.print(usage_table(session))
    assert "latest turn" not in console.file.getvalue()
    session.respond("hi")
    session.instructions = "be brief"
    session.respond("ho")
    console.print(usage_table(session))
    shown = console.file.getvalue()
    assert "latest turn" in shown
    assert "tokens were reused: the instructions changed." in shown
    assert "date in prompts" not in shown


def test_statistics_say_which_date_the_template_writes():
    session = ChatSession(FakeEngine(tokenizer=Dated()), date=LONG_AGO)
    console = Console(file=io.StringIO())
    console.print(usage_table(session))
    assert re.search(r"date in prompts +2024-02-29", console.file.getvalue())


def test_one_token_is_one_token():
    turn = TurnUsage(29, 28, 1, 0, 0.0, 0.0)
    assert turn_line(turn, None, None, stopped=False) == "1 token read · 28 reused"


def stop_at_eight(fed, total):
    if fed == 8:
        raise KeyboardInterrupt
