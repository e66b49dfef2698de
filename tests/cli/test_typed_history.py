"""What was typed in earlier chats, in a file that may be anything."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import platformdirs
import pytest

from kit.spawned import READY, spawn
from segue.cli.chat.prompt.history import MOST_BYTES, TypedHistory

UP = "\x1b[A"


def loaded(path) -> tuple[list[str], str | None]:
    history = TypedHistory(path)
    return list(history.load_history_strings()), history.problem


def test_what_was_typed_is_there_in_the_next_chat(tmp_path):
    path = tmp_path / "folder" / "prompts"
    history = TypedHistory(path)
    assert list(history.load_history_strings()) == []
    for text in ("one", "two\nlines\n", "+ # é \ud800"):
        history.append_string(text)
    assert history.problem is None
    assert loaded(path) == (["+ # é ?", "two\nlines\n", "one"], None)
    assert path.stat().st_mode & 0o777 == 0o600


def folder_gone(folder):
    (folder / "prompts").unlink()
    folder.rmdir()


def a_folder_instead(folder):
    (folder / "prompts").unlink()
    (folder / "prompts").mkdir()


def a_full_disk(folder):
    (folder / "prompts").unlink()
    (folder / "prompts").symlink_to("/dev/full")


BREAKS = pytest.mark.parametrize("break_it", [folder_gone, a_folder_instead, a_full_disk])


@BREAKS
def test_what_goes_wrong_is_noted_once_and_nothing_is_raised(tmp_path, break_it):
    folder = tmp_path / "folder"
    history = TypedHistory(folder / "prompts")
    history.load_history_strings()
    history.append_string("one")
    break_it(folder)
    history.append_string("two")
    assert history.problem is not None
    assert history.problem.startswith(f"What you type is not kept for later chats: {folder}/")
    history.problem = None
    history.append_string("three")
    assert history.problem is None
    assert history.get_strings()[-2:] == ["two", "three"]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_not_read(tmp_path, make):
    make(tmp_path / "prompts")
    entries, problem = loaded(tmp_path / "prompts")
    assert entries == []
    assert problem.count("\n") == 0


def test_a_file_that_is_damaged_or_huge(tmp_path):
    path = tmp_path / "prompts"
    path.write_bytes(bytes(range(256)) * 40 + b"\n+sound\n\n# later\n+again\n")
    entries, problem = loaded(path)
    assert entries[:2] == ["again", "sound"]
    assert problem is None
    with path.open("wb") as file:
        file.write(b"\n# then\n+" + b"x" * MOST_BYTES + b"\n")
        file.write(b"\n# now\n+latest\n")
    assert loaded(path) == (["latest"], None)
    path.write_bytes(b"+" * 3 * MOST_BYTES)
    assert loaded(path) == ([], None)


@BREAKS
def test_a_chat_goes_on_without_it_after_one_warning(data_folder, break_it):
    child = spawn("--max-tokens", "4", pause=0)
    child.expect(READY)
    child.send("one\r")
    child.expect("tokens/s")
    child.expect(READY)
    break_it(data_folder / "data" / "segue")
    child.send("two\r")
    child.expect("What you type is not kept for later chats: ")
    child.expect("tokens/s")
    child.expect(READY)
    child.send("three\r")
    child.expect("tokens/s")
    shown = child.before
    child.expect(READY)
    child.send(UP + UP)
    child.expect("two")
    child.sendintr()
    child.expect(READY)
    child.send("/quit\r")
    child.expect("$")
    child.wait()
    assert child.exitstatus == 0
    for text in ("Traceback", "Press ENTER", "not kept"):
        assert text not in shown


def test_a_chat_begins_without_it_after_one_warning(data_folder):
    (data_folder / "data" / "segue" / "prompts").mkdir(parents=True)
    child = spawn("--max-tokens", "4", pause=0)
    child.expect(READY)
    child.send("one\r")
    child.expect("What you type is not kept for later chats: .*Is a directory")
    child.expect("tokens/s")
    child.expect(READY)
    child.send("/quit\r")
    child.expect("$")
    child.wait()
    assert child.exitstatus == 0


def test_what_comes_back_from_the_file_does_not_command_the_terminal(data_folder):
    path = Path(platformdirs.user_data_dir("segue", appauthor=False)) / "prompts"
    path.parent.mkdir(parents=True)
    path.write_text("# then\n+see \x1b]0;t\x07\u202egpj.exe\u2066 \x9b2J done\n", encoding="utf-8")
    child = spawn()
    child.logfile_read = log = io.StringIO()
    child.expect(READY)
    child.send(UP)
    child.expect("done")
    child.terminate()
    shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", log.getvalue())
    assert "<U+202E>gpj.exe<U+2066>" in shown
    assert not set("\x07\x9b\u202e\u2066") & set(shown)
