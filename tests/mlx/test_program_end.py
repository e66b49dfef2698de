"""Programs that end while daemon threads use a model: the exit code is theirs, without a word."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from segue import SessionFile

DAEMON = """
import segue.mlx, sys, threading, time, queue
from kit.models import tiny_llama
from kit.oracle import EditingTokenizer, wrap
from segue import ChatSession, GenerationConfig

FOREVER = GenerationConfig(max_tokens=100_000, logit_bias={257: -1e6})
session = ChatSession(wrap(tiny_llama(len(EditingTokenizer()))), generation=FOREVER)
started = threading.Event()

def say(prompt="Hello", tokens=3):
    session.respond(prompt, max_tokens=tokens)
    started.set()

def work():
    WORK

threading.Thread(target=work, daemon=True).start()
started.wait()
time.sleep(DELAY)
END
"""
# What a daemon thread is doing when the program ends.
WORKS = {
    "generates": """
    for _ in session.stream("Hello"):
        started.set()""",
    "answers": """
    while True:
        say()""",
    "reads": """
    say()
    while True:
        session.clear()
        say("hello " * 3000, 1)""",
    "saves": """
    while True:
        say()
        session.save("talk.segue")
        session.clear()""",
    "forks": """
    while True:
        session.fork().respond("Hello", max_tokens=3)
        started.set()""",
    "drafts": """
    with ChatSession(
        wrap(tiny_llama(len(EditingTokenizer()))), draft="prompt-lookup", generation=FOREVER
    ) as drafted:
        for _ in drafted.stream("hello hello hello"):
            started.set()""",
    "prints": """
    for response in session.stream("Hello"):
        started.set()
        print(response.text, flush=True)""",
    "computes": """
    say()
    while True:
        sum(range(100))""",
    "sleeps for moments": """
    while True:
        say()
        time.sleep(0.05)""",
    "loads": """
    started.set()
    import segue
    while True:
        segue.load("smollm2")""",
    "waits for ever": """
    say()
    queue.Queue().get()""",
    "catches everything": """
    while True:
        try:
            say()
        except BaseException:
            pass""",
}
ENDS = {0: "", 3: "sys.exit(3)"}


def ended_with(work: str, end: int, delay: float, folder: Path) -> tuple[int, str]:
    program = DAEMON.replace("WORK", WORKS[work].strip()).replace("END", ENDS[end])
    done = subprocess.run(
        [sys.executable, "-c", program.replace("DELAY", str(delay))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("work", ["generates", "saves", "computes", "catches everything"])
def test_a_program_may_end_while_a_daemon_thread_uses_a_model(work, tmp_path):
    assert ended_with(work, 3, 0.05, tmp_path) == (3, "")
    # What was being written when the program ended is gone.
    assert not list(tmp_path.glob(".segue-*"))


@pytest.mark.proof
@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("delay", [0.0, 0.02, 0.1, 0.4])
def test_a_program_may_end_at_any_moment(work, delay, tmp_path):
    assert ended_with(work, 0, delay, tmp_path) == (0, "")
    assert not list(tmp_path.glob(".segue-*"))
    if work == "saves" and (tmp_path / "talk.segue").exists():
        file = SessionFile.read(tmp_path / "talk.segue")
        assert (len(file.conversation.messages), file.damage) == (2, {})


def test_a_reply_that_the_end_cuts_is_recorded(tmp_path):
    program = DAEMON.replace("DELAY", "0").replace("END", "")
    work = """
    try:
        for response in session.stream("Hello"):
            started.set()
    finally:
        print(len(session.history), session.history[-1].text != "")"""
    done = subprocess.run(
        [sys.executable, "-c", program.replace("WORK", work.strip())],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 True\n", "")
