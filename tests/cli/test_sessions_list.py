"""``segue sessions``: the list, and the names in it."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.cells import cell_len

from kit.command import complaint, run, shown, terminal
from kit.saved_sessions import CALL, NOW, TALK, write
from segue import ConfigurationError, Message, SessionFile
from segue.cli.sessions import folder as session_folder
from segue.cli.sessions import list as session_list
from segue.cli.sessions.folder import check_name, session_path, sessions_folder
from segue.cli.sessions.list import narrowed
from segue.cli.words import age, size_text
from segue.conversation import turns_taken
from segue.store.session_layout import Origin, write_session_file
from segue.usage import TurnUsage, Usage

pytestmark = pytest.mark.usefixtures("data_folder")


@pytest.fixture(autouse=True)
def _at_noon(monkeypatch):
    monkeypatch.setattr(session_list, "age", lambda moment: age(moment, NOW))


def test_an_empty_list_says_how_to_begin(capsys):
    for arguments in (["sessions"], ["sessions", "list"]):
        assert run(*arguments) == 0
        told = "There are no saved sessions. Start one with: segue chat --session NAME\n"
        assert capsys.readouterr() == ("", told)
    assert not sessions_folder().exists()


def test_the_list_has_the_newest_first(capsys):
    sizes = [
        write("trip", *TALK, *TALK, days=3, tokens=1234).stat().st_size,
        write("über uns", *TALK, days=0.1, model="Qwen/Qwen3-0.6B").stat().st_size,
        write("empty", days=800).stat().st_size,
    ]
    trip, us, empty = (f"{size_text(size):>7}" for size in sizes)
    assert shown(capsys, "sessions") == (
        "NAME      TITLE                TURNS  TOKENS     SIZE  MODEL            AGE\n"
        f"über uns  How do rivers flow?      1       0  {us}  Qwen/Qwen3-0.6B  2 hours\n"
        f"trip      How do rivers flow?      2   1,234  {trip}  smollm2          3 days\n"
        f"empty                              0       0  {empty}  smollm2          2 years\n"
    )
    assert shown(capsys, "sessions", "list") == shown(capsys, "sessions")


def test_damaged_sessions_are_listed_with_what_is_wrong(capsys):
    write("good", *TALK)
    worse = write("worse", *TALK)
    worse.write_bytes(worse.read_bytes().replace(b"rivers", b"rivets"))
    hurt = write("hurt", *TALK)
    hurt.write_bytes(hurt.read_bytes().replace(b'{}"', b'[]"'))
    (sessions_folder() / "none.segue").write_bytes(b"no")
    (sessions_folder() / "folder.segue").mkdir()
    for place, name in enumerate(["worse", "none", "folder"]):
        moment = NOW.timestamp() - 3600 * (place + 1)
        os.utime(sessions_folder() / f"{name}.segue", (moment, moment))
    lines = shown(capsys, "sessions").splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["good", "hurt", "worse", "none", "folder"]
    assert [" (damaged) " in line for line in lines[1:6]] == [False, False, True, True, True]
    assert lines[1].split()[-1] == "moments"
    assert lines[3].endswith("  1 hour")
    why = "(its checksum does not match its content)"
    assert lines[6] == f"hurt: Damaged: header {why}, settings {why}."
    assert lines[7].startswith(f"worse: The conversation in {worse} is damaged: its checksum ")
    assert lines[8].startswith(f"none: {sessions_folder()}/none.segue can't be read as a session")
    assert lines[9].endswith("folder.segue could not be read: Is a directory. "
                             "Check its path and permissions.")  # fmt: skip
    assert len(lines) == 10


def test_what_is_no_session_is_not_listed(capsys):
    write("good")
    for name in (".segue-1-2.tmp", ".segue-1.lock", ".hidden.segue", "notes.txt"):
        (sessions_folder() / name).write_bytes(b"")
    (sessions_folder() / "gone.segue").symlink_to("nowhere")
    assert [line.split()[0] for line in shown(capsys, "sessions").splitlines()] == ["NAME", "good"]


def test_a_file_can_not_command_the_terminal(capsys):
    write("good", Message.user("\x1b[31mred"), model="\x1b]0;x\x07")
    (sessions_folder() / "a\x1b\n.segue").write_bytes(b"no")
    lines = shown(capsys, "sessions").splitlines()
    assert len(lines) == 4
    assert not any("\x1b" in line for line in lines)
    assert "␛[31mred" in lines[2]
    assert "a␛␊" in lines[1]


def test_the_list_fits_the_terminal(capsys, monkeypatch):
    write("a rather long name", Message.user("漢字 " * 30), model="a-model-with-a-long-name")
    for width in (20, 40, 72, 100):
        terminal(monkeypatch, width)
        for line in shown(capsys, "sessions").splitlines():
            assert cell_len(line) <= width
    assert "a rather long name  漢字 " in line
    assert "…" in line
    monkeypatch.undo()


def test_a_narrow_terminal_takes_from_titles_first():
    widths = [10, 60, 5, 6, 8, 20, 8]
    assert narrowed(widths, 200) == widths
    assert narrowed(widths, 109) == [10, 40, 5, 6, 8, 20, 8]
    assert narrowed(widths, 79) == [10, 12, 5, 6, 8, 18, 8]
    assert narrowed(widths, 60) == [8, 5, 5, 6, 8, 8, 8]
    assert narrowed(widths, 10) == [8, 0, 5, 6, 8, 8, 8]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (-5, "moments"),
        (59.9, "moments"),
        (60, "1 minute"),
        (7199, "1 hour"),
        (7200, "2 hours"),
        (86400 * 6.9, "6 days"),
        (86400 * 20, "2 weeks"),
        (86400 * 31, "1 month"),
        (86400 * 800, "2 years"),
    ],
)
def test_ages(seconds, told):
    assert age(NOW - timedelta(seconds=seconds), NOW) == told


def test_sizes():
    assert [size_text(size) for size in (0, 1023, 1024, 1536 * 1024, 2**40)] == [
        "0 B", "1023 B", "1.0 KiB", "1.5 MiB", "1024.0 GiB",
    ]  # fmt: skip


def test_tokens_are_those_of_the_cache_or_else_of_the_last_turn(capsys):
    usage = Usage((TurnUsage(10, 0, 10, 5, 0.1, 0.1), TurnUsage(20, 15, 5, 7, 0.1, 0.1)))
    write("a", *TALK, usage=usage, days=1)
    write("b", *TALK, usage=usage, tokens=9, days=2)
    write("c", usage=usage, days=3)
    lines = shown(capsys, "sessions").splitlines()[1:]
    assert [line.rpartition("?")[2].split()[:2] for line in lines[:2]] == [["1", "27"], ["1", "9"]]
    assert lines[2].split()[:3] == ["c", "0", "0"]


def test_every_saving_time_has_a_zone():
    path = write("a")
    naive = Origin("m", "f", NOW.replace(tzinfo=None)).to_json()
    write_session_file(path, SessionFile.read(path).conversation, {"origin": naive}, {})
    session = session_folder.SavedSession.look_up("a", path)
    assert session.saved == datetime.fromtimestamp(path.stat().st_mtime, UTC)
    assert "origin (its time can't be read)" in session.problem
    file = SessionFile.read(write("a"))
    assert session_folder.SavedSession.of("a", file).saved == NOW
    nothing = type(file)(file.path, file.size, file.conversation)
    assert session_folder.SavedSession.of("a", nothing).saved.tzinfo is not None


def test_turns_are_counted_with_their_tools():
    asked = [
        Message.system("s"),
        *TALK,
        Message.user("x"),
        Message.assistant("", tool_calls=[CALL]),
    ]
    assert len(turns_taken([*asked, Message.tool("noon"), Message.assistant("y")])) == 2
    assert turns_taken([Message.system("s")]) == turns_taken([]) == []


def test_a_folder_that_can_not_be_read_is_told(capsys):
    sessions_folder().parent.mkdir(parents=True)
    sessions_folder().write_text("a file")
    assert "could not be read: Not a directory." in complaint(capsys, "sessions")


def test_the_list_needs_no_mlx():
    code = (
        "import sys\nfrom segue.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'mlx', 'mlx_lm', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    write("trip", *TALK)
    for arguments in (["sessions"], ["sessions", "show", "trip"], ["sessions", "export", "trip"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
        )
        assert done.stdout.endswith("[]\n"), done
        assert "rivers" in done.stdout


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["trip", "Über uns", "a-b_c.1", "नमस्ते", "x" * 60, "-", "a..b"])
def test_names_are_files_in_the_folder(name):
    assert check_name(name) == name
    path = session_path(name)
    assert path.parent == sessions_folder()
    path.parent.mkdir(parents=True)
    path.touch()


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".x", " x", "x ", "a\\b", "a\0", "a\nb", "a:b", "x" * 61, "😀", "\udcff"],
)
def test_what_can_not_be_a_name_is_refused(name, capsys):
    with pytest.raises(ConfigurationError, match="A session's name must be 1 to 60 letters"):
        session_path(name)
    if "\0" not in name and name != "\udcff":
        assert "name must be" in complaint(capsys, "sessions", "show", name)
        assert "name must be" in complaint(capsys, "chat", "--session", name)


@pytest.mark.parametrize("target", ["./x", "../x.segue", "/tmp/x", "x.segue", ".segue"])
def test_what_has_a_slash_or_the_ending_is_a_path(target):
    assert session_path(target) == Path(target)


def test_a_path_may_begin_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert session_path("~/x.segue") == tmp_path / "x.segue"
