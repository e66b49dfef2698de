"""Sessions on threads of their own, and programs that end right after them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from kit.probe import pretend_threads, wait_for_threads
from segue import ChatSession
from segue.cli.chat.idle import failure, reading_ahead
from segue.cli.chat.statistics import usage_table
from segue.mlx.process import threads
from segue.testing import FakeEngine

# The interpreter lets no other thread run before it has begun to close down, and then does: by
# chance that is what happens on a busy machine.
PROGRAM = """
import segue.mlx, sys, threading, time
from kit.models import toy_engine
from segue import ChatSession, GenerationConfig

class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(0.5)

slow = Slow()
session = ChatSession(toy_engine(), generation=GenerationConfig(max_tokens=3))
thread = threading.Thread(target=session.respond, args=("Hello!",))
sys.setswitchinterval(1000)
thread.start()
WAIT
"""


@pytest.mark.parametrize("wait", ["thread.join()", ""])
def test_a_program_may_end_as_soon_as_its_threads_have(wait):
    program = PROGRAM.replace("WAIT", wait)
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_one_thread_reads_ahead_for_a_whole_chat(monkeypatch):
    readers = set()

    def prewarm(self, **_):
        readers.add(threading.get_native_id())

    monkeypatch.setattr(ChatSession, "prewarm", prewarm)
    before = threading.active_count()
    for _ in range(3):
        with reading_ahead(ChatSession(FakeEngine())):
            pass
    assert len(readers) == 1
    assert threading.active_count() <= before + 1


def test_a_failure_to_read_ahead_is_in_the_statistics():
    engine = FakeEngine(["a"], fail_at=[1])
    session = ChatSession(engine, instructions="Be brief.")
    console = Console(file=io.StringIO(), width=200)
    with reading_ahead(session):
        while not engine.model.calls:
            time.sleep(0.001)
    console.print(usage_table(session))
    assert "reading ahead failed" in console.file.getvalue()
    assert "failed in forward pass 1" in console.file.getvalue()
    with reading_ahead(session):
        pass
    assert failure(session) is None
    assert failure(ChatSession(FakeEngine())) is None


def test_being_done_with_typing_is_no_failure(monkeypatch):
    started = threading.Event()

    def prewarm(self, *, prompt_progress_callback, **_):
        started.set()
        while True:
            prompt_progress_callback(0, 1)

    monkeypatch.setattr(ChatSession, "prewarm", prewarm)
    session = ChatSession(FakeEngine())
    with reading_ahead(session):
        started.wait()
    assert failure(session) is None


class Clock:
    """Time passes only while somebody sleeps."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.mark.parametrize("listed", [True, False])
def test_a_program_does_not_wait_for_ever(listed, tmp_path, monkeypatch):
    (tmp_path / "1").touch()
    monkeypatch.setattr(threads, "TASKS", str(tmp_path if listed else tmp_path / "none"))
    pretend_threads(monkeypatch, {1})
    monkeypatch.setattr(threads, "PATIENCE", 0.05)
    clock = Clock()
    monkeypatch.setattr(threads, "time", clock)
    wait_for_threads()
    assert 0.05 <= clock.now < 0.06


def test_a_program_does_not_wait_where_no_thread_has_ended(monkeypatch):
    pretend_threads(monkeypatch, {threading.get_native_id()})
    monkeypatch.setattr(threads, "time", None)
    wait_for_threads()
