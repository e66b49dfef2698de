"""Sessions saved and opened: what comes back, what is set aside, and who may have the file."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import warnings

import pytest

from kit.probe import context_of, engine_of, has_opaque_prefix, held
from kit.sessions import SHORT, check_ledger, say, talk
from segue import (
    CacheConfig,
    ChatSession,
    ConfigurationError,
    GenerationConfig,
    Message,
    SessionFile,
    SessionFileError,
    SessionFileFormatError,
    SessionLockedError,
    SessionNotFoundError,
    SessionWarning,
    load_prompt_cache,
)
from segue.testing import FakeEngine

CALL = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "é", "n": 1.5}}}


@pytest.mark.parametrize("trimmable", [True, False])
def test_a_session_goes_on_where_it_was_saved(path, trimmable):
    session = talk("one", "two", trimmable=trimmable, instructions="Be brief.")
    session.save(path)
    again = ChatSession.open(path, FakeEngine(say, trimmable=trimmable))
    assert again.history == session.history
    assert again.instructions == "Be brief."
    assert again.generation == session.generation
    assert again.usage == session.usage
    assert held(again) == held(session)
    check_ledger(again)
    with again.stream("three") as reply:
        said = "".join(response.text for response in reply)
    with session.stream("three") as never_stopped:
        assert "".join(response.text for response in never_stopped) == said
    assert reply.cached_tokens == never_stopped.cached_tokens > 0
    assert again.usage.turns[-1].fed_tokens == session.usage.turns[-1].fed_tokens
    check_ledger(again)


def test_messages_come_back_with_all_their_fields(path):
    history = [
        Message.system("é\n\U0001f600"),
        Message.user("hi", name="Ada"),
        Message.assistant("", tool_calls=[CALL], reasoning='I "think"'),
        Message.tool("noon", name="clock", tool_call_id="1"),
        Message.assistant("\\ \x1b \u2028"),
    ]
    kwargs = {"tools": [{"name": "clock"}], "enable_thinking": False, "n": None}
    session = talk(history=history, template_kwargs=kwargs)
    session.save(path)
    again = ChatSession.open(path, FakeEngine(say))
    assert again.history == tuple(history)
    assert again.template_kwargs == kwargs
    assert again.instructions is None


def test_settings_come_back(path):
    config = GenerationConfig(
        max_tokens=7,
        temperature=0.5,
        logit_bias={3: -1.5, 4: 2.0},
        stop=["é", "x"],
        seed=2**63,
        repetition_penalty=1.1,
        num_draft_tokens=3,
    )
    cache = CacheConfig(kv_bits=4, max_checkpoints=3)
    session = talk(
        "hi", generation=config, cache=cache, draft="prompt-lookup", on_overflow="drop-oldest"
    )
    session.save(path)
    settings = SessionFile.read(path).settings
    assert settings.generation == config
    assert settings.cache == cache
    assert settings.draft == "prompt-lookup"
    assert settings.on_overflow == "drop-oldest"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = ChatSession.open(path, FakeEngine(say))
    assert (again.generation, again.cache) == (config, cache)
    assert again.cached_tokens == session.cached_tokens


def test_every_setting_is_in_the_file(path):
    talk().save(path)
    settings = SessionFile.read(path).settings
    fields = {field.name for field in dataclasses.fields(GenerationConfig)}
    # The form on disk has the fields of the cache beside them, two of them under older names.
    names = {"max_checkpoints": "max_marks", "max_checkpoint_bytes": "max_mark_bytes"}
    fields |= {names.get(field.name, field.name) for field in dataclasses.fields(CacheConfig)}
    assert json.loads(settings.to_json())["generation"].keys() == fields - {"logits_processors"}


def test_what_is_code_is_not_saved_and_said_to_be_missing(path):
    config = dataclasses.replace(SHORT, logits_processors=[lambda tokens, logits: logits])
    draft = FakeEngine(say)
    session = talk("hi", generation=config, on_overflow=list, draft=draft)
    session.save(path)
    with pytest.warns(SessionWarning) as caught:
        again = ChatSession.open(path, FakeEngine(say))
    told = " ".join(str(warning.message) for warning in caught)
    assert all(name in told for name in ("logits_processors", "on_overflow", "draft model fake"))
    assert again.generation == SHORT
    assert again.cached_tokens == session.cached_tokens
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ChatSession.open(path, FakeEngine(say), generation=config, on_overflow=list, draft=draft)


def test_overrides(path):
    session = talk("hi", instructions="Be brief.", template_kwargs={"a": 1})
    session.save(path)
    config = GenerationConfig(max_tokens=3)
    again = ChatSession.open(
        path, FakeEngine(say), generation=config, instructions="Be long.", template_kwargs={}
    )
    assert (again.generation, again.instructions) == (config, "Be long.")
    assert again.template_kwargs == {}
    assert again.history == session.history
    again.respond("ho")
    check_ledger(again)
    for name in ("history", "prompt_cache", "wit"):
        with pytest.raises(ConfigurationError):
            ChatSession.open(path, FakeEngine(say), **{name: ()})


def test_settings_that_want_another_cache_have_it_read_again(path):
    session = talk("hi")
    session.save(path)
    other = CacheConfig(kv_bits=8)
    again = ChatSession.open(path, FakeEngine(say), cache=other)
    assert again.cache == other
    assert again.cached_tokens == 0
    assert again.respond("ho") == session.respond("ho")


def test_without_its_cache(path):
    session = talk("hi")
    session.save(path, kv=False)
    file = SessionFile.read(path)
    assert (file.stored, file.ledger.ids) == ({}, ())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = ChatSession.open(path, FakeEngine(say))
    assert not again.has_cache
    assert again.respond("ho") == session.respond("ho")


def test_before_anything_was_said(path):
    talk(instructions="Be brief.").save(path)
    again = ChatSession.open(path, FakeEngine(say))
    assert (again.history, again.instructions, again.has_cache) == ((), "Be brief.", False)
    assert SessionFile.read(path).title == ""


def test_another_model_reads_it_again(path):
    session = talk("hi")
    session.save(path)
    other = FakeEngine(say)
    other.fingerprint = "another"
    with pytest.warns(SessionWarning, match="another model"):
        again = ChatSession.open(path, other)
    assert again.history == session.history
    assert not again.has_cache
    assert again.respond("ho") == session.respond("ho")


def test_an_opaque_prefix_comes_back(path, tmp_path):
    engine = FakeEngine(say)
    (tmp_path / "prefix").write_text('{"ids": [65, 66, 67], "metadata": {}}')
    cache = load_prompt_cache(tmp_path / "prefix", engine)
    session = ChatSession(engine, prompt_cache=cache, generation=SHORT)
    for save_after in ((), ("hi",)):
        for text in save_after:
            session.respond(text)
        session.save(path)
        again = ChatSession.open(path, engine)
        assert has_opaque_prefix(again)
        assert context_of(again).prefix == 3
        assert again.cached_tokens >= 3
    assert held(again) == held(session)
    assert again.respond("ho") == session.respond("ho")
    again.clear()
    again.respond("x")
    assert held(again)[:3] == (65, 66, 67)


def test_a_reader_needs_no_engine(path):
    session = talk("How  do\nrivers flow?", "two", instructions="Be brief.")
    session.save(path)
    file = SessionFile.read(path)
    assert file.title == "How do rivers flow?"
    assert file.history == session.history
    assert file.ledger.ids == held(session)
    assert engine_of(session).tokenizer.decode(file.ledger.ids).startswith(file.ledger.text[:20])
    assert file.usage.fed_tokens == session.usage.fed_tokens
    assert file.origin.fingerprint == "fake"
    assert file.origin.saved is not None
    assert file.damage == {}
    assert file.size == path.stat().st_size
    assert file.stored == {}
    cache = SessionFile.read(path, load=True).stored["cache"]
    assert len(cache.tensors["ids"].data) == 4 * session.cached_tokens


def test_the_file_is_one_that_safetensors_reads(path):
    from safetensors import safe_open

    session = talk("hi")
    session.save(path)
    with safe_open(path, framework="np") as file:
        assert "segue.conversation" in file.metadata()
        assert tuple(file.get_tensor("cache.ids").tolist()) == held(session)


def test_what_json_can_not_say_is_refused_and_nothing_is_written(path):
    session = talk("hi", template_kwargs={"x": object})
    with pytest.raises(SessionFileError, match="JSON"):
        session.save(path)
    assert list(path.parent.iterdir()) == []
    assert session.respond("ho")


@pytest.mark.parametrize("name", ["missing/talk.segue", "folder", "a\0b"])
def test_a_place_that_can_not_be_written(tmp_path, name):
    (tmp_path / "folder").mkdir()
    session = talk("hi")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SessionFileError):
        session.save(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(SessionFileError):
        ChatSession.open(tmp_path / name, FakeEngine(say))
    with pytest.raises(ConfigurationError):
        session.save(3)


def test_a_missing_file(path):
    with pytest.raises(SessionNotFoundError) as caught:
        ChatSession.open(path, FakeEngine(say))
    assert isinstance(caught.value, FileNotFoundError)
    assert list(path.parent.iterdir()) == []


def test_other_files_are_no_sessions(path, tmp_path):
    path.write_bytes(b"no")
    with pytest.raises(SessionFileFormatError):
        SessionFile.read(path)


HOLDER = """
import sys, time
from segue import ChatSession
from segue.testing import FakeEngine

session = ChatSession(FakeEngine(["hello"]))
session.respond("hi")
session.save(sys.argv[1])
print("saved", flush=True)
time.sleep(60)
"""


def test_another_process_has_the_file_until_it_is_killed(path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        holder.stdout.readline()
        for attempt in (lambda: ChatSession.open(path, FakeEngine(say)), lambda: talk().save(path)):
            with pytest.raises(SessionLockedError, match=str(holder.pid)):
                attempt()
        assert SessionFile.read(path).history[0].content == "hi"
        holder.kill()
    with ChatSession.open(path, FakeEngine(say)) as session:
        assert len(session.history) == 2
        session.save(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_within_a_process_a_file_may_be_open_twice(path):
    session = talk("hi")
    session.save(path)
    again = ChatSession.open(path, FakeEngine(say))
    session.close()
    lock = next(file for file in path.parent.iterdir() if file.suffix == ".lock")
    assert lock.exists()
    again.close()
    again.close()
    assert not lock.exists()
    again.save(path)
    del again
    assert not lock.exists()


def test_a_session_goes_on_with_its_latest_file(path, tmp_path):
    session = talk("hi")
    session.save(path)
    session.save(tmp_path / "copy.segue")
    assert len([file for file in tmp_path.iterdir() if file.suffix == ".lock"]) == 1
    session.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["copy.segue", "talk.segue"]


def test_a_live_reply_is_closed_and_saved(path):
    session = talk()
    reply = session.stream("hi")
    next(reply)
    session.save(path)
    assert reply.ended
    assert SessionFile.read(path).history == session.history
    assert len(session.history) == 2


def test_a_model_of_a_name_that_is_no_text(path):
    engine = FakeEngine(say)
    engine.source = "/models/\udcff"  # as Python tells a file's name that is not UTF-8
    with ChatSession(engine, generation=SHORT) as session:
        session.respond("hi")
        session.save(path)
    assert SessionFile.read(path).origin.source == engine.source


def test_what_is_nested_too_deep_is_not_saved(path):
    nested = {}
    for _ in range(150):
        nested = {"a": nested}
    session = talk("hi", template_kwargs={"x": nested})
    with pytest.raises(SessionFileError, match="nested"):
        session.save(path)
    assert list(path.parent.iterdir()) == []


def test_an_opaque_prefix_is_kept_without_the_rest(path, tmp_path):
    engine = FakeEngine(say)
    (tmp_path / "prefix").write_text('{"ids": [65, 66, 67], "metadata": {}}')
    cache = load_prompt_cache(tmp_path / "prefix", engine)
    session = ChatSession(engine, prompt_cache=cache, generation=SHORT)
    session.respond("hi")
    session.save(path, kv=False)
    ((name, prefix),) = SessionFile.read(path, load=True).stored.items()
    assert (name, len(prefix.tensors["ids"].data)) == ("prefix", 12)
    again = ChatSession.open(path, engine)
    assert has_opaque_prefix(again)
    assert again.respond("ho") == session.respond("ho")
    assert held(again)[:3] == (65, 66, 67)


def test_a_subclass_may_save_when_it_closes(path):
    class Careful(ChatSession):
        def close(self):
            self.save(path)
            super().close()

    with Careful(FakeEngine(say), generation=SHORT) as session:
        session.respond("hi")
    assert [file.name for file in path.parent.iterdir()] == [path.name]
