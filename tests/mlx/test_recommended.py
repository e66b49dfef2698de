"""What a model's publisher recommends: read, checked, offered, and never a reason to fail."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest

import segue
from kit.chats import talk
from kit.command import run
from kit.gguf_files import write_model
from kit.models import write_folder
from segue import ChatSession, GenerationConfig, ModelWarning
from segue.cli.chat.start import in_force
from segue.recommended import Recommends, recommended_settings
from segue.testing import FakeEngine

QWEN = {
    "bos_token_id": 1,
    "do_sample": True,
    "eos_token_id": [1, 2],
    "pad_token_id": 1,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "transformers_version": "4.51.0",
    "max_new_tokens": 32768,
    "suppress_tokens": [5],
}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "model"
    write_folder(folder)
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "model"))


def test_the_file_of_a_folder(folder):
    (folder / "generation_config.json").write_text(json.dumps(QWEN))
    engine = segue.load(folder)
    assert isinstance(engine, Recommends)
    assert engine.recommended == GenerationConfig(temperature=0.6, top_k=20, top_p=0.95)
    # Offered, and not taken without being asked for.
    assert ChatSession(engine).generation == GenerationConfig()
    session = ChatSession(engine, generation=engine.recommended)
    session.respond("Hello", max_tokens=2)


def test_a_folder_without_the_file(folder):
    (folder / "generation_config.json").unlink(missing_ok=True)
    assert segue.load(folder).recommended == GenerationConfig()


def test_an_engine_of_ones_own(folder):
    engine = segue.load(folder)
    made = segue.MlxEngine(engine.model, engine.tokenizer)
    assert made.recommended == GenerationConfig()
    made.recommended = GenerationConfig(temperature=0.5)
    assert made.recommended.temperature == 0.5


@pytest.fixture
def repository(folder, tmp_path, monkeypatch) -> Path:
    """The folder of a repository in the local hub cache, which is called someone/tiny."""
    hub = tmp_path / "hub"
    snapshot = hub / "models--someone--tiny" / "snapshots" / "0123abc"
    (folder / "generation_config.json").write_text(json.dumps(QWEN))
    shutil.copytree(folder, snapshot)
    refs = hub / "models--someone--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    return snapshot


def test_a_repository_in_the_local_hub_cache(repository):
    engine = segue.load("someone/tiny")
    assert (engine.name, engine.source) == ("someone/tiny", "someone/tiny")
    assert engine.recommended.temperature == 0.6


@pytest.mark.parametrize("kind", ["no JSON", "a list", "ends that are text"])
def test_a_repository_with_a_bad_file(repository, kind):
    (repository / "generation_config.json").write_bytes(BAD_FILES[kind])
    with pytest.warns(ModelWarning, match=r"generation_config\.json can't be read"):
        engine = segue.load("someone/tiny")
    assert engine.recommended == GenerationConfig()
    ChatSession(engine).respond("Hi", max_tokens=3)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, {}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, {}),
        ({"do_sample": None, "temperature": 0.7}, {"temperature": 0.7}),
        ({"do_sample": True, "temperature": 0.0}, {}),
        ({"temperature": 1, "top_k": 64.0}, {"temperature": 1.0, "top_k": 64}),
        ({"top_k": -1, "top_p": 1.0, "repetition_penalty": 1.0}, {}),
        ({"top_k": None, "temperature": None}, {}),
        ({"repetition_penalty": 1.05, "min_p": 0.1}, {"repetition_penalty": 1.05, "min_p": 0.1}),
        ({"temperature": 0.6000000238418579}, {"temperature": 0.6}),
        ({"repetition_context_size": -1}, {"repetition_context_size": 2**31 - 1}),
        ({"max_tokens": 5, "seed": 3, "stop": "x", "prefill_step_size": 1}, {}),
    ],
)
def test_what_is_taken(found, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert recommended_settings(found, "it") == GenerationConfig(**expected)


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "min_p", "repetition_penalty"])
@pytest.mark.parametrize(
    "value",
    ["0.6", "", [0.6], {"a": 1}, True, float("nan"), float("inf"), -5, -0.5, 10**400, 1e308],
    ids=lambda value: str(value)[:9],
)
def test_a_value_that_is_no_settings_is_left_out(name, value):
    with pytest.warns(ModelWarning, match=f"it recommends .* left out: {name} must be") as caught:
        found = recommended_settings(
            {name: value, "top_p" if name != "top_p" else "min_p": 0.5}, "it"
        )
    assert len(caught) == 1
    assert getattr(found, name) == getattr(GenerationConfig(), name)
    assert 0.5 in (found.top_p, found.min_p)


BAD_FILES = {
    "no JSON": b"{",
    "empty": b"",
    "a list": b"[1, 2]",
    "a number": b"7",
    "null": b"null",
    "not text": b"\xff\xfe{",
    "deep": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "long": b'{"temperature": 0.5, "a": "' + b"x" * 2**21 + b'"}',
    "a long number": b'{"temperature": ' + b"9" * 5000 + b"}",
    "ends that are text": b'{"eos_token_id": "</s>", "temperature": 0.5}',
    "ends that are nested": b'{"eos_token_id": [[1], 2]}',
    "an end that is negative": b'{"eos_token_id": -1}',
    "an end that is true": b'{"eos_token_id": true}',
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_breaks_nothing(folder, kind):
    (folder / "generation_config.json").unlink(missing_ok=True)
    good = segue.load(folder)
    (folder / "generation_config.json").write_bytes(BAD_FILES[kind])
    with pytest.warns(ModelWarning, match=r"generation_config\.json can't be read"):
        engine = segue.load(folder)
    assert engine.recommended == GenerationConfig()
    assert engine.name == good.name
    assert engine.tokenizer.eos_token_ids == good.tokenizer.eos_token_ids
    assert ChatSession(engine).respond("Hi", max_tokens=3) == ChatSession(good).respond(
        "Hi", max_tokens=3
    )


def test_a_file_that_is_a_folder(folder):
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "generation_config.json").mkdir()
    with pytest.warns(ModelWarning, match="can't be read"):
        segue.load(folder)


def test_a_bad_value_names_the_file(folder):
    (folder / "generation_config.json").write_text('{"temperature": "hot", "top_k": 5}')
    with pytest.warns(ModelWarning, match=r"generation_config\.json of model .* temperature"):
        engine = segue.load(folder)
    assert engine.recommended == GenerationConfig(top_k=5)


def test_the_keys_of_a_gguf_file(tmp_path):
    found = {
        "general.sampling.temp": np.float32(0.6),
        "general.sampling.top_p": np.float32(0.95),
        "general.sampling.top_k": np.int32(20),
        "general.sampling.penalty_last_n": np.int32(256),
    }
    write_model(tmp_path / "model.gguf", metadata={key: v.item() for key, v in found.items()})
    assert segue.load(tmp_path / "model.gguf").recommended == GenerationConfig(
        temperature=0.6, top_p=0.95, top_k=20, repetition_context_size=256
    )


def test_bad_keys_of_a_gguf_file(tmp_path):
    found = {"general.sampling.temp": "hot", "general.sampling.top_p": 7.0}
    write_model(tmp_path / "model.gguf", metadata=found)
    with pytest.warns(ModelWarning) as caught:
        engine = segue.load(tmp_path / "model.gguf")
    assert ["temperature" in str(caught[0].message), "top_p" in str(caught[1].message)] == [
        True
    ] * 2
    assert engine.recommended == GenerationConfig()


class Advised(FakeEngine):
    recommended = GenerationConfig(temperature=0.6, top_k=20)


def test_the_chat_says_what_is_in_force():
    asked = "temperature 0.6, top k 20"
    assert in_force(FakeEngine(), GenerationConfig()) == ""
    assert in_force(Advised(), GenerationConfig()) == (
        f"The model's publisher recommends {asked}; --recommended uses it."
    )
    assert in_force(Advised(), GenerationConfig(temperature=0.6)) == (
        f"The model's publisher recommends {asked}; some of it is in force."
    )
    assert in_force(Advised(), GenerationConfig(temperature=0.6, top_k=20, max_tokens=5)) == (
        f"In force, as the model's publisher recommends: {asked}."
    )


def test_a_chat_uses_it_when_asked_to(tmp_path):
    path = str(tmp_path / "talk.segue")
    settings = {
        "offered": talk(engine=Advised()),
        "asked for": talk(engine=Advised(), recommended=True),
        "with another option": talk(
            engine=Advised(),
            recommended=True,
            given={"temperature"},
            generation=GenerationConfig(temperature=0.1),
        ),
        "no advice": talk(recommended=True),
        "saved": talk("Hi", engine=Advised(), session=path),
        "resumed": talk(engine=Advised(), session=path, recommended=True),
    }
    found = {
        name: (chat.session.generation.temperature, chat.session.generation.top_k)
        for name, chat in settings.items()
    }
    assert found == {
        "offered": (0.0, 0),
        "asked for": (0.6, 20),
        "with another option": (0.1, 20),
        "no advice": (0.0, 0),
        "saved": (0.0, 0),
        "resumed": (0.6, 20),
    }


def test_the_command_has_the_option(monkeypatch):
    seen = []
    monkeypatch.setattr("segue.cli.chat.run.run", lambda *arguments: seen.append(arguments[1]))
    assert run("chat", "--recommended") == 0
    assert run("chat") == 0
    assert [start.recommended for start in seen] == [True, False]
