"""SIGTERM and SIGHUP: what was said is in the file, and the terminal is as it was."""

from __future__ import annotations

import fcntl
import io
import os
import signal
import struct
import termios
import time

import pexpect
import pytest

from kit.chats import alone, chat_of, contents
from kit.probe import pretend_signal
from kit.spawned import HIDDEN, READY, SHOWN, ended_by, flags, leftovers, pipe, spawn
from segue import ChatSession, SessionFile
from segue.cli.sessions.folder import session_path, sessions_folder
from segue.testing import FakeEngine

pytestmark = pytest.mark.usefixtures("data_folder")

BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)


def saved() -> list[str]:
    assert leftovers(sessions_folder()) == []
    return contents(SessionFile.read(session_path("trip")).history)


def close_window(child: pexpect.spawn) -> None:
    child.ptyproc.fileobj.close()
    _, status = os.waitpid(child.pid, 0)
    child.ptyproc.closed = child.closed = child.terminated = True
    assert os.WTERMSIG(status) == signal.SIGHUP


@BOTH
def test_in_the_middle_of_a_reply_in_a_terminal(number):
    child = spawn("--session", "trip")
    child.expect(READY)
    child.send("hi\r")
    child.expect("word word word")
    child.kill(number)
    assert ended_by(child) is number
    question, reply = saved()
    assert question == "hi"
    assert reply.startswith("word word word")
    assert len(reply) < 1900


def test_the_terminal_is_as_it_was():
    child = spawn()
    before = flags(child)
    child.logfile_read = log = io.StringIO()
    child.expect(READY)
    child.send("hi\r")
    child.expect("word word word")
    assert flags(child) == (False, False, False)
    child.kill(signal.SIGTERM)
    assert ended_by(child) is signal.SIGTERM
    assert flags(child) == before == (True, True, True)
    output = log.getvalue()
    assert HIDDEN in output
    assert output.rindex(SHOWN) > output.rindex(HIDDEN)


def test_a_window_that_is_closed_in_the_middle_of_a_reply():
    child = spawn("--session", "trip")
    child.expect(READY)
    child.send("hi\r")
    child.expect("word word word")
    close_window(child)
    question, reply = saved()
    assert question == "hi"
    assert reply.startswith("word word word")


@pytest.mark.parametrize("said", [False, True])
def test_a_window_that_is_closed_while_nobody_types(said):
    child = spawn("--session", "trip", "--max-tokens", "4", pause=0)
    child.expect(READY)
    if said:
        child.send("hi\r")
        child.expect("tokens/s")
        child.expect(READY)
    close_window(child)
    assert leftovers(sessions_folder()) == []
    if said:
        assert saved() == ["hi", "word"]


@BOTH
def test_while_the_prompt_is_read(number):
    child = spawn("--session", "trip", pause=0.05)
    child.expect(READY)
    child.send("x" * 200 + "\r")
    child.expect("reading [1-9]")
    child.kill(number)
    assert ended_by(child) is number
    assert saved() == ["x" * 200, ""]


@BOTH
def test_while_nobody_types(number):
    child = spawn("--session", "trip")
    child.expect(READY)
    child.send("half a mess")
    child.expect("half a mess")
    child.kill(number)
    assert ended_by(child) is number
    assert flags(child) == (True, True, True)
    assert leftovers(sessions_folder()) == []


def test_while_the_model_reads_ahead():
    child = spawn("--session", "trip", "--system", "be kind " * 100, pause=0.02)
    child.expect(READY)
    child.kill(signal.SIGTERM)
    assert ended_by(child) is signal.SIGTERM
    assert leftovers(sessions_folder()) == []


def test_while_the_model_is_loaded():
    child = spawn("--session", "trip", load=60)
    child.expect("loading it")
    child.kill(signal.SIGTERM)
    assert ended_by(child) is signal.SIGTERM
    assert leftovers(sessions_folder()) == []


def test_while_a_turn_is_saved_the_file_is_finished():
    child = spawn("--session", "trip", "--max-tokens", "8", save=0.7)
    child.expect(READY)
    child.send("hi\r")
    child.expect("saving it")
    child.kill(signal.SIGTERM)
    assert ended_by(child) is signal.SIGTERM
    assert saved() == ["hi", "word wor"]


@BOTH
def test_in_a_pipe(number):
    with pipe("--session", "trip") as process:
        process.stdin.write(b"hi\nyou\n")
        process.stdin.close()
        assert process.stdout.read(12) == b"word word wo"
        process.send_signal(number)
        process.stdout.read()
    assert process.returncode == -number
    question, reply = saved()
    assert question == "hi\nyou"
    assert reply.startswith("word word wo")
    assert len(reply) < 1900


def test_between_two_lines_of_a_pipe():
    with pipe("--session", "trip", "--lines", "--max-tokens", "8", pause=0) as process:
        process.stdin.write(b"hi\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"word wor\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == -signal.SIGTERM
    assert saved() == ["hi", "word wor"]


def test_a_reader_that_stopped_reading_does_not_keep_the_chat_alive():
    with pipe("--session", "trip", "--lines", "--max-tokens", "2000", pause=0) as process:
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        process.stdin.write(b"hi\n" * 9)
        process.stdin.close()
        while unread(process) < 4096:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == -signal.SIGTERM
    *before, reply = saved()
    assert len(before) < 18
    # What was being written when nobody read any more.
    assert 0 < len(reply) < 2000


def unread(process) -> int:
    """How many bytes wait in a process's output."""
    return struct.unpack("i", fcntl.ioctl(process.stdout, termios.FIONREAD, b"\0" * 4))[0]


def test_a_chat_that_ignores_ctrl_c_ends_on_sigterm_as_well():
    def ignoring():
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    with pipe("--session", "trip", preexec_fn=ignoring) as process:
        process.stdin.write(b"hi")
        process.stdin.close()
        process.stdout.read(12)
        process.send_signal(signal.SIGINT)
        process.stdout.read(50)
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
    assert process.returncode == -signal.SIGTERM
    assert saved()[1].startswith("word word wo")


def test_a_signal_that_is_ignored_stays_ignored():
    def ignoring():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    options = ("--session", "trip", "--max-tokens", "60")
    with pipe(*options, pause=0.02, preexec_fn=ignoring) as process:
        process.stdin.write(b"hi")
        process.stdin.close()
        process.stdout.read(12)
        process.send_signal(signal.SIGHUP)
        process.stdout.read()
    assert process.returncode == 0
    assert len(saved()[1]) > 50


def test_a_ctrl_c_that_was_lost_stops_the_reply_all_the_same(monkeypatch):
    pretend_signal(monkeypatch, signal.SIGTERM)
    chat = chat_of(alone(ChatSession(FakeEngine(["abc"]))))
    chat.say("hi")
    assert contents(chat.session.history) == ["hi", ""]


def test_handlers_are_put_back():
    from segue.cli.process.termination import ending_on_signals

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    with ending_on_signals():
        assert [signal.getsignal(number) for number in numbers] != before
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_second_signal_does_not_break_off_what_the_first_began():
    child = spawn("--session", "trip", save=0.7)
    child.expect(READY)
    child.send("hi\r")
    child.expect("word word word")
    child.kill(signal.SIGTERM)
    child.expect("saving it")
    child.kill(signal.SIGHUP)
    child.kill(signal.SIGTERM)
    assert ended_by(child) is signal.SIGTERM
    assert saved()[1].startswith("word word word")


@pytest.mark.parametrize("wait", [0.0, 0.3])
def test_at_any_moment_of_the_start(wait):
    child = spawn("--session", "trip")
    time.sleep(wait)
    child.kill(signal.SIGTERM)
    assert ended_by(child) is signal.SIGTERM
