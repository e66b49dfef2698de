"""Whatever stands in a file, its reader gives a session or a typed error: soon, and in bounds."""

from __future__ import annotations

import json
import os
import tracemalloc
import warnings
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kit.altered_files import STATES, TEXTS, Parts, join
from kit.sessions import check_ledger, say
from kit.work import calls, times_as_long
from segue import ChatSession, SegueError, SessionFile, Text
from segue.testing import FakeEngine

# Of each of three ways; more on demand: SEGUE_FUZZ_RUNS=100000.
RUNS = int(os.environ.get("SEGUE_FUZZ_RUNS", "3400"))
FUZZ = settings(
    max_examples=RUNS,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

NUMBERS = st.sampled_from(
    [0, 1, -1, 0.5, 2**31, 2**53, 2**64, -(2**63), 10**400, 1e308, float("inf"), float("nan")]
)
TEXT = st.sampled_from(["", "a", "0", "user", "error", "\ud800", "\0", "é" * 20, "0" * 64, "[[[["])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "talk.segue"


def places(value: Any, path: tuple = ()):
    """Every place in a value, as the way there."""
    yield path
    if isinstance(value, dict):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value))[:6]
    else:
        return
    for key, child in children:
        yield from places(child, (*path, key))


@st.composite
def changed(draw, value: Any) -> Any:
    """A value, with something in it replaced, dropped, renamed, doubled, or wrapped."""
    way = draw(st.sampled_from(list(places(value))))
    other = draw(VALUES)
    if not way:
        return other
    parent = value
    for key in way[:-1]:
        parent = parent[key]
    last, act = way[-1], draw(st.sampled_from(["put", "put", "put", "drop", "more", "wrap"]))
    if act == "put":
        parent[last] = other
    elif act == "drop":
        del parent[last]
    elif act == "wrap":
        parent[last] = draw(st.sampled_from([[parent[last]], {"a": parent[last]}]))
    elif isinstance(parent, list):
        parent.insert(last, draw(st.sampled_from([other, parent[last]])))
    else:
        parent[draw(TEXT)] = other
    return value


@st.composite
def files(draw, raw: bytes) -> bytes:
    """A sound file changed in a part's JSON, or its header's; most with the right checksums."""
    file = Parts.of(raw)
    for _ in range(draw(st.integers(1, 3))):
        part = draw(st.sampled_from([*TEXTS, *TEXTS, "cache", "marks", "header", "metadata"]))
        if part == "header":
            entries = draw(changed(file.entries))
            file.entries = entries if isinstance(entries, dict) else {"cache.x": entries}
        elif part == "metadata":
            metadata = draw(changed(file.metadata))
            if not isinstance(metadata, dict):
                return join({"__metadata__": metadata, **file.entries}, file.data)
            file.metadata = metadata
        else:
            try:
                value = draw(changed(file.told(part)))
            except (ValueError, KeyError, TypeError):
                continue
            text = json.dumps(value)
            if draw(st.integers(0, 9)) == 0:
                text = text.replace('"', draw(st.sampled_from(["", "'", '""', "[" * 50])), 1)
            file.metadata[f"segue.{part}"] = text
    try:
        if draw(st.integers(0, 5)):
            file.seal()
        return file.join(sealed=draw(st.integers(0, 5)) > 0)
    except (TypeError, LookupError, AttributeError, ValueError):
        # What has no checksum, since it is no text or has no place.
        return file.join(sealed=False)


def check(place, raw: bytes) -> SessionFile | None:
    place.write_bytes(raw)
    file = None

    def read() -> None:
        nonlocal file
        with suppress(SegueError):
            file = SessionFile.read(place, load=True)

    assert calls(read) < 2000 + 2 * len(raw)
    if file is None:
        return None
    for message in file.history:
        parts = message.content
        assert isinstance(parts, str) or all(isinstance(part, Text) for part in parts)
        assert isinstance(message.text, str)
    assert file.usage.prefill_seconds >= 0
    assert isinstance(file.title, str)
    return file


@pytest.mark.timeout(1200 + RUNS // 5)
@settings(FUZZ)
@given(data=st.data())
def test_changed_files(place, sound, data):
    raw = data.draw(files(sound))
    file = check(place, raw)
    if file is None:
        return
    # Whatever is read can be gone on with.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            session = ChatSession.open(place, FakeEngine(say, trimmable=False))
        except SegueError:
            return
    check_ledger(session)
    session.close()


@pytest.mark.timeout(1200 + RUNS // 5)
@settings(FUZZ)
@given(
    raw=st.binary(max_size=200)
    | st.builds(join, st.binary(max_size=200) | st.text(max_size=100), st.binary(max_size=20))
    | st.builds(lambda value: join(value, b""), VALUES)
    | st.builds(
        lambda metadata, value: join({"__metadata__": metadata, "cache.x": value}, b"abc"),
        st.dictionaries(
            st.sampled_from(["segue.format", "segue.version", "segue.conversation", "x"]),
            st.sampled_from(["session", "1", "{}", "2", ""]) | VALUES,
        ),
        VALUES,
    )
)
def test_any_bytes(place, raw):
    assert check(place, raw) is None


@pytest.mark.timeout(1200 + RUNS // 5)
@settings(FUZZ)
@given(data=st.data())
def test_changed_bytes(place, sound, data):
    raw = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw)))
        piece = data.draw(
            st.binary(max_size=4) | st.sampled_from([b'"', b"[", b"{", b"\\u", b",1"])
        )
        raw[at : at + data.draw(st.integers(0, 3))] = piece
    file = check(place, bytes(raw))
    if file is not None:
        place.write_bytes(sound)
        assert file.conversation == SessionFile.read(place).conversation


# --- memory and time, bounded by the file's size ------------------------------------------------

MB = 2**20
# The factor between the two sizes that each case is read in.
GROWTH = 8


def with_text(raw: bytes, part: str, text: str) -> bytes:
    file = Parts.of(raw)
    file.tell(part, text)
    return file.join()


def with_tensors(raw: bytes, count: int) -> bytes:
    file = Parts.of(raw)
    for number in range(count):
        file.add(f"cache.{number}", "U8", [1], b"x")
    file.seal()
    return file.join()


def sized(raw: bytes, size: int) -> bytes:
    file = Parts.of(raw)
    file.add("cache.large", "U8", [size], bytes(size))
    file.seal(["cache"])
    return file.join()


# Hostile files that have some megabytes, or less where `mb` is less than one.
LARGE = {
    "brackets in a header": lambda raw, mb: join("[" * 4 * mb, b""),
    "empty lists in a header": lambda raw, mb: join("[" + "[]," * mb + "1]", b""),
    "names in a header": lambda raw, mb: join(
        "{" + ",".join(f'"{number}":""' for number in range(300_000 * mb // MB)) + "}", b""
    ),
    "the same name in a header": lambda raw, mb: join("{" + '"":0,' * mb + '"":0}', b""),
    "open quotes in a header": lambda raw, mb: join('{"' + "[" * mb + '\\"' * mb, b""),
    "quotes in a header": lambda raw, mb: join('{"' + "[" * mb + '""' * mb, b""),
    "metadata of brackets": lambda raw, mb: join('{"__metadata__":' + "[" * 4 * mb, b""),
    "metadata of open quotes": lambda raw, mb: join(
        '{"__metadata__":{"' + "[" * mb + '\\"' * mb, b""
    ),
    "brackets in a conversation": lambda raw, mb: with_text(raw, "conversation", "[" * 4 * mb),
    "lists in a conversation": lambda raw, mb: with_text(
        raw, "conversation", '{"a":[' + "[]," * mb + "1]}"
    ),
    "objects in a conversation": lambda raw, mb: with_text(
        raw, "conversation", '{"a":[' + "{}," * mb + "1]}"
    ),
    "messages": lambda raw, mb: with_text(
        raw,
        "conversation",
        '{"history":[' + ",".join(['{"role":"user","content":""}'] * (50_000 * mb // MB)) + "]}",
    ),
    "a long message of brackets": lambda raw, mb: with_text(
        raw, "conversation", json.dumps({"history": [{"role": "user", "content": "[{" * mb}]})
    ),
    "a message that does not end": lambda raw, mb: with_text(
        raw, "conversation", '{"history":[{"role":"user","content":"' + "[" * mb + '\\"' * mb
    ),
    "tokens": lambda raw, mb: with_text(
        raw, "tokens", '{"text":"","seams":[[0,0]],"ids":[' + "7," * mb + "7]}"
    ),
    "tokens of many digits": lambda raw, mb: with_text(
        raw,
        "tokens",
        '{"text":"","seams":[[0,0]],"ids":[' + ("9" * 4000 + ",") * (500 * mb // MB) + "7]}",
    ),
    "numbers of too many digits": lambda raw, mb: with_text(raw, "usage", '{"a":' + "9" * mb + "}"),
    "floats": lambda raw, mb: with_text(raw, "settings", '{"a":[' + "1e0," * mb + "1]}"),
    "turns": lambda raw, mb: with_text(
        raw, "usage", '{"turns":[' + "{}," * (90_000 * mb // MB) + "{}]}"
    ),
    "tensors": lambda raw, mb: with_tensors(raw, 20_000 * mb // MB),
    "a large tensor": lambda raw, mb: sized(raw, 16 * mb),
    "a tensor as large as none": lambda raw, mb: join(
        {
            "__metadata__": {},
            "x": {"dtype": "U8", "shape": [2**31 - 1] * 8, "data_offsets": [0, 1]},
        },
        b"x",
    ),
}


@pytest.mark.parametrize("case", LARGE)
def test_memory_and_time_are_bounded_by_the_file_s_size(tmp_path, sound, case):
    small, large = tmp_path / "small", tmp_path / "large"
    # Both are past the bound on brackets: what has fewer is read in another, cheaper way.
    small.write_bytes(LARGE[case](sound, MB // 4))
    large.write_bytes(LARGE[case](sound, GROWTH * MB // 4))
    size = large.stat().st_size
    tracemalloc.start()
    try:
        check_quietly(large)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Python's objects take more room than their text: a number of one digit eight bytes, an empty
    # object 72. Arrays take their own size.
    assert peak < (40 if "large" not in case else 1.5) * size + 4 * MB, f"{peak / size:.1f}"
    # What grows with the square of the size takes eight times as much of it again.
    ratio = times_as_long(lambda: check_quietly(large), lambda: check_quietly(small))
    assert ratio < 4 * GROWTH


def check_quietly(place) -> None:
    with suppress(SegueError):
        SessionFile.read(place, load=True)


def test_arrays_that_are_checked_only_are_not_held(place, sound):
    place.write_bytes(sized(sound, 16 * MB))
    tracemalloc.start()
    file = SessionFile.read(place)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert file.damage == {}
    assert peak < 3 * MB


def test_parts_are_those_that_are_changed(sound):
    names = {key.split(".")[1] for key in Parts.of(sound).metadata}
    assert {*TEXTS, "cache", "marks"} <= names <= {*TEXTS, *STATES, "format", "version", "header"}
