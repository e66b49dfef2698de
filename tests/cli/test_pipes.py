"""What is piped into the command, and where its output goes."""

from __future__ import annotations

import io
import json
import os
import sys
import unicodedata

import pytest

import segue
from kit.chats import contents, letters
from kit.command import complaint, run, shell, shown
from kit.models import write_folder
from kit.saved_sessions import TALK, write
from kit.spawned import pipe
from segue import Message, SessionFile
from segue.cli.sessions.folder import session_path, sessions_folder
from segue.testing import FakeEngine

pytestmark = pytest.mark.usefixtures("data_folder")


@pytest.fixture
def piped(monkeypatch):
    """Bytes that are piped into the command with a fake engine."""

    def pipe(data: bytes, script=None) -> FakeEngine:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        engine = FakeEngine(script or letters())
        monkeypatch.setattr("segue.loading.load", lambda name: engine)
        return engine

    return pipe


def said() -> list[str]:
    return contents(SessionFile.read(session_path("trip")).history)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"hi\n", "hi"),
        (b"one\ntwo\n\nthree", "one\ntwo\n\nthree"),
        (b"\n    indented\n  more\n\n", "    indented\n  more"),
        (b"one\r\ntwo\r\n", "one\ntwo"),
        (b"/clear\n", "/clear"),
        (b"\xef\xbb\xbfhi\n", "hi"),
        ("é\n".encode(), "é"),
        (b"hi\x1b[2J", "hi\x1b[2J"),
    ],
)
def test_standard_input_is_one_message(capsys, piped, data, text):
    piped(data)
    assert shown(capsys, "chat", "--session", "trip") == "a\n"
    assert said() == [text, "a"]


def test_with_lines_each_line_is_one(capsys, piped):
    piped(b"\xef\xbb\xbfone\r\n\n  two\n")
    assert shown(capsys, "chat", "--session", "trip", "--lines") == "a\nb\n"
    assert said() == ["one", "a", "two", "b"]


def test_lines_are_answered_as_they_come():
    with pipe("--lines", "--max-tokens", "4", pause=0) as process:
        for _ in range(2):
            process.stdin.write(b"hi\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"word\n"
        process.stdin.close()
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "Standard input is empty"),
        (b" \n\t\n", "Standard input is empty"),
        (b"\xef\xbb\xbf", "Standard input is empty"),
        (b"good\xff", "Standard input must be UTF-8 text, but byte 4 is not."),
        ("hi".encode("utf-16"), "Standard input must be UTF-8 text, but byte 0 is not."),
        (b"ab\0c", "Standard input must be text, but byte 2 is zero."),
    ],
)
def test_input_that_can_not_be_answered_is_told_in_one_line(capsys, piped, data, told):
    piped(data)
    assert told in complaint(capsys, "chat", "--session", "trip")
    assert not session_path("trip").exists()


def test_a_line_that_can_not_be_answered_ends_the_chat_after_those_before_it(capsys, piped):
    piped(b"hi\n\xff\nho\n")
    assert run("chat", "--session", "trip", "--lines") == 2
    out, err = capsys.readouterr()
    assert out == "a\n"
    assert err.startswith("segue: Line 2 of standard input must be UTF-8 text, but byte 0 is not.")
    assert said() == ["hi", "a"]


def test_a_byte_order_mark_is_in_no_other_text_either(capsys, piped, tmp_path):
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfBe kind.")
    engine = piped(b"hi")
    out = tmp_path / "c"
    assert run("cache-prompt", str(tmp_path / "text"), "-o", str(out)) == 0
    assert segue.load_prompt_cache(out, engine).conversation.instructions == "Be kind."
    capsys.readouterr()
    shown(capsys, "chat", "--session", "trip", "--system", "\ufeffBe brief.")
    assert SessionFile.read(session_path("trip")).instructions == "Be brief."


# --- output --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "--version",
        "--help",
        "chat --help",
        "sessions",
        "sessions list",
        "sessions show trip",
        "sessions export trip",
        "sessions export trip -f json",
        "sessions export trip -o /dev/full",
        "sessions delete -y trip",
        "doctor",
    ],
)
def test_a_full_disk_is_told_in_one_line(words):
    write("trip", *TALK)
    done = shell(f"segue {words} > /dev/full")
    assert done.returncode == 2
    assert b"No space left on device" in done.stderr
    assert b"unexpected" not in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_a_full_disk_ends_a_reply_and_what_was_said_is_saved():
    with open("/dev/full", "wb") as full, pipe("--session", "trip", stdout=full) as process:
        process.stdin.write(b"hi")
        process.stdin.close()
        told = process.stderr.read()
    assert process.returncode == 2
    assert told == b"segue: The output could not be written: No space left on device.\n"
    assert said()[0] == "hi"


def test_a_full_standard_error_is_no_reason_for_a_traceback():
    done = shell("segue sessions show nope 2> /dev/full")
    assert done.returncode == 2
    done = shell("segue sessions 2> /dev/full")
    assert done.returncode in (0, 2)


def test_a_reader_that_has_enough_is_no_error():
    write("trip", *TALK * 2000)
    done = shell("segue sessions export trip | head -c 5")
    assert done.stdout == b"## Us"
    assert done.stderr == b""


@pytest.mark.parametrize("form", ["json", "markdown"])
def test_an_export_may_go_into_a_pipe(capsys, tmp_path, form):
    write("trip", *TALK)
    text = shown(capsys, "sessions", "export", "trip", "-f", form).encode()
    for target in ("/dev/stdout", "/proc/self/fd/1", "/dev/fd/1"):
        assert shell(f"segue sessions export trip -f {form} -o {target} | cat").stdout == text
    assert shell(f"segue sessions export trip -f {form} -o /dev/stderr").stderr == text
    done = shell(f"segue sessions export trip -f {form} -o >(cat >{tmp_path}/x); sleep 0.3")
    assert done.stderr == b""
    assert (tmp_path / "x").read_bytes() == text
    shell(f"(echo before; segue sessions export trip -f {form} -o /dev/stdout) > {tmp_path}/y")
    assert (tmp_path / "y").read_bytes() == b"before\n" + text


def test_a_prompt_cache_may_go_into_a_pipe(tmp_path):
    write_folder(tmp_path / "model")
    model = f"-m {tmp_path}/model"
    done = shell(f"echo hello | segue cache-prompt {model} - -o /dev/stdout | cat")
    assert b"tokens read in" in done.stderr
    (tmp_path / "c.safetensors").write_bytes(done.stdout)
    cache = segue.load_prompt_cache(tmp_path / "c.safetensors", segue.load(tmp_path / "model"))
    assert cache.conversation.instructions == "hello"
    done = shell(f"echo hello | segue cache-prompt {model} - -o /dev/full")
    assert done.returncode == 2
    assert b"No space left on device" in done.stderr


# --- names of files ------------------------------------------------------------------------------

COMPOSED = unicodedata.normalize("NFC", "Ünïcode é")
APART = unicodedata.normalize("NFD", COMPOSED)


@pytest.mark.parametrize("typed", [COMPOSED, APART], ids=["composed", "apart"])
@pytest.mark.parametrize("on_disk", [COMPOSED, APART], ids=["composed", "apart"])
def test_a_name_is_found_however_its_accents_are_written(capsys, piped, typed, on_disk, tmp_path):
    path = write("trip", *TALK).rename(sessions_folder() / f"{on_disk}.segue")
    assert COMPOSED in shown(capsys, "sessions")
    assert "Down" in shown(capsys, "sessions", "show", typed)
    assert "Down" in shown(capsys, "sessions", "export", typed)
    assert "Down" in shown(capsys, "sessions", "show", str(path.with_name(f"{typed}.segue")))
    piped(b"hi")
    assert shown(capsys, "chat", "--session", typed) == "a\n"
    assert os.listdir(sessions_folder()) == [f"{on_disk}.segue"]
    assert contents(SessionFile.read(path).history)[-2:] == ["hi", "a"]
    shown(capsys, "sessions", "delete", "-y", typed)
    assert os.listdir(sessions_folder()) == []


@pytest.mark.parametrize("typed", [COMPOSED[:3], APART[:5]])
def test_shells_complete_it_as_well(capsys, monkeypatch, typed):
    write("trip").rename(sessions_folder() / f"{APART}.segue")
    monkeypatch.setenv("_SEGUE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", f"segue sessions show {typed}")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert shown(capsys) == f"plain,{COMPOSED}\n"


def test_of_two_files_the_one_that_is_named_exactly_is_taken(capsys):
    write("x", Message.user("composed")).rename(sessions_folder() / f"{COMPOSED}.segue")
    apart = write("x", Message.user("apart")).rename(sessions_folder() / f"{APART}.segue")
    assert "composed" in shown(capsys, "sessions", "show", COMPOSED)
    assert "apart" in shown(capsys, "sessions", "show", str(apart))
    assert shown(capsys, "sessions").count(COMPOSED) == 2


def test_an_export_can_be_read_back(capsys):
    call = segue.ToolCall("clock", {"zone": "é"}, id="7")
    talk = (
        Message.user("Time?", name="Ada"),
        Message.assistant("", tool_calls=[call], reasoning="I look\nat it."),
        Message.tool("noon", call=call),
        Message.assistant("Noon.", reasoning=""),
        Message.user([segue.Text("And "), segue.Text("now?")]),
        Message.assistant("", reasoning="Hm."),
    )
    write("trip", *talk)
    out = shown(capsys, "sessions", "export", "trip", "-f", "json")
    assert tuple(map(Message.from_dict, json.loads(out)["messages"])) == talk


# --- models that are elsewhere -------------------------------------------------------------------


def test_a_session_is_opened_from_another_folder(tmp_path):
    write_folder(tmp_path / "model")
    (tmp_path / "elsewhere").mkdir()
    begun = f"cd {tmp_path}; echo hello | segue chat -m ./model --session trip --max-tokens 2"
    assert shell(begun).returncode == 0
    done = shell(f"cd {tmp_path}/elsewhere; echo again | segue chat --session trip")
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert len(said()) == 4


@pytest.mark.parametrize("model", ["models/x.gguf", "/models/x.gguf", "./no/such"])
def test_a_model_that_is_not_there_any_more_is_told_with_the_session(capsys, model, monkeypatch):
    write("trip", *TALK, model=model)
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi"))
    told = complaint(capsys, "chat", "--session", "trip")
    assert told.startswith("segue: The model that session 'trip' was saved with can't be found: ")
    assert model in told
    assert told.endswith("Name the model with --model.\n")
    assert ("recorded relative to the folder" in told) == (not model.startswith("/"))
    # One that was named is only wrong.
    told = complaint(capsys, "chat", "--session", "trip", "--model", "/other.gguf")
    assert "session" not in told
