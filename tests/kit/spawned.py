"""The command in a process of its own, with a fake model that takes its time."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pexpect

# How prompt_toolkit takes over the terminal.
READY = re.escape("\x1b[?2004h")
SHOWN, HIDDEN = "\x1b[?25h", "\x1b[?25l"

PROGRAM = """
import sys, time
import segue.loading
from segue import ChatSession
from segue.cli.main import main
from segue.testing import FakeEngine

engine = FakeEngine(["word " * 400] * 9)
engine.name = "Fake"
pause, slow_load, slow_save = map(float, sys.argv[1:4])
forward, save = engine.model.forward, ChatSession.save


def slowly(cache, ids):
    time.sleep(pause)
    forward(cache, ids)


def load(name):
    if slow_load:
        print("loading it", flush=True)
    time.sleep(slow_load)
    return engine


def save_slowly(self, path):
    print("saving it", flush=True)
    time.sleep(slow_save)
    save(self, path)


engine.model.forward = slowly
segue.loading.load = load
if slow_save:
    ChatSession.save = save_slowly
main(["chat", "--model", "/", "--prefill-step-size", "1", *sys.argv[4:]])
"""


def command(*options: str, pause=0.01, load=0.0, save=0.0) -> list[str]:
    """A chat with a model that takes so many seconds for a token, to load, and to be saved."""
    return [sys.executable, "-c", PROGRAM, str(pause), str(load), str(save), *options]


def spawn(*options: str, **seconds: float) -> pexpect.spawn:
    """Such a chat in a terminal."""
    program, *arguments = command(*options, **seconds)
    return pexpect.spawn(
        program,
        arguments,
        encoding="utf-8",
        timeout=60,
        dimensions=(24, 100),
        # Nobody answers the terminal's questions here, where the cursor is, say.
        env={**os.environ, "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm"},
    )


def pipe(*options: str, **kwargs) -> subprocess.Popen[bytes]:
    """Such a chat in a pipe."""
    seconds = {name: kwargs.pop(name) for name in ("pause", "load", "save") if name in kwargs}
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command(*options, **seconds), **{**streams, **kwargs})


def flags(child: pexpect.spawn) -> tuple[bool, bool, bool]:
    """Whether the terminal echoes, collects lines, and turns Enter into a line feed."""
    attributes = termios.tcgetattr(child.child_fd)
    return (
        bool(attributes[3] & termios.ECHO),
        bool(attributes[3] & termios.ICANON),
        bool(attributes[0] & termios.ICRNL),
    )


def ended_by(child: pexpect.spawn) -> signal.Signals:
    """The signal that a process in a terminal ended by."""
    child.expect(pexpect.EOF)
    child.wait()
    assert child.signalstatus is not None, (child.exitstatus, child.before)
    return signal.Signals(child.signalstatus)


def leftovers(folder: Path) -> list[str]:
    """Files of the sessions' folder that are no sessions."""
    return [file.name for file in folder.iterdir() if file.suffix != ".segue"]
