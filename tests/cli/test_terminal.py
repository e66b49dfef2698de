"""``segue chat`` with the real SmolLM2, in a real (pseudo-)terminal."""

from __future__ import annotations

import os
import re
import sys

import pexpect
import pytest

pytestmark = [pytest.mark.smollm2, pytest.mark.proof]

LINE = re.compile(
    r"([\d,]+) tokens? read · ([\d,]+) reused · first token [\d.]+ s · [\d.]+ tokens/s"
)
# How prompt_toolkit takes over the terminal, and gives it back.
READY, TAKEN = re.escape("\x1b[?2004h"), re.escape("\x1b[?2004l")


@pytest.fixture
def chat(data_folder):
    child = pexpect.spawn(
        sys.executable,
        ["-m", "segue.cli.main", "chat", "--max-tokens", "40", "--prefill-step-size", "16"],
        encoding="utf-8",
        timeout=60,
        dimensions=(40, 120),
        # Nobody answers the terminal's questions here, where the cursor is, say.
        env={**os.environ, "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm"},
    )
    child.expect(READY)
    yield child
    child.close(force=True)


def say(child: pexpect.spawn, text: str) -> tuple[int, int]:
    """Type a message; how many tokens the turn read, and how many it reused."""
    child.send(text + "\r")
    return figures(child)


def figures(child: pexpect.spawn) -> tuple[int, int]:
    """The figures of the turn that is ending; then waits until the next message can be typed."""
    child.expect(LINE)
    said = child.before
    read, reused = (int(number.replace(",", "")) for number in child.match.groups())
    child.expect(READY)
    child.before = said
    return read, reused


def test_three_turns_of_which_two_and_three_reuse(chat):
    first = say(chat, "What is the capital of France? Answer briefly.")
    assert "Paris" in chat.before
    assert first[0] > 0
    second = say(chat, "And of Italy?")
    assert "Rome" in chat.before
    # The whole of turn one: its prompt, its seven tokens and the end of the reply.
    assert second[1] >= sum(first) + 7
    third = say(chat, "And of Spain?")
    assert third[1] > sum(second)
    # How much of what is around it was read ahead depends on how soon it was typed.
    assert max(second[0], third[0]) < sum(first)
    chat.sendeof()
    chat.expect(pexpect.EOF)
    # Closing at once would kill what is still on its way out.
    chat.wait()
    assert (chat.exitstatus, chat.signalstatus) == (0, None)


def test_ctrl_c_stops_a_reply_and_the_next_turn_reuses_it(chat):
    first = say(chat, "Hello!")
    chat.send("Tell me a long story about a river.\r")
    chat.expect(TAKEN)
    chat.expect(r"\w+ \w+ \w+")
    chat.sendintr()
    chat.expect("stopped · ")
    stopped = figures(chat)
    assert stopped[1] > first[0]
    third = say(chat, "Thank you.")
    assert third[1] > sum(stopped)
    chat.send("/quit\r")
    chat.expect(pexpect.EOF)


def test_several_lines_and_the_commands(chat):
    say(chat, "Say hello\x1b\rin French.")
    chat.send("/history\r")
    chat.expect("in French")
    chat.send("/stats\r")
    chat.expect("tokens in the KV cache")
    chat.send("/quit\r")
    chat.expect(pexpect.EOF)


def test_what_is_typed_during_a_reply_is_sent_after_it(chat):
    chat.send("Tell me a long story about a river.\r")
    chat.expect(TAKEN)
    chat.expect(r"\w+ \w+ \w+")
    chat.send("And of Italy?\r")
    figures(chat)
    assert "And of Italy?" not in chat.before
    chat.expect("And of Italy")
    read, reused = figures(chat)
    assert 0 < read < reused
    chat.sendeof()
    chat.expect(pexpect.EOF)
