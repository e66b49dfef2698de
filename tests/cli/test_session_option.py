"""``segue chat --session``, in a pipe and in a terminal."""

from __future__ import annotations

import io
import os
import re
import signal
import sys

import pexpect
import pytest

from kit.chats import contents, letters, talk, told
from kit.command import complaint, run, shown
from kit.saved_sessions import TALK, held_elsewhere, write
from segue import (
    ChatSession,
    GenerationConfig,
    SessionFile,
    SessionWarning,
)
from segue.cli.sessions import folder as session_folder
from segue.cli.sessions.folder import session_path, sessions_folder
from segue.config import CacheConfig
from segue.testing import FakeEngine

pytestmark = pytest.mark.usefixtures("data_folder")

SMALL = CacheConfig(max_kv_size=64)


@pytest.fixture
def piped(monkeypatch):
    """Lines that are piped into a chat with the fake engine; the models that were loaded."""
    loaded = []

    def pipe(text, engine):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        monkeypatch.setattr("segue.loading.load", lambda name: loaded.append(name) or engine)

    pipe.loaded = loaded
    return pipe


def test_a_piped_session_goes_on(capsys, piped):
    engine = FakeEngine(letters())
    engine.source = "a-model"
    piped("hi\n", engine)
    assert shown(capsys, "chat", "--session", "trip") == "a\n"
    piped("ho\nhe\n", engine)
    assert shown(capsys, "chat", "--session", "trip", "--lines") == "b\nc\n"
    file = SessionFile.read(session_path("trip"))
    assert contents(file.history) == ["hi", "a", "ho", "b", "he", "c"]
    assert file.usage.turns[1].cached_tokens > 0
    assert piped.loaded == ["smollm2", "a-model"]
    assert [file.name for file in sessions_folder().iterdir()] == ["trip.segue"]


def test_each_piped_line_is_saved(capsys, piped, monkeypatch):
    saves = []
    save = ChatSession.save
    monkeypatch.setattr(
        ChatSession, "save", lambda self, path: saves.append(len(self.history)) or save(self, path)
    )
    piped("hi\n\nho\n", FakeEngine(letters()))
    shown(capsys, "chat", "--session", "trip", "--lines")
    assert saves == [2, 4]


def test_a_path_does_as_well(capsys, piped, tmp_path):
    piped("hi\n", FakeEngine(letters()))
    assert shown(capsys, "chat", "--session", str(tmp_path / "x.segue")) == "a\n"
    assert contents(SessionFile.read(tmp_path / "x.segue").history) == ["hi", "a"]
    assert not sessions_folder().exists()


def test_a_model_that_fails_leaves_what_was_said(capsys, piped):
    piped("hi\nho\nhe\n", FakeEngine(letters(), fail_at=[5]))
    assert run("chat", "--session", "trip", "--lines") == 2
    assert capsys.readouterr().err.startswith("segue: The fake model failed in forward pass 5")
    assert contents(SessionFile.read(session_path("trip")).history) == ["hi", "a", "ho", ""]


def test_a_piped_session_that_can_not_be_saved_answers_all_the_same(capsys, piped, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("segue.store.session_layout.replacing", full)
    piped("hi\nho\n", FakeEngine(letters()))
    assert run("chat", "--session", "trip", "--lines") == 2
    out, err = capsys.readouterr()
    assert out == "a\nb\n"
    assert err.count("could not be written: No space left on device.") == err.count("\n") == 3


@pytest.mark.filterwarnings("always")
def test_a_model_that_is_named_is_taken(capsys, piped):
    engine = FakeEngine(letters())
    piped("hi\n", engine)
    shown(capsys, "chat", "--session", "trip")
    other = FakeEngine(["other"])
    other.fingerprint = "another"
    piped("ho\n", other)
    assert run("chat", "--session", "trip", "--model", "m") == 0
    out, err = capsys.readouterr()
    assert out == "other\n"
    assert err.startswith(f"segue: {session_path('trip')}: The KV cache is left out; ")
    assert err.count("\n") == 1
    assert piped.loaded == ["smollm2", "m"]
    assert contents(SessionFile.read(session_path("trip")).history) == ["hi", "a", "ho", "other"]


def test_a_model_that_is_not_known_is_the_usual_one(capsys, piped):
    write("trip", model="")
    piped("", FakeEngine())
    shown(capsys, "chat", "--session", "trip", "--lines")
    assert piped.loaded == ["smollm2"]


def test_settings_that_are_given_override_those_that_were_saved(capsys, piped):
    engine = FakeEngine(letters())
    piped("hi\n", engine)
    arguments = ["--temperature", "0.5", "--top-k", "3", "--system", "Be kind.", "--seed", "1"]
    shown(capsys, "chat", "--session", "trip", *arguments, "--draft", "prompt-lookup")
    piped("ho\n", engine)
    # As the default, but given.
    shown(capsys, "chat", "--session", "trip", "--top-k", "0", "--stop", "x")
    file = SessionFile.read(session_path("trip"))
    assert file.instructions == "Be kind."
    assert file.settings.draft == "prompt-lookup"
    assert file.settings.generation.num_draft_tokens == 5
    assert file.settings.generation == GenerationConfig(
        temperature=0.5, top_k=0, seed=1, stop=["x"], max_tokens=1024, prefill_step_size=512
    )
    piped("he\n", engine)
    arguments = ["--system", "Be brief.", "--draft", "prompt-lookup", "--num-draft-tokens", "2"]
    shown(capsys, "chat", "--session", "trip", *arguments)
    file = SessionFile.read(session_path("trip"))
    assert file.instructions == "Be brief."
    assert file.settings.draft == "prompt-lookup"
    assert file.settings.generation.num_draft_tokens == 2
    assert file.settings.generation.temperature == 0.5


def test_settings_of_a_session_made_by_a_program_stay(capsys, piped):
    engine = FakeEngine(letters())
    session = ChatSession(engine, generation=GenerationConfig(max_tokens=7))
    sessions_folder().mkdir(parents=True)
    session.save(session_path("trip"))
    session.close()
    piped("hi\n", engine)
    shown(capsys, "chat", "--session", "trip")
    assert SessionFile.read(session_path("trip")).settings.generation == GenerationConfig(
        max_tokens=7
    )


def test_settings_that_do_not_go_with_the_saved_ones_are_told(capsys, piped):
    engine = FakeEngine(letters())
    piped("hi\n", engine)
    shown(capsys, "chat", "--session", "trip", "--max-kv-size", "64")
    piped("hi\n", engine)
    told = complaint(capsys, "chat", "--session", "trip", "--kv-bits", "8")
    assert "can't go together" in told
    assert "can't be combined with a setting of the saved session: " in told
    assert told.endswith("Leave the option out, or start a new session.\n")
    assert [file.name for file in sessions_folder().iterdir()] == ["trip.segue"]


@pytest.mark.filterwarnings("always")
def test_another_kind_of_kv_cache_drops_the_saved_one_and_says_so(capsys, piped):
    engine = FakeEngine(letters())
    piped("hi\n", engine)
    shown(capsys, "chat", "--session", "trip")
    read = SessionFile.read(session_path("trip")).usage.turns[0]
    piped("ho\n", engine)
    options = ["--kv-bits", "8", "--quantized-kv-start", "0", "--kv-group-size", "64"]
    assert run("chat", "--session", "trip", *options) == 0
    out, err = capsys.readouterr()
    assert out == "b\n"
    assert err == (
        f"segue: {session_path('trip')}: The KV cache was saved with --kv-bits off "
        "--quantized-kv-start 5000, and can't be used with --kv-bits 8 --quantized-kv-start 0. The "
        "next turn reads the conversation again. Leave the option out to keep the cache.\n"
    )
    file = SessionFile.read(session_path("trip"))
    assert file.usage.turns[1].cached_tokens == 0
    assert file.usage.turns[1].fed_tokens > read.fed_tokens
    assert file.settings.cache.kv_bits == 8
    # Given again, or left out, nothing differs any more.
    for options in (["--kv-bits", "8"], []):
        piped("he\n", engine)
        shown(capsys, "chat", "--session", "trip", *options)
        assert SessionFile.read(session_path("trip")).usage.turns[-1].cached_tokens > 0


def test_a_dropped_kv_cache_stays_in_the_file_until_a_turn_is_saved(capsys, piped):
    engine = FakeEngine(letters())
    piped("hi\n", engine)
    shown(capsys, "chat", "--session", "trip")
    before = session_path("trip").read_bytes()
    piped("", engine)
    with pytest.warns(SessionWarning, match="saved with --max-kv-size off, and can't be used with"):
        talk(session="trip", engine=engine, cache=SMALL, given={"max_kv_size"})
    assert session_path("trip").read_bytes() == before


def test_cache_settings_that_a_cache_is_not_made_of_keep_it(capsys, piped):
    engine = FakeEngine(letters())
    piped("hi\n", engine)
    shown(capsys, "chat", "--session", "trip")
    piped("ho\n", engine)
    # Without --kv-bits there is nothing to quantize.
    options = ["--kv-group-size", "32", "--max-checkpoints", "2", "--max-checkpoint-bytes", "9"]
    shown(capsys, "chat", "--session", "trip", *options)
    file = SessionFile.read(session_path("trip"))
    assert file.usage.turns[1].cached_tokens > 0
    saved = file.settings.cache
    assert (saved.max_checkpoints, saved.max_checkpoint_bytes) == (2, 9)


def test_a_new_session_takes_any_cache_settings(capsys, piped):
    piped("hi\n", FakeEngine(letters()))
    assert shown(capsys, "chat", "--session", "trip", "--max-kv-size", "64") == "a\n"
    write("empty")
    piped("", FakeEngine(letters()))
    assert shown(capsys, "chat", "--session", "empty", "--max-kv-size", "64", "--lines") == ""


@pytest.mark.filterwarnings("always")
def test_a_cache_option_holds_for_every_session_that_the_chat_opens(capsys):
    engine = FakeEngine(letters())
    talk("hi", "/save one", engine=engine)
    with pytest.warns(SessionWarning) as warned:
        chat = talk("/open one", "ho", engine=engine, cache=SMALL, given={"max_kv_size"})
    assert len(warned) == 1
    assert contents(chat.session.history) == ["hi", "a", "ho", "b"]
    assert chat.session.usage.turns[-1].cached_tokens == 0


def test_session_and_cache_do_not_go_together(capsys):
    told = complaint(capsys, "chat", "--session", "trip", "--cache", "c")
    assert told.startswith("segue: --session and --cache can't be used together")


def test_what_is_wrong_with_a_session_is_told_before_the_model_is_loaded(capsys, piped, tmp_path):
    path = write("trip", *TALK)
    path.write_bytes(path.read_bytes().replace(b"rivers", b"rivets"))
    piped("hi\n", None)
    assert "is damaged: " in complaint(capsys, "chat", "--session", "trip")
    told = complaint(capsys, "chat", "--session", str(tmp_path / "no" / "x"))
    assert "could not be written: No such file or directory." in told
    other = write("held")
    with held_elsewhere(other):
        assert "is in use by process" in complaint(capsys, "chat", "--session", "held")
    assert piped.loaded == []
    assert sorted(file.name for file in sessions_folder().iterdir()) == ["held.segue", "trip.segue"]


def test_a_session_that_can_only_be_read_goes_on_unsaved(monkeypatch):
    engine = FakeEngine(letters())
    talk("hi", session="trip", engine=engine)

    def closed(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(session_folder, "FileLock", closed)
    monkeypatch.setattr("segue.store.opening.FileLock", closed)
    monkeypatch.setattr("segue.store.saving.FileLock", closed)
    chat = talk("ho", session="trip", engine=engine)
    assert contents(chat.session.history) == ["hi", "a", "ho", "b"]
    assert "could not be written: Permission denied." in told(chat)[1]


def test_a_chat_with_a_session_in_a_terminal():
    engine = FakeEngine(letters())
    chat = talk("hi", "/undo", "ho", session="trip", engine=engine)
    assert chat.branches.current.summary == "Starting trip; saved after every turn."
    chat = talk("/fork train", "he", session="trip", engine=engine)
    assert contents(SessionFile.read(session_path("trip")).history) == ["ho", "b"]
    assert contents(SessionFile.read(session_path("train")).history) == ["ho", "b", "he", "c"]
    chat = talk(session="train", engine=engine)
    assert chat.branches.current.summary.startswith("Resuming train: 2 turns, ")


# How prompt_toolkit takes over the terminal.
READY = re.escape("\x1b[?2004h")

CHAT = """
import sys
import segue.loading
from segue.cli.main import main
from segue.testing import FakeEngine

engine = FakeEngine(["hello", "fine"])
engine.name = "Fake"
segue.loading.load = lambda name: engine
main(["chat", "--model", "/", "--session", "trip"])
"""


def test_in_a_terminal_the_session_is_greeted_and_outlives_a_kill():
    def spawn():
        child = pexpect.spawn(
            sys.executable,
            ["-c", CHAT],
            encoding="utf-8",
            timeout=60,
            dimensions=(40, 120),
            env={**os.environ, "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm"},
        )
        child.expect("Fake. Enter sends, ")
        return child

    child = spawn()
    child.expect("Starting trip; saved after every turn.")
    child.expect(READY)
    child.send("hi\r")
    child.expect("hello")
    child.expect("tokens/s")
    # The next message is asked for once the turn is saved.
    child.expect(READY)
    child.kill(signal.SIGKILL)
    child.expect(pexpect.EOF)
    child.close()
    child = spawn()
    child.expect(r"Resuming trip: 1 turn, \d+ tokens, saved moments ago; saved after every")
    child.expect(READY)
    child.send("/quit\r")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0
    assert contents(SessionFile.read(session_path("trip")).history) == ["hi", "hello"]
    assert [file.name for file in sessions_folder().iterdir()] == ["trip.segue"]


def test_a_session_in_which_nothing_was_said_is_not_written():
    talk("/help", session="trip")
    assert list(sessions_folder().iterdir()) == []
