"""docs/session-files.md says how session files are laid out: its code reads ours."""

from __future__ import annotations

import pytest

from kit.altered_files import STATES, TEXTS, Parts, make
from kit.pages import SESSION_FILES, code
from kit.paths import OLD_SESSIONS
from kit.sessions import say
from segue import ChatSession, Message, ToolCall
from segue.testing import FakeEngine

KEPT = sorted(OLD_SESSIONS.glob("v1-*.segue"))


@pytest.fixture
def verify(tmp_path, monkeypatch, capsys):
    """The function that the page shows, after the page's code has run on a file of ours."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "talk.segue", questions=["How are you?"])
    (block,) = code(SESSION_FILES)
    namespace: dict[str, object] = {}
    exec(compile(block, SESSION_FILES.name, "exec"), namespace)
    assert capsys.readouterr().out.startswith("user: How are you?\nassistant: ")
    return namespace["verify"]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name)
def test_the_page_s_code_verifies_the_kept_files(verify, path):
    assert verify(path)["history"]


def test_the_page_s_code_finds_what_is_changed(verify, tmp_path):
    path = tmp_path / "talk.segue"
    sound = path.read_bytes()
    file = Parts.of(sound)
    for part in (*TEXTS, "cache", "marks"):
        changed = Parts.of(sound)
        changed.metadata[f"segue.{part}"] += " "
        path.write_bytes(changed.join())
        with pytest.raises(AssertionError, match=part):
            verify(path)
    file.data[0] ^= 1
    path.write_bytes(file.join())
    with pytest.raises(AssertionError, match="cache"):
        verify(path)
    path.write_bytes(sound.replace(b'"shape":[', b'"shape": [', 1)[: len(sound)])
    with pytest.raises(Exception, match=r".*"):
        verify(path)


def test_the_page_names_every_key(tmp_path):
    text = SESSION_FILES.read_text(encoding="utf-8")
    history = [
        Message.assistant("", tool_calls=[ToolCall("f", {})], reasoning="r"),
        Message.tool("x", name="n"),
    ]
    with ChatSession(FakeEngine(say), history=history) as session:
        session.respond("hi")
        session.save(tmp_path / "talk.segue")
    file = Parts.of((tmp_path / "talk.segue").read_bytes())
    names = {*TEXTS, *STATES}
    for part in TEXTS:
        names |= file.told(part).keys()
    for message in file.told("conversation")["history"]:
        names |= message.keys()
    for name in names:
        assert f"`{name}`" in text, name
