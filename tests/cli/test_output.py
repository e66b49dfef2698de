"""What others said, wherever the command prints it: seen, never obeyed, and the same as it was."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import signal
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pexpect
import pytest
from rich.console import Console

import segue.cli
from kit.chats import Typed, alone, chat_of, converse
from kit.command import complaint, run, shown, terminal
from kit.saved_sessions import write
from segue import ChatSession, GenerationConfig, Message
from segue.cli.chat.chat import TerminalChat
from segue.cli.chat.commands import COMMANDS
from segue.cli.output.streams import write as write_out
from segue.cli.sessions.folder import sessions_folder
from segue.cli.sessions.show import print_history
from segue.printable import printable, printable_line
from segue.testing import FakeEngine, ToyTokenizer

pytestmark = pytest.mark.usefixtures("data_folder")

# Clears the screen, writes the clipboard, sets the title, and is red, bold and a smile for Rich.
EVIL = "\x1b[2J\x1b]52;c;aGk=\x07\x1b]0;t\x07\x9b2J\b\r\u202e[bold]:smile:[/bold]"
SEEN = "␛[2J␛]52;c;aGk=␇␛]0;t␇<U+009B>2J␈␍<U+202E>[bold]:smile:[/bold]"
CODE = "\tdef f(x):  # " + "a comment " * 30 + "\n\t\treturn x  \n"


def terminal_chat(session, *lines, width=40) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    TerminalChat(alone(session), console, Typed(*lines), COMMANDS, read_ahead=False).run()
    # What Rich needs to take a remark away again.
    return re.sub("\r?\x1b" + r"\[(\?25[lh]|2K|1A)", "", console.file.getvalue())


def test_what_becomes_visible():
    for code in (*range(0x3000), *range(0xD000, 0x10000), *range(0xE0000, 0xE0200)):
        letter = chr(code)
        seen = printable(letter)
        category = unicodedata.category(letter)
        if letter in "\n\t":
            assert seen == letter
        elif category in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(letter) in (
            "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI",
        ):  # fmt: skip
            assert seen == printable_line(letter)
            assert seen.isprintable()
        elif not 0x206A <= code <= 0x206F:
            assert seen == printable_line(letter) == letter
    assert printable_line("a\tb\nc\n") == "a␉b␊c␊"


@pytest.mark.parametrize("limit", range(1, 12))
def test_a_line_can_be_short(limit):
    assert len(printable_line("ab\x1b\u202ecdefghij", limit)) <= limit
    assert printable_line("ab", 2) == "ab"


def test_a_reply_its_reasoning_and_the_history_command_no_terminal():
    class Marking(ToyTokenizer):
        reasoning_tags = ("<think>", "</think>")

    said = f"<think>\n{EVIL}1\n</think>\n\n{EVIL}2\n{CODE}"
    engine = FakeEngine([said], tokenizer=Marking())
    settings = GenerationConfig(max_tokens=2000)
    session = ChatSession(engine, instructions=EVIL + "3", generation=settings)
    output = terminal_chat(session, EVIL + "4", "/history", "/system")
    assert "\x1b" not in output
    assert f"\nreasoning:\n{SEEN}1\nanswer:\n{SEEN}2\n{CODE}" in output
    assert f"user:\n{SEEN}4\nassistant:\n{SEEN}2\n{CODE}{SEEN}3\n" in output


@pytest.mark.parametrize(
    "typed",
    [f"/x{EVIL}", f"/undo {EVIL}", f"/open {EVIL}", f"/open ./{EVIL}", f"/switch {EVIL}",
     f"/fork {EVIL}", f"/save {EVIL}", f"/save-cache no/{EVIL}"],
)  # fmt: skip
def test_what_was_typed_commands_no_terminal(typed):
    session = ChatSession(FakeEngine(["a", "b"]))
    assert "\x1b" not in terminal_chat(session, "hi", typed)


def test_an_error_commands_no_terminal():
    failure = ZeroDivisionError(EVIL)
    shown, _ = converse("hi", fail_at=[1], failure=failure)
    assert f"The turn failed (ZeroDivisionError): {SEEN}" in shown.replace("\n", "")


def test_why_reading_ahead_failed_commands_no_terminal(monkeypatch):
    monkeypatch.setattr("segue.cli.chat.statistics.failure", lambda session: EVIL)
    shown = terminal_chat(ChatSession(FakeEngine([])), "/stats", width=200)
    assert f"reading ahead failed    {SEEN}" in shown


def test_the_help_of_a_narrow_terminal_is_whole():
    narrow, wide = (
        terminal_chat(ChatSession(FakeEngine([])), "/help", "/stats", width=width)
        for width in (20, 200)
    )
    assert "…" not in narrow
    assert Counter("".join(narrow.split())) == Counter("".join(wide.split()))


def test_tool_calls_and_tools_are_shown_as_they_are():
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": EVIL}}}
    talk = [Message.assistant("", tool_calls=[call]), Message.tool("[bold]\x1b[2J*x*", name="f")]
    console = Console(file=io.StringIO(), width=10, force_terminal=True, color_system=None)
    print_history(console, talk)
    lines = console.file.getvalue().splitlines()
    assert "\x1b" not in console.file.getvalue()
    assert [lines[0], *lines[2:]] == ["assistant:", "tool:", "[bold]␛[2J*x*"]
    assert '"x": "\\u001b[2J' in lines[1]


def test_history_shows_long_lines_and_blanks_as_they_are(capsys, monkeypatch):
    write("trip", Message.user(CODE), Message.assistant(CODE), Message.user("two\n\nlines"))
    terminal(monkeypatch, 20)
    assert shown(capsys, "sessions", "show", "trip") == (
        f"user:\n{CODE}assistant:\n{CODE}user:\ntwo\n\nlines\n"
    )


class Terminal(io.StringIO):
    """Standard output that says it is a terminal."""

    def isatty(self):
        return True


def on_a_terminal(monkeypatch, *arguments) -> str:
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert run(*arguments) == 0
    return sys.stdout.getvalue()


@pytest.mark.parametrize(
    "arguments",
    [["show"], ["export"], ["export", "--format", "json"]],
)
def test_a_pipe_is_data_and_a_terminal_is_not(capsys, monkeypatch, arguments):
    talk = [Message.user("\x1b[31mred\x1b[0m \x9b2J"), Message.assistant("\x1b]52;c;aGk=\x07 \x7f")]
    write("trip", *talk)
    command, *options = arguments
    data = shown(capsys, "sessions", command, "trip", *options)
    if "json" in options:
        assert [m["content"] for m in json.loads(data)["messages"]] == [m.text for m in talk]
    else:
        assert all(message.text in data for message in talk)
    # Rich may be told that there is no terminal.
    monkeypatch.setenv("TTY_COMPATIBLE", "0")
    seen = on_a_terminal(monkeypatch, "sessions", command, "trip", *options)
    assert seen == printable(data)


def test_the_chat_through_a_pipe_is_data_too(capsys, monkeypatch):
    monkeypatch.setattr("segue.loading.load", lambda name: FakeEngine([EVIL, EVIL]))
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n"))
    assert shown(capsys, "chat") == EVIL + "\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n"))
    assert on_a_terminal(monkeypatch, "chat") == SEEN + "\n"


def test_what_is_written_appears_at_once(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    write_out("a\x1b")
    assert sys.stdout.buffer.getvalue() == b"a\x1b"


def test_names_models_and_errors_command_no_terminal(capsys, tmp_path):
    write("good", Message.user(EVIL), model=EVIL)
    (sessions_folder() / ("bad" + EVIL.replace("/", "") + "\n.segue")).write_bytes(b"no")
    listed = shown(capsys, "sessions")
    assert listed.count("␛[2J") == 5
    assert printable(listed) == listed
    assert len(listed.splitlines()) == 4
    path = tmp_path / ("x" + EVIL.replace("/", "") + ".segue")
    for command in ("show", "export", "delete"):
        told = complaint(capsys, "sessions", command, str(path))
        assert printable(told) == told
    path.write_bytes(b"no")
    told = complaint(capsys, "sessions", "show", str(path))
    assert "␛[2J␛]52;c;aGk=␇" in told
    assert shown(capsys, "sessions", "delete", "-y", str(path)).startswith("Deleted ")
    for arguments in (["nope" + EVIL], ["chat", "--nope" + EVIL], ["chat", "-t", EVIL]):
        told = complaint(capsys, *arguments)
        assert printable(told) == told


def test_the_question_before_sessions_are_deleted_commands_no_terminal(
    capsys, monkeypatch, tmp_path
):
    path = tmp_path / "x\x1b[2J\n\r.segue"
    path.write_bytes(b"no")
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    asked = shown(capsys, "sessions", "delete", str(path))
    assert asked == f"Delete {tmp_path}/x␛[2J␊␍.segue? [y/N]: "


@pytest.mark.filterwarnings("default")
def test_warnings_command_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))

    def load(name):
        import warnings

        warnings.warn(EVIL, stacklevel=1)
        return FakeEngine(["a"])

    monkeypatch.setattr("segue.loading.load", load)
    assert run("chat", "--lines") == 0
    assert capsys.readouterr().err == f"segue: {SEEN}\n"


class Interrupting(io.StringIO):
    """Ctrl-C comes while the terminal takes the text."""

    def write(self, text):
        if text == "w":
            os.kill(os.getpid(), signal.SIGINT)
        return super().write(text)


def test_ctrl_c_loses_and_doubles_nothing_that_was_said():
    chat = chat_of(alone(ChatSession(FakeEngine(["one now two"]))), "hi")
    chat.console.file = Interrupting()
    chat.run()
    said = chat.session.history[-1].text
    assert said.startswith("one now")
    assert said != "one now two"
    assert chat.console.file.getvalue().startswith(said + "\nstopped · ")


IN_A_TERMINAL = """
import segue.loading
from segue.cli.main import main
from segue.testing import FakeEngine

segue.loading.load = lambda name: FakeEngine([{said!r}])
main(["chat", "-m", "."])
"""
# How prompt_toolkit takes over the terminal.
READY = re.escape("\x1b[?2004h")


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_in_a_real_terminal(tmp_path, term):
    said = f"Look: {EVIL}\n```python\n{CODE}```\nDone.\n"
    child = pexpect.spawn(
        sys.executable,
        ["-c", IN_A_TERMINAL.format(said=said)],
        encoding="utf-8",
        timeout=60,
        cwd=tmp_path,
        dimensions=(24, 40),
        env={
            **os.environ,
            "PYTHONPATH": str(Path(segue.__file__).parent.parent),
            "PROMPT_TOOLKIT_NO_CPR": "1",
            "TERM": term,
        },
    )
    try:
        prompt = "> " if term == "dumb" else READY
        child.expect(prompt)
        for typed in ("hi", "/history"):
            child.send(typed + "\r")
            child.expect(re.escape("Look: "))
            child.expect(re.escape("Done.\r\n"))
            output = re.sub("\x1b" + r"\[[0-9;]*m", "", child.before)
            # A terminal that gets a long line without a newline in it knows it as one line.
            code = CODE.replace("\n", "\r\n")
            assert output == f"{SEEN}\r\n```python\r\n{code}```\r\n"
            child.expect(prompt)
    finally:
        child.close(force=True)


# What prints, and what makes a text that Rich renders.
PRINTING = {
    "print", "click.echo", "click.secho", "click.confirm", "click.prompt", "sys.stdout.write",
    "sys.stderr.write", "Markdown", "Syntax",
}  # fmt: skip


def test_all_that_the_command_prints_goes_through_one_folder():
    folder = Path(segue.cli.__file__).parent
    found = set()
    for path in folder.rglob("*.py"):
        if path.parent.name == "output":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name in PRINTING or name.endswith(".print"):
                    found.add(f"{path.name}: {ast.unparse(node)}")
    assert found == set()
