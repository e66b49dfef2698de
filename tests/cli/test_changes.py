"""What the commands of a chat take away can be brought back."""

from __future__ import annotations

import pytest

import segue
from kit.chats import contents, letters, talk, told
from kit.probe import context_of, held, ids_of
from segue import GenerationConfig, SessionFile
from segue.cli.chat import changes
from segue.cli.sessions.folder import session_path
from segue.testing import FakeEngine, ToyTokenizer

pytestmark = pytest.mark.usefixtures("data_folder")

WARM = GenerationConfig(temperature=0.5)


def saved() -> list[str]:
    return contents(SessionFile.read(session_path("trip")).history)


def test_a_cleared_conversation_comes_back_and_nothing_is_read_again():
    chat = talk("hi", "ho", "/clear", "/undo", "he")
    assert "The conversation is cleared; the system message stays. /undo brings it back." in told(
        chat
    )
    assert "Took back /clear; the conversation has 2 turns. /redo brings it back." in told(chat)
    assert contents(chat.session.history) == ["hi", "a", "ho", "b", "he", "c"]
    turns = chat.session.usage.turns
    assert len(turns) == 3
    assert turns[2].fed_tokens <= len("<end>\n<start>user\nhe<end>\n<start>assistant\n")
    assert ids_of(chat.session) == held(chat.session)


def test_the_file_of_a_cleared_session_is_right_again():
    seen = []
    look = lambda: seen.append(saved())  # noqa: E731
    talk("hi", "/save trip", "/clear", look, "/undo", look, "/redo", look, "/undo", look)
    assert seen == [["hi", "a"] if n % 2 else [] for n in range(4)]
    file = SessionFile.read(session_path("trip"))
    assert len(file.usage.turns) == 1
    assert file.ledger.ids
    chat = talk("ho", session="trip")
    assert chat.session.usage.turns[-1].cached_tokens >= len(file.ledger.ids) - 1


def test_what_was_said_since_is_taken_back_first():
    chat = talk("hi", "/clear", "ho", "/undo", "/undo")
    assert contents(chat.session.history) == ["hi", "a"]
    assert [line.partition(";")[0] for line in told(chat)[3:]] == [
        "Took back 1 turn",
        "Took back /clear",
    ]


@pytest.mark.parametrize(
    ("line", "what"), [("/edit he", "/edit"), ("/retry", "/retry"), ("/system Be kind.", "/system")]
)
def test_other_commands_can_be_taken_back_as_well(line, what):
    chat = talk("hi", "ho", line, "/undo", "/redo", "/undo", generation=WARM, system="Be brief.")
    assert contents(chat.session.history) == ["hi", "a", "ho", "b"]
    assert chat.session.instructions == "Be brief."
    assert told(chat)[-3].startswith(f"Took back {what}; the conversation has 2 turns.")
    assert told(chat)[-2] == f"Did {what} again; the conversation has 2 turns."


def test_turns_that_were_taken_back_come_back():
    chat = talk("hi", "ho", "he", "/undo 2", "/redo", "/undo", "/undo", "/redo", "/redo", "/redo")
    assert contents(chat.session.history) == ["hi", "a", "ho", "b", "he", "c"]
    assert told(chat)[-1].startswith("Nothing was taken back that could be brought back.")
    assert chat.session.usage.turns[-1].cached_tokens > 0


def test_with_a_number_turns_are_taken_back_and_no_change():
    chat = talk("hi", "ho", "/retry", "/undo 1", generation=WARM)
    assert contents(chat.session.history) == ["hi", "a"]


def test_after_something_new_nothing_comes_back_by_mistake():
    chat = talk("hi", "/undo", "ho", "/redo")
    assert contents(chat.session.history) == ["ho", "b"]
    assert told(chat)[-1].startswith("Nothing was taken back")


def test_a_long_way_back_is_read_again_and_right(monkeypatch):
    dropped, drop_fork = [], changes.Snapshot.drop_fork
    monkeypatch.setattr(
        changes.Snapshot, "drop_fork", lambda self: dropped.append(self) or drop_fork(self)
    )
    lines = ["one", "/clear", "two", "/clear", "three", "/clear", "four", "/clear"]
    undos = ["/undo"] * 4
    chat = talk(*lines, *undos, "/undo", "/undo", "/undo", "five", engine=FakeEngine(letters()))
    assert contents(chat.session.history) == ["one", "a", "five", "e"]
    assert dropped
    assert ids_of(chat.session) == held(chat.session) == tuple(context_of(chat.session).cache[0])


def test_each_branch_has_changes_of_its_own():
    chat = talk("hi", "/fork b", "/clear", "/switch main", "/undo", "/switch b", "/undo")
    assert contents(chat.session.history) == ["hi", "a"]
    chat.branches.switch("main")
    assert contents(chat.session.history) == []


def test_a_change_to_a_session_that_others_went_on_with_meanwhile():
    engine = FakeEngine(letters())

    def others():
        talk("from there", session="one", engine=engine)

    chat = talk(
        "hi", "/save one", "ho", "/undo", "/fork two", others, "/switch one", "/redo", "/undo",
        engine=engine,
    )  # fmt: skip
    assert contents(chat.session.history) == ["hi", "a"]
    assert any(line.startswith("Nothing was taken back") for line in told(chat))


def test_a_change_that_changed_nothing_is_none():
    chat = talk("hi", "/system Be brief.", "/undo", system="Be brief.")
    assert contents(chat.session.history) == []


def test_leaving_says_what_would_be_lost_once():
    lines = ["/quit", "/help", "/quit", "/switch main", "/quit", "/quit", "x"]
    chat = talk("hi", "/fork b", "ho", *lines)
    warned = "Not saved: main (1 turn), b (2 turns). /switch NAME and /save NAME keep one; /quit "
    assert [line for line in told(chat) if line.startswith("Not")] == [warned + "again leaves."] * 3
    assert "x" not in contents(chat.session.history)
    assert talk("hi", "/quit", "x").session.history[-1].text == "a"
    assert not [line for line in told(talk("hi")) if line.startswith("Not saved")]
    everything = talk("hi", "/save one", "/fork two", "ho")
    assert not [line for line in told(everything) if line.startswith("Not saved")]


# --- the system message --------------------------------------------------------------------------


def plain() -> FakeEngine:
    """A model whose template takes no system message."""
    return FakeEngine(letters(), tokenizer=ToyTokenizer(roles=("user", "assistant")))


def test_a_system_message_that_the_template_refuses_is_refused_at_once():
    chat = talk("hi", "/system Be kind.", "ho", engine=plain())
    assert told(chat)[1] == (
        "The model takes no system message. The chat template of the toy tokenizer takes no system "
        "message. Put the text into your first message instead."
    )
    assert chat.session.instructions is None
    assert contents(chat.session.history) == ["hi", "a", "ho", "b"]


@pytest.mark.parametrize("text", ["-", "none", "--remove", "off", "''"])
def test_any_text_can_be_the_system_message(text):
    assert talk(f"/system {text}").session.instructions == text


def test_the_system_message_can_be_removed_and_brought_back():
    chat = talk("/no-system", "/undo", "/no-system", "/no-system", "/system", system="Be kind.")
    assert chat.session.instructions is None
    assert told(chat) == [
        "The system message is removed, from your next message on.",
        "Took back /no-system; the conversation has 0 turns. /redo brings it back.",
        "The system message is removed, from your next message on.",
        "There is no system message.",
        "There is no system message.",
    ]


def test_a_saved_session_with_a_system_message_that_is_refused_can_be_rescued():
    talk("hi", "/save trip", system="Be kind.", engine=FakeEngine(letters()))
    chat = talk("ho", "/no-system", "he", session="trip", engine=plain())
    assert "/no-system removes the system message" in told(chat)[0]
    assert saved() == ["hi", "a", "he", "a"]
    talk("hi", "/save other", system="Be kind.", engine=FakeEngine(letters()))
    chat = talk("ho", session="other", system="", engine=plain())
    assert contents(chat.session.history)[-2:] == ["ho", "a"]
    assert SessionFile.read(session_path("other")).instructions is None


def test_a_system_message_on_the_command_line_that_is_refused():
    with pytest.raises(segue.ConfigurationError, match="The model takes no system message"):
        talk("hi", system="Be kind.", engine=plain())
    assert talk("hi", system="", engine=plain()).session.instructions is None


def test_a_system_message_that_is_too_long_is_refused_at_once():
    chat = talk(
        "hi", "/system " + "x" * 200, "ho", engine=FakeEngine(letters(), context_length=150)
    )
    assert "the model's context holds 150" in told(chat)[1]
    assert contents(chat.session.history) == ["hi", "a", "ho", "b"]
