"""What can't be read as a session: each kind is one typed error."""

from __future__ import annotations

import json
import os
import socket
import struct

import pytest

from kit.altered_files import (
    STATES,
    Parts,
    conversation,
    header,
    join,
    message,
    meta,
    parts,
)
from kit.sessions import say
from segue import (
    ChatSession,
    ConfigurationError,
    SessionFile,
    SessionFileError,
    SessionFileFormatError,
    SessionNotFoundError,
)
from segue.testing import FakeEngine

DEEP = 500


REFUSED = {
    "an empty file": (lambda raw: b"", "isn't a safetensors file"),
    "seven bytes": (lambda raw: raw[:7], "isn't a safetensors file"),
    "text": (lambda raw: b"# A talk\n\nHello there, this is Markdown.\n", "can't be read as"),
    "a zip archive": (lambda raw: b"PK\x03\x04" + bytes(60), "can't be read as a session"),
    "a header of no length": (lambda raw: bytes(8) + raw[8:], "isn't a safetensors file"),
    "a header longer than files": (lambda raw: b"\xff" * 8 + b"{}", "isn't a safetensors file"),
    "a header longer than its file": (lambda raw: struct.pack("<Q", 5000) + b"{}", "inside its"),
    "a header that is no JSON": (header(lambda text: text[1:]), "header can't be read"),
    "a header that is no text": (lambda raw: join(b'{"a\xff":1}', b""), "header can't be read"),
    "a header that is a list": (header(lambda text: f"[{text}]"), "not an object"),
    "a header that is a number": (lambda raw: join("12", b""), "not an object"),
    "a header of brackets": (lambda raw: join("[" * 300_000, b""), "more entries"),
    "a header nested deep": (lambda raw: join("[" * 5000 + "]" * 5000, b""), "can't be read"),
    "a header of open quotes": (
        lambda raw: join('{"' + "[" * 300_000 + '\\"' * 300_000, b""),
        "can't be read as",
    ),
    "a name twice, metadata behind": (
        header(lambda text: '{"x":1,"x":1,' + text[1:]),
        "a name occurs twice",
    ),
    "metadata that are a list": (lambda raw: join({"__metadata__": []}, b""), "not all text"),
    "metadata that are null": (lambda raw: join({"__metadata__": None}, b""), "not a session"),
    "no metadata": (lambda raw: join({}, b""), "not a session"),
    "weights": (
        lambda raw: join({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        "but not a session",
    ),
    "a prompt cache": (
        lambda raw: join({"__metadata__": {"0.segue_version": "1", "1.0": "KVCache"}}, b""),
        "not a session.*load_prompt_cache",
    ),
    "another format": (meta(format="album"), "not a session"),
    "no format": (meta(format=None), "not a session"),
    "no version": (meta(version=None), "the version of its format"),
    "a newer version": (meta(version="2"), "version 2, newer"),
    "a far newer version": (meta(version="9" * 5000), "newer"),
    "a version that is no number": (meta(version="one"), "the version of its format"),
    "a version of nought": (meta(version="0"), "the version of its format"),
    "a version with a sign": (meta(version="-1"), "the version of its format"),
    "no conversation": (meta(conversation=None), "conversation.*is missing"),
    "a conversation without checksum": (
        meta(**{"conversation.sha256": None}),
        "conversation.*checksum",
    ),
    "a conversation of another checksum": (
        meta(**{"conversation.sha256": "0" * 64}),
        "conversation.*checksum",
    ),
    "a conversation changed by a letter": (
        parts(
            lambda file: file.tell(
                "conversation",
                file.metadata["segue.conversation"].replace('"hi"', '"ho"'),
                sealed=False,
            )
        ),
        r"checksum.*Still readable: settings, usage, origin, tokens, what it may have been\.",
    ),
    "a conversation that is no JSON": (conversation(lambda entry: "{"), "it can't be read"),
    "a conversation that is a list": (conversation(lambda entry: []), "it can't be read"),
    "a conversation of brackets": (
        conversation(lambda entry: "[" * 300_000 + "]" * 300_000),
        "too many entries",
    ),
    "a conversation nested deep": (
        conversation(lambda entry: '{"history":' + "[" * DEEP + "]" * DEEP + "}"),
        "nested more than",
    ),
    "a tool call nested deep": (
        conversation(
            lambda entry: entry["history"][0].update(
                tool_calls=[{"a": json.loads("[" * 300 + "]" * 300)}]
            )
        ),
        "nested more than",
    ),
    "a conversation without history": (conversation(lambda e: {}), "messages"),
    "a history that is an object": (conversation(lambda e: e.update(history={})), "messages"),
    "a history that is null": (conversation(lambda e: e.update(history=None)), "messages"),
    "a history of text": (conversation(lambda e: e.update(history=["hi"])), "messages"),
    "instructions that are a number": (conversation(lambda e: e.update(instructions=1)), "type"),
    "a date that is a number": (conversation(lambda e: e.update(date=5)), "date"),
    "a date that is no date": (conversation(lambda e: e.update(date="today")), "date"),
    "a date without a zone": (conversation(lambda e: e.update(date="2024-02-29")), "date"),
    "template arguments that are a list": (
        conversation(lambda e: e.update(template_kwargs=[])),
        "type",
    ),
    "template arguments that are no number": (
        conversation(lambda e: e.update(template_kwargs={"x": float("nan")})),
        "JSON can't express",
    ),
    "instructions that are no text": (
        conversation(lambda e: '{"instructions": "\\ud800", "history": []}'),
        "JSON can't express",
    ),
    "a message without role": (
        conversation(lambda e: e["history"].append({"content": "x"})),
        "messages",
    ),
    "a message of a bad role": (message(role="wizard"), "messages"),
    "a message of no content": (message(content=None), "messages"),
    "a message with a field too many": (message(wit="dry"), "messages"),
    "a message whose calls are text": (message(tool_calls="call"), "messages"),
    "a message whose name is a number": (message(name=3), "messages"),
    "a message with half a character": (message(content="\ud800"), "messages"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(path, sound, case):
    change, words = REFUSED[case]
    path.write_bytes(change(sound))
    with pytest.raises(SessionFileFormatError, match=f"(?s){words}") as caught:
        SessionFile.read(path)
    assert str(path) in str(caught.value)
    assert caught.value.remedy
    assert len(str(caught.value)) < 600 + len(str(path))
    # Opening says the same, and leaves no lock.
    with pytest.raises(SessionFileFormatError, match=f"(?s){words}"):
        ChatSession.open(path, FakeEngine(say))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_what_is_readable_of_a_damaged_conversation(path, sound):
    path.write_bytes(REFUSED["a conversation changed by a letter"][0](sound))
    with pytest.raises(SessionFileFormatError) as caught:
        SessionFile.read(path)
    readable = caught.value.readable
    assert set(readable) == {"settings", "usage", "origin", "tokens", "conversation"}
    assert readable["conversation"].messages[0].content == "ho"
    assert "hi" in readable["tokens"]
    assert readable["origin"].fingerprint == "fake"


def test_what_is_readable_if_hardly_anything_is(path, sound):
    file = Parts.of(sound)
    for part in ("conversation", "settings", "usage", "tokens"):
        file.tell(part, "{")
        file.metadata[f"segue.{part}"] = "}"
    file.metadata["segue.origin"] = "no"
    path.write_bytes(file.join())
    with pytest.raises(SessionFileFormatError, match="Still readable: nothing") as caught:
        SessionFile.read(path)
    assert caught.value.readable == {}


# --- places --------------------------------------------------------------------------------------


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "socket", "ring", "below a file"])
def test_what_is_no_regular_file(tmp_path, kind):
    path = tmp_path / "talk.segue"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        # A socket's name must be short.
        path = tmp_path / "s"
        with socket.socket(socket.AF_UNIX) as server:
            here = os.open(tmp_path, os.O_RDONLY)
            server.bind(f"/proc/self/fd/{here}/s") if os.path.exists(
                "/proc/self/fd"
            ) else path.touch()
            os.close(here)
        if not path.is_socket():
            pytest.skip("the name is too long for a socket here")
    elif kind == "ring":
        path.symlink_to(path)
    else:
        path.touch()
        path = path / "talk.segue"
    before = sorted(tmp_path.iterdir())
    for read in (SessionFile.read, lambda path: ChatSession.open(path, FakeEngine(say))):
        with pytest.raises(SessionFileError, match="could not be read") as caught:
            read(path)
        assert not isinstance(caught.value, SessionNotFoundError)
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_that_may_not_be_read(path, sound, monkeypatch):
    path.write_bytes(sound)
    path.chmod(0)
    if os.access(path, os.R_OK):  # the superuser may read any file
        real = os.open

        def refuse(name, *args, **kwargs):
            if os.fspath(name) == str(path):
                raise PermissionError(13, os.strerror(13))
            return real(name, *args, **kwargs)

        monkeypatch.setattr(os, "open", refuse)
    for read in (SessionFile.read, lambda path: ChatSession.open(path, FakeEngine(say))):
        with pytest.raises(SessionFileError, match="Permission denied"):
            read(path)


def test_what_is_no_path():
    for path in (None, 3, b"talk.segue"):
        with pytest.raises(ConfigurationError):
            SessionFile.read(path)


def test_parts_that_are_named_are_those_of_the_file(sound):
    assert {name.partition(".")[0] for name in Parts.of(sound).entries} <= set(STATES)
