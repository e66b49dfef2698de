"""Paths that begin with ``~``, wherever one is taken."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import segue
from kit.command import run
from kit.gguf_files import write_model
from kit.models import write_folder
from segue import ChatSession, GenerationConfig
from segue.names import cache_folder
from segue.testing import FakeEngine


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("kind", [str, Path])
def test_a_model_file(home, kind):
    write_model(home / "model.gguf")
    engine = segue.load(kind("~/model.gguf"))
    assert (engine.name, engine.source) == ("model", str(home / "model.gguf"))


def test_a_model_folder(home):
    write_folder(home / "model")
    assert segue.load("~/model").source == str(home / "model")


@pytest.mark.parametrize("kind", [str, Path])
def test_sessions_and_prompt_caches(home, kind):
    session = ChatSession(FakeEngine(["Hello!"]), instructions="Be brief.")
    session.respond("Hi")
    session.save(kind("~/talk.segue"))
    session.save_cache(kind("~/talk.json"))
    session.close()
    assert {file.name for file in home.iterdir()} == {"talk.segue", "talk.json"}
    ChatSession.open(kind("~/talk.segue"), FakeEngine()).close()
    assert segue.SessionFile.read(kind("~/talk.segue")).conversation.instructions == "Be brief."
    assert segue.load_prompt_cache(kind("~/talk.json"), FakeEngine()).conversation.messages


def test_a_name_that_begins_so_and_is_no_users(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = ChatSession(FakeEngine())
    session.save("~nosuchuser.segue")
    session.close()
    write_model(tmp_path / "~nosuchuser.gguf")
    assert (tmp_path / "~nosuchuser.segue").exists()
    assert segue.load("~nosuchuser.gguf").name == "~nosuchuser"


def test_a_tilde_elsewhere_is_a_letter(home, monkeypatch):
    monkeypatch.chdir(home)
    (home / "a~").mkdir()
    session = ChatSession(FakeEngine())
    session.save("a~/x~.segue")
    session.close()
    assert (home / "a~" / "x~.segue").exists()


def test_the_cache_folder(home, monkeypatch):
    monkeypatch.setenv("SEGUE_CACHE", "~/models")
    assert cache_folder() == home / "models"


def test_the_command(home, monkeypatch):
    write_folder(home / "model")
    (home / "text.txt").write_text("Be brief.")
    assert run("cache-prompt", "--model=~/model", "~/text.txt", "--output=~/out.safetensors") == 0
    assert (home / "out.safetensors").exists()
    session = ChatSession(FakeEngine(["Hello!"]), generation=GenerationConfig(max_tokens=1))
    session.respond("Hi")
    session.save(home / "talk.segue")
    session.close()
    assert run("sessions", "export", "~/talk.segue", "--output=~/talk.md") == 0
    assert (home / "talk.md").exists()
    seen = []
    monkeypatch.setattr("segue.cli.chat.run.run", lambda *arguments: seen.append(arguments[1]))
    assert run("chat", "--cache=~/out.safetensors") == 0
    assert seen[0].prompt_cache == home / "out.safetensors"
    shutil.rmtree(home / "model")
