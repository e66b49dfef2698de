"""Every truncation and every flipped bit of a session file is found."""

from __future__ import annotations

import random
import warnings

import pytest

from kit.altered_files import goes_on, make
from kit.sessions import say
from segue import ChatSession, SessionFile, SessionFileFormatError, SessionWarning
from segue.testing import FakeEngine


def detected(path, whole: SessionFile, raw: bytes) -> bool:
    """Whether reading shows that the file is damaged; if it has a conversation, it is the one."""
    path.write_bytes(raw)
    try:
        file = SessionFile.read(path)
    except SessionFileFormatError:
        return True
    assert file.conversation == whole.conversation
    return bool(file.damage)


@pytest.fixture
def place(tmp_path):
    """Where many files are written in turn."""
    return tmp_path / "damaged.segue"


@pytest.fixture
def whole(path, sound):
    path.write_bytes(sound)
    return SessionFile.read(path)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> bytes:
    return make(tmp_path_factory.mktemp("large") / "talk.segue", questions=["how are you? " * 20])


def test_every_truncation_in_the_header(place, whole, sound):
    start = 8 + int.from_bytes(sound[:8], "little")
    assert 1500 < start < 5000
    for size in range(start):
        assert detected(place, whole, sound[:size]), size


def test_truncations_in_the_payload(place, path, large):
    path.write_bytes(large)
    whole = SessionFile.read(path)
    start = 8 + int.from_bytes(large[:8], "little")
    points = range(start, len(large), max(1, (len(large) - start) // 250))
    assert len(points) >= 200
    for size in points:
        assert detected(place, whole, large[:size]), size


def flip(raw: bytes, bit: int) -> bytearray:
    damaged = bytearray(raw)
    damaged[bit // 8] ^= 1 << bit % 8
    return damaged


@pytest.mark.timeout(600)
def test_every_flipped_bit_in_the_header(place, whole, sound):
    start = 8 + int.from_bytes(sound[:8], "little")
    for bit in range(start * 8):
        assert detected(place, whole, flip(sound, bit)), bit


def test_flipped_bits_in_the_payload(place, path, large):
    path.write_bytes(large)
    whole = SessionFile.read(path)
    start = 8 + int.from_bytes(large[:8], "little")
    bits = random.Random(7).sample(range(start * 8, len(large) * 8), 1000)
    for bit in bits:
        assert detected(place, whole, flip(large, bit)), bit


def test_damaged_files_are_opened_and_gone_on_with(place, whole, sound):
    """A sample of all these: the conversation with a warning and the right reply, or an error."""
    dice = random.Random(11)
    files = [flip(sound, dice.randrange(len(sound) * 8)) for _ in range(150)]
    files += [sound[: dice.randrange(len(sound))] for _ in range(50)]
    opened = 0
    for raw in files:
        place.write_bytes(raw)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                session = ChatSession.open(place, FakeEngine(say, trimmable=False))
            except SessionFileFormatError:
                continue
        assert any(issubclass(warning.category, SessionWarning) for warning in caught)
        goes_on(session, whole)
        opened += 1
    assert 20 < opened < len(files)
