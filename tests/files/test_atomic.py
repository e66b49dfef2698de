"""Files are replaced whole or not at all."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest

from segue.files.atomic import is_written_in_place, replacing, writing


def write(path, text: str) -> None:
    with replacing(path) as temporary:
        assert temporary.parent == path.resolve().parent
        temporary.write_text(text)


def names(folder) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_and_an_old_one(tmp_path):
    path = tmp_path / "file"
    for text in ("first", "second"):
        write(path, text)
        assert path.read_text() == text
    assert names(tmp_path) == ["file"]


def test_a_path_may_be_a_string_and_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with replacing("file") as temporary:
        temporary.write_text("text")
    assert (tmp_path / "file").read_text() == "text"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", ["old", None])
def test_after_an_error_all_is_as_it_was(tmp_path, error, old):
    path = tmp_path / "file"
    if old is not None:
        path.write_text(old)
    before = names(tmp_path)
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert names(tmp_path) == before
    assert old is None or path.read_text() == old


@pytest.mark.parametrize("call", ["fsync", "replace", "fchmod"])
def test_an_error_of_the_system_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write(path, "new")
    assert names(tmp_path) == ["file"]
    assert path.read_text() == "old"


def test_the_old_file_is_there_until_the_end(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_that_open_gives(tmp_path, mask):
    before = os.umask(mask)
    try:
        write(tmp_path / "ours", "x")
        (tmp_path / "theirs").write_text("x")
    finally:
        os.umask(before)
    assert mode(tmp_path / "ours") == mode(tmp_path / "theirs")


@pytest.mark.parametrize("bits", [0o600, 0o640, 0o666, 0o755])
def test_the_old_file_s_permissions_stay_and_hold_from_the_start(tmp_path, bits):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(bits)
    with replacing(path) as temporary:
        assert mode(temporary) & ~bits == 0
        temporary.write_text("new")
    assert mode(path) == bits


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "target", tmp_path / "link"
    link.symlink_to(target)
    write(link, "through a dangling link")
    assert link.is_symlink()
    assert target.read_text() == "through a dangling link"
    write(link, "again")
    assert target.read_text() == "again"
    assert names(tmp_path) == ["link", "there"]


def test_what_is_no_file_is_not_replaced(tmp_path):
    pipe, loop = tmp_path / "pipe", tmp_path / "loop"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    for path in (tmp_path, pipe, loop, tmp_path / "missing" / "file", pipe / "file"):
        with pytest.raises(OSError, match=r".+"), replacing(path) as temporary:
            temporary.write_text("x")
    assert names(tmp_path) == ["loop", "pipe"]


def test_what_is_no_file_is_filled_at_the_end(tmp_path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    with writing(pipe) as temporary:
        temporary.write_bytes(b"x" * 3_000_000)
    reader.join(60)
    assert got == [b"x" * 3_000_000]
    assert names(tmp_path) == ["pipe"]
    with pytest.raises(OSError, match="No space left"), writing("/dev/full") as temporary:
        temporary.write_text("x")
    with writing(os.devnull) as temporary:
        temporary.write_text("x")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_after_an_error_nothing_goes_through(tmp_path):
    with (tmp_path / "open").open("w+b") as file:
        path = f"/dev/fd/{file.fileno()}"
        with pytest.raises(ZeroDivisionError), writing(path) as temporary:
            temporary.write_text("x")
            raise ZeroDivisionError
        assert file.read() == b""


def test_an_open_file_is_added_to(tmp_path):
    with (tmp_path / "open").open("w+b") as file:
        file.write(b"earlier ")
        file.flush()
        path = f"/dev/fd/{file.fileno()}"
        assert is_written_in_place(path)
        with writing(path) as temporary:
            temporary.write_text("later")
    assert (tmp_path / "open").read_text() == "earlier later"
    assert names(tmp_path) == ["open"]


def test_a_file_is_replaced(tmp_path):
    for path in (tmp_path / "file", tmp_path / "missing" / "file", tmp_path, "a\0b"):
        assert not is_written_in_place(path)
    with writing(tmp_path / "file") as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("x")
    assert names(tmp_path) == ["file"]


def test_a_write_protected_file_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")
    # The superuser may write to any file.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError):
        write(path, "new")
    assert path.read_text() == "old"


def test_a_folder_that_can_not_be_flushed_is_no_error(tmp_path, monkeypatch):
    real = os.open

    def no_folders(path, *args):
        if os.path.isdir(path):
            raise OSError(22, "Invalid argument")
        return real(path, *args)

    monkeypatch.setattr(os, "open", no_folders)
    write(tmp_path / "file", "x")
    assert names(tmp_path) == ["file"]


def test_file_and_folder_are_flushed_in_that_order(tmp_path, monkeypatch):
    done = []
    real_sync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda at: done.append(stat.S_IFMT(os.fstat(at).st_mode)) or real_sync(at)
    )
    monkeypatch.setattr(os, "replace", lambda *at: done.append("replace") or real_replace(*at))
    write(tmp_path / "file", "x")
    assert done == [stat.S_IFREG, "replace", stat.S_IFDIR]


def test_the_longest_name_that_a_file_can_have(tmp_path):
    write(tmp_path / ("x" * 255), "text")
    assert (tmp_path / ("x" * 255)).read_text() == "text"


WRITER = """
import os, sys
from segue.files.atomic import replacing

print(os.getpid(), flush=True)
while True:
    for letter in b"abcdefgh":
        with replacing(sys.argv[1]) as temporary:
            temporary.write_bytes(bytes([letter]) * 1_000_000)
"""


def test_after_a_kill_at_any_moment_the_file_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0" * 1_000_000)
    dice = random.Random(3)
    for _ in range(15):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE
        ) as writer:
            writer.stdout.readline()
            time.sleep(dice.uniform(0, 0.03))
            writer.send_signal(signal.SIGKILL)
        data = path.read_bytes()
        assert len(data) == 1_000_000
        assert len(set(data)) == 1
    # What a killed process leaves behind is in nobody's way.
    write(path, "new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_what_another_writer_is_writing_stays(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as first:
        first.write_text("first")
        with replacing(path) as second:
            second.write_text("second")
            assert first.exists()
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert names(tmp_path) == ["file"]


def test_leftovers_of_this_file_alone_are_removed(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as temporary:
        left = temporary.name
    others = [left[:-5] + ".tmp", left[:-4], left.replace(".tmp", "0.tmp"), "x" + left]
    with replacing(tmp_path / "other") as temporary:
        others.append(temporary.name)
    (tmp_path / "precious").write_text("mine")
    for name in (*others, left):
        (tmp_path / name).write_text("x")
    # A link of that name, and a folder.
    (tmp_path / left.replace(left[-12:-4], "00000000")).symlink_to(tmp_path / "precious")
    (tmp_path / left.replace(left[-12:-4], "00000001")).mkdir()
    before = names(tmp_path)
    write(path, "new")
    assert set(before) - set(names(tmp_path)) == {left}
    assert (tmp_path / "precious").read_text() == "mine"
