"""Replies that are cut, contexts that are full, and advice that a person can follow."""

from __future__ import annotations

import ast
import io
import re
import sys
import warnings
from pathlib import Path

import pytest

import segue
from kit.chats import alone, chat_of, contents, letters, talk, told
from kit.command import complaint, run, shown
from segue import ChatSession, GenerationConfig, Message, SessionFile, ToolCall
from segue.cli.options import reply_settings
from segue.cli.remedies import for_person, in_their_words
from segue.cli.sessions.folder import session_path
from segue.testing import FakeEngine

pytestmark = pytest.mark.usefixtures("data_folder")

PACKAGE = Path(segue.__file__).parent


def test_a_reply_cut_at_max_tokens_says_so_and_what_to_do():
    chat = talk("hi", engine=FakeEngine(["abcdef"]), generation=GenerationConfig(max_tokens=3))
    assert told(chat) == [
        "abc",
        "The reply was cut at 3 tokens. /continue goes on with it; /set max-tokens N allows longer "
        "ones.",
    ]
    assert "cut · " in chat.console.file.getvalue()
    whole = talk("hi", engine=FakeEngine(["abc"]), generation=GenerationConfig(max_tokens=4))
    assert told(whole) == ["abc"]


def test_a_cut_reply_can_be_continued_and_that_taken_back():
    chat = talk(
        "hi",
        "/continue",
        "/undo",
        "/continue",
        "ho",
        engine=FakeEngine(lambda ids: 97 + len(ids) % 26),
        generation=GenerationConfig(max_tokens=3),
    )
    asked, reply, *others = contents(chat.session.history)
    assert asked == "hi"
    assert len(reply) == 6
    assert others[0] == "ho"


def test_without_a_reply_there_is_nothing_to_continue():
    chat = talk("/continue", "hi")
    assert told(chat)[0].endswith("/retry answers a question that has no reply.")
    assert contents(chat.session.history) == ["hi", "a"]


def test_a_reply_that_calls_tools_is_not_continued():
    history = [Message.user("hi"), Message.assistant("", tool_calls=[ToolCall("look", {})])]
    session = ChatSession(FakeEngine(letters()), history=history)
    chat = chat_of(alone(session), "/continue")
    chat.run()
    assert told(chat)[0] == (
        "The last reply calls tools, so it waits for their results. /undo takes the turn back."
    )


def test_of_a_reply_that_was_complete_it_is_said():
    chat = talk("hi", "/continue", "/undo", engine=FakeEngine(["abc", ""]))
    assert told(chat)[1] == "The model added nothing; the reply stays as it was."
    assert contents(chat.session.history) == []
    cut = talk("hi", "/continue", engine=FakeEngine(letters()))
    assert not any("added nothing" in line for line in told(cut))


def test_a_reply_cut_by_a_full_context_says_so_and_what_to_do():
    engine = FakeEngine(["x" * 500, "y"], context_length=40)
    chat = talk("hi", "ho", "/clear", "he", engine=engine)
    lines = told(chat)
    assert lines[1].startswith("The reply was cut, because the model's context is full. /undo or ")
    assert "the model's context holds 40" in lines[2]
    for line in lines[1:3]:
        assert "/clear" in line
        assert "/set on-overflow drop-oldest" in line
        assert "clear()" not in line
        assert "=" not in line
    assert contents(chat.session.history)[0] == "he"


def test_the_oldest_turns_make_room_if_that_is_wanted_and_it_is_said():
    engine = FakeEngine(letters(), context_length=80)
    chat = talk("one", "two", "three", engine=engine, on_overflow="drop-oldest")
    assert told(chat).count("The oldest 2 messages made room, and left the conversation.") == 1
    assert contents(chat.session.history) == ["two", "b", "three", "c"]


def test_a_full_context_is_dealt_with_in_the_chat():
    engine = FakeEngine(letters(), context_length=60)
    chat = talk("one", "two", "/save trip", "three", "/set on-overflow drop-oldest", "three",
                "/set on-overflow never", engine=engine)  # fmt: skip
    assert contents(chat.session.history)[-2:] == ["three", "c"]
    assert told(chat)[-1].startswith("on-overflow must be error or drop-oldest, not 'never'.")
    assert SessionFile.read(session_path("trip")).settings.on_overflow == "drop-oldest"


def test_overflow_on_the_command_line(capsys, monkeypatch):
    engine = FakeEngine(letters(), context_length=60)
    monkeypatch.setattr("segue.loading.load", lambda name: engine)
    arguments = ["chat", "--session", "trip", "--lines"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\nthree\n"))
    assert run(*arguments) == 2
    err = capsys.readouterr().err
    assert "--on-overflow drop-oldest" in err
    assert "clear()" not in err
    monkeypatch.setattr(sys, "stdin", io.StringIO("three\n"))
    assert run(*arguments, "--on-overflow", "drop-oldest") == 0
    out, err = capsys.readouterr()
    assert out == "c\n"
    assert re.fullmatch(r"segue: The oldest \d messages made room, and left the .*\n", err)
    # A saved session keeps it.
    monkeypatch.setattr(sys, "stdin", io.StringIO("four\n"))
    assert run(*arguments) == 0


def test_settings_can_be_changed_in_the_chat():
    chat = talk("hi", "/save trip", "/retry", "/set temperature 0.7", "/retry", "/set top_k 40",
                "/set --seed 5", "/set stop a b", "/set top-k off", "/set")  # fmt: skip
    assert contents(chat.session.history) == ["hi", "b"]
    settings = SessionFile.read(session_path("trip")).settings.generation
    assert (settings.temperature, settings.top_k, settings.seed) == (0.7, 0, 5)
    assert settings.stop == ("a b",)
    lines = told(chat)
    assert {line.split()[0] for line in lines[-len(reply_settings()) - 1 :]} == {
        *reply_settings(),
        "on-overflow",
    }


def test_what_is_on_or_off_can_be_set_so():
    lines = ["/set", "/set stop-in-reasoning on", "/set", "/set stop_in_reasoning off", "/set"]
    chat = talk(*lines, "/set stop-in-reasoning On", "hi")
    assert chat.session.generation.stop_in_reasoning is True
    shown = [line for line in told(chat) if line.startswith("stop-in-reasoning")]
    assert [line.split()[1] for line in shown] == ["off", "on", "off"]


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/set stop-in-reasoning 1", "The setting stop-in-reasoning must be on or off, not '1'."),
        ("/set temperature", "The setting temperature must be a number, not ''."),
        ("/set temperature hot", "The setting temperature must be a number, not 'hot'."),
        ("/set max-tokens 1.5", "The setting max-tokens must be a whole number, not '1.5'."),
        ("/set top-p 2", "top_p must be from 0 to 1, not 2.0."),
        ("/set temprature 1", "Replies have no setting 'temprature'. Did you mean temperature?"),
        ("/set x 1", "Replies have no setting 'x'. /set lists them."),
        ("/set kv-bits 8", "Replies have no setting 'kv-bits'."),
    ],
)
def test_settings_that_can_not_be_are_told_and_change_nothing(line, answer):
    chat = talk(line, "hi")
    assert told(chat)[0].startswith(answer)
    assert chat.session.generation == GenerationConfig()


# --- what the library advises, as a person reads it ----------------------------------------------

# Advice to whoever writes a program, that no command can come by: about values that the command
# makes itself, or about Python.
UNREACHABLE = {
    "checks.py", "config.py", "conversation.py", "messages.py", "tool_call.py", "engine.py",
    "ledger.py", "loading.py", "session.py", "turn/overflow.py", "turn/reply.py", "turn/core.py",
    "turn/cache.py", "store/opening.py", "files/path.py", "mlx/engine.py", "mlx/sampling.py",
    "mlx/stored/prompt_cache.py", "store/prompt_cache.py", "mlx/process/forks.py",
    "grammar/schema.py", "grammar/constraint.py", "masking/matcher.py",
}  # fmt: skip
CALL, NAME = r"\w\(|\w=", r"None|segue\.\w+|ChatSession|Message\.\w+|dict|float|int"
IN_CODE = re.compile(rf"{CALL}|\b(?:{NAME})\b|[a-z]_(?!lm)[a-z]")
# All that a person can come by nevertheless.
REACHED = {
    "Leave max_kv_size at None.": "Leave --max-kv-size out.",
    "Leave kv_bits at None.": "Leave --kv-bits out.",
    "Leave draft at None.": "Leave --draft out.",
    "Leave prompt_cache at None.": "Leave --cache out.",
    "Leave max_kv_size and kv_bits at None, or make the cache anew.": "Leave --max-kv-size and "
    "--kv-bits out, or make the cache anew.",
    "Try another kv_group_size or kv_bits, or leave kv_bits at None.": "Try another "
    "--kv-group-size or --kv-bits, or leave --kv-bits out.",
    "Try again; if memory ran out, use a shorter history, max_kv_size or kv_bits.": "Try again; if "
    "memory ran out, use a shorter history, --max-kv-size or --kv-bits.",
    "Use a larger max_kv_size, or shorter instructions.": "Use a larger --max-kv-size, or shorter "
    "instructions.",
    "Take a turn first, or call prewarm().": "Take a turn first.",
    "Save the session instead: save(path).": "/save NAME saves the session instead.",
    "Open it with segue.load_prompt_cache.": "Open it with segue chat --cache.",
    "Open it with ChatSession.open.": "Open it with segue chat --session.",
    "Pass a file that ChatSession.save wrote.": "Name a file that /save wrote.",
    "Restore the file from a copy; in Python, the error's `readable` has the rest.": "Restore the "
    "file from a copy.",
    "Use an instruct or chat model, or set tokenizer.chat_template yourself.": "Use an instruct or "
    "chat model.",
    "Did you mean temperature?": "Did you mean temperature?",
}  # fmt: skip


@pytest.mark.parametrize("advice", REACHED)
def test_advice_is_in_the_words_of_the_command(advice):
    assert in_their_words(advice) == REACHED[advice]
    assert not IN_CODE.search(REACHED[advice])


def remedies() -> list[tuple[str, str]]:
    """All remedies in the package, by file; what is filled in is left out."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "remedy":
                for text in ast.walk(node.value):
                    if isinstance(text, ast.Constant) and isinstance(text.value, str):
                        found.append((str(file.relative_to(PACKAGE)), text.value))
    return found


def test_no_remedy_that_a_person_can_come_by_is_in_code():
    assert len(remedies()) > 100
    by_type = ("turn/overflow.py", "turn/prompts/prompt.py", "tokenizers/hugging_face.py")
    for file, text in remedies():
        if file.startswith("testing") or file in (*UNREACHABLE, *by_type):
            continue
        assert not IN_CODE.search(in_their_words(text)), (file, text)


def test_each_kind_of_error_has_the_remedy_of_its_place():
    error = segue.ContextLengthError("It is full.", remedy="clear() it.")
    assert for_person(error, in_chat=True).startswith("It is full. /undo or /clear makes room")
    assert "--on-overflow" in for_person(error)
    error = segue.TemplateError("It won't.", remedy="Check the template_kwargs.")
    assert "/no-system" in for_person(error, in_chat=True)
    assert "--system ''" in for_person(error)


def test_warnings_are_in_the_words_of_the_command(capsys, monkeypatch):
    def load(name):
        warnings.warn("It used a draft. Pass draft= to use one again.", stacklevel=1)
        return FakeEngine(["a"])

    monkeypatch.setattr("segue.loading.load", load)
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi"))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run("chat") == 0
    assert capsys.readouterr().err == "segue: It used a draft. --draft NAME uses one again.\n"


def test_a_text_that_is_too_long_for_a_prompt_cache(capsys, monkeypatch, tmp_path):
    (tmp_path / "text").write_text("word " * 100)
    monkeypatch.setattr("segue.loading.load", lambda name: FakeEngine(context_length=60))
    told = complaint(capsys, "cache-prompt", str(tmp_path / "text"), "-o", str(tmp_path / "c"))
    assert "Shorten the text, or use a model with a larger context" in told
    assert "on_overflow" not in told


def test_a_half_character_on_the_command_line(capsys, monkeypatch):
    monkeypatch.setattr("segue.loading.load", lambda name: FakeEngine(["a"]))
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi"))
    told = complaint(capsys, "chat", "--system", "\udcff")
    assert "lone surrogate" in told
    assert "errors=" not in told


def test_help_shows_what_there_is(capsys):
    text = shown(capsys, "chat", "--help")
    assert "--on-overflow HOW" in text
    assert "--lines" in text
