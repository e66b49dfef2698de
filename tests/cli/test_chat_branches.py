"""The chat's commands that take back and branch, by what they show and leave."""

from __future__ import annotations

import pytest

import segue
from kit.chats import alone, chat_of, contents, converse, letters, talk, told
from segue import ChatSession, GenerationConfig
from segue.cli.chat.commands import COMMANDS
from segue.cli.sessions.folder import sessions_folder
from segue.testing import FakeEngine, ToyTokenizer

pytestmark = pytest.mark.usefixtures("data_folder")


WARM = GenerationConfig(temperature=0.5)


def test_undo_takes_back_turns():
    shown, session = converse("hi", "ho", "he", "/undo", "/undo 2", "so", script=letters())
    assert "Took back 1 turn; the conversation has 2 turns." in shown
    assert "Took back 2 turns; the conversation has 0 turns." in shown
    assert contents(session.history) == ["so", "d"]


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/undo", "The history has no turn to take back. Take a turn first."),
        ("/undo 0", "The history has no turn to take back. Take a turn first."),
        ("/undo two", "N must be a number, not 'two': /undo [N]"),
        ("/retry", "The history has no question that could be answered."),
        ("/edit", "Give the new text of your last message: /edit TEXT"),
        ("/edit x", "There is no message of yours to edit yet. Type it without /edit."),
        ("/fork", "Name the branch: /fork NAME"),
        ("/fork main", "A branch 'main' already exists in this chat. Use another name, or"),
        (
            "/fork ../x.segue",
            "A session's name must be 1 to 60 letters, digits, spaces, - _ or dots, "
            "without a dot or space first or a space last, not '../x.segue'.",
        ),
        ("/switch", "Name a branch (main): /switch NAME"),
        ("/switch x", "This chat has no branch 'x', only main. /fork NAME makes one, and /open"),
        ("/save", "This chat is not saved yet. Give it a name: /save NAME"),
        ("/save .x", "A session's name must be 1 to 60 letters"),
        ("/save no/x.segue", "The session file no/x.segue could not be written: No such file"),
        ("/open", "Name a session (segue sessions lists them): /open NAME or /open PATH"),
        ("/open x", "There is no session 'x'. Run `segue sessions` to list them."),
        ("/open ~nosuchuser/x", "There is no session '~nosuchuser/x'."),
        ("/open .", "A session's name must be 1 to 60 letters"),
        ("/open ./", "The session file . could not be read: Is a directory."),
        ("/\n", "There is no command /; /help lists them."),
    ],
)
def test_what_is_missing_or_unknown_is_told_and_changes_nothing(line, answer):
    chat = chat_of(alone(ChatSession(FakeEngine(letters()), instructions="Be brief.")), line, "hi")
    chat.run()
    assert told(chat)[0].startswith(answer)
    assert told(chat)[1:] == ["a"]
    assert contents(chat.session.history) == ["hi", "a"]
    assert chat.branches.names == ["main"]
    assert chat.branches.current.path is None


def test_a_command_s_text_may_begin_on_the_next_line():
    _, session = converse("/system\nBe kind.", "hi", "/edit\nho\nhe")
    assert session.instructions == "Be kind."
    assert contents(session.history) == ["ho\nhe", "fine"]


def test_help_lists_them_all():
    shown, _ = converse("/help")
    for name in ("undo", "retry", "edit", "fork", "switch", "save", "open"):
        assert COMMANDS[name].usage in shown


def test_retry_gives_another_reply_as_a_turn():
    chat = talk("hi", "/retry", generation=WARM)
    assert told(chat) == ["a", "b"]
    assert contents(chat.session.history) == ["hi", "b"]
    assert chat.console.file.getvalue().count(" reused · ") == 2


@pytest.mark.parametrize("command", ["/clear", "/history", "/retry", "/help", "/stats", "/quit"])
def test_a_command_that_takes_nothing_refuses_what_follows_it(command):
    chat = talk("hi", f"{command} now", "ho")
    told_first, _, hint = told(chat)[1].partition(". ")
    assert told_first == f"{command} takes nothing after it: {command}"
    assert hint == f"To send it as a message: /say {command} now"
    assert contents(chat.session.history) == ["hi", "a", "ho", "b"]


def test_at_temperature_0_the_reply_would_be_the_same():
    chat = talk("hi", "/retry", "ho")
    assert told(chat)[1].startswith("At temperature 0 the reply would be the same again; try /set ")
    assert contents(chat.session.history) == ["hi", "a", "ho", "b"]


def test_at_temperature_0_what_was_stopped_or_asked_otherwise_is_answered_again():
    engine = FakeEngine(["abc", "abcd", "x"], fail_at=[3], failure=KeyboardInterrupt())
    chat = talk("hi", "/retry", "/system Be kind.", "/retry", "/retry", engine=engine)
    assert contents(chat.session.history) == ["hi", "x"]
    assert told(chat)[-1].startswith("At temperature 0 ")


def test_at_temperature_0_other_settings_may_make_another_reply():
    engine = FakeEngine(["abcdef", "abcdef", "xyz", "q"])
    chat = talk("hi", "/set max-tokens 6", "/retry", "/set repetition-penalty 1.5", "/retry",
                "/retry", engine=engine, generation=GenerationConfig(max_tokens=3))  # fmt: skip
    assert contents(chat.session.history) == ["hi", "xyz"]
    assert told(chat)[-1].startswith("At temperature 0 ")


def test_each_reply_to_a_message_has_a_seed_of_its_own(monkeypatch):
    engine = FakeEngine(letters())
    seeds = []
    context = engine.context

    def watching(config, **kwargs):
        made = context(config, **kwargs)
        run = made.run
        made.run = lambda request: seeds.append(request.config.seed) or run(request)
        return made

    monkeypatch.setattr(engine, "context", watching)
    last = GenerationConfig(temperature=1.0, seed=2**64 - 1)
    chat = talk("hi", "/retry", "/retry", "ho", engine=engine, generation=last)
    assert seeds == [2**64 - 1, 1, 2, 2**64 - 1]
    assert chat.session.generation == last


def test_a_reply_stopped_before_its_first_word_leaves_the_earlier_one():
    engine = FakeEngine(["a", "b"], fail_at=[4], failure=KeyboardInterrupt())
    chat = talk("hi", "/retry", engine=engine, generation=WARM)
    assert told(chat) == ["a", "The earlier reply stays."]
    assert contents(chat.session.history) == ["hi", "a"]


def test_edit_replaces_the_last_message_and_answers_it():
    chat = talk("hi", "ho", "/edit he", "/history")
    assert told(chat) == ["a", "b", "c", "user:", "hi", "assistant:", "a", "user:", "he",
                          "assistant:", "c"]  # fmt: skip
    assert contents(chat.session.history) == ["hi", "a", "he", "c"]


def test_an_edit_that_the_model_can_not_take_changes_nothing():
    engine = FakeEngine(letters(), context_length=60)
    chat = talk("hi", "/edit " + "long " * 20, "ho", engine=engine)
    assert "the model's context" in " ".join(told(chat)[1:-1])
    assert contents(chat.session.history) == ["hi", "a", "ho", "b"]


class Picky(ToyTokenizer):
    def render(self, messages, **kwargs):
        if messages[-1]["content"] == "no":
            raise segue.TemplateError("It won't have that.", remedy="Say something else.")
        return super().render(messages, **kwargs)


def test_an_edit_that_the_template_refuses_changes_nothing():
    chat = talk("hi", "/edit no", "ho", engine=FakeEngine(letters(), tokenizer=Picky()))
    a, refused, b = told(chat)
    assert (a, b) == ("a", "b")
    assert refused.startswith("It won't have that. /undo takes back the last turn")
    assert contents(chat.session.history) == ["hi", "a", "ho", "b"]


def test_an_edit_stopped_before_its_first_word_can_be_answered_later():
    engine = FakeEngine(letters(), fail_at=[4], failure=KeyboardInterrupt())
    chat = talk("hi", "/edit ho", "/retry", engine=engine)
    assert told(chat)[1] == "Your message stays in the conversation; /retry answers it."
    assert contents(chat.session.history) == ["ho", "c"]


class Interrupted(ToyTokenizer):
    """Ctrl-C comes while the second prompt is being made."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def render(self, messages, **kwargs):
        if messages[-1]["content"] == "ho" and "ho" not in self.asked:
            self.asked.append("ho")
            raise KeyboardInterrupt
        return super().render(messages, **kwargs)


def test_ctrl_c_before_a_reply_begins_ends_the_turn_not_the_chat():
    chat = talk("hi", "ho", "ho", engine=FakeEngine(letters(), tokenizer=Interrupted()))
    assert contents(chat.session.history) == ["hi", "a", "ho", "b"]


# --- branches in memory -------------------------------------------------------------------------


def test_branches_go_their_own_ways():
    engine = FakeEngine(letters())
    lines = ["hi", "/fork Über uns 2", "ho", "/switch main", "he", "/switch Über uns 2", "/switch"]
    chat = talk(*lines, engine=engine)
    assert told(chat) == [
        "a",
        "You are now in Über uns 2, in memory until /save; /switch main goes back.",
        "b",
        "main: 1 turn.",
        "c",
        "Über uns 2: 2 turns.",
        "Name a branch (main, Über uns 2): /switch NAME",
        "Not saved: main (2 turns), Über uns 2 (2 turns). /switch NAME and /save NAME keep one; "
        "/quit again leaves.",
    ]
    assert contents(chat.session.history) == ["hi", "a", "ho", "b"]
    chat.branches.switch("main")
    assert contents(chat.session.history) == ["hi", "a", "he", "c"]
    assert not sessions_folder().exists()


def test_a_branch_reads_nothing_again():
    chat = talk("hi", "/fork b", "ho")
    (turn,) = chat.session.usage.turns
    assert turn.fed_tokens <= len("<end>\n<start>user\nho<end>\n<start>assistant\n")


def test_switching_to_where_one_is_changes_nothing():
    chat = talk("hi", "/switch main", "ho")
    assert told(chat) == ["a", "You are already in main.", "b"]
    assert contents(chat.session.history) == ["hi", "a", "ho", "b"]


def test_accents_make_no_other_branch():
    composed, apart = "\N{LATIN SMALL LETTER E WITH ACUTE}", "e\N{COMBINING ACUTE ACCENT}"
    chat = talk(f"/fork {apart}", f"/fork {composed}", "/switch main", f"/switch {apart}")
    assert chat.branches.names == ["main", composed]
    assert "already" in told(chat)[1]
