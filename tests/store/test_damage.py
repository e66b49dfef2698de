"""Session files that are damaged or hostile: what that costs is told."""

from __future__ import annotations

import pytest

from kit.altered_files import (
    Parts,
    goes_on,
    header,
    meta,
    parts,
    told,
)
from kit.sessions import say
from segue import (
    ChatSession,
    SessionFile,
    SessionWarning,
    load_prompt_cache,
)
from segue.testing import FakeEngine


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


CUT = ("file", "cache", "checkpoints")

LOST = {
    "a cut payload": (lambda raw: raw[:-1], CUT, "cut off"),
    "no payload": (lambda raw: raw[: 8 + int.from_bytes(raw[:8], "little")], CUT, "cut off"),
    "trailing bytes": (lambda raw: raw + b"\0", CUT, "1 bytes follow"),
    "a name twice": (header(double("settings")), CUT, "occurs twice"),
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
    "offsets that are texts": (entry_of("cache.ids", data_offsets=["0", "8"]), CUT, "position"),
    "three offsets": (entry_of("cache.ids", data_offsets=[0, 1, 2]), CUT, "position"),
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
        parts(lambda f: f.data.extend(b"gap") or f.add("cache.more", "U8", [1], b"x")),
        CUT,
        "gap",
    ),
    "a tensor of no part": (
        parts(lambda f: f.add("weights", "U8", [1], b"x")),
        ("file",),
        "belongs to no section",
    ),
    "a tensor of a part without name": (
        parts(lambda f: f.add("cache.", "U8", [1], b"x")),
        ("file",),
        "belongs to no section",
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
        "can't be used",
    ),
    "settings of colour": (generation(**{"\x1b[31m" * 99: 1}), ("settings",), "can't be used"),
    "a bias of a list": (generation(logit_bias=[[[], 1]]), ("settings",), "can't be used"),
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
    "a fixed date that is a number": (
        told("settings", lambda e: e.update(fixed_date=1)),
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
        parts(lambda f: f.tell("cache", "[]")),
        ("cache",),
        "can't be read",
    ),
    "the prefix's data": (with_part("prefix"), ("prefix",), "checksum"),
    "the marks' text": (unsealed("marks"), ("checkpoints",), "checksum"),
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
    assert not set(file.stored) & set(names)
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
    with pytest.warns(SessionWarning, match="the next turn reads the conversation again"):
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
    with ChatSession(engine, prompt_cache=cache) as session:
        session.generation = session.generation
        session.respond("hi")
        session.save(path)
    file = Parts.of(path.read_bytes())
    file.data[file.entries["prefix.ids"]["data_offsets"][0]] ^= 1
    path.write_bytes(file.join())
    whole = SessionFile.read(path)
    with pytest.warns(SessionWarning, match="prefix before the conversation is lost"):
        session = ChatSession.open(path, FakeEngine(say))
    assert not session.has_cache
    goes_on(session, whole)


def test_tokens_that_do_not_spell_their_text_are_not_used(tmp_path):
    """A file with sound checksums may be forged; its cache is of other ids than it names."""
    path = tmp_path / "talk.segue"
    with ChatSession(FakeEngine(["hello"]), instructions="Be brief.") as session:
        session.respond("Hi")
        session.save(path)
    file = Parts.of(path.read_bytes())
    tokens = file.told("tokens")
    tokens["ids"][3] += 1
    file.tell("tokens", tokens)
    path.write_bytes(file.join())
    with pytest.warns(SessionWarning, match="do not spell the text"):
        session = ChatSession.open(path, FakeEngine(["fine"]))
    assert (session.cached_tokens, len(session.history)) == (0, 2)
    assert session.respond("And?") == "fine"
