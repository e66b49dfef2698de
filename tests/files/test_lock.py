"""A file's lock: one process at a time, however it ends, and whatever becomes of the folder."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from segue import ChatSession, SessionFileError, SessionLockedError
from segue.files.lock import FileLock
from segue.testing import FakeEngine

# Locks that a process ends with.
KEPT: list[FileLock] = []


def lock_file(path):
    return next((file for file in path.parent.iterdir() if file.suffix == ".lock"), None)


ASK = """
import sys
from segue import SessionLockedError
from segue.files.lock import FileLock

try:
    FileLock(sys.argv[1])
    print("free")
except SessionLockedError as error:
    print("held", error)
"""


def is_free(path) -> bool:
    """Whether another process can have the lock."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(path)], capture_output=True, text=True, check=True
    )
    return done.stdout.startswith("free")


def in_fork(action) -> int:
    """Run something in a forked process; its exit status, 99 if it raises."""
    child = os.fork()
    if not child:
        status = 99
        try:
            status = action() or 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_held_and_free(path):
    lock = FileLock(path)
    assert not is_free(path)
    lock.release()
    lock.release()
    assert is_free(path)
    assert lock_file(path) is None


def test_the_error_names_the_holder_and_nothing_else(path):
    lock = FileLock(path)
    name = lock_file(path)
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(path)], capture_output=True, text=True, check=True
    )
    assert f"process {os.getpid()} " in done.stdout
    for note in ("", "no JSON", "[]", "{}", "[" * 2000, '{"pid": 1}'):
        name.write_text(note)
        assert in_fork(lambda: held_by(path, "another process")) == 0
    name.write_text('{"pid": "\\u001b[2J", "program": "a\\nb", "host": 3, "since": ""}')
    assert in_fork(lambda: held_by(path, "process ␛[2J (a␊b) on 3")) == 0
    lock.release()


def held_by(path, words: str) -> int:
    try:
        FileLock(path)
    except SessionLockedError as error:
        return 0 if words in str(error) else 2
    return 1


def test_a_lock_s_file_left_by_a_killed_process_is_in_nobody_s_way(path):
    holder = os.fork()
    if not holder:
        KEPT.append(FileLock(path))
        signal.alarm(30)
        signal.pause()
    while lock_file(path) is None or not lock_file(path).stat().st_size:
        time.sleep(0.001)
    with pytest.raises(SessionLockedError, match=f"process {holder} "):
        FileLock(path)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    assert lock_file(path) is not None
    lock = FileLock(path)
    assert not is_free(path)
    lock.release()


RACER = """
import os, sys, time
from segue import SessionLockedError
from segue.files.lock import FileLock

path, until = sys.argv[1], time.monotonic() + float(sys.argv[2])
won = 0
while time.monotonic() < until:
    try:
        lock = FileLock(path)
    except SessionLockedError:
        continue
    # Fails if another process is here as well.
    os.close(os.open(path + ".inside", os.O_CREAT | os.O_EXCL))
    os.unlink(path + ".inside")
    won += 1
    lock.release()
print(won)
"""


def test_two_that_race_for_a_lock_never_both_have_it(path):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(path), "1.5"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for racer in racers:
        won, complaint = racer.communicate()
        assert racer.returncode == 0, complaint
        assert int(won) > 0
    assert list(path.parent.iterdir()) == []


def test_within_a_process_it_is_shared_by_threads(path):
    failures = []

    def work():
        try:
            for _ in range(200):
                lock = FileLock(path)
                assert lock_file(path) is not None
                lock.release()
        except BaseException as error:
            failures.append(error)

    keeper = FileLock(path)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert not is_free(path)
    keeper.release()
    assert lock_file(path) is None


def test_links_lead_to_one_lock(path, tmp_path):
    link, folder = tmp_path / "link", tmp_path / "folder"
    path.touch()
    link.symlink_to(path)
    folder.symlink_to(tmp_path, target_is_directory=True)
    lock = FileLock(link)
    for name in (path, link, folder / path.name):
        assert not is_free(name)
    lock.release()
    assert is_free(path)


def test_what_a_planted_link_leads_to_is_left_alone(path, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    FileLock(path).release()
    lock = FileLock(path)
    place = lock_file(path)
    lock.release()
    place.symlink_to(precious)
    session = ChatSession(FakeEngine(["hello"]))
    with pytest.raises(SessionFileError):
        session.save(path)
    assert precious.read_text() == "mine"


def test_a_copy_of_the_folder_leaves_the_lock(path, tmp_path):
    lock = FileLock(path)
    shutil.copytree(path.parent, tmp_path / "copy", ignore=shutil.ignore_patterns("copy"))
    assert not is_free(path)
    lock.release()


def test_a_folder_that_is_renamed_takes_the_lock_with_it(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    lock = FileLock(before / "talk")
    before.rename(after)
    assert not is_free(after / "talk")
    again = FileLock(after / "talk")
    again.release()
    assert not is_free(after / "talk")
    # Another process has a file of that name in a new folder.
    before.mkdir()
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            ASK.replace("FileLock(sys", "lock = FileLock(sys") + "input()",
            str(before / "talk"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        while not list(before.iterdir()):
            time.sleep(0.01)
        lock.release()
        (left,) = before.iterdir()
        other.communicate("\n")
    assert left.suffix == ".lock"
    assert is_free(after / "talk")


def test_a_forked_process_holds_nothing_of_its_parent_s(path):
    lock = FileLock(path)

    def child() -> int:
        lock.release()
        if lock_file(path) is None:
            return 1
        return held_by(path, f"process {os.getppid()} ")

    assert in_fork(child) == 0
    assert not is_free(path)
    again = FileLock(path)
    again.release()
    lock.release()
    assert in_fork(lambda: FileLock(path).release()) == 0


def test_a_lock_is_not_kept_alive_by_forked_processes(path):
    reading, writing = os.pipe()
    try:
        assert in_fork(lambda: keep(FileLock(path)) or grandchild(reading, writing)) == -9
        assert is_free(path)
    finally:
        os.close(writing)
        os.close(reading)


def keep(lock: FileLock) -> None:
    KEPT.append(lock)


def grandchild(reading: int, writing: int) -> int:
    """Die and leave a process behind that lives until the pipe is closed."""
    if not os.fork():
        signal.alarm(30)
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def test_a_fork_while_another_thread_takes_a_lock(path):
    """The lock's own guard must not be held for ever in the forked process."""
    ended = threading.Event()

    def work():
        while not ended.is_set():
            FileLock(path).release()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if not child:
                signal.alarm(10)
                FileLock(path.with_name("other")).release()
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        ended.set()
        thread.join()


def test_a_collection_of_garbage_may_let_go_of_it_at_any_moment(path, monkeypatch):
    first = FileLock(path)
    real = os.fstat

    def fstat(descriptor):
        # As if the collector came by between finding the lock and counting one more holder.
        monkeypatch.undo()
        first.release()
        return real(descriptor)

    monkeypatch.setattr(os, "fstat", fstat)
    second = FileLock(path)
    assert not is_free(path)
    second.release()
    assert is_free(path)


@pytest.mark.parametrize("call", ["write", "ftruncate"])
def test_a_full_disk_keeps_nobody_from_holding_it(path, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    lock = FileLock(path)
    monkeypatch.undo()
    assert not is_free(path)
    lock.release()
    assert lock_file(path) is None


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE])
def test_a_session_is_not_opened_without_a_lock_for_want_of_luck(path, monkeypatch, code):
    ChatSession(FakeEngine(["hello"])).save(path)
    real = os.open

    def fail(name, *args, **kwargs):
        if str(name).endswith(".lock"):
            raise OSError(code, os.strerror(code))
        return real(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(SessionFileError):
        ChatSession.open(path, FakeEngine())


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_where_nobody_can_write_a_session_is_opened_without_one(path, monkeypatch, code):
    session = ChatSession(FakeEngine(["hello"]))
    session.respond("hi")
    session.save(path)
    session.close()
    real = os.open

    def fail(name, *args, **kwargs):
        if str(name).endswith(".lock"):
            raise OSError(code, os.strerror(code))
        return real(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", fail)
    assert len(ChatSession.open(path, FakeEngine()).history) == 2


def test_an_interrupt_at_any_call_leaves_no_lock_behind(path):
    """Ctrl-C behind each call into the system, which is where Python lets it strike."""
    for at in range(1, 500):
        calls, lock = 0, None

        def strike(frame, event, _, at=at):
            nonlocal calls
            if event == "c_return" and frame.f_code.co_filename.endswith("files/lock.py"):
                calls += 1
                if calls == at:
                    sys.setprofile(None)
                    raise KeyboardInterrupt

        sys.setprofile(strike)
        try:
            lock = FileLock(path)
            lock.release()
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        del lock
        # This would say that this very process has it.
        FileLock(path).release()
        assert lock_file(path) is None
        if calls < at:
            break
    assert at > 10
    assert calls < at


def test_the_lock_is_of_the_kind_that_closing_does_not_drop(path):
    lock = FileLock(path)
    descriptor = os.open(lock_file(path), os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)
    assert not is_free(path)
    lock.release()
