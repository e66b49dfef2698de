"""Ctrl-C is held back while state changes, and never lost."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from kit.probe import context_of
from kit.sessions import check_ledger
from segue import ChatSession, Message
from segue.interrupt import InterruptHold, deliver_interrupt
from segue.testing import FakeEngine


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_waits_until_it_is_delivered():
    hold = InterruptHold()
    with hold:
        press()
        assert hold.pending
        with pytest.raises(KeyboardInterrupt):
            deliver_interrupt()
        assert not hold.pending
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_hold_inside_another_leaves_it_alone():
    outer, inner = InterruptHold(), InterruptHold()
    with outer:
        with inner:
            press()
        assert outer.pending
        assert not inner.pending
        with pytest.raises(KeyboardInterrupt):
            outer.deliver()


def test_the_programs_own_handler_is_the_one_called():
    calls = []
    before = signal.signal(signal.SIGINT, lambda *_: calls.append(1))
    try:
        hold = InterruptHold()
        with hold:
            press()
            assert calls == []
            hold.deliver()
            assert calls == [1]
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_ignored_interrupt_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with InterruptHold() as hold:
            press()
            assert not hold.pending
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_are_left_alone():
    seen = []

    def other() -> None:
        with InterruptHold():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_without_a_hold_there_is_nothing_to_deliver():
    deliver_interrupt()


def interrupted_session(at: int) -> ChatSession:
    """A session whose model presses Ctrl-C inside its n-th forward pass."""
    engine = FakeEngine(["hello there", "fine"])
    forward = engine.model.forward

    def pressing(cache, ids):
        half = len(cache) // 2
        if engine.model.calls + 1 == at:
            press()
            assert half  # in the middle of the pass, were it not held back
        forward(cache, ids)

    engine.model.forward = pressing  # type: ignore[method-assign]
    return ChatSession(engine)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_ctrl_c_inside_a_forward_pass_costs_no_cache(at):
    session = interrupted_session(at)
    streamed = ""
    with pytest.raises(KeyboardInterrupt):
        for response in session.stream("hi"):
            streamed += response.text
    assert session.history == (Message.user("hi"), Message.assistant(streamed))
    held = session.cached_tokens
    assert held > 0
    with session.stream("go on") as reply:
        list(reply)
    assert reply.cached_tokens == held


def test_ctrl_c_during_the_last_token_reaches_a_caller_that_iterates_no_further():
    session = interrupted_session(2)
    reply = session.stream("hi")
    assert next(reply).text == "hello"
    with pytest.raises(KeyboardInterrupt):
        reply.close()
    assert session.history[-1] == Message.assistant("hello")
    reply.close()


def test_ctrl_c_during_the_final_token_is_not_lost():
    session = interrupted_session(7)
    reply = session.stream("hi")
    streamed = ""
    with pytest.raises(KeyboardInterrupt):
        for response in reply:
            streamed += response.text
    assert response.finish_reason is not None
    assert streamed == "hello there"


def test_another_thread_never_gets_the_main_threads_interrupt():
    seen = []

    def other() -> None:
        try:
            deliver_interrupt()
        except KeyboardInterrupt:
            seen.append("interrupted")

    with InterruptHold() as hold:
        press()
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert seen == []
        assert hold.pending
        with pytest.raises(KeyboardInterrupt):
            hold.deliver()


def test_ctrl_c_is_not_lost_when_the_reply_is_dropped():
    session = interrupted_session(2)
    with pytest.raises(KeyboardInterrupt):
        for _ in session.stream("hi"):
            break
        # It comes a moment later, between two instructions: it does not wake a sleeping thread.
        for _ in range(6000):
            time.sleep(0.01)
    assert session.history[-1] == Message.assistant("hello")


def test_ctrl_c_during_the_rewind_at_a_turns_start_leaves_the_layers_in_step():
    session = ChatSession(FakeEngine(["one", "two", "three"]), instructions="Be brief.")
    session.respond("hi")
    context = context_of(session)
    rewind = context.rewind

    def pressing(offset: int) -> int:
        context.rewind = rewind  # type: ignore[method-assign]
        press()
        return rewind(offset)

    context.rewind = pressing  # type: ignore[method-assign]
    session.instructions = "Be long."
    with pytest.raises(KeyboardInterrupt):
        session.stream("again")
    session.respond("go on")
    check_ledger(session)


def test_between_two_tokens_ctrl_c_strikes_at_once():
    session = ChatSession(FakeEngine(["hello there", "fine"]))
    reply = session.stream("hi")
    next(reply)
    with pytest.raises(KeyboardInterrupt):
        press()
        time.sleep(5)
    assert not reply.ended
    reply.close()


def test_the_programs_handler_is_its_own_again_when_the_last_reply_ends():
    before = signal.getsignal(signal.SIGINT)
    one = ChatSession(FakeEngine(["hello there"])).stream("hi")
    other = ChatSession(FakeEngine(["hello there"])).stream("hi")
    next(one)
    next(other)
    assert signal.getsignal(signal.SIGINT) is not before
    one.close()
    assert signal.getsignal(signal.SIGINT) is not before
    list(other)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_handler_put_over_ours_is_left_alone_and_may_pass_on_to_it():
    first = ChatSession(FakeEngine(["hello there"])).stream("hi")
    next(first)
    ours = signal.getsignal(signal.SIGINT)
    calls = []

    def passing_on(signum, frame):
        calls.append(signum)
        ours(signum, frame)

    signal.signal(signal.SIGINT, passing_on)
    try:
        second = ChatSession(FakeEngine(["hello there"])).stream("hi")
        next(second)
        assert signal.getsignal(signal.SIGINT) is passing_on
        first.close()
        second.close()
        assert signal.getsignal(signal.SIGINT) is passing_on
        third = ChatSession(FakeEngine(["hello there"])).stream("hi")
        next(third)
        with pytest.raises(KeyboardInterrupt):
            press()
            time.sleep(5)
        assert calls == [signal.SIGINT]
        third.close()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_an_interrupt_that_is_passed_on_does_not_strike_in_the_finalizer_however_slow_it_is():
    finished = []

    class Slow:
        def __del__(self):
            hold = InterruptHold()
            with hold:
                press()
            hold.pass_on()
            # Many times as long as it takes to start a thread.
            for _ in range(200):
                time.sleep(0.001)
            finished.append(True)

    with pytest.raises(KeyboardInterrupt):
        slow = Slow()
        del slow
        for _ in range(6000):
            time.sleep(0.01)
    assert finished
