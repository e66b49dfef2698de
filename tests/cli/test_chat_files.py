"""A chat that is kept in session files, by what it shows and what they hold."""

from __future__ import annotations

import errno
import os
import signal
import threading
from functools import partial

import pytest

from kit.chats import alone, chat_of, contents, letters, talk, told
from kit.probe import prompter_of, show_warnings_as_the_command
from kit.saved_sessions import held_elsewhere
from segue import ChatSession, GenerationConfig, SessionFile, SessionFileError, SessionLockedError
from segue.cli.chat.branches import Branch
from segue.cli.chat.chat import TerminalChat
from segue.cli.chat.commands import COMMANDS
from segue.cli.sessions.folder import session_path, sessions_folder
from segue.testing import FakeEngine

pytestmark = pytest.mark.usefixtures("data_folder")


WARM = GenerationConfig(temperature=0.5)


def saved(name) -> list[str]:
    return contents(SessionFile.read(session_path(name)).history)


def locks() -> list[str]:
    return [file.name for file in sessions_folder().iterdir() if file.suffix == ".lock"]


def test_a_saved_chat_is_kept_up_to_date():
    look = lambda: seen.append(saved("trip"))  # noqa: E731
    seen = []
    chat = talk(
        "hi", "/save trip", look, "ho", look, "/undo", look, "/edit he", look, "/retry", look,
        "/system Be kind.", look, "/clear", look, generation=WARM,
    )  # fmt: skip
    assert told(chat)[1] == "Saved as trip, and from now on after every turn."
    assert seen == [
        ["hi", "a"],
        ["hi", "a", "ho", "b"],
        ["hi", "a"],
        ["he", "c"],
        ["he", "d"],
        ["he", "d"],
        [],
    ]
    assert SessionFile.read(session_path("trip")).instructions == "Be kind."
    assert locks() == []
    assert sessions_folder().stat().st_mode & 0o777 == 0o700


def test_nothing_is_written_where_nothing_happened(monkeypatch):
    saves = []
    save = ChatSession.save
    monkeypatch.setattr(
        ChatSession, "save", lambda self, path: saves.append(path) or save(self, path)
    )
    talk("/save trip", "/help", "/history", "hi", "/nope", "/stats", "/save", "/undo 9")
    assert saves == [session_path("trip")] * 3


def test_stopped_and_failed_turns_are_saved():
    engine = FakeEngine(["abc", "def", "x"], fail_at=[3], failure=KeyboardInterrupt())
    talk("/save trip", "hi", engine=engine)
    assert saved("trip") == ["hi", "a"]
    engine.model.failure, engine.model.fail_at = None, {engine.model.calls + 2}
    talk("/open trip", "ho", engine=engine)
    assert saved("trip") == ["hi", "a", "ho", ""]


def test_opening_goes_on_where_it_was_saved():
    engine = FakeEngine(letters())
    talk("hi", "/save trip", "ho", engine=engine)
    chat = talk("one", "/open trip", "he", "/switch main", "/switch trip", engine=engine)
    assert told(chat)[0] == "c"
    tokens = SessionFile.read(session_path("trip")).ledger
    assert told(chat)[1].startswith("Resuming trip: 2 turns, ")
    assert told(chat)[1].endswith(" tokens, saved moments ago; saved after every turn.")
    assert told(chat)[2] == "d"
    assert told(chat)[3] == "main: 1 turn."
    assert told(chat)[4].startswith(f"Resuming trip: 3 turns, {len(tokens.ids)} tokens, saved ")
    assert saved("trip") == ["hi", "a", "ho", "b", "he", "d"]
    assert chat.session.usage.turns[-1].cached_tokens > 0
    assert locks() == []


def test_a_path_may_be_saved_to_and_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    engine = FakeEngine(letters())
    talk("hi", "/save ./a", "ho", "/save b.segue", "he", engine=engine)
    assert contents(SessionFile.read("a").history) == ["hi", "a", "ho", "b"]
    assert contents(SessionFile.read("b.segue").history)[4:] == ["he", "c"]
    assert not sessions_folder().exists()
    chat = talk("/open ./a", "/switch b.segue", "/switch ./a", "so", engine=engine)
    assert [line.partition(":")[0] for line in told(chat)[:3]] == [
        "Resuming ./a",
        "Resuming b.segue",
        "Resuming ./a",
    ]
    assert contents(SessionFile.read("a").history)[4:] == ["so", "d"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b.segue"]


def test_a_fork_of_a_saved_chat_is_a_session_too():
    chat = talk("hi", "/save trip", "/fork by train", "ho", "/switch trip", "he")
    assert (
        told(chat)[2] == "You are now in by train, saved after every turn; /switch trip goes back."
    )
    assert saved("by train") == ["hi", "a", "ho", "b"]
    assert saved("trip") == ["hi", "a", "he", "c"]
    assert locks() == []


def test_the_session_that_was_left_can_be_had_by_others():
    seen = []
    talk("/save one", "hi", lambda: seen.append(locks()), "/fork two", "ho", lambda: seen.append(
        locks()), "/switch one", lambda: seen.append(locks()))  # fmt: skip
    one, two, again = seen
    assert len(one) == len(two) == len(again) == 1
    assert one == again != two
    assert locks() == []


def test_what_others_did_to_a_session_meanwhile_is_there_on_return():
    engine = FakeEngine(letters())

    def others():
        talk("/open one", "from there", engine=engine)

    chat = talk("hi", "/save one", "/fork two", others, "/switch one", "he", engine=engine)
    assert contents(chat.session.history) == [
        "hi", "a", "from there", "b", "he", "c",
    ]  # fmt: skip


def test_from_a_saved_chat_one_may_switch_to_any_session():
    engine = FakeEngine(letters())
    talk("hi", "/save one", engine=engine)
    chat = talk("ho", "/switch one", "/save two", "/switch one", "/switch three", engine=engine)
    assert told(chat)[1].startswith("This chat has no branch 'one', only main.")
    assert told(chat)[3].startswith("Resuming one: 1 turn, ")
    assert told(chat)[4] == ("There is no session 'three'. Run `segue sessions` to list them.")


def test_names_that_are_taken_are_refused():
    engine = FakeEngine(letters())
    talk("hi", "/save one", engine=engine)
    chat = talk("ho", "/save one", "/fork one", "/save one", "/open one", engine=engine)
    assert told(chat)[1] == "A session 'one' already exists. Use another name, or /open it."
    assert told(chat)[3] == told(chat)[1]
    assert told(chat)[4].startswith("'one' is also a branch of this chat, and is not saved yet.")
    assert saved("one") == ["hi", "a"]
    chat = talk("/save two", "/fork one", "/fork two", engine=engine)
    assert [line.partition(" already")[0] for line in told(chat)[1:]] == [
        "A session 'one'",
        "A branch 'two'",
    ]


def test_an_empty_branch_makes_way_for_a_session_of_its_name():
    engine = FakeEngine(letters())
    talk("hi", "/save main", engine=engine)
    chat = talk("/open main", "ho", engine=engine)
    assert chat.branches.names == ["main"]
    assert saved("main") == ["hi", "a", "ho", "b"]


def test_opening_the_session_that_one_is_in_goes_on_with_it():
    chat = talk("hi", "/save one", "/open one", "ho", "/save one")
    assert told(chat)[2].startswith("Resuming one: 1 turn")
    assert saved("one") == ["hi", "a", "ho", "b"]
    assert locks() == []


def test_saving_under_another_name_leaves_the_old_session_as_it_was():
    talk("hi", "/save one", "/save two", "ho", "/switch one", "he")
    assert saved("one") == ["hi", "a", "he", "c"]
    assert saved("two") == ["hi", "a", "ho", "b"]


def test_a_branch_in_memory_is_left_in_memory():
    engine = FakeEngine(letters())
    chat = talk("hi", "/fork b", "/save trip", "ho", "/switch main", "he", engine=engine)
    assert saved("trip") == ["hi", "a", "ho", "b"]
    assert contents(chat.session.history) == ["hi", "a", "he", "c"]
    assert chat.branches.names == ["main", "trip"]


def test_a_session_that_another_process_has_open_is_refused():
    engine = FakeEngine(letters())
    talk("hi", "/save one", engine=engine)
    lines = ["/open one", "/save two", "/fork one", "/switch one", "he"]
    with held_elsewhere(session_path("one")) as holder:
        chat = talk("ho", *lines, engine=engine)
        with pytest.raises(SessionLockedError):
            talk(session="one")
    answers = told(chat)
    for place in (1, 3, 4):
        assert f"in use by process {holder} " in answers[place]
    assert answers[5] == "c"
    assert saved("two") == ["ho", "b", "he", "c"]


def test_a_session_that_two_begin_at_once_belongs_to_the_first():
    with held_elsewhere(session_path("new")):
        with pytest.raises(SessionLockedError):
            talk(session="new")
        chat = talk("hi", "/save new", "ho")
    assert "in use by process" in told(chat)[1]
    assert chat.branches.current.path is None


def test_a_full_disk_is_told_and_the_chat_goes_on(monkeypatch):
    full = False
    fsync = os.fsync

    def failing(descriptor):
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    def space():
        nonlocal full
        full = False

    def filled():
        nonlocal full
        full = True

    monkeypatch.setattr(os, "fsync", failing)
    chat = talk("hi", "/save one", filled, "ho", "/fork two", "/switch two", "he", space, "/help")
    lines = told(chat)
    assert lines[2] == "b"
    assert "could not be written: No space left on device" in lines[3]
    assert "could not be written: No space left on device" in lines[4]
    assert saved("one") == ["hi", "a", "ho", "b", "he", "c"]
    assert [file.name for file in sessions_folder().iterdir()] == ["one.segue"]
    assert chat.branches.current.name == "one"


def test_what_could_not_be_saved_is_saved_before_it_is_left(monkeypatch):
    save, broken = ChatSession.save, set()

    def failing(self, path):
        if path.stem in broken:
            raise SessionFileError(f"{path.stem} is broken.", remedy="Mend it.")
        save(self, path)

    monkeypatch.setattr(ChatSession, "save", failing)
    breaking, mending = partial(broken.add, "one"), broken.clear
    chat = talk("hi", "/save one", breaking, "ho", "/fork two", mending, "/fork three", "he")
    assert told(chat).count("one is broken. Mend it.") == 3
    assert saved("one") == ["hi", "a", "ho", "b"]
    assert saved("three") == ["hi", "a", "ho", "b", "he", "c"]
    assert not session_path("two").exists()
    talk("/open three", "/fork one more", partial(broken.add, "one more"), "so", mending,
         "/switch three")  # fmt: skip
    assert len(saved("one more")) == 8


def test_a_session_that_can_not_be_saved_at_the_end_is_told(monkeypatch):
    chat = talk("hi", "/save one")
    monkeypatch.setattr(ChatSession, "save", lambda self, path: 1 / 0)
    chat = talk("/open one", "ho")
    assert told(chat)[-1] == "The session could not be saved (ZeroDivisionError): division by zero"
    assert saved("one") == ["hi", "a"]
    assert locks() == []


def test_a_damaged_session_is_not_opened():
    talk("hi", "/save one")
    path = session_path("one")
    path.write_bytes(path.read_bytes().replace(b"hi", b"ho"))
    chat = talk("so", "/open one", "well")
    assert told(chat)[1].startswith(f"The conversation in {path} is damaged: ")
    assert contents(chat.session.history) == ["so", "a", "well", "b"]


@pytest.mark.filterwarnings("always")
def test_a_damaged_cache_is_told_and_the_chat_goes_on(monkeypatch, capsys):
    talk("hi", "/save one")
    path = session_path("one")
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    show_warnings_as_the_command(monkeypatch)
    talk("/open one", "ho")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"segue: {path}: The KV cache is left out; ")
    assert err.count("\n") == 1
    assert saved("one") == ["hi", "a", "ho", "a"]


def test_ctrl_c_while_it_is_being_saved_or_opened_waits(monkeypatch):
    save, reopen = ChatSession.save, ChatSession.open

    def interrupted(self, path):
        os.kill(os.getpid(), signal.SIGINT)
        save(self, path)

    def interrupted_too(path, engine):
        os.kill(os.getpid(), signal.SIGINT)
        return reopen(path, engine)

    monkeypatch.setattr(ChatSession, "save", interrupted)
    monkeypatch.setattr(ChatSession, "open", interrupted_too)
    chat = talk("hi", "/save one", "ho", "/fork two", "he", "/switch one")
    assert saved("one") == ["hi", "a", "ho", "b"]
    assert saved("two") == ["hi", "a", "ho", "b", "he", "c"]
    assert chat.branches.current.name == "one"


def test_the_model_does_not_read_ahead_while_it_is_saved(monkeypatch):
    begun, reading, seen = threading.Event(), threading.Event(), []
    save = ChatSession.save

    def read_until_stopped(self, *, prompt_progress_callback, **_):
        reading.set()
        begun.set()
        try:
            while True:
                prompt_progress_callback(0, 1)
        finally:
            reading.clear()

    def watching(self, path):
        seen.append((begun.is_set(), reading.is_set()))
        save(self, path)

    monkeypatch.setattr(ChatSession, "prewarm", read_until_stopped)
    monkeypatch.setattr(ChatSession, "save", watching)
    session = ChatSession(FakeEngine(letters()), instructions="be kind " * 20)
    quiet = chat_of(alone(session), "/save one", "hi", "ho")
    TerminalChat(quiet.branches, quiet.console, prompter_of(quiet), COMMANDS).run()
    assert seen == [(True, False)] * 3


def test_a_session_that_was_begun_and_left_is_still_ours():
    engine = FakeEngine(letters())
    talk("hi", "/save other", engine=engine)
    seen = []
    chat = talk(
        "/switch other", lambda: seen.append(len(locks())), "/switch new", "ho",
        engine=engine, session="new",
    )  # fmt: skip
    assert seen == [2]
    assert told(chat)[1] == "Starting new; saved after every turn."
    assert saved("new") == ["ho", "b"]
    assert locks() == []


def test_a_branch_that_nobody_opened_has_its_file_alone():
    branch = Branch(None, "x", session_path("x"))
    branch.save_changes()
    branch.close()
    assert branch.session is None


def test_who_leaves_what_could_not_be_saved_is_asked_once(monkeypatch):
    def full(self, path):
        raise SessionFileError("The disk is full.", remedy="Make room.")

    with monkeypatch.context() as patch:
        patch.setattr(ChatSession, "save", full)
        chat = talk("hi", EOFError(), "ho", EOFError(), EOFError(), "he", session="trip")
    assert contents(chat.session.history) == ["hi", "a", "ho", "b"]
    lines = told(chat)
    for size in ("trip (1 turn)", "trip (2 turns)"):
        note = f"Not saved: {size}. /switch NAME and /save NAME keep one; /quit again leaves."
        assert note in lines
    saved = talk("hi", EOFError(), "ho", session="trip")
    assert contents(saved.session.history) == ["hi", "a"]
