"""Session files that are damaged or hostile: each kind is a typed error, or a loss that is told."""

from __future__ import annotations

import json
import os
import socket
import struct

import pytest
from ledgers import say
from session_files import STATES, Parts, goes_on, join, make

from segue import (
    ChatSession,
    ConfigurationError,
    SessionFile,
    SessionFileError,
    SessionFileFormatError,
    SessionNotFoundError,
    SessionWarning,
    load_prompt_cache,
)
from segue.testing import FakeEngine

DEEP = 500


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> bytes:
    return make(tmp_path_factory.mktemp("sound") / "talk.segue")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "talk.segue"


# --- what is no session, or none that can be read: one typed error each ---------------------------


def parts(change):
    """A case that changes a file's parts; the header's checksum is made right."""

    def make_case(raw: bytes) -> bytes:
        file = Parts.of(raw)
        file = change(file) or file
        return file.join()

    return make_case


def meta(**changes):
    def change(file: Parts) -> None:
        for key, value in changes.items():
            name = "segue." + key
            if value is None:
                file.metadata.pop(name, None)
            else:
                file.metadata[name] = value

    return parts(change)


def conversation(change):
    """A conversation that is not one, with the right checksum."""

    def put(file: Parts) -> None:
        entry = file.told("conversation")
        changed = change(entry)
        file.tell("conversation", entry if changed is None else changed)

    return parts(put)


def header(change):
    """Another header, as text."""

    def make_case(raw: bytes) -> bytes:
        start = 8 + int.from_bytes(raw[:8], "little")
        return join(change(raw[8:start].decode().rstrip()), raw[start:])

    return make_case


def message(**changes):
    return conversation(lambda entry: entry["history"][0].update(changes))


REFUSED = {
    "an empty file": (lambda raw: b"", "no safetensors file"),
    "seven bytes": (lambda raw: raw[:7], "no safetensors file"),
    "text": (lambda raw: b"# A talk\n\nHello there, this is Markdown.\n", "can't be read as"),
    "a zip archive": (lambda raw: b"PK\x03\x04" + bytes(60), "can't be read as a session"),
    "a header of no length": (lambda raw: bytes(8) + raw[8:], "no safetensors file"),
    "a header longer than files": (lambda raw: b"\xff" * 8 + b"{}", "no safetensors file"),
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
        "a name stands twice",
    ),
    "metadata that are a list": (lambda raw: join({"__metadata__": []}, b""), "not all text"),
    "metadata that are null": (lambda raw: join({"__metadata__": None}, b""), "no session"),
    "no metadata": (lambda raw: join({}, b""), "no session"),
    "weights": (
        lambda raw: join({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        "but no session",
    ),
    "a prompt cache": (
        lambda raw: join({"__metadata__": {"0.segue_version": "1", "1.0": "KVCache"}}, b""),
        "no session.*load_prompt_cache",
    ),
    "another format": (meta(format="album"), "no session"),
    "no format": (meta(format=None), "no session"),
    "no version": (meta(version=None), "no sound version"),
    "a newer version": (meta(version="2"), "version 2, newer"),
    "a far newer version": (meta(version="9" * 5000), "newer"),
    "a version that is no number": (meta(version="one"), "no sound version"),
    "a version of nought": (meta(version="0"), "no sound version"),
    "a version with a sign": (meta(version="-1"), "no sound version"),
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
        r"checksum.*Still readable: settings, usage, origin, tokens, conversation\.",
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


# --- what costs something, but not the conversation -----------------------------------------------


def told(part, change):
    """A part whose text is another, with the right checksum."""

    def put(file: Parts) -> None:
        entry = file.told(part)
        changed = change(entry)
        file.tell(part, entry if changed is None else changed)

    return parts(put)


def generation(**changes):
    return told("settings", lambda entry: entry["generation"].update(changes))


def turn(**changes):
    return told("usage", lambda entry: entry["turns"][0].update(changes))


def entry_of(name, **changes):
    return parts(lambda file: file.entries[name].update(changes))


def unsealed_header(raw: bytes) -> bytes:
    file = Parts.of(raw)
    file.metadata["segue.header"] = "0" * 63 + "1"
    return file.join(sealed=False)


def flipped_tensor(file: Parts) -> None:
    file.data[0] ^= 1


def unsealed(part):
    return parts(lambda file: file.tell(part, file.metadata["segue." + part] + " ", sealed=False))


def with_part(part):
    """A part that is not what its checksum says, with an array."""

    def put(file: Parts) -> None:
        file.add(f"{part}.x", "U8", [3], b"abc")
        file.tell(part, {}, sealed=True)
        file.data[-1] ^= 1

    return parts(put)


def double(name):
    return lambda text: text.replace(f'"segue.{name}":', f'"segue.{name}":"","segue.{name}":', 1)


CUT = ("file", "cache", "marks")

LOST = {
    "a cut payload": (lambda raw: raw[:-1], CUT, "cut off"),
    "no payload": (lambda raw: raw[: 8 + int.from_bytes(raw[:8], "little")], CUT, "cut off"),
    "trailing bytes": (lambda raw: raw + b"\0", CUT, "1 bytes follow"),
    "a name twice": (header(double("settings")), CUT, "stands twice"),
    "an unknown type": (entry_of("cache.ids", dtype="Q4"), CUT, "type"),
    "a type that is a list": (entry_of("cache.ids", dtype=[]), CUT, "type"),
    "a shape that is a number": (entry_of("cache.ids", shape=3), CUT, "rank"),
    "a shape of nine": (entry_of("cache.ids", shape=[1] * 9), CUT, "rank"),
    "a huge shape": (entry_of("cache.ids", shape=[2**31 - 1] * 8), CUT, "size"),
    "an endless shape": (entry_of("cache.ids", shape=[10**400]), CUT, "shape"),
    "a negative shape": (entry_of("cache.ids", shape=[-1]), CUT, "shape"),
    "a shape of true": (entry_of("cache.ids", shape=[True]), CUT, "shape"),
    "negative offsets": (entry_of("cache.ids", data_offsets=[-8, 0]), CUT, "size"),
    "offsets the wrong way": (entry_of("cache.ids", data_offsets=[8, 0]), CUT, "size"),
    "offsets that are texts": (entry_of("cache.ids", data_offsets=["0", "8"]), CUT, "place"),
    "three offsets": (entry_of("cache.ids", data_offsets=[0, 1, 2]), CUT, "place"),
    "an entry too many": (entry_of("cache.ids", wit=1), CUT, "description"),
    "an entry that is text": (parts(lambda f: f.extra.update(x="y")), CUT, "description"),
    "overlapping tensors": (
        parts(
            lambda f: f.entries.update(
                {"cache.more": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}
            )
        ),
        CUT,
        "overlaps",
    ),
    "a gap between tensors": (
        parts(lambda f: (f.data.extend(b"gap"), f.add("cache.more", "U8", [1], b"x"))[:0] or None),
        CUT,
        "gap",
    ),
    "a tensor of no part": (
        parts(lambda f: f.add("weights", "U8", [1], b"x")),
        ("file",),
        "belongs to no part",
    ),
    "a tensor of a part without name": (
        parts(lambda f: f.add("cache.", "U8", [1], b"x")),
        ("file",),
        "belongs to no part",
    ),
    "a tensor of a missing part": (
        parts(lambda f: f.add("draft.x", "U8", [1], b"x")),
        ("draft",),
        "missing",
    ),
    "a header of another checksum": (unsealed_header, ("header",), "checksum"),
    "no header checksum": (meta(header=None), ("header",), "checksum"),
    "the settings' checksum": (unsealed("settings"), ("settings",), "checksum"),
    "no settings": (meta(settings=None), ("settings",), "missing"),
    "settings that are no JSON": (told("settings", lambda e: "{"), ("settings",), "can't be read"),
    "settings that are impossible": (generation(temperature=-1), ("settings",), "temperature"),
    "settings that are code": (generation(logits_processors=[]), ("settings",), "code"),
    "settings that are unknown": (generation(wit=1), ("settings",), "wit"),
    "settings that are a list": (
        told("settings", lambda e: e.update(generation=[1])),
        ("settings",),
        "can't be",
    ),
    "settings of colour": (generation(**{"\x1b[31m" * 99: 1}), ("settings",), "can't be"),
    "a bias of a list": (generation(logit_bias=[[[], 1]]), ("settings",), "can't be"),
    "a draft of a million tokens": (
        told("settings", lambda e: e.update(prompt_lookup_tokens=10**6)),
        ("settings",),
        "num_draft_tokens",
    ),
    "an overflow that is code": (
        told("settings", lambda e: e.update(on_overflow="os.system")),
        ("settings",),
        "wrong type",
    ),
    "names of what was left out that are a text": (
        told("settings", lambda e: e.update(left_out="abc")),
        ("settings",),
        "names",
    ),
    "the usage's checksum": (unsealed("usage"), ("usage",), "checksum"),
    "a usage below nought": (turn(fed_tokens=-1), ("usage",), "counted"),
    "a usage that is no number": (turn(prefill_seconds=float("nan")), ("usage",), "counted"),
    "a usage without end": (turn(decode_seconds=float("inf")), ("usage",), "counted"),
    "a usage of half a token": (turn(fed_tokens=0.5), ("usage",), "counted"),
    "a usage of true": (turn(fed_tokens=True), ("usage",), "counted"),
    "a usage beyond floats": (turn(decode_seconds=10**400), ("usage",), "counted"),
    "a usage of text": (told("usage", lambda e: e.update(turns="abc")), ("usage",), "form"),
    "a usage with a field too many": (turn(wit=1), ("usage",), "form"),
    "an origin of numbers": (told("origin", lambda e: e.update(source=1)), ("origin",), "type"),
    "an origin at no time": (told("origin", lambda e: e.update(saved=0)), ("origin",), "time"),
    "an origin at a time of no zone": (
        told("origin", lambda e: e.update(saved="2025-01-01T00:00:00")),
        ("origin",),
        "time",
    ),
    "an origin before all time": (
        told("origin", lambda e: e.update(saved="0001-01-01T00:00:00+23:00")),
        ("origin",),
        "time",
    ),
    "the tokens' checksum": (unsealed("tokens"), ("tokens",), "checksum"),
    "tokens that are not whole": (
        told("tokens", lambda e: e["ids"].__setitem__(0, 0.5)),
        ("tokens",),
        "form",
    ),
    "tokens that are text": (told("tokens", lambda e: e.update(ids="abc")), ("tokens",), "form"),
    "tokens below nought": (
        told("tokens", lambda e: e["ids"].__setitem__(0, -1)),
        ("tokens",),
        "form",
    ),
    "seams that do not ascend": (
        told("tokens", lambda e: e["seams"].insert(1, e["seams"][-1])),
        ("tokens",),
        "form",
    ),
    "seams that are text": (
        told("tokens", lambda e: e.update(seams=[["0", "0"], ["1", str(len(e["text"]))]])),
        ("tokens",),
        "form",
    ),
    "seams beyond the ids": (
        told("tokens", lambda e: e["seams"][-1].__setitem__(0, 10**6)),
        ("tokens",),
        "form",
    ),
    "no seams": (told("tokens", lambda e: e.update(seams=[])), ("tokens",), "form"),
    "a text shorter than its seams": (
        told("tokens", lambda e: e.update(text=e["text"][:-1])),
        ("tokens",),
        "form",
    ),
    "a text that is none": (
        told("tokens", lambda e: e.update(text="\ud800" + e["text"][1:])),
        ("tokens",),
        "form",
    ),
    "a flipped bit in the cache": (parts(flipped_tensor), ("cache",), "checksum"),
    "the cache's text": (unsealed("cache"), ("cache",), "checksum"),
    "a cache that is no object": (
        parts(lambda f: (f.tell("cache", "[]"), None)[1]),
        ("cache",),
        "can't be read",
    ),
    "the prefix's data": (with_part("prefix"), ("prefix",), "checksum"),
    "the marks' text": (unsealed("marks"), ("marks",), "checksum"),
    "the draft's data": (with_part("draft"), ("draft",), "checksum"),
}


@pytest.mark.parametrize("case", LOST)
def test_what_is_lost_is_told(path, sound, case):
    path.write_bytes(sound)
    whole = SessionFile.read(path)
    change, names, words = LOST[case]
    path.write_bytes(change(sound))
    file = SessionFile.read(path, load=True)
    assert set(file.damage) == set(names)
    assert any(words in why for why in file.damage.values())
    assert all(why.isprintable() and len(why) < 300 for why in file.damage.values())
    assert file.conversation == whole.conversation
    assert not set(file.parts) & set(names)
    for part in ("settings", "usage", "origin"):
        expected = type(getattr(whole, part))() if part in names else getattr(whole, part)
        assert getattr(file, part) == expected
    with pytest.warns(SessionWarning) as caught:
        session = ChatSession.open(path, FakeEngine(say, trimmable=False))
    assert len(caught) >= 1
    goes_on(session, whole)


def test_the_reply_after_damage_is_that_of_a_fresh_prefill(path, sound):
    """What a re-encoded history makes the model say, since the fake's words depend on all ids."""
    path.write_bytes(LOST["a flipped bit in the cache"][0](sound))
    whole = SessionFile.read(path)
    with pytest.warns(SessionWarning, match="The next turn reads the conversation again"):
        session = ChatSession.open(path, FakeEngine(say, trimmable=False))
    assert session.cached_tokens == 0
    goes_on(session, whole)


@pytest.mark.parametrize("change", [lambda ids: ids[:-1], lambda ids: [*ids, 97]])
def test_tokens_that_are_not_as_many_as_the_cache_holds(path, sound, change):
    def put(entry):
        entry["ids"] = change(entry["ids"])
        entry["seams"], entry["text"] = [[0, 0]], ""

    path.write_bytes(told("tokens", put)(sound))
    whole = SessionFile.read(path)
    assert whole.damage == {}
    with pytest.warns(SessionWarning, match="another number of tokens"):
        session = ChatSession.open(path, FakeEngine(say, trimmable=False))
    goes_on(session, whole)


def test_a_damaged_prefix_costs_the_prefix(path, tmp_path):
    engine = FakeEngine(say)
    (tmp_path / "prefix").write_text('{"ids": [65, 66, 67], "metadata": {}}')
    cache = load_prompt_cache(tmp_path / "prefix", engine)
    with ChatSession(engine, cache=cache) as session:
        session.generation = session.generation
        session.respond("hi")
        session.save(path)
    file = Parts.of(path.read_bytes())
    file.data[file.entries["prefix.ids"]["data_offsets"][0]] ^= 1
    path.write_bytes(file.join())
    whole = SessionFile.read(path)
    with pytest.warns(SessionWarning, match="prefix that stood in front"):
        session = ChatSession.open(path, FakeEngine(say))
    assert not session.has_cache
    goes_on(session, whole)


def test_what_is_readable_of_a_damaged_conversation(path, sound):
    path.write_bytes(REFUSED["a conversation changed by a letter"][0](sound))
    with pytest.raises(SessionFileFormatError) as caught:
        SessionFile.read(path)
    readable = caught.value.readable
    assert set(readable) == {"settings", "usage", "origin", "tokens", "conversation"}
    assert readable["conversation"].history[0].content == "ho"
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
