"""Arguments that a session does not take: named, typed, and refused before anything changes."""

from __future__ import annotations

import inspect
import typing

import pytest

import segue
from segue import (
    CacheConfig,
    ChatSession,
    ConfigurationError,
    GenerationConfig,
    HistoryError,
    MessageError,
    MlxEngine,
    UnknownArgumentError,
)
from segue.testing import BareEngine, FakeEngine

ENGINES = [FakeEngine, BareEngine]
MISSPELT = {
    "a session's": (
        lambda: ChatSession(FakeEngine(), instruction="x"),
        r"ChatSession has no 'instruction'\. Did you mean instructions\?",
    ),
    "a setting of replies, given to a session": (
        lambda: ChatSession(FakeEngine(), temperature=1.0),
        r"no 'temperature'\. .*generation=GenerationConfig\(temperature=",
    ),
    "the same, misspelt": (
        lambda: ChatSession(FakeEngine(), temprature=1.0),
        r"no 'temprature'\. .*generation=GenerationConfig\(temperature=",
    ),
    "a setting of the cache, given to a session": (
        lambda: ChatSession(FakeEngine(), kv_bits=8),
        r"no 'kv_bits'\. .*cache=CacheConfig\(kv_bits=",
    ),
    "like nothing": (
        lambda: ChatSession(FakeEngine(), qqq=1),
        r"no 'qqq'\. Use any of: engine, instructions, history,",
    ),
    "a setting of replies": (
        lambda: GenerationConfig(temprature=1),
        r"GenerationConfig has no 'temprature'\. Did you mean temperature\?",
    ),
    "a setting of the cache, given to replies": (
        lambda: GenerationConfig(kv_bits=8),
        r"It belongs to the session's cache",
    ),
    "a setting of the cache": (
        lambda: CacheConfig(kv_bit=8),
        r"CacheConfig has no 'kv_bit'\. Did you mean kv_bits\?",
    ),
    "a setting of replies, given to the cache": (
        lambda: CacheConfig(temperature=1),
        r"It is a setting of replies",
    ),
    "a model's": (
        lambda: segue.load("smollm2", revison="main"),
        r"load has no 'revison'\. Did you mean revision\?",
    ),
    "an engine's": (
        lambda: MlxEngine(None, None, nme="x"),
        r"MlxEngine has no 'nme'\. Did you mean name\?",
    ),
    "an override": (
        lambda: ChatSession(FakeEngine(["a"])).respond("x", max_token=3),
        r"A reply has no 'max_token'\. Did you mean max_tokens\?",
    ),
}


@pytest.mark.parametrize("kind", MISSPELT)
@pytest.mark.parametrize("error", [UnknownArgumentError, ConfigurationError, TypeError, ValueError])
def test_a_misspelt_argument(kind, error):
    call, message = MISSPELT[kind]
    with pytest.raises(error, match=message):
        call()


def test_a_missing_argument_is_pythons_own_error():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'engine'"):
        ChatSession()


@pytest.mark.parametrize("call", [ChatSession, GenerationConfig, CacheConfig, segue.load])
def test_signatures_stay_what_they_are(call):
    parameters = inspect.signature(call).parameters
    assert "args" not in parameters
    assert "kwargs" not in parameters
    assert len(parameters) >= 3
    assert call is segue.load or typing.get_type_hints(call.__init__)
    assert call.__name__ in ("ChatSession", "GenerationConfig", "CacheConfig", "load")


class Named(ChatSession):
    """A subclass with arguments and attributes of its own."""

    def __init__(self, *args, title="x", **kwargs):
        super().__init__(*args, **kwargs)
        self.title = title


def test_a_misspelt_attribute():
    session = ChatSession(FakeEngine(["a", "b"]))
    for name, near in [("instruction", "instructions"), ("generations", "generation")]:
        with pytest.raises(AttributeError, match=rf"no attribute '{name}'\. Did you mean {near}\?"):
            setattr(session, name, "x")
    with pytest.raises(AttributeError, match=r"no attribute 'qqq'\.$"):
        session.qqq = 1
    session.instructions = "Be brief."
    assert session.instructions == "Be brief."


def test_a_subclass_may_keep_what_it_likes():
    session = Named(FakeEngine(["a", "b"]), title="one", instructions="Be brief.")
    session.notes = ["x"]
    branch = session.fork()
    assert (branch.title, branch.notes) == ("one", ["x"])
    with pytest.raises(UnknownArgumentError, match="instructions"):
        Named(FakeEngine(), instruction="x")


def test_a_test_may_replace_a_verb(monkeypatch):
    session = ChatSession(FakeEngine())
    monkeypatch.setattr(session, "respond", lambda prompt: "Hello!")
    assert session.respond("Hi") == "Hello!"


@pytest.mark.parametrize("junk", ["yes", 1, 0, None, [], "False"])
@pytest.mark.parametrize("make", ENGINES)
def test_a_switch_is_on_or_off(make, junk, tmp_path):
    session = ChatSession(make(["a", "b", "c"]))
    session.respond("Hi")
    live = session.stream("And now?")
    before = session.history
    for call in (
        lambda: session.respond("x", reasoning=junk),
        lambda: session.retry(reasoning=junk),
        lambda: session.save(tmp_path / "talk.segue", kv=junk),
    ):
        with pytest.raises(ConfigurationError, match="must be True or False, not"):
            call()
    assert not live.ended
    assert session.history == before
    assert not list(tmp_path.iterdir())


REFUSED = {
    "undo text": (lambda session: session.undo("x"), HistoryError, "from 1 to 2, not 'x'"),
    "undo nothing": (lambda session: session.undo(0), HistoryError, "from 1 to 2, not 0"),
    "undo too much": (lambda session: session.undo(3), HistoryError, "from 1 to 2, not 3"),
    "undo half": (lambda session: session.undo(1.0), HistoryError, "not 1.0"),
    "edit nowhere": (lambda session: session.edit(4, "x"), HistoryError, "from 0 to 3, not 4"),
    "edit before": (lambda session: session.edit(-5, "x"), HistoryError, "not -5"),
    "edit text": (lambda session: session.edit("x", "x"), HistoryError, "not 'x'"),
    "edit to no text": (lambda session: session.edit(0, 5), MessageError, "must be text"),
    "edit to half": (lambda session: session.edit(0, "\ud800"), MessageError, "surrogate"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("make", ENGINES)
def test_what_is_refused_does_not_end_a_live_reply(make, kind):
    call, error, message = REFUSED[kind]
    session = ChatSession(make(["abc", "defg"]))
    session.respond("Hi")
    live = session.stream("And now?")
    next(live)
    before = session.history
    with pytest.raises(error, match=message):
        call(session)
    assert not live.ended
    assert session.history == before
    for _ in live:
        pass
    assert session.history[-1].text == "defg"


@pytest.mark.parametrize("make", ENGINES)
def test_a_live_reply_is_among_what_can_be_taken_back(make):
    session = ChatSession(make(["abc", "defg", "hi"]))
    session.respond("Hi")
    next(session.stream("And now?"))
    live = session.stream("And then?")
    next(live)
    taken = session.edit(-1, "hm")
    assert live.ended
    assert [message.role for message in taken] == [segue.Role.ASSISTANT]
    assert session.history[-1].text == "hm"


def test_one_turn_is_called_one():
    session = ChatSession(FakeEngine(["a"]))
    session.respond("Hi")
    with pytest.raises(HistoryError, match=r"must be 1, for there is one, not 0\."):
        session.undo(0)


@pytest.mark.parametrize("make", ENGINES)
def test_a_preview_counts_what_a_live_reply_said_so_far(make):
    session = ChatSession(make(["abcdef", "x"]))
    live = session.stream("Hi")
    silent = session.preview("And now?").prompt_tokens
    for _ in range(4):
        next(live)
    spoken = session.preview("And now?").prompt_tokens
    assert not live.ended
    live.close()
    assert silent + 4 == spoken == session.preview("And now?").prompt_tokens


@pytest.mark.parametrize("make", ENGINES)
def test_a_preview_beside_a_silent_retry(make):
    session = ChatSession(make(["abcdef", "x"]))
    session.respond("Hi")
    expected = session.preview("And now?").prompt_tokens
    live = session.stream_retry()
    # A retry that says nothing leaves the history as it was.
    assert session.preview("And now?").prompt_tokens == expected
    live.close()
    assert len(session.history) == 2
