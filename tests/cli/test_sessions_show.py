"""``segue sessions show``, ``export`` and ``delete``, by their whole output."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest
from rich.console import Console

from kit.command import complaint, run, shown, terminal
from kit.saved_sessions import CALL, TALK, held_elsewhere, write
from segue import (
    Message,
)
from segue.cli.sessions.folder import sessions_folder
from segue.cli.sessions.show import print_history

pytestmark = pytest.mark.usefixtures("data_folder")


TOOLS = (
    Message.user("Time?", name="Ada"),
    Message.assistant("", tool_calls=[CALL], reasoning="I look\nat it."),
    Message.tool("noon", name="clock", tool_call_id="7"),
    Message.assistant("# Noon\n\n*It is noon.*"),
)


def test_show_is_plain_in_a_pipe(capsys):
    write("trip", *TOOLS, instructions="Be brief.")
    assert shown(capsys, "sessions", "show", "trip") == (
        "system:\nBe brief.\n\nuser:\nTime?\n\nassistant:\n\n"
        '{"type": "function", "function": {"name": "clock", "arguments": {"zone": "é"}}}\n\n'
        "tool:\nnoon\n\nassistant:\n# Noon\n\n*It is noon.*\n"
    )
    write("empty")
    assert shown(capsys, "sessions", "show", "empty") == ""


def test_show_renders_on_a_terminal_as_the_chat_does(capsys, monkeypatch):
    write("trip", *TALK, Message.user("*star*\x1b[31m"))
    terminal(monkeypatch, 60)
    out = shown(capsys, "sessions", "show", "trip")
    assert out == "user:\nHow do  rivers\nflow?\nassistant:\n*Down*.\nuser:\n*star*␛[31m\n"


def test_history_shows_tool_calls():
    console = Console(file=io.StringIO(), width=100)
    print_history(console, TOOLS)
    assert '"name": "clock"' in console.file.getvalue()


def test_export_as_markdown(capsys):
    write("trip", *TOOLS, instructions="Be brief.")
    text = (
        "## System\n\nBe brief.\n\n## User (Ada)\n\nTime?\n\n"
        "## Assistant\n\n> I look\n> at it.\n\n"
        '```json\n{\n  "type": "function",\n  "function": {\n    "name": "clock",\n'
        '    "arguments": {\n      "zone": "é"\n    }\n  }\n}\n```\n\n'
        "## Tool (clock)\n\nnoon\n\n## Assistant\n\n# Noon\n\n*It is noon.*\n"
    )
    assert shown(capsys, "sessions", "export", "trip") == text


def test_export_as_json(capsys, tmp_path):
    write("trip", *TOOLS, instructions="Be brief.")
    out = shown(capsys, "sessions", "export", "trip", "--format", "json")
    assert json.loads(out) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Time?", "name": "Ada"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {
                        "type": "function",
                        "function": {"name": "clock", "arguments": '{"zone": "é"}'},
                    }
                ],
                "reasoning_content": "I look\nat it.",
            },
            {"role": "tool", "content": "noon", "name": "clock", "tool_call_id": "7"},
            {"role": "assistant", "content": "# Noon\n\n*It is noon.*"},
        ]
    }
    assert "é" in out
    read = [Message.from_dict(entry) for entry in json.loads(out)["messages"]]
    assert read == [Message.system("Be brief."), *TOOLS]
    path = tmp_path / "é.json"
    path.write_text("old")
    assert shown(capsys, "sessions", "export", "trip", "--format", "json", "-o", str(path)) == ""
    assert path.read_text(encoding="utf-8") == out


@pytest.mark.parametrize("output", ["missing/x.md", "."])
def test_an_export_that_can_not_be_written_is_told(capsys, tmp_path, monkeypatch, output):
    write("trip", *TALK)
    monkeypatch.chdir(tmp_path)
    assert "can't be written: " in complaint(capsys, "sessions", "export", "trip", "-o", output)


def test_a_file_that_was_named_like_a_session_is_pointed_to(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").write_text("mine")
    told = "segue: There is no session 'notes'. For the file in this folder, write ./notes.\n"
    assert complaint(capsys, "sessions", "show", "notes") == told


@pytest.mark.parametrize("command", ["show", "export", "delete"])
def test_a_missing_session_is_told(capsys, command):
    told = "segue: There is no session 'trip'. Run `segue sessions` to list them.\n"
    assert complaint(capsys, "sessions", command, "trip") == told
    assert "There is no session 'no/x'" in complaint(capsys, "sessions", command, "no/x")
    assert "Missing argument 'NAME" in complaint(capsys, "sessions", command)


@pytest.mark.parametrize("command", ["show", "export"])
def test_a_damaged_conversation_is_told(capsys, command):
    path = write("trip", *TALK)
    path.write_bytes(path.read_bytes().replace(b"rivers", b"rivets"))
    assert "is damaged: " in complaint(capsys, "sessions", command, "trip")


def test_delete_asks_first(capsys, monkeypatch):
    paths = [write("a", *TALK), write("b", *TALK)]
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\ny\n"))
    assert shown(capsys, "sessions", "delete", "a", "b") == "Delete a, b? [y/N]: "
    assert all(path.exists() for path in paths)
    assert shown(capsys, "sessions", "delete", "a", "b").endswith("Deleted a, b.\n")
    assert list(sessions_folder().iterdir()) == []


def test_without_an_answer_nothing_is_deleted(capsys, monkeypatch):
    path = write("a")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert run("sessions", "delete", "a") == 130
    assert [file.name for file in sessions_folder().iterdir()] == [path.name]


def test_delete_takes_paths_and_damaged_sessions(capsys, tmp_path):
    path = tmp_path / "x.segue"
    path.write_bytes(b"no")
    named = write("a").rename(tmp_path / "a")
    assert shown(capsys, "sessions", "delete", "--yes", str(path), str(named), str(named)) == (
        f"Deleted {path}, {named}.\n"
    )
    assert not path.exists()
    assert not named.exists()


def test_delete_spares_what_is_no_session(capsys, tmp_path):
    thesis = tmp_path / "thesis.md"
    thesis.write_text("words")
    kept = write("a")
    told = complaint(capsys, "sessions", "delete", "-y", "a", str(thesis))
    assert "can't be read as a session" in told
    assert thesis.exists()
    assert kept.exists()
    (tmp_path / "folder.segue").mkdir()
    told = complaint(capsys, "sessions", "delete", "-y", str(tmp_path / "folder.segue"))
    assert "could not be deleted: " in told


def test_delete_refuses_what_another_process_has_open(capsys):
    free, path = write("free"), write("held")
    with held_elsewhere(path) as holder:
        told = complaint(capsys, "sessions", "delete", "-y", "free", "held")
        assert f"in use by process {holder}" in told
        assert free.exists()
        assert path.exists()
        assert shown(capsys, "sessions", "show", "held") == ""
    assert shown(capsys, "sessions", "delete", "-y", "free", "held") == "Deleted free, held.\n"


def test_help(capsys):
    assert shown(capsys, "sessions", "--help") == (
        "Usage: segue sessions [OPTIONS] [COMMAND] [ARGS]...\n\n"
        "  List, show, export and delete saved sessions.\n\n"
        "  Without a command, the sessions are listed. A NAME with a slash, or ending\n"
        "  in .segue, is a path.\n\n"
        "Options:\n"
        "  -h, --help  Show this message and exit.\n\n"
        "Commands:\n"
        "  delete  Delete sessions.\n"
        "  export  Write a session's conversation as Markdown or JSON.\n"
        "  list    List the saved sessions, newest first.\n"
        "  show    Show a session's conversation.\n"
    )


@pytest.mark.parametrize("words", ["segue sessions show tr", "segue chat --session tr"])
def test_shells_complete_names(capsys, monkeypatch, words):
    for name in ("trip", "train", "other"):
        write(name)
    monkeypatch.setenv("_SEGUE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    assert (
        shown(
            capsys,
        )
        == "plain,train\nplain,trip\n"
    )


def test_shells_complete_only_what_is_a_name(capsys, monkeypatch):
    write("trip")
    for name in ("t\x1b[2J", "two\nlines", "t;ls", os.fsdecode(b"t\xff")):
        try:
            (sessions_folder() / f"{name}.segue").touch()
        except OSError:
            continue  # not every file system takes any bytes
    monkeypatch.setenv("_SEGUE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "segue sessions show t")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert shown(capsys) == "plain,trip\n"
