"""The system fails while a session is saved: the old file stands, and the session goes on."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest

from kit.sessions import check_ledger, say, talk
from segue import ChatSession, SessionFile, SessionFileError
from segue.files.atomic import tag
from segue.testing import FakeEngine

MOST_CALLS = 60
CALLS = ("open", "write", "fsync", "replace", "fstat", "ftruncate", "fchmod", "close", "flock")
MODULES = {"flock": fcntl}


class NthCall:
    """Fails in its n-th call, by an exception; before that, and after, the call is as ever."""

    def __init__(self, real, number, error):
        self.real, self.number, self.error, self.calls = real, number, error, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls == self.number:
            if self.real is os.close:
                # It is closed all the same, as Linux has it.
                self.real(*args)
            raise self.error
        return self.real(*args, **kwargs)


def lock_of(path):
    return path.with_name(f".segue-{tag(path)}.lock")


def attempt(action) -> str | None:
    """What the error says, if there is one."""
    try:
        action()
    except SessionFileError as error:
        return str(error)
    return None


def check_goes_on(session, path, twin):
    """The session takes the turn that one takes which never met a fault, and can be saved."""
    assert session.respond("and then?") == twin.respond("and then?")
    check_ledger(session)
    session.save(path)
    file = SessionFile.read(path)
    assert file.damage == {}
    assert file.history == session.history
    session.close()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("held", [True, False], ids=["own file", "other file"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("call", CALLS)
def test_the_nth_call_fails(path, monkeypatch, call, code, held):
    module = MODULES.get(call, os)
    failed = 0
    for number in range(1, MOST_CALLS):
        talk("old").save(path)
        old = path.read_bytes()
        session, twin = talk("one", "two"), talk("one", "two")
        if held:
            session = ChatSession.open(path, FakeEngine(say))
            twin = talk("old")
        before = sorted(path.parent.iterdir())
        error = OSError(code, os.strerror(code))
        fault = NthCall(getattr(module, call), number, error)
        with monkeypatch.context() as patch:
            patch.setattr(module, call, fault)
            told = attempt(lambda session=session: session.save(path))
        saved = told is None
        assert saved or (os.strerror(code) in told and str(path) in told)
        if saved:
            assert SessionFile.read(path).history == session.history
        else:
            failed += 1
            if call != "close":
                assert path.read_bytes() == old
                # No temporary file, and no lock but the one there was. (Where locks themselves
                # fail, their file stays, and nobody holds it.)
                after = sorted(path.parent.iterdir())
                unheld = call in ("flock", "fstat") and not held
                assert after == before or (unheld and {path, *after} == {path, lock_of(path)})
        check_goes_on(session, path, twin)
        if saved and fault.calls < number:
            break
    assert number < MOST_CALLS - 1
    # What is no more than a help may fail.
    assert failed or call in ("ftruncate", "close", "flock")


@pytest.mark.parametrize("call", CALLS)
def test_an_interrupt_in_the_nth_call(path, monkeypatch, call):
    module = MODULES.get(call, os)
    for number in range(1, MOST_CALLS):
        first = talk("old")
        first.save(path)
        old = path.read_bytes()
        session, twin = talk("one", "two"), talk("one", "two")
        fault = NthCall(getattr(module, call), number, KeyboardInterrupt())
        saved = True
        with monkeypatch.context() as patch:
            patch.setattr(module, call, fault)
            try:
                session.save(path)
            except KeyboardInterrupt:
                saved = False
        # Before the rename, the old file stands; behind it, the new one.
        data = path.read_bytes()
        assert data == old or SessionFile.read(path).history == session.history
        assert not saved or data != old
        assert not [entry for entry in path.parent.iterdir() if entry.suffix == ".tmp"]
        first.close()
        check_goes_on(session, path, twin)
        if fault.calls < number:
            break
    # The lock is held already, so that no note is written.
    assert number > 1 or call == "ftruncate"


@pytest.mark.parametrize("most", [1, 7, 4096])
def test_a_system_that_takes_a_few_bytes_at_a_time(path, monkeypatch, most):
    session = talk("one", "two")
    real = os.write
    monkeypatch.setattr(os, "write", lambda at, data: real(at, bytes(data[:most])))
    session.save(path)
    monkeypatch.undo()
    file = SessionFile.read(path)
    assert file.damage == {}
    assert file.history == session.history


def test_a_new_file_that_could_not_be_written_is_not_there(path, monkeypatch):
    session = talk("one")
    for call in ("write", "fsync", "replace"):
        with monkeypatch.context() as patch:
            # The first write is the lock's note.
            number = 2 if call == "write" else 1
            patch.setattr(os, call, NthCall(getattr(os, call), number, OSError(errno.EIO, "bad")))
            with pytest.raises(SessionFileError, match=r"could not be written: bad\."):
                session.save(path)
        assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "saved"), [(errno.ENOTTY, True), (errno.ENOTSUP, True), (errno.EIO, False)]
)
def test_where_a_drive_is_asked_to_empty_its_own_memory(path, monkeypatch, code, saved):
    """macOS's way; where a file system has none, fsync is what is left."""
    talk("old").save(path)
    old, session = path.read_bytes(), talk("one")
    asked, synced = [], []

    def control(descriptor, command):
        asked.append(command)
        raise OSError(code, os.strerror(code))

    real = os.fsync
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", control)
    monkeypatch.setattr(os, "fsync", lambda at: synced.append(at) or real(at))
    if saved:
        session.save(path)
        assert len(synced) == 2
    else:
        with pytest.raises(SessionFileError, match=os.strerror(code)):
            session.save(path)
        assert path.read_bytes() == old
        assert synced == []
    assert asked == [51]


def test_the_drive_s_own_way_is_enough(path, monkeypatch):
    asked, synced, real = [], [], os.fsync
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda *command: asked.append(command[1]))
    monkeypatch.setattr(os, "fsync", lambda at: synced.append(at) or real(at))
    talk("one").save(path)
    assert asked == [51]
    assert len(synced) == 1  # the folder


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE])
def test_the_nth_open_fails_while_a_session_is_opened(path, monkeypatch, code):
    talk("old").save(path)
    for number in range(1, MOST_CALLS):
        fault = NthCall(os.open, number, OSError(code, os.strerror(code)))
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", fault)
            told = attempt(lambda: ChatSession.open(path, FakeEngine(say)).close())
        if told is None:
            break
        assert os.strerror(code) in told
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    # The lock's, and the file's.
    assert number == 3
    check_goes_on(ChatSession.open(path, FakeEngine(say)), path, talk("old"))
