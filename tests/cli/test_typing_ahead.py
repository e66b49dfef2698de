"""What is typed while nobody is asked for anything is sent as it was typed."""

from __future__ import annotations

import signal
import termios
import time

import pexpect
import pytest

from kit.spawned import READY, flags, spawn

pytestmark = pytest.mark.usefixtures("data_folder")

COMMON, QUIET = (True, True, True), (False, False, False)


def is_answered(child: pexpect.spawn, text: str) -> None:
    child.expect(READY)
    child.expect(text)
    child.expect("tokens/s")
    child.sendeof()
    child.expect(pexpect.EOF)


@pytest.mark.parametrize("wait", [0.0, 0.1, 0.4])
def test_from_the_start_of_the_process_on(wait):
    child = spawn("--max-tokens", "4", load=0.5, pause=0)
    time.sleep(wait)
    child.send("hi there\r")
    is_answered(child, "hi there")


def test_several_messages_before_the_first_prompt():
    child = spawn("--max-tokens", "4", load=0.5, pause=0)
    child.send("one\r")
    time.sleep(0.5)
    child.send("two\r")
    for text in ("one", "two"):
        child.expect(READY)
        child.expect(text)
        child.expect("tokens/s")
    child.sendeof()
    child.expect(pexpect.EOF)


def test_while_a_turn_is_saved():
    child = spawn("--session", "trip", "--max-tokens", "4", save=0.7, pause=0)
    child.expect(READY)
    child.send("hi\r")
    child.expect("saving it")
    assert flags(child) == QUIET
    child.send("typed ahead\r")
    is_answered(child, "typed ahead")


def test_while_a_command_waits_for_reading_ahead():
    child = spawn("--system", "be kind " * 100, "--max-tokens", "4", pause=0.02)
    child.expect(READY)
    child.send("/stats\r/help\rhi there\r")
    for text in ("tokens in the KV cache", "list the commands", "tokens/s"):
        child.expect(text)
    child.sendeof()
    child.expect(pexpect.EOF)


def test_the_terminal_is_quiet_from_the_start_to_the_end():
    child = spawn("--max-tokens", "4", load=0.5, pause=0)
    seen = []
    while not seen or seen[-1] != QUIET:
        seen.append(flags(child))
    child.expect(READY)
    child.send("hi\r")
    child.expect("tokens/s")
    seen = {flags(child) for _ in range(1000)}
    assert COMMON not in seen
    child.expect(READY)
    child.sendeof()
    child.expect(pexpect.EOF)
    child.wait()
    assert flags(child) == COMMON


def test_a_chat_that_was_stopped_makes_the_terminal_quiet_again():
    child = spawn("--max-tokens", "400", pause=0.02)
    child.expect(READY)
    child.send("hi\r")
    child.expect("word word")
    child.kill(signal.SIGSTOP)
    # As a shell does that takes the terminal over.
    attributes = termios.tcgetattr(child.child_fd)
    attributes[3] |= termios.ECHO | termios.ICANON
    attributes[0] |= termios.ICRNL
    termios.tcsetattr(child.child_fd, termios.TCSANOW, attributes)
    assert flags(child) == COMMON
    child.kill(signal.SIGCONT)
    child.expect("word word")
    assert flags(child) == QUIET
    child.sendintr()
    child.expect("stopped")
    child.expect(READY)
    child.send("/quit\r")
    child.expect(pexpect.EOF)
    child.wait()
    assert flags(child) == COMMON


def test_the_terminal_is_as_it_was_after_an_error():
    child = spawn("--system", "a", "--session", "no/such/folder/x.segue")
    child.expect("could not be written")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 2
    assert flags(child) == COMMON
