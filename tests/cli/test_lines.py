"""What a person types: a message or a command, and nothing in between."""

from __future__ import annotations

import pytest

from kit.chats import contents, converse, letters, talk, told
from kit.spawned import READY, spawn
from segue import SessionFile
from segue.cli.chat.commands import COMMANDS
from segue.cli.chat.commands.line import Called, Refused, Said, read
from segue.cli.sessions.folder import session_path
from segue.testing import FakeEngine

pytestmark = pytest.mark.usefixtures("data_folder")

MESSAGES = [
    "/clear the table, said the butler",
    "/undo the damage, please",
    "/undo 5 minutes of work",
    "/quit smoking today",
    "/help me with this",
    "/retry it with care.",
    "/history is written by the victors",
    "/open the door, please!",
    "/save yourself: run",
    "/set the table, please",
    "/set temperature:\n0.7",
    "/set seeds: carrots, peas",
    "/redo the kitchen (blue)",
    "/* adds */ int add()",
    "/** Adds. */",
    "/",
    "//",
    "// TODO",
    "///",
    "//x",
    "/usr/bin/env python",
    "/usr/bin/env",
    "/etc/hosts says that",
    "/r/python",
    "/1",
    "/\N{LATIN SMALL LETTER E WITH ACUTE}tude",
    "/clear;",
    "/clear, then",
    "/CLEAR THE DECKS",
    "/hlep me",
    "/nope nope",
    "/clear\nthe table",
    "/undo\n2",
    "/undo 2\n",
    "/undo 2\n\nof these",
    "/quit\n\n",
    "/save the\nwhales",
    "/clear\r\nthe table",
    " /clear",
    "\n/clear",
    "clear",
    "\N{FULLWIDTH SOLIDUS}clear",
    "/help\n/clear",
]
# Those that aren't several lines after all, and one that a slip of the hand may be.
COMMANDS_ALL_THE_SAME = {"/undo 2\n", "/quit\n\n"}
SLIPS = {"/"}


@pytest.mark.parametrize("text", MESSAGES)
def test_what_is_no_command_is_a_message_to_the_letter(text):
    found = read(text, COMMANDS)
    if text in COMMANDS_ALL_THE_SAME:
        assert isinstance(found, Called)
    elif text in SLIPS:
        assert isinstance(found, Refused)
    else:
        assert found == Said(text)
        _, session = converse(text)
        assert contents(session.history) == [text, "hello"]


@pytest.mark.parametrize(
    ("text", "name", "argument"),
    [
        ("/clear", "clear", ""),
        ("/clear  ", "clear", ""),
        ("/undo 12", "undo", "12"),
        ("/undo two", "undo", "two"),
        ("/system Be kind.", "system", "Be kind."),
        ("/system\nBe kind.\nBe brief.", "system", "Be kind.\nBe brief."),
        ("/system /clear", "system", "/clear"),
        ("/edit // TODO", "edit", "// TODO"),
        ("/open by train", "open", "by train"),
        ("/open ../x.segue", "open", "../x.segue"),
        ("/save", "save", ""),
        ("/set temperature 0.7", "set", "temperature 0.7"),
        ("/set stop ###", "set", "stop ###"),
        ("/set stop Human:", "set", "stop Human:"),
        ("/set --stop And then, he", "set", "--stop And then, he"),
        ("/set seed +5", "set", "seed +5"),
        ("/set max_tokens 1,000", "set", "max_tokens 1,000"),
        ("/set temperature: 0.7", "set", "temperature: 0.7"),
        ("/set on-overflow = error!", "set", "on-overflow = error!"),
        ("/say /clear", "say", "/clear"),
        ("/say /say x", "say", "/say x"),
        ("/say   indented\n  more \n", "say", "  indented\n  more \n"),
        ("/say\n/clear", "say", "/clear"),
        ("\ufeff/clear", "clear", ""),
        ("/system \ufeffBe kind.", "system", "Be kind."),
    ],
)
def test_commands_and_what_they_take(text, name, argument):
    assert read(text, COMMANDS) == Called(COMMANDS[name], argument)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("/hlep", "There is no command /hlep; did you mean /help?"),
        ("/Help", "There is no command /Help; did you mean /help?"),
        ("/unod", "There is no command /unod; did you mean /undo?"),
        ("/exit", "There is no command /exit; did you mean /quit?"),
        ("/?", "There is no command /?; did you mean /help?"),
        ("/nope", "There is no command /nope; /help lists them."),
        ("/etc", "There is no command /etc; /help lists them."),
        ("/clear all", "/clear takes nothing after it: /clear."),
        ("/quit now", "/quit takes nothing after it: /quit."),
    ],
)
def test_a_slip_of_the_hand_is_answered_and_can_be_sent_all_the_same(text, answer):
    chat = talk(text, f"/say {text}", engine=FakeEngine(letters()))
    assert told(chat)[0] == f"{answer} To send it as a message: /say {text}"
    assert contents(chat.session.history) == [text, "a"]


def test_a_saved_session_stays_whole_whatever_is_pasted_into_it():
    talk("hi", "/save trip", "/clear the table, said the butler")
    file = SessionFile.read(session_path("trip"))
    assert contents(file.history) == ["hi", "a", "/clear the table, said the butler", "b"]


def test_a_byte_order_mark_is_no_part_of_a_message():
    _, session = converse("\ufeffhi")
    assert session.history[0].text == "hi"


def pasted(text: str) -> str:
    return f"\x1b[200~{text}\x1b[201~"


def test_a_pasted_text_of_several_lines_is_a_message_and_what_is_typed_before_it_a_command():
    child = spawn("--session", "trip", "--max-tokens", "4", pause=0)
    child.expect(READY)
    child.send(pasted("/system\r/vendor\r/data") + "\r")
    child.expect("tokens/s")
    child.expect(READY)
    child.send("/system " + pasted("Be kind.\nBe brief.") + "\r")
    child.expect("takes effect")
    child.expect(READY)
    child.send(pasted("/edit is what I said\n\nyesterday") + " and more\r")
    child.expect("tokens/s")
    child.expect(READY)
    child.send(pasted("/clear\n") + "\r")
    child.expect("is cleared")
    child.expect(READY)
    child.send("/undo\r")
    child.expect("Took back /clear")
    child.sendeof()
    child.expect("")
    child.wait()
    file = SessionFile.read(session_path("trip"))
    assert file.instructions == "Be kind.\nBe brief."
    assert [message.text for message in file.history[::2]] == [
        "/system\n/vendor\n/data",
        "/edit is what I said\n\nyesterday and more",
    ]
