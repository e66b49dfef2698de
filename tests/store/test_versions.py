"""Session files of version 1 open forever: those in data/sessions are kept, and never made anew."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest

from kit.old_sessions import SESSIONS, next_token
from kit.paths import OLD_SESSIONS
from kit.probe import has_opaque_prefix, held, ids_of
from kit.sessions import check_ledger
from segue import CacheConfig, ChatSession, GenerationConfig, Message, Role, SessionFile
from segue.testing import FakeEngine

# What was said, and then: ids in the ledger, bytes of the cache, tokens fed until then, the reply
# to "Go on", and what that turn keeps and feeds.
TALKS = {
    "plain": (["pcbz", "xscu"], 80, 320, 72, "vdxj", 80, 26),
    "tools": (["", "Warm.", "cobay"], 374, 1496, 369, "uibzo", 374, 26),
    "prefix": (["edli"], 28, 124, 24, "kmpz", 31, 26),
    "marks": (["pcbz", "xscu"], 80, 320, 72, "vdxj", 80, 26),
    "without-kv": (["asfu"], 0, 0, 24, "iwwg", 0, 54),
    "long": (
        [
            "greooehfijswkjybtzoa",
            "akpogokgkcafoybafkur",
            "ygjktqqgcfwyqubvjuxl",
            "xlbrbtywzzltgdctzffv",
            "qnclgetrqgesooypztvf",
            "cunxkvaclshdqayuoedn",
            "sqkvasvubuhtchdvhzds",
            "lbpsbyqdqftwzpvaolwi",
            "qpkupynoccyemlpetapt",
            "ixpqpmmphutvtvxglnsx",
            "lbfbnhtofudbcpxgnswn",
            "uncyyogfhfgfqhwerbrv",
        ],
        943,
        3772,
        703,
        "gniexeildyqfjotlslqe",
        943,
        26,
    ),
}


@pytest.fixture
def kept(request, tmp_path):
    """A copy of a kept file: opening one puts a lock beside it."""
    return Path(shutil.copy(OLD_SESSIONS / f"v1-{request.param}.segue", tmp_path))


def test_every_kept_file_is_tried():
    assert {path.name for path in OLD_SESSIONS.glob("v1-*.segue")} >= {
        f"v1-{n}.segue" for n in TALKS
    }
    assert TALKS.keys() == SESSIONS.keys()


def cache_bytes(path) -> int:
    """How many bytes of arrays the cache in a file has."""
    stored = SessionFile.read(path, load=True).stored
    return sum(len(tensor.data) for tensor in stored["cache"].tensors.values()) if stored else 0


@pytest.mark.parametrize(("kept", "name"), [(n, n) for n in TALKS], indirect=["kept"])
def test_version_1_opens_and_goes_on(kept, name):
    said, ids, nbytes, fed, reply, cached, new = TALKS[name]
    file = SessionFile.read(kept)
    assert file.damage == {}
    assert [m.content for m in file.history if m.role is Role.ASSISTANT] == said
    assert len(file.ledger.ids) == ids
    assert cache_bytes(kept) == nbytes
    assert file.usage.fed_tokens == fed
    assert file.origin.fingerprint == file.origin.source == "fake"
    assert file.origin.saved.year >= 2025
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = FakeEngine(next_token, trimmable=SESSIONS[name].trimmable)
        session = ChatSession.open(kept, engine)
    if session.has_cache and name != "prefix":
        check_ledger(session)
    assert session.cached_tokens == cached
    assert session.respond("Go on") == reply
    turn = session.usage.turns[-1]
    assert (turn.cached_tokens, turn.fed_tokens) == (cached, new)
    session.close()


@pytest.mark.parametrize("kept", ["plain"], indirect=True)
def test_a_plain_conversation(kept):
    file = SessionFile.read(kept)
    assert file.instructions == "Be brief."
    assert file.history == (
        Message.user("Hello"),
        Message.assistant("pcbz"),
        Message.user("And now?"),
        Message.assistant("xscu"),
    )
    assert file.title == "Hello"
    assert file.settings.generation == GenerationConfig(max_tokens=4)
    assert file.template_kwargs == {}
    assert [(t.prompt_tokens, t.cached_tokens, t.generated_tokens) for t in file.usage.turns] == [
        (43, 0, 4),
        (76, 47, 4),
    ]


@pytest.mark.parametrize("kept", ["tools"], indirect=True)
def test_tools_reasoning_settings_and_all_letters(kept):
    file = SessionFile.read(kept)
    assert file.instructions == 'Sprich Deutsch: äöü, \\ " \u2028 and \U0001f600.'
    call = {"name": "weather", "arguments": {"in": "Zürich", "n": 1}}
    assert file.history == (
        Message.user("Wie ist das Wetter?", name="Ada"),
        Message.assistant(
            "",
            tool_calls=[{"type": "function", "function": call}],
            reasoning="I should\nlook it up.",
        ),
        Message.tool("21 °C", name="weather", tool_call_id="call-1"),
        Message.assistant("Warm.", reasoning="Not hot."),
        Message.user("Danke 🌍"),
        Message.assistant("cobay"),
    )
    assert file.settings.generation == GenerationConfig(
        max_tokens=5,
        temperature=0.7,
        top_p=0.9,
        seed=2**63,
        stop=("é", "zz"),
        logit_bias={3: -1.5},
        repetition_penalty=1.1,
    )
    assert file.settings.cache == CacheConfig(max_checkpoints=3)
    tools = [{"name": "weather", "strict": None}]
    assert file.template_kwargs == {"tools": tools, "enable_thinking": False}
    assert file.settings.on_overflow == "drop-oldest"


@pytest.mark.parametrize("kept", ["prefix"], indirect=True)
def test_an_opaque_prefix(kept):
    session = ChatSession.open(kept, FakeEngine(next_token))
    assert has_opaque_prefix(session)
    assert held(session)[:3] == (65, 66, 67)
    assert held(session)[3:] == ids_of(session)
    session.clear()
    session.respond("Hello")
    assert held(session)[:3] == (65, 66, 67)
    assert session.history[-1].content == "edli"
    session.close()


@pytest.mark.parametrize("kept", ["marks"], indirect=True)
def test_marks(kept):
    file = SessionFile.read(kept, load=True)
    assert file.stored["checkpoints"].values == {"offsets": [24, 43, 76]}
    session = ChatSession.open(kept, FakeEngine(next_token, trimmable=False))
    assert session.usage.checkpoints == 3
    session.undo()
    assert session.cached_tokens == 43
    assert session.respond("And now?") == "xscu"
    session.close()
